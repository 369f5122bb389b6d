"""Policies under which every worker has samples of its own: who has what, in which order, and what that does."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from composed import execution, setup

from algorithms.common.optimizers import PlainSGD
from harness.data import DataPolicy, Partitioned
from harness.dealing import Dealer
from harness.errors import UserError
from harness.interleaving import Interleaving
from harness.local_data import ByLabel, Dirichlet, Sharded
from harness.program import Program
from harness.trial import averaged, evaluate
from tests.harness.test_data import CONSTANT, SAMPLES, Claiming, Counting, deal

LABELS = torch.tensor([0, 1, 2] * (SAMPLES // 3))
LABELLED = SimpleNamespace(is_fake=False, num_samples=SAMPLES, labels=LABELS)
POLICIES = [Sharded("index"), ByLabel("index", 1), ByLabel("index", 2), Dirichlet("index", 2.0)]
MLP = ["problem=digits_mlp", "problem.dtype=float64", "tracking=none"]
FEW = ["problem=least_squares", "problem.samples=5", "problem.features=2"]
OPTIONS_BY_HETEROGENEITY = ["data=sharded", "data=dirichlet", "data=by_label"]
OPTIONS = ["data=sharded", "data=by_label", "data=dirichlet"]
SPARSE = ["problem=logistic_regression", "problem.synthetic_samples=250", "problem.synthetic_features=20"]
SPARSE += ["problem.synthetic_nonzeros_per_sample=5", "problem.dtype=float64", "tracking=none", "budget.epochs=10"]


@pytest.mark.parametrize("data", POLICIES, ids=repr)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_sample_has_one_owner(data, workers):
    parts = data.parts(LABELLED, workers, seed=3)
    assert sorted(np.concatenate(parts)) == list(range(SAMPLES))
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("data", POLICIES, ids=repr)
@pytest.mark.parametrize("workers", [2, 3])
def test_a_worker_goes_through_its_own_again_and_again_in_a_fresh_order(data, workers):
    batches = deal(data, workers, 1, 6 * SAMPLES, problem=LABELLED)
    for rank, part in enumerate(data.parts(LABELLED, workers, seed=0)):
        own = torch.cat(batches[rank::workers])
        assert len(own) == 6 * SAMPLES // workers  # as many as any other, whatever it has
        rounds = [turn.tolist() for turn in own.split(len(part)) if len(turn) == len(part)]
        assert all(sorted(turn) == part.tolist() for turn in rounds)
        assert len(part) < 3 or any(turn != rounds[0] for turn in rounds)


@pytest.mark.parametrize("algorithm_is", ["synchronous", "asynchronous"])
@pytest.mark.parametrize("data", POLICIES, ids=repr)
def test_one_worker_has_all_and_takes_them_as_if_alone(data, algorithm_is):
    chosen = {} if algorithm_is == "synchronous" else {"algorithm": Claiming}
    own = deal(data, 1, 5, 3 * SAMPLES, problem=LABELLED, **chosen)
    assert [batch.tolist() for batch in own] == [
        batch.tolist() for batch in deal(Partitioned("index"), 1, 5, 3 * SAMPLES, **chosen)
    ]


def test_a_fast_worker_does_more_of_its_own():
    """Claims of the one budget: rank 0 asks twice as often."""
    data = ByLabel("index", 1)
    batches = deal(data, 2, 2, 4 * SAMPLES, Claiming, problem=LABELLED, asks=(0, 0, 1))
    parts = [set(part.tolist()) for part in data.parts(LABELLED, 2, seed=0)]
    taken = [sum(len(batch) for batch in batches if set(batch.tolist()) <= part) for part in parts]
    assert taken == [32, 16]
    fast = [row for batch in batches if set(batch.tolist()) <= parts[0] for row in batch.tolist()]
    assert sorted(fast[:6]) == sorted(fast[6:12]) == sorted(parts[0])


def test_a_worker_has_its_order_as_far_as_it_needs_it(monkeypatch):
    """Of a budget of 48 samples a fourth, and one for each worker, by which budgets are rounded up; in whole epochs."""
    chosen = Claiming(1.0, 2, accumulate=1, optimizer=PlainSGD(0.0), schedule=CONSTANT)
    place = Counting(0, (0,) * 4, {})
    place.interleaving = Interleaving()
    dealer = Dealer(place, Program(chosen, LABELLED, Sharded("index"), 0, 48, [48]))
    drawn = []
    draw = DataPolicy.sequence
    monkeypatch.setattr(DataPolicy, "sequence", lambda *args: drawn.append(args[2:]) or draw(*args))
    order = dealer.order(SAMPLES)
    assert drawn == [(18, 0, 0)]  # six epochs of its three samples
    order.rows(0, 18)
    assert len(drawn) == 1
    order.rows(18, 21)
    assert drawn[1:] == [(18, 0, 6)]


def test_order_depends_on_seed_rank_and_round_and_nothing_else():
    def sequence(seed, rank, length):
        share = Sharded("index").share(100, length, rank, (0, 0))
        return Sharded("index").sequence(share, length, seed).tolist()

    assert sequence(3, 1, 150) == sequence(3, 1, 200)[:150]
    assert sequence(3, 1, 100) != sequence(3, 0, 100)
    assert sequence(3, 1, 100) != sequence(4, 1, 100)


def test_without_shuffling_a_worker_goes_through_its_own_as_they_are_stored():
    batches = deal(ByLabel("storage", 1), 2, 3, 3 * SAMPLES, problem=LABELLED)
    for rank, part in enumerate(ByLabel("storage", 1).parts(LABELLED, 2, seed=0)):
        assert torch.cat(batches[rank::2]).tolist() == part.tolist() * 3


@pytest.mark.parametrize(("data", "partition"), [*zip(OPTIONS, ["iid", "by_label", "dirichlet"], strict=True)])
def test_workers_are_given_what_federated_clients_would_be(data, partition):
    composed = setup(*MLP, "algorithm=federated", f"algorithm/partition={partition}", "hardware=sim_ethernet")
    clients = composed.algorithm.partition.split(composed.problem, 5, seed=2)
    policy = setup(*MLP, "algorithm=local_sgd", data, "hardware=sim_ethernet", "hardware.num_workers=2").data
    if isinstance(policy, Dirichlet):
        policy = Dirichlet("index", composed.algorithm.partition.alpha)
    for own, client in zip(policy.parts(composed.problem, 5, seed=2), clients, strict=True):
        assert own.tolist() == sorted(client.tolist())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["problem=matrix_completion", "data=by_label"], "needs a label of every sample, which this problem lacks"),
        (["problem=matrix_completion", "data=dirichlet"], "use data=sharded"),
        ([*MLP, "data=dirichlet", "data.alpha=0.001"], r"worker \d of 8 without a sample of 1438: raise data.alpha"),
        ([*FEW, "data=by_label", "data.shards=1"], r"leaves worker \d of 8 .*: lower data.shards=1"),
        ([*FEW, "data=sharded"], r"leaves worker 5 of 8 without a sample of 5: use fewer workers"),
        ([*MLP, "data=by_label", "data.shards=0"], "data.shards must be >= 1"),
        ([*MLP, "data=dirichlet", "data.alpha=0"], "data.alpha must be > 0"),
        ([*MLP, "data=sharded", "data.order=permuted"], "data.order must be index or storage with data=sharded"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(overrides, words):
    with pytest.raises(UserError, match=words):
        setup("algorithm=local_sgd", "hardware=sim_ethernet", "tracking=none", *overrides)


@pytest.mark.parametrize(
    ("data", "instead"),
    [
        ("by_label", "data=partitioned algorithm/partition=by_label"),
        ("sharded", "data=partitioned algorithm/partition=iid"),
        ("streamed", "data=partitioned"),
    ],
)
def test_an_algorithm_that_deals_samples_itself_is_refused(data, instead):
    who = "algorithm=federated says itself who has which samples"
    with pytest.raises(UserError, match=f"{who}, which data={data} would say too: use {instead}$"):
        setup(*MLP, "algorithm=federated", f"data={data}", "hardware=sim_ethernet")


def curve(data, algorithm, *how):
    """Losses and consensus distances over two epochs."""
    chosen = [*MLP, algorithm, "hardware=sim_ethernet", "hardware.num_workers=4", "budget.epochs=2", *how, data]
    composed = setup(*chosen, "budget.observations=4")
    done = composed.machine.execute(composed.program(), lambda samples: None)
    assert done.failure is None
    seen, spreads = averaged(done.observations, 4)
    losses = [values["train/loss"] for values in evaluate(composed.problem, 0, seen)]
    return losses, [spread["stat/consensus_distance"] for spread in spreads]


@pytest.mark.parametrize("algorithm", [["algorithm=local_sgd", "algorithm.period=30"], ["algorithm=gossip"]])
def test_workers_that_know_different_labels_drift_apart(algorithm):
    alike, some, different = (curve(data, *algorithm)[1][0] for data in OPTIONS_BY_HETEROGENEITY)
    assert different > some > 4 * alike


def test_workers_that_know_different_labels_learn_more_slowly():
    """Between rare averages: what one has learnt the other unlearns."""
    alike, some, different = (
        curve(data, "algorithm=local_sgd", "algorithm.period=30")[0][-1] for data in OPTIONS_BY_HETEROGENEITY
    )
    assert alike < some < different


@pytest.mark.parametrize("data", OPTIONS)
@pytest.mark.parametrize("algorithm", ["all_reduce", "ad_psgd", "gossip"])
def test_each_kind_of_algorithm_solves_with_samples_of_its_own(algorithm, data):
    composed = setup(*MLP, f"algorithm={algorithm}", data, "hardware=sim_ethernet", "hardware.num_workers=3",
                     "budget.observations=2", "budget.epochs=4", "algorithm.learning_rate=0.5")  # fmt: skip
    done = composed.machine.execute(composed.program(), lambda samples: None)
    assert done.failure is None
    seen, _ = averaged(done.observations, composed.num_workers)
    losses = [values["train/loss"] for values in evaluate(composed.problem, 0, seen)]
    assert losses[-1] < 0.7 * 2.3  # ln 10 is that of a guess


@pytest.mark.parametrize("data", OPTIONS)
@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2"])
def test_native_kernels_visit_each_workers_own(data, hardware):
    chosen = [*SPARSE, "algorithm=hogwild", f"hardware={hardware}", "hardware.num_workers=2", data]
    composed = setup(*chosen)
    done = composed.machine.execute(composed.program(), lambda samples: None)
    assert done.failure is None
    assert done.observations[-1].samples == composed.program().budget_samples
    if hardware == "sim_numa2":  # on a busy machine one thread may do all there is, on its own samples
        (loss,) = [values["train/loss"] for values in evaluate(composed.problem, 0, done.observations[-1:])]
        assert loss < 0.65  # ln 2 is that of the first model


@pytest.mark.parametrize("data", OPTIONS)
def test_the_same_weights_on_both_clocks(data):
    chosen = [
        *MLP,
        "algorithm=all_reduce",
        "hardware.num_workers=2",
        "budget.epochs=0.2",
        "budget.observations=1",
        data,
    ]
    real, simulated = (execution(*chosen, f"hardware={hardware}") for hardware in ("cpu", "sim_ethernet"))
    assert real.failure is simulated.failure is None
    mine, other = (done.observations[-1].parameters for done in (real, simulated))
    torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-13)  # float64: gloo may sum in another order
