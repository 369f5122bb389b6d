"""What the console shows when a run has ended."""

import re
from typing import Any

from rich.console import Console
from rich.markup import escape

KEY = (  # of the table of primitives; the last line for virtual time alone
    "  each number is that of the worker that took longest; worker 0 serves push and pull: sync, it takes its turns",
    "  with the others; async, all messages are under way together",
    "  what the host of a CPU does to begin a message takes no virtual time",
)
SHORT_S = 0.05  # of the wall clock: a baseline that is shorter is at the mercy of its moment


def show(console: Console, title: str, summary: dict[str, Any], files: str, tracking: str) -> None:
    """Print a run's summary: target, efficiencies, speedups and where to look.

    Args:
        summary: with the keys of docs/metrics.md; a line whose keys are absent is left out.
        files: the run's directory.
        tracking: how to look at it in W&B, or "".
    """
    lines = [
        ("target", _target(summary)),
        ("warning", summary.get("run/warning", "")),
        ("deaths", _deaths(summary)),
        ("hardware", _hardware(summary)),
        ("network", _network(summary)),
        ("predicted", _predicted(summary)),
        ("pipeline", _pipeline(summary)),
        ("statistics", _statistics(summary)),
        ("conflicts", _conflicts(summary)),
        ("uneven", _uneven(summary)),
        ("search", _search(summary)),
        ("speedup", _speedup(summary)),
        ("alone", _alone(summary)),
        ("doubt", _doubt(summary)),
        ("files", files),
        ("W&B", tracking),
    ]
    console.print(f"\n[bold]{escape(title)}[/bold]", highlight=False, soft_wrap=True)
    for name, text in lines:
        if text:
            console.print(f"  [bold]{name:<10}[/bold]  {escape(text)}", highlight=False, soft_wrap=True)
    if table := primitives(summary):
        console.print("\n".join(table), highlight=False, markup=False, soft_wrap=True)


def primitives(summary: dict[str, Any]) -> list[str]:
    """The lines of the table of primitives, as long as the slowest worker took; none where none were timed.

    >>> times = {"sync_s_max": 2e-5, "issue_s_max": 1e-6, "wait_s_max": 2e-5}
    >>> found = {f"primitives/push/1024_bytes/{key}": value for key, value in times.items()}
    >>> print("\\n".join(primitives(found | {"time/clock": "virtual"})))
      primitive           bytes               sync        async: issue               wait
      push                 1024      20 virtual µs        1 virtual µs      20 virtual µs
      each number is that of the worker that took longest; worker 0 serves push and pull: sync, it takes its turns
      with the others; async, all messages are under way together
      what the host of a CPU does to begin a message takes no virtual time
    """
    found = [re.fullmatch(r"primitives/(\w+)/(\d+)_bytes/sync_s_max", key) for key in summary]
    timed = [(match[1], match[2]) for match in found if match]
    lines = [f"  {'primitive':<16}{'bytes':>9}{'sync':>19}{'async: issue':>20}{'wait':>19}"] if timed else []
    for name, size in sorted(timed, key=lambda each: (each[0], int(each[1]))):
        times = (summary[f"primitives/{name}/{size}_bytes/{part}_s_max"] for part in ("sync", "issue", "wait"))
        sync, issue, wait = (seconds(value, summary) for value in times)
        lines.append(f"  {name:<16}{size:>9}{sync:>19}{issue:>20}{wait:>19}")
    return [*lines, *(KEY if summary.get("time/clock") == "virtual" else KEY[:2])] if lines else []


def seconds(value: float, summary: dict[str, Any]) -> str:
    """A time of the run's own clock, in a unit that suits it; virtual time says so.

    >>> seconds(0.00123, {"time/clock": "virtual"})
    '1.23 virtual ms'
    """
    virtual = "virtual " if summary.get("time/clock") == "virtual" else ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{written(value / size)} {virtual}{unit}"
    return f"{value / 1e-9:.3g} {virtual}ns"


