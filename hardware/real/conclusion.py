"""What a run's `Execution` says once all ranks have finished, be they processes of this machine or of a world."""

from collections.abc import Sequence

from hardware.base import Execution
from hardware.real.breakdown import break_down
from hardware.real.messages import Finished


def conclude(execution: Execution, finished: Sequence[Finished], start_s: float, shares: Sequence[float]) -> None:
    """Add what all ranks noted and measured.

    Args:
        finished: by rank; their host times are of one clock.
        start_s: when the run's clock started, on that clock.
        shares: see `breakdown.shares_of`.
    """
    breakdown = break_down([each.ledger for each in finished], start_s, shares)
    execution.observations = breakdown.on_its_clock(execution.observations)
    execution.workers = breakdown.workers
    if breakdown.overlap_frac is not None:
        execution.metrics["perf/overlap_frac"] = breakdown.overlap_frac
    execution.told([each.measures for each in finished])
    execution.interleavings = [each.interleaving for each in finished]
    if finished[0].placement:
        execution.facts["placement"] = finished[0].placement
