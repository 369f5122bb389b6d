"""Sharded data parallelism: what all_reduce computes, with a shard on each worker, and what that sends and keeps."""

import pytest
import torch
from composed import execution, setup

from algorithms.shards import JoinedShards, layers_of, shard_of
from harness.errors import UserError
from harness.trial import averaged

STEPS, GLOBAL_BATCH = 4, 24
MLP = ["problem=digits_mlp", "problem.dtype=float64", "problem.hidden_sizes=[6, 3]", "budget.observations=2"]
MLP += ["tracking=none", f"budget.epochs={STEPS * GLOBAL_BATCH / 1437}", "algorithm.learning_rate=0.1"]
SHAPES = [(6, 64), (6,), (3, 6), (3,), (10, 3), (10,)]  # 3 rows, for 4 workers
ROOMY = "problem.hidden_sizes=[64]"
HYBRID = "algorithm.shard_size=2"
KEPT, AHEAD, AGAIN = "algorithm.reshard_after_forward=false", "algorithm.prefetch=2", "algorithm.checkpointing=true"


def run(algorithm, hardware, workers, *overrides):
    """The weights of the whole model at all observations, and all that came of it."""
    shares = (
        f"algorithm.batch_size={GLOBAL_BATCH // workers}",
        f"hardware={hardware}",
        f"hardware.num_workers={workers}",
    )
    done = execution(*MLP, f"algorithm={algorithm}", *shares, *overrides)
    assert done.failure is None, done.failure
    observations, _ = averaged(done.observations, workers)
    return torch.stack([observation.parameters for observation in observations]), done


def sequential(*overrides):
    return run("all_reduce", "sim_ethernet", 1, *overrides)[0]


@pytest.fixture(scope="module")
def minibatch_sgd():
    return run("sgd", "sim_ethernet", 1)[0]


VARIANTS = [("fsdp",), ("fsdp", KEPT), ("fsdp", AHEAD), ("fsdp", AGAIN), ("fsdp", KEPT, AHEAD, AGAIN), ("fsdp_plain",)]
VARIANTS += [("zero1",), ("zero1_plain",)]
PLACES = [("sim_ethernet", 1), ("sim_ethernet", 2), ("sim_ethernet", 4), ("sim_dgx", 4), ("cpu", 2)]
CASES = [(variant, *place) for variant in VARIANTS for place in PLACES]
CASES += [
    (("fsdp", HYBRID, *more), *place) for more in [(), (AHEAD,)] for place in [("sim_ethernet", 4), ("sim_dgx", 4)]
]
CASES += [(("fsdp", "algorithm.shard_size=1"), "sim_ethernet", 2), (("fsdp", HYBRID), "sim_ethernet", 1)]
CASES += [(variant, "cpu", 1) for variant in [("fsdp",), ("fsdp_plain",)]]
CASES += [(variant, "cpu", 4) for variant in [("fsdp", HYBRID, AHEAD, AGAIN), ("fsdp_plain",)]]


@pytest.mark.parametrize(
    ("variant", "hardware", "workers"), CASES, ids=lambda value: str(value).replace("algorithm.", "")
)
def test_it_is_minibatch_sgd_with_the_global_batch(minibatch_sgd, variant, hardware, workers):
    weights, _ = run(variant[0], hardware, workers, *variant[1:])
    # rtol 1e-12: the order of sums differs between ranks
    torch.testing.assert_close(weights, minibatch_sgd, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("algorithm", ["fsdp", "fsdp_plain", "zero1", "zero1_plain"])
def test_its_optimizer_and_schedule_are_those_of_all_reduce(algorithm):
    chosen = ["algorithm/optimizer=adamw", "algorithm/schedule=cosine", "algorithm.learning_rate=0.01"]
    weights, _ = run(algorithm, "sim_ethernet", 3, *chosen)
    reference, _ = run("all_reduce", "sim_ethernet", 3, *chosen)
    torch.testing.assert_close(weights, reference, rtol=1e-12, atol=1e-13)


def test_layers_keep_what_has_no_parameters_and_the_order_of_parameters():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    layers = layers_of(model)
    assert [[type(module).__name__ for module in layer] for layer in layers] == [
        ["Flatten", "Linear", "ReLU"],
        ["Linear"],
    ]
    whole = [id(parameter) for parameter in model.parameters()]
    assert [id(parameter) for layer in layers for parameter in layer.parameters()] == whole


def test_shards_are_equal_and_filled_up():
    assert [shard_of(torch.arange(5.0), rank, 3).tolist() for rank in range(3)] == [[0, 1], [2, 3], [4, 0]]
    assert [shard_of(torch.arange(1.0), rank, 2).tolist() for rank in range(2)] == [[0], [0]]


def test_joined_shards_know_where_they_are():
    vectors = [torch.arange(5.0), torch.arange(5.0, 6.0), torch.arange(6.0, 9.0)]
    for rank in range(3):
        shards = JoinedShards(vectors, rank, 3)
        assert len(shards.flat) == sum(shards.sizes) == 2 + 1 + 1
        assert shards.kept().tolist() == shards.positions.tolist()  # values are places here
    everyones = [JoinedShards(vectors, rank, 3).positions for rank in range(3)]
    assert torch.cat(everyones).sort().values.tolist() == list(range(9))


def test_groups_that_do_not_make_up_the_workers_are_refused():
    with pytest.raises(
        UserError, match=r"algorithm.shard_size must divide the 4 workers, or be 0 for all of them, got 3"
    ):
        setup("algorithm=fsdp", "algorithm.shard_size=3", *MLP, "hardware=sim_ethernet", "hardware.num_workers=4")


@pytest.mark.parametrize("algorithm", ["fsdp", "fsdp_plain"])
def test_a_model_without_layers_is_refused(algorithm):
    with pytest.raises(
        UserError, match="the model of LeastSquares is no chain of layers: choose a problem whose model is"
    ):
        setup(f"algorithm={algorithm}", "problem=least_squares", "hardware=sim_ethernet")


@pytest.mark.parametrize("setting", ["algorithm.shard_size=-1", "algorithm.prefetch=-1", "algorithm.param_dtype=int8"])
def test_settings_that_mean_nothing_are_refused(setting):
    with pytest.raises(UserError, match=setting.partition("=")[0]):
        setup("algorithm=fsdp", *MLP, setting)
