"""How long a user waits: `--help`, and the smallest complete run. Host seconds of whole commands, medians.

    python -m experiments.benchmarks.startup

The first complete run is a warm-up: it fills the caches of compiled kernels and of the baseline.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
REPEATS = 7


def seconds(arguments: list[str]) -> float:
    """Host seconds of `python run.py` with these arguments."""
    begin_s = time.perf_counter()
    subprocess.run([sys.executable, "run.py", *arguments], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - begin_s


def main() -> None:
    """Print one JSON line."""
    with tempfile.TemporaryDirectory() as runs:
        smallest = ["experiment=smallest", "algorithm=sgd", f"runs_dir={runs}", "baseline=none"]
        cases = {
            "help_s": ["--help"],
            "real_s": [*smallest, "hardware=cpu"],
            "simulated_s": [*smallest, "hardware=sim_cpu"],
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        for repeat in range(REPEATS + 1):
            for name, arguments in cases.items():
                elapsed_s = seconds(arguments)
                if repeat > 0:
                    times[name].append(elapsed_s)
    print(json.dumps({"benchmark": "startup", **{name: round(statistics.median(t), 3) for name, t in times.items()}}))


if __name__ == "__main__":
    main()
