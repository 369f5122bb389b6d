"""What the algorithms cost: lines of code, the harness around them, and simulating them.

    python -m experiments.benchmarks.algorithms [lines | real | simulated] ...

Prints one JSON line with all three parts, or those named.

    lines      code lines (no docstrings, comments, blank lines) of each algorithm's module, and of the parts they share
    real       two processes on digits_mlp: samples/s through the harness, and of the paper's loop written by hand
               (`references.py`; DistributedDataParallel for all_reduce), in turns; `overhead` is the median over pairs
               of seconds per step through the harness over those by hand, less 1
    simulated  host seconds per 1,000 worker-steps on 8 simulated workers, and over those of the bare gradients
"""

import argparse
import ast
import io
import json
import statistics
import time
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from experiments.benchmarks import references
from harness.check import check
from harness.cli import CONF, composed
from harness.setup import compose

Figures = dict[str, Any]
ROOT = Path(__file__).parents[2]
STEPS, PAIRS, REPEATS = 2000, 7, 3
TWO_PROCESSES = {  # settings that the loops by hand have, and how many of the two are workers
    "all_reduce": ((), 2),
    "local_sgd": ((f"algorithm.period={references.PERIOD}",), 2),
    "parameter_server": (("algorithm.consistency=asynchronous",), 1),
    "parameter_server(synchronous)": (("algorithm.consistency=synchronous",), 1),  # of one worker it is the same loop
    "parameter_server(bounded_staleness)": (("algorithm.consistency=bounded_staleness",), 1),
    "gossip": (("algorithm/mixing=ring", "algorithm.overlap=true"), 2),
}
SIMULATED = {
    "all_reduce": (),
    "parameter_server": (),
    "parameter_server(synchronous)": ("algorithm.consistency=synchronous",),
    "local_sgd": (),
    "diloco": (),
    "elastic_averaging": (),
    "gossip": (),
    "stochastic_gradient_push": (),
    "choco_sgd": (),
    "ad_psgd": (),
    "federated": (),
    "fedbuff": (),
}


def code_lines(path: Path) -> int:
    """Without docstrings, comments and blank lines."""
    text = path.read_text(encoding="utf-8")
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {line for token in tokens if token.type not in skip for line in range(token.start[0], token.end[0] + 1)}
    return len(lines - set(_docstring_lines(ast.parse(text))))


def _docstring_lines(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            yield from range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)


def lines() -> Figures:
    """By algorithm of conf/algorithm, and by module that is part of several."""
    targets = {
        path.stem: cast(DictConfig, OmegaConf.load(path))._target_ for path in (CONF / "algorithm").glob("*.yaml")
    }
    files = {name: _file_of(target) for name, target in sorted(targets.items())}
    algorithms = {name: code_lines(file) for name, file in files.items()}
    folder = ROOT / "algorithms"
    shared = sorted({*folder.rglob("*.py")} - {*files.values()})
    parts = {str(file.relative_to(folder).with_suffix("")): count for file in shared if (count := code_lines(file))}
    return {"algorithms": algorithms, "parts": parts, "most": max(algorithms.values())}


def _file_of(target: str) -> Path:
    return ROOT / Path(*target.split(".")[:-1]).with_suffix(".py")


def harness_s(name: str, settings: tuple[str, ...], workers: int, hardware: str, steps: int) -> tuple[float, float]:
    """Seconds of so many steps of every worker: by the run's clock, and by the host's."""
    overrides = [f"algorithm={name}", *settings, "problem=digits_mlp", f"hardware={hardware}", "tracking=none"]
    overrides += [f"hardware.num_workers={workers}", f"algorithm.batch_size={references.BATCH}"]
    config = composed([*overrides, "budget.observations=1"], as_hydra=True)
    epochs = steps * references.BATCH * workers / check(compose(config))[0].problem.num_samples
    config.budget.epochs = epochs
    setup, _ = check(compose(config))
    program, begin_s = setup.program(), time.perf_counter()
    execution = setup.machine.execute(program, lambda samples: None)
    if execution.failure is not None:
        raise execution.failure
    return execution.run_s, time.perf_counter() - begin_s


def real() -> Figures:
    """Samples per second of both, in turns, and what the harness adds."""
    found: Figures = {}
    for name, (settings, workers) in TWO_PROCESSES.items():
        loop, servers = name.partition("(")[0], 2 - workers
        pairs = [
            (harness_s(loop, settings, workers, "cpu", STEPS)[0], references.seconds(loop, workers, servers, STEPS))
            for _ in range(PAIRS + 1)
        ][1:]
        samples = STEPS * references.BATCH * workers
        ratios = sorted(ours / by_hand - 1 for ours, by_hand in pairs)
        found[name] = {
            "samples_per_s": round(samples / statistics.median(ours for ours, _ in pairs)),
            "by_hand_samples_per_s": round(samples / statistics.median(by_hand for _, by_hand in pairs)),
            "overhead": round(statistics.median(ratios), 3),
            "overhead_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        }
    return found


def simulated() -> Figures:
    """Host seconds per 1,000 worker-steps, the bare gradients among them."""
    workers, steps = 8, 60
    cluster = ("hardware/compute=fixed",)
    own = references.Process(0, 1, 1000)

    def bare_s() -> float:
        begin_s = time.perf_counter()
        for _ in own.backward_passes():
            own.descend()
        return time.perf_counter() - begin_s

    rounds: list[dict[str, float]] = []
    for _ in range(REPEATS + 1):
        rounds.append({"bare": bare_s()})
        for name, settings in SIMULATED.items():
            algorithm = name.partition("(")[0]
            _, host_s = harness_s(algorithm, (*settings, *cluster), workers, "sim_ethernet", steps)
            rounds[-1][name] = host_s / (workers * steps) * 1000
    found = {name: statistics.median(each[name] for each in rounds[1:]) for name in rounds[0]}
    seconds = {name: round(value, 3) for name, value in found.items()}
    return {"s_per_1000_steps": seconds, "over_bare": {n: round(v / found["bare"], 2) for n, v in found.items()}}


PARTS: dict[str, Callable[[], Figures]] = {part.__name__: part for part in (lines, real, simulated)}


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="lines | real | simulated", help="all three, unless named")
    names = parser.parse_args().parts
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"{unknown[0]} is none of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    print(json.dumps({"benchmark": "algorithms", **{name: PARTS[name]() for name in names or PARTS}}))


if __name__ == "__main__":
    main()
