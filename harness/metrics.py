"""What a run measured, under the keys of docs/metrics.md: SI units, fractions 0..1, absent where it does not apply.

    T1 / TP = (rP / r1) * (n1 / nP)

    n: samples until the target loss, T: seconds until then, r = n / T; 1: the baseline, P: the run on P workers

so the speedup to the target is the gain in throughput times statistical efficiency (Zhang and Re, VLDB 2014, section 2,
call the two hardware and statistical efficiency).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from hardware.base import Execution, WorkerReport
from harness.errors import require
from harness.place import Observation

Row = dict[str, Any]
Summary = dict[str, Any]

TARGET_KEYS = ("target/value", "target/reached", "target/time_s", "target/samples_per_s", "stat/epochs_to_target")


def history(
    observations: Sequence[Observation],
    evaluations: Sequence[Mapping[str, float]],
    num_samples: int,
    start_host_s: float,
) -> list[Row]:
    """One row per observation, with all axes in each.

    A rate is that of the interval since the row before; a value that is not finite is left out of its row.

    Args:
        observations: in the order of `samples`; the first is the initial model, at 0 samples and 0 seconds.
        evaluations: `Problem.evaluate` of each.
        num_samples: size of the training set.
        start_host_s: `time.perf_counter()` when the run began.
    """
    assert observations[0].samples == 0 and observations[0].time_s == 0, "the first row is the initial model"
    rows: list[Row] = []
    for observation, values in zip(observations, evaluations, strict=True):
        row = {
            "progress/epoch": observation.samples / num_samples,
            "progress/sample": observation.samples,
            "progress/update": observation.updates,
            "time/run_s": observation.time_s,
            "time/wall_s": observation.host_s - start_host_s,
            **_finite(values),
        }
        rows.append(row | (_interval_rates(rows[-1], row) if rows else {}))
    return rows


def first_divergence(
    observations: Sequence[Observation], evaluations: Sequence[Mapping[str, float]]
) -> Observation | None:
    """The first observation with a value that is not finite, or None."""
    for observation, values in zip(observations, evaluations, strict=True):
        if len(_finite(values)) < len(values):
            return observation
    return None


def summarise(
    execution: Execution, rows: Sequence[Row], num_samples: int, num_workers: int, target_loss: float | None
) -> Summary:
    """The whole run in one row: final losses, rates, where the time went, traffic, and the way to the target.

    Args:
        rows: of `history`.
        num_samples: size of the training set.
        target_loss: value of `train/loss` to reach, or None.
    """
    # A run that failed has no reports; its last observation is what is known of its length.
    run_s = execution.run_s or rows[-1]["time/run_s"]
    last = rows[-1]
    return {
        **_finite(execution.metrics),
        **last,
        "time/run_s": run_s,
        "run/num_workers": num_workers,
        **_rates(last["progress/sample"], last["progress/update"], run_s, num_samples),
        **_fractions(execution.workers, run_s),
        **_traffic(execution.workers, last["progress/update"]),
        **_memory(execution.workers),
        **to_target(rows, target_loss),
    }


def to_target(rows: Sequence[Row], target_loss: float | None) -> Summary:
    """When `train/loss` first came down to the target, interpolated linearly between two rows.

    Time, samples and epochs are interpolated by the same fraction. A target met by the initial model has time 0 and no
    rate.

    Args:
        target_loss: None for no target, and no keys.
    """
    if target_loss is None:
        return {}
    found: Summary = {"target/value": target_loss, "target/reached": False}
    crossing = _crossing(rows, target_loss)
    if crossing is None:
        return found
    found |= {
        "target/reached": True,
        "target/time_s": crossing["time/run_s"],
        "stat/epochs_to_target": crossing["progress/epoch"],
    }
    if crossing["time/run_s"] > 0 and crossing["progress/sample"] > 0:
        found["target/samples_per_s"] = crossing["progress/sample"] / crossing["time/run_s"]
    return found


def retarget(summary: Summary, rows: Sequence[Row], target_loss: float | None) -> Summary:
    """The same summary for another target: makes an old run a baseline for a new one."""
    return {key: value for key, value in summary.items() if key not in TARGET_KEYS} | to_target(rows, target_loss)


def compare(summary: Summary, baseline: Summary, self_baseline: Summary | None = None) -> Summary:
    """How much faster the run was than its baseline, and why.

    Where both reached the target, throughput is samples to the target per second to the target, so that the identity
    above holds exactly; otherwise it is that of the whole runs, and the keys of the target are absent.
    `speedup/throughput_over` says which: "target" or "run".

    Args:
        baseline: summary of the sequential run, as recorded (with `run/id`, `run/name` and `run/kind`).
        self_baseline: summary of the same algorithm on one worker, or None.

    Raises:
        UserError: if the runs had different targets (see `retarget`).
    """
    found: Summary = {f"speedup/baseline_{key}": baseline[f"run/{key}"] for key in ("id", "name", "kind")}
    over, ratio = _throughput(summary, baseline)
    if ratio is not None:
        found |= {
            "speedup/throughput": ratio,
            "speedup/throughput_over": over,
            "speedup/parallel_efficiency": ratio / summary["run/num_workers"],
            "speedup/baseline_s": baseline["target/time_s" if over == "target" else "time/run_s"],
        }
    if over == "target":
        found["speedup/time_to_target"] = baseline["target/time_s"] / summary["target/time_s"]
        found["stat/efficiency_ratio"] = baseline["stat/epochs_to_target"] / summary["stat/epochs_to_target"]
        product = found["speedup/throughput"] * found["stat/efficiency_ratio"]
        assert math.isclose(found["speedup/time_to_target"], product, rel_tol=1e-9), (found, product)
    if self_baseline is not None:
        over, ratio = _throughput(summary, self_baseline)
        if ratio is not None:
            found |= {"speedup/self": ratio, "speedup/self_over": over}
    return found


def time_to_best(rows: Sequence[Row], baseline: Sequence[Row]) -> Summary:
    """How much earlier than the baseline a search had the best `train/loss` that both have found.

    Rows are taken as they are: between two of them the best model was that of the first.
    """
    seen = [
        [(row["train/loss"], row["time/run_s"]) for row in each if "train/loss" in row] for each in (rows, baseline)
    ]
    if not all(seen):
        return {}
    loss = max(min(each)[0] for each in seen)
    own_s, baseline_s = (next(time_s for found, time_s in each if found <= loss) for each in seen)
    return {"speedup/time_to_best": baseline_s / own_s, "speedup/best_loss": loss} if own_s > 0 else {}


def _throughput(summary: Summary, baseline: Summary) -> tuple[str, float | None]:
    require(
        summary.get("target/value") == baseline.get("target/value"),
        "target.loss",
        f"must equal the baseline's ({baseline.get('target/value')}): choose baseline=auto, or that target",
        summary.get("target/value"),
    )
    for over, key in (("target", "target/samples_per_s"), ("run", "perf/samples_per_s")):
        if key in summary and key in baseline:
            return over, summary[key] / baseline[key]
    return "", None


def _finite(values: Mapping[str, Any]) -> Row:
    return {key: value for key, value in values.items() if not isinstance(value, Real) or math.isfinite(value)}


def _interval_rates(before: Row, row: Row) -> Row:
    seconds = row["time/run_s"] - before["time/run_s"]
    # Two workers may report in another order than they read the clock.
    if seconds <= 0:
        return {}
    return {
        "perf/samples_per_s": (row["progress/sample"] - before["progress/sample"]) / seconds,
        "perf/updates_per_s": (row["progress/update"] - before["progress/update"]) / seconds,
    }


def _rates(samples: int, updates: int, run_s: float, num_samples: int) -> Summary:
    if run_s <= 0 or samples == 0:
        return {}
    return {
        "perf/samples_per_s": samples / run_s,
        "perf/updates_per_s": updates / run_s,
        "perf/time_per_epoch_s": run_s * num_samples / samples,
    }


def _fractions(workers: Sequence[WorkerReport], run_s: float) -> Summary:
    if not workers or run_s <= 0:
        return {}
    seconds = {
        "perf/compute_frac": sum(worker.compute_s for worker in workers),
        "perf/comm_frac": sum(worker.comm_s for worker in workers),
        "perf/idle_frac": sum(worker.idle_s + max(0.0, run_s - worker.finish_s) for worker in workers),
    }
    # Timers of different resolution may account for slightly more than there was.
    seconds["perf/other_frac"] = max(0.0, len(workers) * run_s - sum(seconds.values()))
    total = sum(seconds.values())
    return {key: value / total for key, value in seconds.items()}


def _traffic(workers: Iterable[WorkerReport], updates: int) -> Summary:
    sent_bytes = sum(worker.sent_bytes for worker in workers)
    if sent_bytes == 0:
        return {}
    found: Summary = {"comm/bytes_total": sent_bytes}
    if updates > 0:
        found["comm/bytes_per_update"] = sent_bytes / updates
    return found


def _memory(workers: Sequence[WorkerReport]) -> Summary:
    found: Summary = {}
    for key, field in (("mem/worker_peak_bytes_max", "peak_bytes"), ("mem/device_peak_bytes_max", "device_peak_bytes")):
        peaks = [getattr(worker, field) for worker in workers if getattr(worker, field) is not None]
        found |= {key: max(peaks)} if peaks else {}
    return found


def _crossing(rows: Sequence[Row], target_loss: float) -> Row | None:
    axes = ("time/run_s", "progress/sample", "progress/epoch")
    before: Row | None = None
    for row in rows:
        if "train/loss" not in row:
            continue
        if row["train/loss"] <= target_loss:
            if before is None:
                return {axis: row[axis] for axis in axes}
            fraction = (before["train/loss"] - target_loss) / (before["train/loss"] - row["train/loss"])
            return {axis: before[axis] + fraction * (row[axis] - before[axis]) for axis in axes}
        before = row
    return None
