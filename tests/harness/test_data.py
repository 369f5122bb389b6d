import pytest
import torch

from algorithms.common.optimizers import PlainSGD
from algorithms.sgd import SGD
from hardware.real.host_clock import HostClock
from harness.baseline import CONSTANT
from harness.data import Partitioned, Replicated, ReplicatedPerNode, ShardedPerNode
from harness.errors import UserError
from harness.kernels.row_data import RowData
from harness.place import Place
from harness.program import Program
from harness.rows import Rows, within_epochs
from harness.worker import Worker
from tests.hardware.toys import ToyKernel

SAMPLES = 12
POLICIES = [Partitioned, Replicated, ShardedPerNode, ReplicatedPerNode]


class Sizes:
    """A problem of which only the size is asked."""

    is_fake = False
    num_samples = SAMPLES


class Counting(Place):
    """A place that does nothing but count."""

    device, clock = torch.device("cpu"), HostClock(0.0)

    nodes = ()

    def __init__(self, rank, nodes, counters):
        self.rank, self.num_workers, self.nodes, self.counters = rank, len(nodes), nodes, counters

    def add(self, counter, amount):
        before = self.counters.get(counter, 0)
        self.counters[counter] = before + amount
        return before

    def count(self, samples, updates, alone):
        return self.add("samples", samples), self.add("updates", updates)

    def shared(self, name, tensor, node):
        raise NotImplementedError

    def run(self, kernel, model, samples, learning_rate):
        raise NotImplementedError

    def rows(self, name, kernel, shares, share, fresh=False, sequential=False):
        return Rows(kernel, share.first)

    def background(self, activity):
        raise NotImplementedError

    def meet(self, num_workers):
        raise NotImplementedError

    def spend(self, seconds, idle):
        raise NotImplementedError

    def lock(self, name):
        raise NotImplementedError

    def report(self, observation):
        raise NotImplementedError


class Movable(ToyKernel):
    """Whose rows could be moved, and are not."""

    @property
    def row_data(self):
        return RowData(self.indptr, {}, {"numbers": self.numbers})


class Claiming(SGD):
    synchronous = False


def deal(data, num_workers, batch_size, budget=2 * SAMPLES, algorithm=SGD, seed=0, nodes=None, problem=None, asks=None):
    """The batches of all workers, taking turns: [worker 0's first, worker 1's first, ..., worker 0's second, ...].

    `asks` has the ranks in another order.
    """
    sequential = algorithm(1.0, batch_size, accumulate=1, optimizer=PlainSGD(0.0), schedule=CONSTANT)
    program = Program(sequential, problem or Sizes(), data, seed, budget, [budget])
    counters = {}
    workers = [Worker(Counting(rank, nodes or (0,) * num_workers, counters), program) for rank in range(num_workers)]
    dealers = [dealer(worker, data, batch_size) for worker in workers]
    batches = []
    turns = [dealers[rank] for rank in asks or range(num_workers)]
    while rounds := [batch for dealer in turns if (batch := next(dealer, None)) is not None]:
        batches += rounds
    return batches


def dealer(worker, data, batch_size):
    if data.moves_rows:
        return (samples for _, samples in worker.visits(Movable(torch.zeros(SAMPLES)), batch_size))
    return worker.batches(Sizes(), batch_size)


def epochs(batches):
    return [sorted(epoch.tolist()) for epoch in torch.cat(batches).split(SAMPLES)]


@pytest.mark.parametrize("algorithm", [SGD, Claiming])
@pytest.mark.parametrize(("num_workers", "batch_size"), [(1, 1), (2, 3), (4, 3), (3, 2)])
def test_partitioned_deals_each_epoch_exactly_once(algorithm, num_workers, batch_size):
    batches = deal(Partitioned("index"), num_workers, batch_size, algorithm=algorithm)
    assert epochs(batches) == [list(range(SAMPLES))] * 2
    assert {len(batch) for batch in batches} == {batch_size}


@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_batches_of_all_workers_are_one_workers_global_batch(num_workers):
    batch_size = SAMPLES // num_workers
    together = deal(Partitioned("index"), num_workers, batch_size)
    alone = deal(Partitioned("index"), 1, num_workers * batch_size)
    assert [b.tolist() for b in alone] == [
        torch.cat(together[i : i + num_workers]).tolist() for i in range(0, len(together), num_workers)
    ]


def test_synchronous_budget_is_rounded_up_to_equal_batches():
    batches = deal(Partitioned("index"), num_workers=3, batch_size=5, budget=16)
    assert [len(batch) for batch in batches] == [5, 5, 5, 1, 1, 1]


def test_asynchronous_budget_is_spent_exactly():
    batches = deal(Partitioned("index"), num_workers=3, batch_size=5, budget=16, algorithm=Claiming)
    assert [len(batch) for batch in batches] == [5, 5, 5, 1]


def test_replicated_workers_each_see_everything_in_an_order_of_their_own():
    batches = deal(Replicated("index"), num_workers=2, batch_size=4, budget=2 * SAMPLES)
    own = [batches[0::2], batches[1::2]]
    assert [epochs(batches) for batches in own] == [[list(range(SAMPLES))]] * 2
    assert torch.cat(own[0]).tolist() != torch.cat(own[1]).tolist()


def sequence(data, num_samples, length, seed=0, rank=0, nodes=(0, 0)):
    return data.sequence(data.share(num_samples, length, rank, nodes), length, seed)