def written(value: float, digits: int = 3) -> str:
    """A number to so many digits, without a power of ten where it is large.

    >>> written(7.2345), written(999.7), written(11008.6, digits=4), written(1234567)
    ('7.23', '1,000', '11,010', '1,230,000')
    """
    short = f"{value:.{digits}g}"
    return f"{float(short):,.0f}" if float(short) >= 1000 else short


def _target(summary: dict[str, Any]) -> str:
    if "train/loss" not in summary:
        return ""
    loss = f"train/loss {summary['train/loss']:.4g} at the end" if "train/loss" in summary else ""
    if "target/value" not in summary:
        return f"none set; {loss}"
    goal = f"train/loss <= {summary['target/value']:.4g}"
    if not summary.get("target/reached"):
        return f"{goal} not reached; {loss}"
    return f"{goal} reached after {seconds(summary['target/time_s'], summary)}; {loss}"


def _hardware(summary: dict[str, Any]) -> str:
    if "perf/time_per_epoch_s" not in summary:
        return ""
    parts = [
        f"{100 * summary[f'perf/{part}_frac']:.0f}% {name}"
        for part, name in (("compute", "compute"), ("comm", "communication"), ("idle", "idle"), ("other", "other"))
        if summary.get(f"perf/{part}_frac", 0) >= 0.005
    ]
    if summary.get("perf/overlap_frac", 0) >= 0.005:
        parts.append(f"{100 * summary['perf/overlap_frac']:.0f}% of communication hidden behind computing")
    rate = f"{written(summary['perf/samples_per_s'])} samples/s"
    return f"{seconds(summary['perf/time_per_epoch_s'], summary)} an epoch, {rate}: {', '.join(parts)}"


def _deaths(summary: dict[str, Any]) -> str:
    """Who died, and what was not done for it.

    >>> _deaths({"run/deaths": [{"rank": 1, "time_s": 2e-4}], "run/lost_samples": 140, "time/clock": "virtual"})
    'rank 1 at 200 virtual µs; the others went on, and 140 samples of the budget were never reported as processed'
    """
    if "run/deaths" not in summary:
        return ""
    died = ", ".join(f"rank {each['rank']} at {seconds(each['time_s'], summary)}" for each in summary["run/deaths"])
    lost = f"{summary['run/lost_samples']:,} samples" if summary["run/lost_samples"] else "no sample"
    verb = "were" if summary["run/lost_samples"] else "was"
    return f"{died}; the others went on, and {lost} of the budget {verb} never reported as processed"


LINKS = {  # what the names of links mean, see hardware/simulated/network/topologies.py
    r"device\d+\.(out|in)": "what a device {0} within its host, as over NVLink",
    r"card\d+\.(up|down)": "what the network card of a device {0}",
    r"host\d+\.(up|down)": "what a host {0}",
    r"(?:leaf|site)\d+\.(up|down)": "between those of one switch or site and all others",
}
WAYS = {"out": "sends", "in": "receives", "up": "sends", "down": "receives"}


def _network(summary: dict[str, Any]) -> str:
    """Which link is busiest, and what it is.

    >>> _network({"sim/busiest_link": "device8.out", "sim/busiest_link_frac": 0.25})
    'busiest link device8.out (what a device sends within its host, as over NVLink), in use 25% of the time'
    """
    if "sim/busiest_link" not in summary:
        return ""
    name = summary["sim/busiest_link"]
    found = ((re.fullmatch(pattern, name), words) for pattern, words in LINKS.items())
    is_a = next((f" ({words.format(WAYS[match[1]])})" for match, words in found if match), "")
    return f"busiest link {name}{is_a}, in use {100 * summary['sim/busiest_link_frac']:.0f}% of the time"


