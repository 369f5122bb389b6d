"""One script under torchrun with gloo and under the simulator: every value is the same, at float64 to 1e-12."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "scripts" / "parallel_programs.py"
NUM_RANKS = [3, *(pytest.param(each, marks=pytest.mark.slow) for each in (2, 4))]


def values(*command):
    """What every rank printed: by rank and case."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = [
        json.loads(line[line.index("[", 1 if line.startswith("[rank") else 0) :]) for line in done.stdout.splitlines()
    ]
    return {(rank, case): value for rank, case, value in rows}


def same(one, other):
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-15)
    return one == other


@pytest.mark.parametrize("num_ranks", NUM_RANKS)
def test_every_parallel_program_and_collective_computes_what_it_does_on_gloo(num_ranks):
    real = values("torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}", str(SCRIPT))
    launch = ["hardware.simulated.launch", "--num-workers", str(num_ranks), "--log-rank", "all", "--timeline", ""]
    simulated = values(*launch, str(SCRIPT))
    assert len(real) == 32 * num_ranks
    assert real.keys() == simulated.keys()
    for key, value in real.items():
        assert not isinstance(value, str), f"{key} fails on gloo: {value}"
        assert same(value, simulated[key]), f"{key}: gloo {value}, simulated {simulated[key]}"