@pytest.mark.parametrize("policy", POLICIES)
def test_order_depends_on_seed_and_epoch_and_nothing_else(policy):
    data = policy("index")
    first = sequence(data, 100, 200, seed=3)
    assert torch.equal(first, sequence(policy("index"), 100, 200, seed=3))
    assert torch.equal(first[:150], sequence(data, 100, 150, seed=3))
    assert not torch.equal(first[:100], first[100:])
    assert not torch.equal(first, sequence(data, 100, 200, seed=4))
    assert first.dtype == torch.int32


@pytest.mark.parametrize("policy", POLICIES)
def test_without_shuffling_the_storage_order_is_kept(policy):
    assert sequence(policy("storage"), 4, 6, rank=1).tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("policy", [Partitioned, ShardedPerNode, ReplicatedPerNode])
def test_permuted_rows_are_dealt_in_the_order_of_index(policy):
    assert torch.equal(sequence(policy("permuted"), 50, 120), sequence(policy("index"), 50, 120))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Partitioned("shuffled"), "data.order must be one of index, storage, permuted, got 'shuffled'"),
        (lambda: Replicated("permuted"), "data.order must be index or storage with data=replicated"),
        (lambda: ShardedPerNode("index").share(3, 3, 0, (0, 0, 1, 1)), "must leave a row to each of 4 workers"),
    ],
)
def test_orders_that_cannot_be_are_refused(build, words):
    with pytest.raises(UserError, match=words):
        build()


@pytest.mark.parametrize("algorithm", [SGD, Claiming])
@pytest.mark.parametrize("nodes", [(0, 1), (0, 1, 0, 1), (0, 0, 0, 1), (0, 1, 2), (0,)])
def test_every_node_deals_its_own_rows_once_an_epoch(algorithm, nodes):
    batches = deal(ShardedPerNode("index"), len(nodes), 1, 3 * SAMPLES, algorithm, nodes=nodes)
    seen = {node: [] for node in nodes}
    for turn, batch in enumerate(batches):
        seen[nodes[turn % len(nodes)]] += batch.tolist()
    everything = []
    for node, rows in seen.items():
        own = SAMPLES * nodes.count(node) // len(nodes)
        assert len(rows) == 3 * own
        epochs = [sorted(rows[start : start + own]) for start in range(0, len(rows), own)]
        assert epochs[0] == epochs[1] == epochs[2] and len(set(epochs[0])) == own
        everything += epochs[0]
    assert sorted(everything) == list(range(SAMPLES))


@pytest.mark.parametrize("budget", [1, 5, 12, 17, 29])
@pytest.mark.parametrize("nodes", [(0, 1), (0, 0, 0, 1), (0, 1, 2, 0, 1, 2, 0)])
def test_budgets_of_nodes_add_up(budget, nodes):
    shares = [ShardedPerNode("index").share(SAMPLES, budget, rank, nodes) for rank in range(len(nodes))]
    assert sum({share.node: share.budget for share in shares}.values()) == budget
    batches = deal(ShardedPerNode("index"), len(nodes), 2, budget, Claiming, nodes=nodes)
    assert sum(map(len, batches)) == budget


def test_on_one_node_shards_are_parts_of_one_order():
    shards, parts = (deal(policy("index"), 3, 2) for policy in (ShardedPerNode, Partitioned))
    assert [batch.tolist() for batch in shards] == [batch.tolist() for batch in parts]


def test_copies_of_nodes_are_dealt_as_one_order():
    copies = deal(ReplicatedPerNode("index"), 4, 2, nodes=(0, 1, 0, 1))
    assert [batch.tolist() for batch in copies] == [batch.tolist() for batch in deal(Partitioned("index"), 4, 2)]


@pytest.mark.parametrize("starts", [[(0, 3), (3, 4)], [(2, 9)], [(11, 1)], []])
def test_batches_are_cut_where_epochs_end(starts):
    cut = list(within_epochs(iter(starts), rows=4, epochs=4))
    visited = [epoch * 4 + row for epoch, start, stop in cut for row in range(start, stop)]
    assert visited == [position for start, size in starts for position in range(start, start + size)]
    assert sorted({epoch for epoch, _, _ in cut}) == [0, 1, 2, 3]
    assert [epoch for epoch, _, _ in cut] == sorted(epoch for epoch, _, _ in cut)


@pytest.mark.parametrize("data", [Partitioned("permuted"), ShardedPerNode("index"), ReplicatedPerNode("storage")])
def test_numbers_of_rows_that_are_moved_are_refused(data):
    program = Program(SGD(1.0, 1, 1.0, 1, PlainSGD(0.0)), Sizes(), data, 0, SAMPLES, [SAMPLES])
    worker = Worker(Counting(0, (0, 1), {}), program)
    with pytest.raises(UserError, match=r"moves rows, and this algorithm asks only for their numbers"):
        next(worker.batches(Sizes(), 1))


@pytest.mark.parametrize("batch_size", [3, 5, 50])  # SAMPLES = 12; the last one leaves a worker without any
def test_epochs_are_dealt_exactly_once_and_end_for_every_worker(batch_size):
    program = Program(
        Claiming(1.0, batch_size, 1.0, 1, PlainSGD(0.0)), Sizes(), Partitioned("index"), 0, 3 * SAMPLES, [1]
    )
    counters = {}
    workers = [Worker(Counting(rank, (0, 0), counters), program) for rank in range(2)]
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
