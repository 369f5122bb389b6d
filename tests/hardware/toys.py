"""Small problems and algorithms for tests of hardware, in a module that worker processes can import."""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numba.extending import overload
from torch import nn

from algorithms.base import Algorithm
from algorithms.flat import flat_parameters
from hardware.real.machine import RealMachine
from harness.data import Partitioned
from harness.kernels.access import COORDINATES, MUTEX, SPIN, TICKET, Access, lock_words, open_mutex
from harness.kernels.base import Kernel, prefetch_sample, read, write
from harness.kernels.numbers import add, load
from harness.problems.base import Problem
from harness.program import Program
from tests.counting import CountKernel
from tests.small_steps import flat_gradient, set_gradient_, sgd_step_


class ToyKernel(Kernel):
    """w <- w - eta (w - x_i), sample by sample."""

    name: ClassVar[str] = "toy"

    def __init__(self, numbers):
        self.numbers = numbers

    @cached_property
    def indptr(self):
        return torch.arange(len(self.numbers) + 1)

    @cached_property
    def indices(self):
        return torch.zeros(len(self.numbers), dtype=torch.int32)

    @property
    def num_coordinates(self):
        return 1

    def native(self):
        return Numbers(self.indptr.numpy(), self.indices.numpy(), self.numbers.numpy())


class Numbers(NamedTuple):
    indptr: np.ndarray
    indices: np.ndarray
    numbers: np.ndarray


@overload(prefetch_sample)
def _prefetch(kernel, weights, sample):
    if getattr(kernel, "instance_class", None) is Numbers:
        return lambda kernel, weights, sample: None
    return None


@overload(read)
def _read(kernel, weights, sample, step):
    if getattr(kernel, "instance_class", None) is Numbers:
        return lambda kernel, weights, sample, step: load(weights, 0, step) - kernel.numbers[sample]
    return None


@overload(write)
def _write(kernel, weights, sample, slope, step, salt):
    if getattr(kernel, "instance_class", None) is Numbers:
        return lambda kernel, weights, sample, slope, step, salt: add(
            weights, 0, -step.learning_rate * slope, step, salt
        )
    return None


@dataclass(frozen=True)
class Mean(Problem):
    """Find the mean of 0 .. count - 1."""

    count: int = 64

    @cached_property
    def numbers(self):
        return torch.arange(self.count, dtype=getattr(torch, self.dtype))

    @property
    def num_samples(self):
        return self.count

    def build_model(self, device, seed):
        model = nn.Linear(1, 1, bias=False, device=device, dtype=self.numbers.dtype)
        nn.init.zeros_(model.weight)
        return model

    def loss(self, model, samples):
        return 0.5 * ((model.weight[0, 0] - self.numbers[samples.long()]) ** 2).mean()

    def evaluate(self, model):
        return {"train/loss": float(self.loss(model, torch.arange(self.count)))}

    @cached_property
    def kernel(self):
        return ToyKernel(self.numbers)


@dataclass(frozen=True)
class Counts(Mean):
    """Its kernel counts, and is compiled once and for all."""

    @cached_property
    def kernel(self):
        return CountKernel([[0]] * self.count, 1)


@dataclass(frozen=True)
class Lost(Mean):
    """A problem whose data cannot be had."""

    @cached_property
    def numbers(self):
        raise FileNotFoundError("no such numbers")


@dataclass(frozen=True)
class MeetsAndBeginsAgain(Algorithm):
    """Leaves its first batches, and meets all workers at each of the others, of another size."""

    synchronous: ClassVar[bool] = True

    def train(self, worker, problem):
        model = flat_parameters(problem.build_model(worker.device, worker.seed)).detach()
        for batch in worker.batches(problem, self.batch_size):
            assert len(batch) == self.batch_size
            break
        for batch in worker.batches(problem, self.batch_size + 2):
            worker.meet()
            model += len(batch)
            worker.observe(model, samples=len(batch))


@dataclass(frozen=True)
class Averaging(Algorithm):
    """All-reduced gradients; subclasses put something in the way."""

    synchronous: ClassVar[bool] = True

    def train(self, worker, problem):
        model = problem.build_model(worker.device, worker.seed)
        for step, batch in enumerate(worker.batches(problem, self.batch_size)):
            self.interfere(worker, step)
            problem.loss(model, batch).backward()
            gradient = flat_gradient(model)
            dist.all_reduce(gradient)
            set_gradient_(model, gradient / worker.num_workers)
            sgd_step_(model, self.learning_rate)
            worker.observe(model, samples=len(batch))

    def interfere(self, worker, step):
        pass


