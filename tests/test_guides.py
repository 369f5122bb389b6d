"""The commands of docs/search.md are executed, with a small budget."""

import re
import shlex
import subprocess
from math import prod
from pathlib import Path

import pytest
from commands import command

GUIDE = (Path(__file__).parents[1] / "docs" / "search.md").read_text()
COMMANDS = re.findall(r"^python run.py ([^\n]+)", GUIDE, re.M)


def executed(line):
    """What is neither a multirun nor real is run when asked for: other tests do the like."""
    return pytest.param(line, marks=() if re.search("-m |=cpu", line) else pytest.mark.slow)


@pytest.mark.parametrize("line", [executed(command) for command in COMMANDS])
def test_commands_run(tmp_path, line):
    shell = re.search(r"\$\((.*)\)", line)
    if shell:
        drawn = subprocess.run(shell[1], shell=True, capture_output=True, text=True, check=True).stdout.strip()
        line = line.replace(shell[0], drawn)
    small = ["problem.hidden_sizes=[4]", "budget.epochs=0.5", "budget.observations=4", "tracking=files"]
    outcome = command(*shlex.split(line), *small, "baseline=none", runs_dir=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    lists = [len(word.split(",")) for word in shlex.split(line) if "space" not in word]
    runs = prod(lists) if "-m " in line else 1
    assert len([*tmp_path.rglob("summary.json")]) == runs


def test_it_has_both_ways():
    assert sum("-m " in line for line in COMMANDS) == 3 and len(COMMANDS) >= 5
