"""The build: every YAML composes, builds and names every field of its dataclass."""

import re
from dataclasses import dataclass, fields
from pathlib import Path

import composed
import pytest
from commands import command
from omegaconf import DictConfig, OmegaConf

from harness import cli
from harness.build import build, group_with, instantiate, target_class, unknown_key
from harness.errors import UserError, require
from harness.options import PROBLEM_HINTS

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("algorithm", "hardware", "problem", "data", "tracking")
SUBGROUPS = (
    "algorithm/optimizer",
    "algorithm/mixing",
    "algorithm/compression",
    "algorithm/partition",
    "algorithm/devices",
    "algorithm/availability",
    "hardware/compute",
    "hardware/memory",
    "hardware/protocol",
)
COMPONENTS = [f"{group}/{path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


def load(component):
    group = component.split("/")[0]
    context = {"problem": PROBLEM_HINTS, "runs_dir": "runs"}
    return OmegaConf.merge(context, {group: composed.node(component)})[group]


def nodes(node, name):
    yield name, node
    for key, child in node.items():
        if isinstance(child, DictConfig) and "_target_" in child:
            yield from nodes(child, f"{name}.{key}")


@pytest.mark.parametrize("told", [["--config-dir", "{}"], ["--config-dir={}"], ["hydra.searchpath=['file://{}']"]])
def test_hints_know_options_of_ones_own(told, tmp_path, monkeypatch):
    (tmp_path / "algorithm/flavour").mkdir(parents=True)
    (tmp_path / "algorithm/mine.yaml").write_text("_target_: mine.Mine\nwarmth: 1\n")
    (tmp_path / "algorithm/flavour/sour.yaml").write_text("_target_: mine.Sour\n")
    assert "algorithm=mine" not in unknown_key("algorithm.warmth", "warmth", ["batch_size"])
    monkeypatch.setattr("sys.argv", ["run.py", *(each.format(tmp_path) for each in told)])
    hint = "it is one of algorithm=mine; here, use one of batch_size"
    assert unknown_key("algorithm.warmth", "warmth", ["batch_size"]) == f"algorithm.warmth is not a setting: {hint}"
    assert group_with("algorithm", "schedule", "sour") == "flavour"
    assert group_with("algorithm", "schedule", "cosine") == "schedule"


@pytest.mark.parametrize("component", COMPONENTS)
def test_yaml_builds_and_names_every_field(component):
    node = load(component)
    build(node, component.split("/")[0])
    for name, part in nodes(node, component):
        assert set(part) - {"_target_"} == {f.name for f in fields(target_class(part, name))}, name


@pytest.mark.parametrize("subgroup", SUBGROUPS)
def test_yaml_of_a_part_builds_and_names_every_field(subgroup):
    for option in composed.options(subgroup):
        part = OmegaConf.load(CONF / subgroup / f"{option}.yaml")
        build(part, subgroup.replace("/", "."))
        assert set(part) - {"_target_"} == {f.name for f in fields(target_class(part, subgroup))}, option


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: p.relative_to(CONF).as_posix())
def test_every_yaml_begins_with_a_line_for_help(path):
    lines = [line for line in path.read_text().splitlines() if "@package" not in line]
    assert lines[0].startswith("# ") and len(lines[0]) > 10


# of a mapping that is empty by default
EXAMPLE = re.compile(r"^(?P<indent> *)(?P<name>\w+): .*#[^{]*(?P<example>\{.*\})")
EXAMPLES = [
    (path.stem, f"hardware.{'network.' * bool(found['indent'])}{found['name']}={found['example']}")
    for path in sorted((CONF / "hardware").glob("sim_*.yaml"))
    for found in filter(None, map(EXAMPLE.match, path.read_text().splitlines()))
]


def test_every_simulated_hardware_has_its_five_examples():
    assert len(EXAMPLES) == 5 * len({hardware for hardware, _ in EXAMPLES}) == 5 * 11