@dataclass(frozen=True)
class KillsRankOne(Averaging):
    """Rank 1 is killed at its fourth step."""

    def interfere(self, worker, step):
        if worker.rank == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class RaisesInRankOne(Averaging):
    """Rank 1 raises at its fourth step."""

    def interfere(self, worker, step):
        if worker.rank == 1 and step == 3:
            raise ZeroDivisionError("by design")


@dataclass(frozen=True)
class LateRankOne(Averaging):
    """Rank 1 sleeps before every collective."""

    def interfere(self, worker, step):
        if worker.rank == 1:
            time.sleep(0.02)


@dataclass(frozen=True)
class SlowToCompile(Averaging):
    """In rank 1."""

    def warm_up(self, problem):
        if multiprocessing.current_process().name == "worker 1":
            time.sleep(1.0)


@dataclass(frozen=True)
class Silent(Averaging):
    """Rank 1 never joins the first collective."""

    def interfere(self, worker, step):
        if worker.rank == 1:
            time.sleep(60)


@dataclass(frozen=True)
class HelperRaises(Averaging):
    """Rank 1's helper raises while both workers wait for messages that never come."""

    def interfere(self, worker, step):
        if worker.rank == 1:
            worker.background(fail)
        dist.recv(torch.empty(1), 1 - worker.rank)


@dataclass(frozen=True)
class Endless(Averaging):
    """Steps for ever, after saying who it is in the file `TOY_PIDS`."""

    def interfere(self, worker, step):
        if step == 0:
            with open(os.environ["TOY_PIDS"], "a") as pids:
                pids.write(f"{os.getpid()}\n")
        while step == 2:
            dist.barrier()


@dataclass(frozen=True)
class ReportsCPUs(Averaging):
    """Every worker's model is the set of CPUs it runs on, gathered on rank 0."""

    def train(self, worker, problem):
        masks = torch.zeros(worker.num_workers, dtype=torch.float64)
        masks[worker.rank] = sum(2.0**cpu for cpu in os.sched_getaffinity(0))
        dist.all_reduce(masks)
        for batch in worker.batches(problem, self.batch_size):
            worker.observe(masks, samples=len(batch))


@dataclass(frozen=True)
class Wrapped(Averaging):
    """DistributedDataParallel, as torch ships it."""

    def train(self, worker, problem):
        model = nn.parallel.DistributedDataParallel(problem.build_model(worker.device, worker.seed))
        for batch in worker.batches(problem, self.batch_size):
            loss = (
                0.5
                * ((model(torch.ones(1, 1, dtype=problem.numbers.dtype)) - problem.numbers[batch.long()]) ** 2).mean()
            )
            loss.backward()
            sgd_step_(model.module, self.learning_rate)
            worker.observe(model.module, samples=len(batch))


@dataclass(frozen=True)
class Everything(Averaging):
    """Each kind of collective once, then messages; the observed model is a checksum."""

    def train(self, worker, problem):
        rank, num_workers = worker.rank, worker.num_workers
        x = torch.full((2,), rank + 1.0)
        checks = [everything(x, rank, num_workers)]
        for batch in worker.batches(problem, self.batch_size):
            worker.observe(torch.tensor(checks), samples=len(batch))


def everything(x, rank, num_workers):
    """Sum of what rank sees after each collective on x = (rank + 1, rank + 1)."""
    total = 0.0
    for collective in (dist.all_reduce, lambda t: dist.broadcast(t, 0), lambda t: dist.reduce(t, 0)):
        y = x.clone()
        collective(y)
        total += float(y.sum()) if rank == 0 else 0.0
    gathered = torch.empty(2 * num_workers)
    dist.all_gather_single(gathered, x)
    scattered = torch.empty(2)
    dist.reduce_scatter_single(scattered, x.repeat(num_workers), async_op=True).wait()
    exchanged = torch.empty(num_workers)
    dist.all_to_all_single(exchanged, x[:1].repeat(num_workers))
    received = torch.empty(2)
    handles = [dist.isend(x, (rank + 1) % num_workers), dist.irecv(received, (rank - 1) % num_workers)]
    for handle in handles:
        handle.wait()
    dist.barrier()
    return total + float(gathered.sum() + scattered.sum() + exchanged.sum() + received.sum())


