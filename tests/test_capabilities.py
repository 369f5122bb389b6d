"""What an algorithm declares of itself is measured: what it sends, how stale it gets, whether it is in lockstep."""

from collections import Counter

import pytest
import torch
from composed import options
from small_runs import NATIVE, SENDING, SILENT, UNTRAINED, run

from hardware.simulated.place import SimulatedPlace
from harness.trial import averaged

TWO_SERVERS = "algorithm.num_servers=2"
CONSISTENCIES = ("synchronous", "backup_workers", "asynchronous", "bounded_staleness")
VARIANTS = [(algorithm,) for algorithm in SENDING]
VARIANTS += [("parameter_server", f"algorithm.consistency={each}", TWO_SERVERS) for each in CONSISTENCIES]
VARIANTS += [("parameter_server", "algorithm.consistency=bounded_staleness", "algorithm.staleness=0")]
VARIANTS += [(each, "algorithm/mixing=star") for each in ("gossip", "choco_sgd")]
VARIANTS += [(each, "algorithm/mixing=one_peer_exponential") for each in ("gossip", "stochastic_gradient_push")]
VARIANTS += [("choco_sgd", "algorithm/compression=sign"), ("federated", "algorithm.control_variates=true")]
VARIANTS += [("federated", "algorithm/compression=sign", "algorithm.dropout=0.3")]
VARIANTS += [("federated", "algorithm/partition=dirichlet")]
VARIANTS += [(each, "algorithm/compression=qsgd") for each in ("all_reduce", "local_sgd", "parameter_server")]
VARIANTS += [(each, "algorithm/compression=power_sgd") for each in ("all_reduce", "local_sgd")]
VARIANTS += [("elastic_averaging", f"algorithm/compression={each}") for each in ("top_k", "half")]
DIRECTED = "stochastic_gradient_push", "algorithm/mixing=exponential"
VARIANTS += [(*DIRECTED, f"algorithm/compression={each}") for each in ("qsgd", "random_k")]
VARIANTS += [("fsdp", "algorithm.reshard_after_forward=false"), ("fsdp", "algorithm.shard_size=1")]
VARIANTS += [("fsdp", "algorithm.param_dtype=bfloat16", "algorithm.reduce_dtype=float32")]
VARIANTS += [("local_sgd", "algorithm.group_size=2"), ("elastic_averaging", "algorithm.period=1")]
UNDECLARED = [  # pace decides who asks; trials have own batches; late pushes are no updates; groups have several sizes;
    # clients may have no samples
    ("ad_psgd",),
    ("hyperparameter_search",),
    ("parameter_server", "algorithm.consistency=backup_workers", TWO_SERVERS),
    ("local_sgd", "algorithm.group_size=2"),
    ("federated", "algorithm/partition=dirichlet"),
]


def places(variant):
    """An algorithm as shipped in both times; as a variant for real when asked for alone."""
    real = pytest.param(variant, "cpu", 2, marks=pytest.mark.slow if len(variant) > 1 else ())
    return [pytest.param(variant, "sim_ethernet", 3), real]


PLACES = [place for variant in VARIANTS for place in places(variant)]
STRAGGLER = "hardware.stragglers={1: 50.0}"


FEW_UPDATES = {  # unless there are many, slack would hide a wrong size
    "elastic_averaging": ["budget.epochs=40"],
    "fedbuff": ["algorithm.local_epochs=1", "algorithm.batch_size=10", "budget.epochs=40"],
    "federated": ["algorithm.local_epochs=1", "algorithm.batch_size=10", "budget.epochs=40"],
    "local_sgd": ["budget.epochs=20"],
}


def name(value):
    return "-".join(part.rpartition(".")[2] for part in value) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(("variant", "hardware", "workers"), PLACES, ids=name)
def test_bytes_per_update_are_as_declared(variant, hardware, workers):
    algorithm, *extra = variant
    composed, _, execution = run(algorithm, hardware, workers, *extra, *FEW_UPDATES.get(algorithm, []))
    observations = execution.observations
    last = (averaged(observations, workers)[0] if composed.algorithm.splits_model else observations)[-1]
    declared = composed.algorithm.bytes_per_update(composed.problem, last.parameters, workers)
    assert (declared is None) == (variant in UNDECLARED)
    if declared is None:
        return
    sent = sum(worker.sent_bytes for worker in execution.workers)
    # in lockstep: the last period is not full, or workers say goodbye; else every worker has one message under way when
    # the model is observed for the last time, and says goodbye
    slack = getattr(composed.algorithm, "period", 1) if composed.algorithm.synchronous else 2 * workers
    assert slack < 0.1 * last.updates
    assert sent > 0 and abs(sent / declared - last.updates) <= slack


@pytest.mark.parametrize("algorithm", [*NATIVE, *SILENT])
def test_what_shares_memory_or_is_alone_sends_nothing(algorithm):
    composed, _, execution = run(algorithm, "sim_numa2", 2, "budget.epochs=4")
    assert composed.algorithm.bytes_per_update(composed.problem, torch.zeros(1), 2) is None
    assert sum(worker.sent_bytes for worker in execution.workers) == 0


@pytest.mark.parametrize(("variant", "hardware", "workers"), PLACES, ids=name)
def test_staleness_is_bounded_as_declared(variant, hardware, workers):
    algorithm, *extra = variant
    composed, _, execution = run(algorithm, hardware, workers, *extra)
    bound = composed.algorithm.staleness_bound(workers)
    measured = composed.algorithm.servers() or algorithm == "pipedream"  # by servers, and by who stashes weights
    if bound is not None and measured:
        assert execution.metrics["async/staleness_max"] <= bound
    if composed.algorithm.synchronous:
        assert bound == (workers - 1 if algorithm == "pipedream" else 0)


def test_a_straggler_makes_gradients_as_stale_as_the_bound_lets_it():
    chosen = ["algorithm.consistency=bounded_staleness", "algorithm.staleness=2"]
    _, _, bounded = run("parameter_server", "sim_ethernet", 2, *chosen, STRAGGLER)
    _, _, unbounded = run("parameter_server", "sim_ethernet", 2, STRAGGLER)
    assert 2 <= bounded.metrics["async/staleness_max"] < unbounded.metrics["async/staleness_max"]


@pytest.mark.parametrize("algorithm", [each for each in options("algorithm") if each not in ("sgd", *UNTRAINED)])
def test_lockstep_is_as_declared(algorithm, monkeypatch):
    """With a straggler: all deal as many batches to themselves and leave together, or the others go on without it."""
    batches, dealt = Counter(), SimulatedPlace.dealt

    def counted(place, num_samples):
        batches[place.rank] += 1
        dealt(place, num_samples)

    monkeypatch.setattr(SimulatedPlace, "dealt", counted)
    hardware = "sim_numa2" if algorithm in NATIVE else "sim_ethernet"
    composed, _, execution = run.__wrapped__(algorithm, hardware, 2, STRAGGLER)  # which counts now
    finish_s = [worker.finish_s for worker in execution.workers[:2]]
    together = max(finish_s) < 1.5 * min(finish_s)
    equal = batches[0] == batches[1]
    assert composed.algorithm.synchronous == (together and equal), (finish_s, batches)