@pytest.mark.parametrize(("hardware", "override"), EXAMPLES, ids=map("-".join, EXAMPLES))
def test_the_examples_in_comments_can_be_typed(hardware, override):
    build(composed.config(f"hardware={hardware}", override).hardware, "hardware").check()


def test_links_between_switches_can_be_named_on_the_command_line(tmp_path):
    options = ["experiment=smallest", "algorithm=all_reduce", "hardware=sim_edges", "hardware.num_workers=4"]
    options += ["problem.samples=1000", "problem.features=10", "baseline=none"]
    slow = command(*options, "hardware.network.background={left-right: 1.2e8}", runs_dir=tmp_path)
    assert slow.returncode == 0, slow.stderr
    wrong = command(*options, "hardware.network.changes={left-wrong: {0.0: 0.5}}", runs_dir=tmp_path)
    assert wrong.stderr.strip().splitlines()[-1] == (
        "error: hardware.network.changes must name links, such as left-right, left-host0, right-left, got left-wrong"
    )


@dataclass(frozen=True)
class Inner:
    depth: int


@dataclass(frozen=True)
class Outer:
    width: float
    inner: Inner
    limit: int | None


def outer(**changes):
    inner = {"_target_": f"{__name__}.Inner", "depth": 3}
    return OmegaConf.create({"_target_": f"{__name__}.Outer", "width": 1.0, "inner": inner, "limit": None} | changes)


def test_nested_components_are_built():
    assert build(outer(), "outer") == Outer(1.0, Inner(3), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widht": 2.0}, "outer.widht is not a setting: did you mean width?"),
        ({"width": "wide"}, "outer.width must be a number, got 'wide'"),
        ({"width": float("inf")}, "outer.width must be finite, got inf"),
        ({"width": "???"}, "outer.width is missing: give it a value"),
        (
            {"inner": {"_target_": f"{__name__}.Inner", "depth": "x"}},
            "outer.inner.depth must be a whole number, got 'x'",
        ),
        ({"inner": {"_target_": f"{__name__}.Inner", "deep": 1}}, "outer.inner.deep is not a setting"),
        ({"inner": {"_target_": f"{__name__}.Inner"}}, "outer.inner.depth is missing"),
        ({"limit": "x"}, "outer.limit must be a whole number, got 'x'"),
    ],
)
def test_mistake_names_the_field(changes, message):
    with pytest.raises(UserError) as error:
        build(outer(**changes), "outer")
    assert str(error.value).startswith(message)


def test_a_whole_number_may_be_a_time_and_a_wrong_value_is_named_with_its_place():
    @dataclass(frozen=True)
    class Slowed:
        slowdowns: dict[int, dict[float, float]]

    assert instantiate(Slowed, {"slowdowns": {3: {5: 2}}}, "hardware").slowdowns == {3: {5.0: 2.0}}
    with pytest.raises(UserError, match=r"hardware\.slowdowns\.3\.5\.0 must be a number, got 'x'"):
        instantiate(Slowed, {"slowdowns": {3: {5: "x"}}}, "hardware")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "data.num_servers=2",
            r"^data\.num_servers is not a setting: it is one of data=streamed; here, use one of order$",
        ),
        (
            "algorithm.space.weight_decay=0.1",
            r"^algorithm\.space\.weight_decay is not among .*: write \+algorithm\.space",
        ),
    ],
)
def test_a_setting_of_another_option_or_a_new_one_of_a_mapping_is_told_how_to_be_typed(override, said):
    with pytest.raises(cli.MISTAKES) as mistake:
        cli.composed(["algorithm=hyperparameter_search", override])
    assert re.search(said, cli.sentence(mistake.value))


def test_one_value_for_a_list_and_null_are_said_as_yaml_has_them():
    with pytest.raises(UserError, match=r"^algorithm\.sizes_bytes must be a list, such as \[1024\], got 1024$"):
        build(cli.composed(["algorithm=primitives", "algorithm.sizes_bytes=1024"]).algorithm, "algorithm")
    with pytest.raises(UserError, match=r"^a must be set, got null$"):
        require(False, "a", "must be set", None)
