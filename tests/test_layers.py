"""Dependencies point one way: run.py -> harness -> {algorithms, hardware}."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = (
    "worker",
    "place",
    "clock",
    "data",
    "errors",
    "kernels",
    "rows",
    "program",
    "interleaving",
    "measures",
    "shortage",
)
VOCABULARY = {f"harness.{word}" for word in (*WORDS, "splits", "batch", "alike", "shortage")}  # words of all
ALLOWED = {  # package -> what of this project it may import
    "algorithms": VOCABULARY | {"algorithms", "harness.problems"},
    "hardware": VOCABULARY | {"hardware"},
    "harness/problems": VOCABULARY | {"harness.problems", "harness.datasets", "harness.ratings"},
    "run.py": {"harness.cli", "harness.run"},
    "hardware/simulated/launch/__main__.py": {"harness.cli", "harness.build", "harness.errors", "hardware"},
}
COMMANDS = ("run.py", "hardware/simulated/launch/__main__.py")  # what a user starts
ONLY_IN = {"wandb": "harness/tracking.py", "simpy": "hardware/simulated/", "hydra": ("harness/", "run.py")}
PROJECT = ("harness", "algorithms", "hardware", "experiments", "tests")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(package):
    return [ROOT / package] if package.endswith(".py") else sorted((ROOT / package).rglob("*.py"))


def within(module, allowed):
    return any(module == name or module.startswith(name + ".") for name in allowed)


@pytest.mark.parametrize("package", ALLOWED)
def test_layer_imports_only_what_lies_below(package):
    for path in sources(package):
        if path.relative_to(ROOT).as_posix() in COMMANDS and package not in COMMANDS:
            continue
        for module in imports(path):
            if module.split(".")[0] in PROJECT:
                allowed = ALLOWED[package]
                assert within(module, allowed), f"{path.name} imports {module}"


def test_harness_never_imports_experiments():
    for path in sources("harness"):
        assert not [m for m in imports(path) if m.split(".")[0] in ("experiments", "tests")], path


@pytest.mark.parametrize("module", ONLY_IN)
def test_heavy_package_has_one_home(module):
    for package in ("harness", "algorithms", "hardware", "run.py"):
        for path in sources(package):
            if module in {m.split(".")[0] for m in imports(path)}:
                assert path.relative_to(ROOT).as_posix().startswith(ONLY_IN[module]), f"{path} imports {module}"
