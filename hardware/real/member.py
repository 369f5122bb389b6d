"""One rank of a world at work, in a thread: the process's main thread listens, to rank 0 and to signals.

    rank 0                              another rank
    looks at all cards              <-  card <rank>               who it is, as soon as it is there
    job                             ->
    ready, start, meet, end         <>  ready, start, meet, end   all wait for all; between them, training
    takes what was said, at the end <-  said <rank>/<number>      Observation, Measured, Finished, or Failed
    sees who is still there         <-  alive <rank>              now and then
    end                             ->                            the exit status of all
                                    <-  left                      so that rank 0, whose store it may be, can end

What rank 0 has itself to say it keeps.
"""

import os
import pickle
import sys
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from hardware.real.crew import Crew, as_failure
from hardware.real.messages import Arrived, Failed, Finished, Message
from hardware.real.rank_place import RankPlace, say_failed
from hardware.real.worker_process import connect, import_optimizers, moved, touch, train
from hardware.real.world_clock import WorldClock
from hardware.real.world_store import FOREVER_S, StoreCounters, StoreLocks, WorldStore
from harness.errors import UserError
from harness.place import Observation
from harness.program import Program

BEAT_S = 2.0  # between two signs of life


@dataclass(frozen=True)
class Job:
    """What rank 0 tells the others to do.

    Args:
        names: of the ranks, as errors say them.
        pickled: the program without its data, which every rank loads for itself.
        path: where rank 0 finds the modules that it needs.
        clocks: what each rank reads, see `WorldClock`.
    """

    crew: Crew
    names: list[str]
    pickled: bytes
    path: list[str]
    clocks: list[str]

    @classmethod
    def of(cls, crew: Crew, program: Program, clocks: list[str]) -> "Job":
        """That of a program which rank 0 has loaded the data of."""
        bare = replace(program, problem=replace(program.problem))
        names = [program.name_of(rank, crew.num_workers) for rank in range(crew.num_workers)]
        return cls(crew, names, pickle.dumps(bare), [os.path.abspath(folder) for folder in sys.path], clocks)

    def program(self) -> Program:
        """Unpack it, on any rank."""
        sys.path += [folder for folder in self.path if folder not in sys.path]
        program = pickle.loads(self.pickled)
        assert isinstance(program, Program)
        return program


class StoreLine:
    """A rank's line to rank 0, by way of the store.

    Attributes:
        said: by this rank, if it is rank 0, which need not tell anybody.
    """

    def __init__(self, store: WorldStore, rank: int, job: Job) -> None:
        self._store, self._rank, self._num_ranks = store, rank, job.crew.num_workers
        self._arrived: Counter[str] = Counter()
        self.said: list[Message] = []
        self.clock = WorldClock(store, rank, job.clocks)

    def say(self, message: Message) -> None:
        """Put a message where rank 0 takes it from, even if this process is killed next."""
        if self._rank == 0:
            self.said.append(message)
        else:
            number = self._store.add(f"claimed {self._rank}", 1) - 1  # several threads may speak
            self._store.put(f"said {self._rank}/{number}", message)
        if isinstance(message, Failed):
            self._store.add("failures", 1)

    def ask(self, arrived: Arrived, timeout_s: float | None = None) -> Any:
        """Wait until all have arrived; see `Line.ask`. Returns when the run starts, at the start."""
        number = self._arrived[arrived.place]
        self._arrived[arrived.place] += 1
        key = f"{arrived.place} {number}"
        if self._store.add(key, 1) == (arrived.num_ranks or self._num_ranks):
            self._store.put(f"{key} all", None)
        self._store.wait(f"{key} all", timeout_s or FOREVER_S)
        if arrived.place != "start":
            return None
        self.clock.compare()
        return self.clock.start_s()


class WorldPlace(RankPlace):
    """Where a rank of a world runs: what all have in common goes through the store."""

    def __init__(self, rank: int, name: str, crew: Crew, line: StoreLine, store: WorldStore) -> None:
        super().__init__(rank, name, crew, line, StoreCounters(store), StoreLocks(store, rank, crew.timeout_s))
        self._clock = line.clock
        self.observed_s: list[float] = []  # its own host times

    def shared(self, name: str, tensor: torch.Tensor, node: int | None) -> torch.Tensor:
        """Nothing is shared between hosts."""
        what = f"worker.shared({name!r}) needs memory that all workers share"
        raise UserError(f"{what}, which hardware=torchrun does not have: use hardware=cpu")

    def report(self, observation: Observation) -> None:
        """Tell rank 0, whose host time counts, as far as it is known before the end."""
        self.observed_s.append(observation.host_s)
        self.line.say(replace(observation, host_s=float(self._clock.of_rank_0(np.array(observation.host_s)))))


def work(job: Job, rank: int, line: StoreLine, store: WorldStore, program: Program | None = None) -> None:
    """Be one rank, from start to end; whatever goes wrong is told.

    Args:
        program: the job's, if it is at hand.
    """
    try:
        _work(job, program or job.program(), rank, line, store)
    except BaseException as error:
        with suppress(dist.DistError):  # the store is gone, and with it who would hear
            say_failed(line, as_failure(job.names[rank], error, traceback.format_exc()))


def _work(job: Job, program: Program, rank: int, line: StoreLine, store: WorldStore) -> None:
    hook, crew = sys.excepthook, job.crew
    os.sched_setaffinity(0, crew.cpus[rank])  # of this thread
    torch.set_num_threads(crew.intra_op_threads)
    place = WorldPlace(rank, job.names[rank], crew, line, store)
    import_optimizers()
    touch(program)
    program = moved(program, place.device)
    place.ask(Arrived("ready"))  # from here on nobody is late, whatever the library's time-out
    meter = connect(store.group("ranks"), program, place)
    ledger = train(program, place, meter)
    line.clock.compare()
    observed_s = line.clock.of_rank_0(np.array(place.observed_s)).tolist()
    line.say(Finished(line.clock.moved(ledger), {}, place.interleaving, place.measures, observed_s))
    place.ask(Arrived("end"))
    dist.destroy_process_group()
    sys.excepthook = hook  # torch has wrapped it