def _predicted(summary: dict[str, Any]) -> str:
    """A step, and what it needs.

    >>> found = {"predicted/step_s": 0.5, "predicted/mfu": 0.4, "predicted/peak_memory_bytes_max": 2**34}
    >>> _predicted(found | {"time/clock": "virtual"})
    '500 virtual ms a step, MFU 40%, peak memory 16 GiB'
    """
    if "predicted/step_s" not in summary:
        return ""
    found = {key.removeprefix("predicted/"): value for key, value in summary.items()}
    parts = [f"{seconds(found['step_s'], summary)} a step"]
    if "tokens_per_s_per_device" in found:
        parts.append(f"{written(found['tokens_per_s_per_device'], digits=4)} tokens/s a device")
    if "mfu" in found:
        above = " (above 100% as what causal attention skips counts, and is not charged)" * (found["mfu"] > 1)
        parts.append(f"MFU {100 * found['mfu']:.3g}%{above}")
    for key, words in (("exposed_comm_frac", "exposed communication"), ("bubble_frac", "bubble")):
        if found.get(key, 0) >= 0.0005:
            parts.append(f"{words} {100 * found[key]:.3g}%")
    if "pipeline/bubble_frac" in summary and found.get("bubble_frac", 0) >= 0.0005:
        parts[-1] += f" ({100 * summary['pipeline/bubble_frac']:.3g}% by the closed form of equal stages)"
    parts.append(f"peak memory {found['peak_memory_bytes_max'] / 2**30:.4g} GiB")
    return ", ".join(parts) + _presumed(found)


def _pipeline(summary: dict[str, Any]) -> str:
    """How much its workers wait, by the closed form and as measured; a prediction says it itself.

    >>> _pipeline({"pipeline/bubble_frac": 0.2727, "perf/compute_frac": 0.5, "run/num_workers": 4})
    'bubble 27.3% of a step by the closed form of equal stages; workers computed for 50% of the time'
    """
    if "pipeline/bubble_frac" not in summary or "perf/compute_frac" not in summary:
        return ""
    if "predicted/step_s" in summary or summary.get("run/num_workers") == 1:
        return ""
    bubble, computing = (100 * summary[key] for key in ("pipeline/bubble_frac", "perf/compute_frac"))
    closed = f"bubble {bubble:.3g}% of a step by the closed form of equal stages"
    return f"{closed}; workers computed for {computing:.3g}% of the time"


def _presumed(found: dict[str, Any]) -> str:
    """Of what a prediction is.

    >>> _presumed({"optimizer": "adam", "parameter_dtype": "float32", "compute_dtype": "bfloat16"})
    '; optimizer adam, float32 parameters, computed in bfloat16'
    """
    if "parameter_dtype" not in found:
        return ""
    optimizer = f"optimizer {found['optimizer']}, " if "optimizer" in found else ""
    return f"; {optimizer}{found['parameter_dtype']} parameters, computed in {found['compute_dtype']}"


def _statistics(summary: dict[str, Any]) -> str:
    return f"{summary['stat/epochs_to_target']:.3g} epochs to target" if "stat/epochs_to_target" in summary else ""


def _conflicts(summary: dict[str, Any]) -> str:
    """What is known of them; nothing of a worker alone, who meets nobody."""
    if summary.get("run/num_workers") == 1:
        return ""
    parts = []
    if "async/staleness_mean" in summary:
        parts.append(f"staleness {summary['async/staleness_mean']:.3g} updates (mean)")
    if "async/conflict_frac" in summary:
        frac = summary["async/conflict_frac"]
        parts.append(f"{_percent(frac, 'update')} met coordinates written since they were read")
    if "async/lost_frac" in summary:
        frac = summary["async/lost_frac"]
        parts.append(f"{'at most ' if frac else ''}{_percent(frac, 'addition')} lost")
    return "; ".join(parts)


def _uneven(summary: dict[str, Any]) -> str:
    """Who took less than half an equal share of the batches.

    >>> _uneven({"async/worker_batches": [86, 4]})
    'worker 1 took 4.4% of the batches, where an equal share is 50%'
    """
    batches = summary.get("async/worker_batches", [])
    if not batches or min(batches) >= sum(batches) / len(batches) / 2:
        return ""
    least, equal = batches.index(min(batches)), 100 / len(batches)
    share = 100 * batches[least] / sum(batches)
    return f"worker {least} took {share:.2g}% of the batches, where an equal share is {equal:.2g}%"


