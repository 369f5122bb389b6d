"""The order of samples is the same however much of it is in memory at a time, and no clock sees it drawn."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from composed import execution

from harness.data import Partitioned, Replicated, ReplicatedPerNode, ShardedPerNode
from harness.local_data import ByLabel, Sharded
from harness.order import Order
from tests.harness.test_data import SAMPLES, SGD, Claiming, deal

LABELLED = SimpleNamespace(is_fake=False, num_samples=SAMPLES, labels=torch.tensor([0, 1, 2] * (SAMPLES // 3)))
POLICIES = [Partitioned("index"), Partitioned("storage"), Replicated("index"), ShardedPerNode("index")]
POLICIES += [ReplicatedPerNode("index"), Sharded("index"), ByLabel("storage", 1)]
EPOCHS = 5
FEW = ["problem.synthetic_samples=50", "problem.synthetic_features=20", "problem.synthetic_nonzeros_per_sample=5"]
FEW += ["tracking=none", "budget.epochs=4"]


@pytest.mark.parametrize("algorithm", [SGD, Claiming])
@pytest.mark.parametrize("nodes", [(0,), (0, 0), (0, 1, 0), (0, 1, 1, 0)])
@pytest.mark.parametrize("data", POLICIES, ids=repr)
def test_parts_of_an_order_are_dealt_as_the_whole(data, nodes, algorithm, monkeypatch):
    def dealt():
        batches = deal(data, len(nodes), 7, EPOCHS * SAMPLES, algorithm, nodes=nodes, problem=LABELLED)
        return [batch.tolist() for batch in batches]

    whole = dealt()
    for part in (1, 2 * SAMPLES):
        monkeypatch.setattr("harness.dealing.PART", part)
        assert dealt() == whole


def test_one_worker_is_dealt_one_permutation_after_the_other(monkeypatch):
    monkeypatch.setattr("harness.dealing.PART", 1)
    dealt = torch.cat(deal(Partitioned("index"), 1, 5, EPOCHS * SAMPLES, Claiming, seed=3)).tolist()
    permutations = [np.random.default_rng([3, epoch]).permutation(SAMPLES) for epoch in range(EPOCHS)]
    assert dealt == np.concatenate(permutations).tolist()


@pytest.mark.parametrize("data", ["partitioned", "sharded_per_node"])
def test_rows_are_permuted_as_if_the_order_were_whole(data, monkeypatch):
    chosen = ["algorithm=hogwild", "hardware=sim_numa2", "hardware.num_workers=3", *FEW, f"data={data}"]

    def trained():
        return execution(*chosen, "data.order=permuted").observations[-1].parameters

    whole = trained()
    monkeypatch.setattr("harness.dealing.PART", 1)
    assert torch.equal(trained(), whole)


class Pauses:
    """Counts the blocks that no clock sees, and what is drawn in them."""

    def __init__(self):
        self.paused, self.drawn = False, []

    @contextmanager
    def __call__(self):
        self.paused = True
        yield
        self.paused = False

    def draw(self, epoch, length):
        self.drawn.append((epoch, self.paused))
        return torch.arange(10 * epoch, 10 * epoch + length, dtype=torch.int32)


def order(pauses, length, part):
    return Order(pauses.draw, 10, length, length, part, torch.device("cpu"), pauses)


def test_parts_are_drawn_when_they_are_needed_and_off_the_clock():
    pauses = Pauses()
    rows = order(pauses, 75, part=20)
    assert pauses.drawn == [(0, False)]  # before there is a clock
    assert [rows.rows(start, start + 5).tolist()[0] for start in range(0, 75, 5)] == [*range(0, 75, 5)]
    assert pauses.drawn[1:] == [(2, True), (4, True), (6, True)]


def test_batches_reach_into_the_next_parts():
    rows = order(Pauses(), 75, part=20)
    assert rows.rows(15, 75).tolist() == [*range(15, 75)]
    assert rows.rows(15, 25).tolist() == [*range(15, 25)]
    assert rows.rows(40, 40).tolist() == []


def test_who_comes_late_finds_the_part_before(monkeypatch):
    """As workers do at a data server."""
    pauses = Pauses()
    rows = order(pauses, 80, part=20)
    for start in (20, 0, 25, 10, 39):
        assert rows.rows(start, start + 1).tolist() == [start]
    assert len(pauses.drawn) == 2


def test_no_more_than_two_parts_are_in_memory():
    pauses = Pauses()
    rows = order(pauses, 100_000, part=20)
    for start in range(0, 100_000, 20):
        rows.rows(start, start + 20)
    assert sum(part.nbytes for part in vars(rows)["_parts"].values()) <= 2 * 20 * 4


def test_threads_that_ask_at_once_draw_once(monkeypatch):
    drawn, share = [], Partitioned("index").share(1000, 1000, 0, (0, 0))
    monkeypatch.setattr("harness.data._Sequence._drawn", lambda sequence: drawn.append(sequence) or torch.zeros(1))
    threads = [threading.Thread(target=Partitioned("index").sequence, args=(share, 1000, 987654)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 1
