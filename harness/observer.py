"""Observes the models of one worker: counts samples and updates, and copies the model at milestones, off the clock."""

import math
import time
from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from harness.errors import Diverged
from harness.interleaving import Decisions
from harness.place import Observation, Place
from harness.program import Program

Observed = nn.Module | torch.Tensor | Callable[[], torch.Tensor]  # itself, its flat parameters, or what makes those

LOOKS = 1000  # of a run at its models, at equal distances in samples, to see whether they are still finite

_NOTHING = torch.empty(0)  # made here: within a run it would cost its rank an operator


class Observer:
    """What one worker has done, as the run counts it.

    In a synchronous algorithm rank 0 speaks for all; in a decentralised one every worker's own model is copied, and
    where the model is split its own part. Of a model without values there is nothing to copy: rank 0 counts.
    """

    def __init__(self, place: Place, program: Program) -> None:
        self._place, (_, self._shares) = place, program.share(place)
        self._synchronous, self._own = program.algorithm.synchronous, program.algorithm.observes_own
        self._milestones, self._look_samples = program.milestones, max(1, program.budget_samples // LOOKS)
        self._decides = not (self._synchronous or program.algorithm.needs_shared_memory)  # timing does, of the counts
        self._counts = Decisions("counts", "observes its model", place.rank, place.interleaving, program.replay)
        self._seen, self._reached = (0, 0), 0  # samples and updates; milestones
        self._fake = program.problem.is_fake
        self._sum: torch.Tensor | None = None  # of all parameters at a look, in the host's memory
        self._model: Observed | None = None  # last observed
        self._part: torch.Tensor | None = None

    def observe(self, model: Observed, samples: int, updates: int, part: torch.Tensor | None) -> None:
        """Hear of `samples` processed in `updates` updates of `model`; see `Worker.observe`."""
        rank = self._place.rank
        if self._synchronous:
            if rank > 0 and (self._fake or not self._own):
                return
            samples *= self._shares
        if self._synchronous and rank > 0:
            before, updates_before = self._seen
        else:
            before, updates_before = self._counted(samples, updates)
        self._seen, self._model, self._part = (before + samples, updates_before + updates), model, part
        reached = bisect_right(self._milestones, before + samples)
        if self._fake:
            return
        if self._own:
            self._report_own(reached)
        elif bisect_right(self._milestones, before) < reached:
            self._report(reached - 1)
        if before // self._look_samples < self._seen[0] // self._look_samples:
            self._look()

    def finish(self) -> None:
        """What others have yet to reach, this worker's own model is for as it is now; one without values is nothing."""
        if self._fake and self._model is not None:
            self._report_fake()
        elif self._own and self._model is not None:
            self._report_own(len(self._milestones))

    def last(self) -> torch.Tensor | None:
        """A copy of the model observed last, as it is now; None if there was none, or it has no values."""
        if self._model is None or self._fake:
            return None
        return _flat(self._model).detach().to("cpu", copy=True)

    def _counted(self, samples: int, updates: int) -> tuple[int, int]:
        """What the run had got to before these; whoever is the one to reach a milestone is so again."""
        before = self._place.count(samples, updates, alone=self._synchronous)
        return (self._counts.decide(before[0]), self._counts.decide(before[1])) if self._decides else before

    def _report_own(self, reached: int) -> None:
        for milestone in range(self._reached, reached):
            self._report(milestone, self._place.rank)
        self._reached = max(self._reached, reached)

    def _report_fake(self) -> None:
        """There are no parameters; to look at the time before would hold the host up."""
        self._place.settle()
        self._place.report(Observation(self._place.clock.now(), time.perf_counter(), *self._seen, _NOTHING))

    def _look(self) -> None:
        """See whether the model is finite, off the clock. An accelerator is not waited for: a look is at what the last
        one, or one before it, has summed.
        """
        with self._place.clock.paused(), torch.no_grad():
            flat = _flat(self._model)
            if self._sum is None:
                self._sum = torch.zeros((), dtype=torch.float64, pin_memory=flat.is_cuda)
            self._sum.copy_(flat.sum(), non_blocking=True)
            # of large numbers the sum alone may be infinite
            is_finite = math.isfinite(self._sum.item()) or bool(torch.isfinite(flat).all())
        if not is_finite:
            self._report(bisect_right(self._milestones, self._seen[0]), self._place.rank if self._own else None)

    def _report(self, milestone: int, member: int | None = None) -> None:
        self._place.settle()
        time_s, host_s, (samples, updates) = self._place.clock.now(), time.perf_counter(), self._seen
        with self._place.clock.paused(), torch.no_grad():
            flat = _flat(self._model)
            parameters = flat.detach().to("cpu", copy=True)
            part = None if self._part is None else self._part.cpu()
            seen = Observation(time_s, host_s, samples, updates, parameters, member, milestone, part)
            self._place.report(seen)
            if not torch.isfinite(parameters).all():
                raise Diverged(f"the model is nan or infinite after {samples} samples: lower algorithm.learning_rate")


def _flat(model: Observed | None) -> torch.Tensor:
    assert model is not None
    if isinstance(model, nn.Module):
        return parameters_to_vector(model.parameters())
    return model if isinstance(model, torch.Tensor) else model()