@dataclass(frozen=True)
class Wild(Algorithm):
    """Hogwild on one shared weight, by kernel or by autograd."""

    synchronous: ClassVar[bool] = False
    needs_shared_memory: ClassVar[bool] = True
    native: bool = True

    def releases_gil(self, problem):
        return self.native

    def warm_up(self, problem):
        if self.native:  # it would take every process two seconds
            problem.kernel.warm_up(flat_parameters(problem.build_model(torch.device("cpu"), 0)))

    def train(self, worker, problem):
        weights = worker.shared(self.name(worker), flat_parameters(problem.build_model(worker.device, worker.seed)))
        for batch in worker.batches(problem, self.batch_size):
            self.interfere(worker)
            worker.run(problem.kernel, weights, batch, self.learning_rate)
            worker.observe(weights, samples=len(batch), updates=len(batch))

    def name(self, worker):
        return "model"

    def interfere(self, worker):
        pass


@dataclass(frozen=True)
class WildWide(Wild):
    """Shares 64 pages of 4 KiB as well."""

    def name(self, worker):
        worker.shared("wide", torch.ones(64 * 512, dtype=torch.float64))
        return "model"


@dataclass(frozen=True)
class WildOnNodes(Wild):
    """Shares 64 pages of 4 KiB on every node, and observes the node and the number of nodes of every worker."""

    def train(self, worker, problem):
        for node in range(worker.num_nodes):
            worker.shared(f"of {node}", torch.ones(64 * 512, dtype=torch.float64), node)
        nodes = worker.shared("nodes", torch.full((worker.num_workers + 1,), -1.0, dtype=torch.float64))
        nodes[worker.rank], nodes[-1] = worker.node, worker.num_nodes
        while (nodes < 0).any():
            time.sleep(0.001)
        for batch in worker.batches(problem, self.batch_size):
            worker.observe(nodes, samples=len(batch))


@dataclass(frozen=True)
class WildTwice(Wild):
    """Shares two tensors under one name."""

    def name(self, worker):
        worker.shared("model", torch.zeros(1))
        return "model"


@dataclass(frozen=True)
class WildNowhere(Wild):
    """Shares a tensor on a node that is not there."""

    def name(self, worker):
        worker.shared("lost", torch.zeros(1), node=worker.num_nodes)
        return "model"


@dataclass(frozen=True)
class WildOddNode(Wild):
    """Workers disagree about the node of a shared tensor."""

    def name(self, worker):
        worker.shared("odd", torch.zeros(1), node=worker.rank)
        return "model"


@dataclass(frozen=True)
class WildOdd(Wild):
    """Workers disagree about the name of the shared tensor."""

    def name(self, worker):
        return f"model {worker.rank}"


@dataclass(frozen=True)
class WildRaises(Wild):
    """Rank 1 raises; others would go on for ever."""

    def interfere(self, worker):
        if worker.rank == 1:
            raise ZeroDivisionError("by design")


@dataclass(frozen=True)
class WildHelped(Wild):
    """A background activity of each worker adds one to a second shared tensor."""

    def train(self, worker, problem):
        helped = worker.shared("helped", torch.zeros(worker.num_workers))
        worker.background(lambda: helped[worker.rank].add_(1.0))
        for batch in worker.batches(problem, self.batch_size):
            while helped.sum() < worker.num_workers:
                time.sleep(0.001)
            worker.observe(helped, samples=len(batch))


@dataclass(frozen=True)
class WildLingering(WildHelped):
    """A background activity ends a second after `train` was left."""

    def train(self, worker, problem):
        left = threading.Event()
        worker.background(lambda: (left.wait(), time.sleep(1.0)))
        super().train(worker, problem)
        left.set()


@dataclass(frozen=True)
class Counted(Wild):
    """Every batch adds one to a shared counter, in two steps that others may come between."""

    locked: bool = True

    def train(self, worker, problem):
        counter = worker.shared("counter", torch.zeros(1, dtype=torch.float64))
        for batch in worker.batches(problem, self.batch_size):
            with worker.lock("counter") if self.locked else nullcontext():
                seen = float(counter)
                time.sleep(1e-4)
                counter.fill_(seen + 1.0)
            worker.observe(counter, samples=len(batch))


@dataclass(frozen=True)
class Meets(Wild):
    """Every worker says which round it is in, and finds all others there once they have met; rank 1 is late."""

    rounds: ClassVar[int] = 10

    def train(self, worker, problem):
        rounds = worker.shared("rounds", torch.zeros(worker.num_workers, dtype=torch.float64))
        for number in range(1, self.rounds + 1):
            time.sleep(0.02 * (worker.rank == 1))
            rounds[worker.rank] = number
            worker.meet()
            assert rounds.tolist() == [number] * worker.num_workers
            worker.meet()
        for batch in worker.batches(problem, self.batch_size):
            worker.observe(rounds, samples=len(batch))