def _percent(fraction: float, what: str) -> str:
    """Such as `7% of additions`.

    >>> _percent(0.004, "addition"), _percent(0.0, "update")
    ('0.4% of additions', 'no update')
    """
    return f"{100 * fraction:.3g}% of {what}s" if fraction else f"no {what}"


def _search(summary: dict[str, Any]) -> str:
    if "search/trials" not in summary:
        return ""
    trials, diverged = summary["search/trials"], summary["search/diverged"]
    found = f"{trials} trials" + (f", {diverged} of which diverged" if diverged else "")
    if "search/best_trial" not in summary:
        return found
    (best,) = [each for each in summary["search/results"] if each["trial"] == summary["search/best_trial"]]
    settings = ", ".join(f"{key}={value:.4g}" for key, value in best.items() if key not in RESULT)
    return (
        f"{found}; the best after {seconds(summary['search/best_time_s'], summary)}: {settings}, validation loss "
        f"{summary['search/best_loss']:.4g}"
    )


RESULT = ("trial", "samples", "validation_loss")  # of a trial in search/results, beside its settings


def _speedup(summary: dict[str, Any]) -> str:
    if "speedup/throughput" not in summary:
        return ""
    if summary["speedup/baseline_id"] == summary["run/id"]:
        return "none: this run is the sequential baseline itself"
    against = f"against {summary['speedup/baseline_name']} ({summary['speedup/baseline_kind']})"
    throughput = f"{summary['speedup/throughput']:.3g}x throughput"
    best = f"{summary['speedup/time_to_best']:.3g}x to the best loss; " if "speedup/time_to_best" in summary else ""
    if "speedup/time_to_target" not in summary:
        return f"{best}{throughput}, {against}; {_no_speedup(summary)}"
    efficiency = f"{summary['stat/efficiency_ratio']:.3g}x statistical efficiency"
    return f"{best}{summary['speedup/time_to_target']:.3g}x to target = {throughput} x {efficiency}, {against}"


def _no_speedup(summary: dict[str, Any]) -> str:
    """Why there is none to the target.

    >>> _no_speedup({"target/value": 0.4, "target/reached": False})
    'no speedup to the target, which was not reached'
    """
    if "target/value" not in summary:
        return "no speedup to a target, since there is none"
    if not summary["target/reached"]:
        return "no speedup to the target, which was not reached"
    missed = summary["target/time_s"] > 0
    return f"no speedup to the target, which {'the baseline has not reached' if missed else 'the initial model meets'}"


def _doubt(summary: dict[str, Any]) -> str:
    """Why a ratio of wall times may be none; virtual time has no bad moments.

    >>> found = {"speedup/throughput": 6.93, "run/num_workers": 2, "speedup/baseline_s": 0.012, "run/id": "1"}
    >>> _doubt(found | {"speedup/baseline_id": "0", "time/clock": "wall"})
    '6.93x throughput is more than 2 workers explain; a baseline of 12 ms is one sample: measure it again with baseline=fresh, or raise budget.epochs'
    """  # noqa: E501
    ratio, base_s = summary.get("speedup/throughput", 0.0), summary.get("speedup/baseline_s", SHORT_S)
    if summary.get("time/clock") != "wall" or summary.get("speedup/baseline_id") == summary["run/id"]:
        return ""
    reasons = []
    if ratio > summary["run/num_workers"]:
        reasons.append(f"{ratio:.3g}x throughput is more than {_count(summary['run/num_workers'], 'worker')} explain")
    if base_s < SHORT_S:
        reasons.append(f"a baseline of {seconds(base_s, summary)} is one sample")
    return f"{'; '.join(reasons)}: measure it again with baseline=fresh, or raise budget.epochs" if reasons else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _alone(summary: dict[str, Any]) -> str:
    if summary.get("run/num_workers") == 1:
        return ""
    return (
        f"{summary['speedup/self']:.3g}x throughput against itself with one worker" if "speedup/self" in summary else ""
    )
