"""How true simulated accelerators are: a CUDA device against the file of conf/hardware/compute that describes it.

    python -m experiments.benchmarks.accelerator          # or, of another file: python -m ... h200

Three figures of every case, each beside what the simulator charges, with the signed error predicted / measured - 1:

    device_s    of the device, which has been given all calls before it begins, so that it never waits for the host;
                gaps between kernels are part of it
    host_s      of the host, which issues a call while the device is busy
    elapsed_s   of a call where many follow each other, whichever of the two is slower

Each is the median of several series of calls, warm; the tensors are the same in all calls, so that small ones lie in
the device's cache, as activations of a small model do. Predictions are of the same code on fake tensors of the CPU,
because simulated ranks compute on that: operators that CUDA fuses or chooses otherwise are part of the error.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from experiments.benchmarks.accelerator_cases import Call, Case, cases
from hardware.simulated import optimizers
from hardware.simulated.compute import Roofline
from harness.build import build
from harness.cli import CONF, composed

SERIES, SERIES_S, MAX_CALLS = 7, 0.02, 200
MIN_ISSUED = 10  # calls that a host issues in a row, of which the first find its caches cold
MAX_QUEUED = 500  # operators given to a device that sleeps: its queue takes 1,024 kernels
CYCLES_PER_S = 2e9  # about the fastest clock of any, so that a device sleeps for at least as long as it is told
_OPTIMIZER = optimizers.MODULE
FIGURES = ("device_s", "host_s", "elapsed_s")


def described(name: str) -> Roofline:
    """The accelerator of a file in conf/hardware/compute."""
    return build(composed(["hardware=sim_dgx", f"hardware/compute={name}"]).hardware.compute, "hardware.compute")


def charges(case: Case, roofline: Roofline) -> list[tuple[float, float]]:
    """Seconds to launch and to run each operator of one call, as the simulator charges them."""
    charged: list[tuple[float, float]] = []
    kinds = [*_OPTIMIZER._foreach_supported_types, FakeTensor]
    with (
        FakeTensorMode(),
        optimizers.for_each(lambda: True),
        patch.object(_OPTIMIZER, "_foreach_supported_types", kinds),
    ):
        call = case.build(torch.device("cpu"))
        call()  # an optimizer's first step makes its state
        with roofline.watch(lambda *seconds: charged.append(seconds), lambda: None, lambda: False):
            call()
    return charged


def predicted(charged: list[tuple[float, float]], calls: int = 50) -> dict[str, float]:
    """The figures of a call: those of a stream that a host issues to, as `hardware.simulated.streams` evaluates it."""
    host_s = end_s = 0.0
    for launch_s, run_s in charged * calls:
        host_s += launch_s
        end_s = max(end_s, host_s) + run_s if run_s else end_s
    launched_s, ran_s = (sum(seconds) for seconds in zip(*charged, strict=True))
    return {"device_s": ran_s, "host_s": launched_s, "elapsed_s": max(end_s, host_s) / calls}


def measured(call: Call, operators: int) -> dict[str, float]:
    """The figures of a call on the current CUDA device, medians."""
    for _ in range(3):
        call()
    once_s, _ = _series(call, 1)
    calls = max(1, min(MAX_CALLS, int(SERIES_S / once_s)))
    few = max(1, min(max(calls, MIN_ISSUED), MAX_QUEUED // operators))
    ahead = [_series(call, few, asleep_s=2 * few * once_s + 1e-3) for _ in range(SERIES)]
    device_s, host_s = (statistics.median(figures) for figures in zip(*ahead, strict=True))
    elapsed_s = statistics.median(_series(call, calls)[0] for _ in range(SERIES))
    return {"device_s": device_s, "host_s": host_s, "elapsed_s": elapsed_s}


def _series(call: Call, calls: int, asleep_s: float = 0.0) -> tuple[float, float]:
    """Seconds of a call between two events on the device, and to issue; the device sleeps before the first event."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if asleep_s:
        torch.cuda._sleep(int(min(asleep_s, 0.1) * CYCLES_PER_S))
    begin.record()
    begin_s = time.perf_counter()
    for _ in range(calls):
        call()
    issued_s = time.perf_counter()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e-3 / calls, (issued_s - begin_s) / calls


def compared(case: Case, roofline: Roofline, device: torch.device) -> dict[str, object]:
    """One row: what was measured, what is predicted, and the signed error."""
    torch.set_float32_matmul_precision("high" if case.tf32 else "highest")
    charged = charges(case, roofline)
    found, foretold = measured(case.build(device), len(charged)), predicted(charged)
    torch.cuda.empty_cache()
    row: dict[str, object] = {"group": case.group, "case": case.name, "operators": len(charged)}
    for name in FIGURES:
        row |= {name: _short(found[name]), f"predicted_{name}": _short(foretold[name])}
        row[f"{name.removesuffix('_s')}_error"] = round(foretold[name] / found[name] - 1, 3)
    return row


def errors(rows: list[dict], group: str) -> dict[str, float]:
    """Of a group of cases, the median of the signed errors and of their absolute values."""
    found: dict[str, float] = {}
    for name in ("device_error", "host_error", "elapsed_error"):
        values = [row[name] for row in rows if row["group"] == group]
        found |= {name: statistics.median(values), f"absolute_{name}": statistics.median(map(abs, values))}
    return {name: round(value, 3) for name, value in found.items()}


def _short(seconds: float) -> float:
    return float(f"{seconds:.4g}")


def _files() -> Iterator[str]:
    """Descriptions of accelerators."""
    for file in sorted((CONF / "hardware/compute").glob("*.yaml")):
        if isinstance(compute := described(file.stem), Roofline) and compute.streams:
            yield file.stem


def _chosen(device_name: str) -> str:
    """The file that describes a device: the one that is asked for, or the one in whose name its own is.

    Raises:
        SystemExit: if there is none.
    """
    names = list(_files())
    asked = sys.argv[1:] or [name for name in names if name in device_name.lower()]
    if len(asked) != 1 or asked[0] not in names:
        sys.exit(f"error: {device_name}: name the file that describes it, one of {', '.join(names)}")
    return asked[0]


def main() -> None:
    """Print one JSON line."""
    if not torch.cuda.is_available():
        sys.exit(f"error: this needs a CUDA device, and torch {torch.__version__} sees none here")
    torch.manual_seed(0)
    device_name = torch.cuda.get_device_name()
    compute = _chosen(device_name)
    roofline = described(compute)
    rows = []
    for case in cases():
        rows.append(compared(case, roofline, torch.device("cuda")))
        print(json.dumps(rows[-1]), file=sys.stderr)
    groups = {group: errors(rows, group) for group in dict.fromkeys(str(row["group"]) for row in rows)}
    facts = {"device": device_name, "torch": torch.__version__, "cuda": torch.version.cuda}
    print(json.dumps({"benchmark": "accelerator", "compute": compute, **facts, "groups": groups, "cases": rows}))


if __name__ == "__main__":
    main()