@dataclass(frozen=True)
class Slows(Wild):
    """Every worker is slowed, then idle; observes how long that took, without and with the slowing and idleness."""

    factor: float = 3.0
    idle_s: float = 0.03

    def train(self, worker, problem):
        seconds = worker.shared("seconds", torch.zeros(3, worker.num_workers, dtype=torch.float64))
        begin_s = worker.clock.now()
        with worker.slowed(self.factor):
            for batch in worker.batches_of(torch.arange(self.batch_size, dtype=torch.int32), self.batch_size):
                worker.run(problem.kernel, torch.zeros(1, dtype=torch.float64), batch, self.learning_rate)
            time.sleep(0.02)
            seconds[0, worker.rank] = worker.clock.now() - begin_s
        seconds[1, worker.rank] = worker.clock.now() - begin_s
        worker.idle(self.idle_s)
        seconds[2, worker.rank] = worker.clock.now() - begin_s
        worker.meet()
        worker.observe(seconds.view(-1), samples=self.batch_size)


@dataclass(frozen=True)
class SlowsInTheBackground(Wild):
    """A background activity asks to be slower."""

    def train(self, worker, problem):
        worker.background(lambda: worker.idle(1.0))
        worker.meet()


@dataclass(frozen=True)
class LeavesOthers(Wild):
    """Rank 1 ends where the others meet."""

    def train(self, worker, problem):
        if worker.rank != 1:
            worker.meet()


@dataclass(frozen=True)
class WaitsInVain(Wild):
    """Rank 1 waits for a lock while its holder waits for rank 1 to meet it."""

    def train(self, worker, problem):
        if worker.rank == 0:
            with worker.lock("held"):
                worker.shared("taken", torch.zeros(1))
                worker.meet()
        else:
            worker.shared("taken", torch.zeros(1))
            with worker.lock("held"):
                worker.meet()


@dataclass(frozen=True)
class CrossesLocks(Wild):
    """Each of two workers holds the lock that the other one waits for."""

    def train(self, worker, problem):
        with worker.lock(f"lock {worker.rank}"):
            worker.meet()
            with worker.lock(f"lock {1 - worker.rank}"):
                pass


@dataclass(frozen=True)
class LocksTwice(Wild):
    """Takes a lock that it holds."""

    def train(self, worker, problem):
        with worker.lock("twice"), worker.lock("other"), worker.lock("twice"):
            pass


@dataclass(frozen=True)
class MeetsInTheBackground(Wild):
    """A background activity meets."""

    def train(self, worker, problem):
        worker.background(worker.meet)
        worker.meet()
        worker.meet()


@dataclass(frozen=True)
class HolderIsKilled(Wild):
    """Rank 1 is killed with a lock that rank 0 waits for, and gets; then they would go on for ever."""

    def train(self, worker, problem):
        if worker.rank == 1:
            with worker.lock("held"):
                worker.meet()
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGKILL)
        worker.meet()
        with worker.lock("held"):
            worker.observe(torch.ones(1), samples=8)
            worker.meet()


@dataclass(frozen=True)
class DiesInItsKernel(Wild):
    """Rank 1 is killed with a lock of its kernel, which rank 0 waits for in its own."""

    locking: str = "global_spin"

    def train(self, worker, problem):
        model = worker.shared("model", torch.zeros(1, dtype=torch.float64))
        words = worker.shared("locks", lock_words(self.locking, 1))
        if worker.rank == 0:
            open_mutex(words)
        worker.meet()
        access = Access(self.locking, words, delay_s=60.0 * worker.rank)
        taken = lambda: words[TAKEN[self.locking]]  # noqa: E731
        if worker.rank == 1:
            worker.background(lambda: (wait_until(taken), os.kill(os.getpid(), signal.SIGKILL)))
            if self.locking == "per_coordinate":  # its kernel takes it only after the delay
                words[COORDINATES] = 1
        else:
            wait_until(taken)
        worker.run(problem.kernel, model, torch.zeros(1, dtype=torch.int32), 1.0, access)


TAKEN = {"global_spin": SPIN, "global_mutex": MUTEX, "per_coordinate": COORDINATES, "round_robin": TICKET}


def wait_until(condition):
    """Look every millisecond."""
    while not condition():
        time.sleep(0.001)


@dataclass(frozen=True)
class HolderRaises(Wild):
    """Rank 1 raises while it holds a lock that rank 0 waits for; the latter would go on for ever."""

    def train(self, worker, problem):
        if worker.rank == 1:
            with worker.lock("held"):
                worker.meet()
                fail()
        worker.meet()
        while True:
            with worker.lock("held"):
                pass


