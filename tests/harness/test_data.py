import pytest
import torch

from algorithms.sgd import SGD
from hardware.real.host_clock import HostClock
from harness.data import Partitioned, Replicated
from harness.program import Program
from harness.worker import Place, Worker

SAMPLES = 12


class Sizes:
    """A problem of which only the size is asked."""

    num_samples = SAMPLES


class Counting(Place):
    """A place that does nothing but count."""

    device, clock = torch.device("cpu"), HostClock(0.0)

    def __init__(self, rank, num_workers, counters):
        self.rank, self.num_workers, self.counters = rank, num_workers, counters

    def add(self, counter, amount):
        before = self.counters.get(counter, 0)
        self.counters[counter] = before + amount
        return before

    def count(self, samples, updates):
        return self.add("samples", samples), self.add("updates", updates)

    def shared(self, name, tensor, node):
        raise NotImplementedError

    def run(self, kernel, model, samples, learning_rate):
        raise NotImplementedError

    def background(self, activity):
        raise NotImplementedError

    def meet(self):
        raise NotImplementedError

    def lock(self, name):
        raise NotImplementedError

    def report(self, observation):
        raise NotImplementedError


class Claiming(SGD):
    synchronous = False


def deal(data, num_workers, batch_size, budget=2 * SAMPLES, algorithm=SGD, seed=0):
    """The batches of all workers, taking turns: [worker 0's first, worker 1's first, ..., worker 0's second, ...]."""
    sequential = algorithm(learning_rate=1.0, batch_size=batch_size, step_decay=1.0)
    program = Program(sequential, Sizes(), data, seed, budget, [budget])
    counters = {}
    workers = [Worker(Counting(rank, num_workers, counters), program) for rank in range(num_workers)]
    dealers = [worker.batches(Sizes(), batch_size) for worker in workers]
    batches = []
    while rounds := [batch for dealer in dealers if (batch := next(dealer, None)) is not None]:
        batches += rounds
    return batches


def epochs(batches):
    return [sorted(epoch.tolist()) for epoch in torch.cat(batches).split(SAMPLES)]


@pytest.mark.parametrize("algorithm", [SGD, Claiming])
@pytest.mark.parametrize(("num_workers", "batch_size"), [(1, 1), (2, 3), (4, 3), (3, 2)])
def test_partitioned_deals_each_epoch_exactly_once(algorithm, num_workers, batch_size):
    batches = deal(Partitioned(shuffle=True), num_workers, batch_size, algorithm=algorithm)
    assert epochs(batches) == [list(range(SAMPLES))] * 2
    assert {len(batch) for batch in batches} == {batch_size}


@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_batches_of_all_workers_are_one_workers_global_batch(num_workers):
    batch_size = SAMPLES // num_workers
    together = deal(Partitioned(shuffle=True), num_workers, batch_size)
    alone = deal(Partitioned(shuffle=True), 1, num_workers * batch_size)
    assert [b.tolist() for b in alone] == [
        torch.cat(together[i : i + num_workers]).tolist() for i in range(0, len(together), num_workers)
    ]


def test_synchronous_budget_is_rounded_up_to_equal_batches():
    batches = deal(Partitioned(shuffle=True), num_workers=3, batch_size=5, budget=16)
    assert [len(batch) for batch in batches] == [5, 5, 5, 1, 1, 1]


def test_asynchronous_budget_is_spent_exactly():
    batches = deal(Partitioned(shuffle=True), num_workers=3, batch_size=5, budget=16, algorithm=Claiming)
    assert [len(batch) for batch in batches] == [5, 5, 5, 1]


def test_replicated_workers_each_see_everything_in_an_order_of_their_own():
    batches = deal(Replicated(shuffle=True), num_workers=2, batch_size=4, budget=2 * SAMPLES)
    own = [batches[0::2], batches[1::2]]
    assert [epochs(batches) for batches in own] == [[list(range(SAMPLES))]] * 2
    assert torch.cat(own[0]).tolist() != torch.cat(own[1]).tolist()


@pytest.mark.parametrize("policy", [Partitioned, Replicated])
def test_order_depends_on_seed_and_epoch_and_nothing_else(policy):
    data = policy(shuffle=True)
    first = data.order(100, 200, seed=3, rank=0)
    assert torch.equal(first, policy(shuffle=True).order(100, 200, seed=3, rank=0))
    assert torch.equal(first[:150], data.order(100, 150, seed=3, rank=0))
    assert not torch.equal(first[:100], first[100:])
    assert not torch.equal(first, data.order(100, 200, seed=4, rank=0))
    assert first.dtype == torch.int32


@pytest.mark.parametrize("policy", [Partitioned, Replicated])
def test_without_shuffling_the_storage_order_is_kept(policy):
    assert policy(shuffle=False).order(4, 6, seed=0, rank=1).tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("batch_size", [3, 5, 50])  # SAMPLES = 12; the last one leaves a worker without any
def test_epochs_are_dealt_exactly_once_and_end_for_every_worker(batch_size):
    program = Program(Claiming(1.0, batch_size, 1.0), Sizes(), Partitioned(shuffle=True), 0, 3 * SAMPLES, [1])
    counters = {}
    workers = [Worker(Counting(rank, 2, counters), program) for rank in range(2)]
    dealers = [worker.epochs(Sizes(), batch_size) for worker in workers]
    for expected in range(3):
        seen, positions = [], []
        for worker, dealer in zip(workers, dealers, strict=True):
            epoch, batches = next(dealer)
            assert epoch == expected
            for batch in batches:
                assert worker.epoch == epoch
                positions += range(worker.position, worker.position + len(batch))
                seen += batch.tolist()
        assert sorted(seen) == sorted(positions) == list(range(SAMPLES))
    assert [next(dealer, None) for dealer in dealers] == [None, None]
