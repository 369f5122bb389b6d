"""The README and the page of options are executed: an algorithm of one's own, commands, tables."""

import re
import shlex
from pathlib import Path

import pytest
from commands import command
from composed import options

from harness.cli import GROUPS, description

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
OPTIONS = (ROOT / "docs/options.md").read_text()
FILES = dict(re.findall(r"^`(my_study/\S+)`\n```\w+\n(.*?)```", README, re.M | re.S))
COMMANDS = re.findall(r"^python run.py ([^#\n]+)", README + OPTIONS, re.M)


def test_own_algorithm_is_thirty_lines():
    assert 0 < len(FILES["my_study/my_local_sgd.py"].splitlines()) <= 32


@pytest.mark.parametrize("hardware", ["sim_ethernet", "cpu"])
def test_own_algorithm_runs_from_its_own_folder(tmp_path, hardware):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (line,) = [c for c in COMMANDS if "my_study" in c and f"hardware={hardware}" in c]
    arguments = shlex.split(line.replace("my_study", str(tmp_path / "my_study")))
    outcome = command(*arguments, "tracking=files", runs_dir=tmp_path / "runs")
    assert outcome.returncode == 0, outcome.stderr
    assert "my_local_sgd" in outcome.stdout and "speedup" in outcome.stdout


def labels(text):
    return [line.split()[0] for line in text.splitlines() if re.match(r"  \w", line)]


def test_first_command_prints_what_the_readme_shows(tmp_path):
    outcome = command("algorithm=hogwild", "hardware=numa2", runs_dir=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    (shown,) = re.findall(r"```text\n(.*?)```", README, re.S)
    assert labels(outcome.stdout) == labels(shown)


@pytest.mark.parametrize("line", [c for c in COMMANDS if not re.search("my_study|calibrated|download|--help|-m ", c)])
def test_commands_run(tmp_path, line):
    small = ["budget.epochs=0.2", "tracking=files", "baseline=none"]  # other tests here have a baseline
    outcome = command(*shlex.split(line), *small, runs_dir=tmp_path)
    assert outcome.returncode == 0, outcome.stderr


def test_table_names_every_algorithm():
    (table,) = re.findall(r"^\| family \| .*?\n\n", README, re.M | re.S)
    assert sorted(set(re.findall(r"`(\w+)`", table))) == options("algorithm")


@pytest.mark.parametrize("group", GROUPS)
def test_page_lists_every_option_with_the_line_of_its_file(group):
    (section,) = re.findall(rf"^## `{group}`\n(.*?)(?=^## |\Z)", OPTIONS, re.M | re.S)
    listed = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M))
    files = {name: description(ROOT / "conf" / group / f"{name}.yaml") for name in options(group)}
    assert listed == {name: text.replace("|", "or") for name, text in files.items()}


def test_is_short():
    assert len(README.splitlines()) <= 150