@dataclass(frozen=True)
class SharesLockWithBackground(Wild):
    """A worker and its background activity add to one counter."""

    def train(self, worker, problem):
        counter, done = torch.zeros(1, dtype=torch.float64), threading.Event()

        def add():
            for _ in range(50):
                with worker.lock("counter"):
                    seen = float(counter)
                    time.sleep(1e-4)
                    counter.fill_(seen + 1.0)

        worker.background(lambda: (add(), done.set()))
        add()
        assert done.wait(10)
        for batch in worker.batches(problem, self.batch_size):
            worker.observe(counter, samples=len(batch))


@dataclass(frozen=True)
class WildStuck(Wild):
    """Rank 1 loops, without a call to its worker, until the test releases it (or has waited far too long)."""

    looping: ClassVar[threading.Event] = threading.Event()
    released: ClassVar[threading.Event] = threading.Event()

    def interfere(self, worker):
        end_s = time.monotonic() + 10
        if worker.rank == 1:
            self.looping.set()
        while worker.rank == 1 and not self.released.is_set() and time.monotonic() < end_s:
            time.sleep(0.001)


@dataclass(frozen=True)
class StuckWithLock(WildStuck):
    """Rank 1 loops with a lock that rank 0 waits for, and its background activity raises."""

    def train(self, worker, problem):
        if worker.rank == 0:
            assert self.looping.wait(10)
        with worker.lock("held"):
            if worker.rank == 1:
                worker.background(lambda: (time.sleep(0.2), fail()))
            self.interfere(worker)


@dataclass(frozen=True)
class WildStuckAndRaises(WildStuck):
    """Rank 0 raises once rank 1 loops."""

    def interfere(self, worker):
        if worker.rank == 0:
            assert self.looping.wait(10)
            fail()
        super().interfere(worker)


@dataclass(frozen=True)
class WildStuckAndHelperRaises(WildStuck):
    """Rank 1's helper raises meanwhile."""

    def interfere(self, worker):
        if worker.rank == 1:
            worker.background(fail)
        super().interfere(worker)


def fail():
    """Raise."""
    raise ZeroDivisionError("by design")


@dataclass(frozen=True)
class DyingServer(Mean):
    """Whoever gathers more than one row is killed."""

    def gather(self, samples):
        if len(samples) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return (self.numbers[samples.long()],)

    def loss(self, model, samples):
        (numbers,) = self.rows_of(samples)
        return 0.5 * ((model.weight[0, 0] - numbers) ** 2).mean()


def program(algorithm=Averaging, learning_rate=0.1, batch_size=4, budget=256, milestones=None, problem=Mean, **options):
    """A program on `Mean`, observed at the quarters of its budget."""
    minimised = problem(
        dtype="float64", learning_rate=0.1, minibatch_size=1, minibatch_learning_rate=0.1, target_loss=1.0
    )
    trained = algorithm(learning_rate=learning_rate, batch_size=batch_size, **options)
    quarters = milestones or [budget // 4, budget // 2, 3 * budget // 4, budget]
    return Program(trained, minimised, Partitioned("index"), 0, budget, quarters)


def machine(num_workers=2, **settings):
    """This machine, with the settings of conf/hardware/cpu.yaml."""
    defaults = {
        "num_nodes": None,
        "strict": False,
        "pinning": True,
        "pin_policy": "spread",
        "memory_policy": "first_touch",
        "intra_op_threads": 1,
        "simd": None,
        "timeout_s": 20.0,
    }
    return RealMachine(num_workers=num_workers, **{**defaults, **settings})


def no_progress(samples):
    """Watches nothing."""


@dataclass(frozen=True)
class Telling(Averaging):
    """Rank 0 says with which vector instructions torch computes."""

    def train(self, worker, problem):
        if worker.rank == 0:
            worker.conclude("toy/capability", torch.backends.cpu.get_cpu_capability().lower())
        super().train(worker, problem)


@dataclass(frozen=True)
class WildPublishing(Wild):
    """Every rank measures its number, and rank 0 concludes; once all have published, rank 1 raises."""

    def train(self, worker, problem):
        worker.measure("toy/rank", worker.rank)
        if worker.rank == 0:
            worker.conclude("toy/said", "so far")
        worker.publish()
        worker.measure("toy/rank", 100)
        worker.measure("toy/unpublished", worker.rank)
        worker.meet()
        if worker.rank == 1:
            fail()
        worker.meet()
