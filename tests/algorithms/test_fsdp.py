"""Sharded data parallelism: what all_reduce computes, with a shard on each worker, and what that sends and keeps."""

from dataclasses import dataclass, replace
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist
from composed import execution, setup
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from algorithms.sharding.shards import JoinedShards, shard_of
from harness.errors import UserError
from harness.problems.layered import Layered
from harness.trial import averaged

STEPS, GLOBAL_BATCH = 4, 24
MLP = ["problem=digits_mlp", "problem.dtype=float64", "problem.hidden_sizes=[6, 3]", "budget.observations=2"]
MLP += ["tracking=none", f"budget.epochs={STEPS * GLOBAL_BATCH / 1437}", "algorithm.learning_rate=0.1"]
SHAPES = [(6, 64), (6,), (3, 6), (3,), (10, 3), (10,)]  # 3 rows, for 4 workers
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


ALL = ("fsdp", KEPT, AHEAD, AGAIN)
VARIANTS = [
    ("fsdp",),
    ("fsdp", KEPT),
    ("fsdp", AHEAD),
    ("fsdp", AGAIN),
    ALL,
    ("fsdp_plain",),
    ("zero1",),
    ("zero1_plain",),
]
SIMULATED = [("sim_ethernet", 1), ("sim_ethernet", 2), ("sim_ethernet", 4), ("sim_dgx", 4)]
CASES = [(variant, *place) for variant in VARIANTS for place in SIMULATED]
CASES += [(("fsdp", HYBRID, *more), *place) for more in [(), (AHEAD,)] for place in SIMULATED[2:]]
CASES += [(("fsdp", "algorithm.shard_size=1"), "sim_ethernet", 2), (("fsdp", HYBRID), "sim_ethernet", 1)]
QUICK = [(variant, "cpu", 2) for variant in [ALL, ("fsdp_plain",), ("zero1",), ("zero1_plain",)]]
QUICK += [(("fsdp",), "cpu", 1), (("fsdp", HYBRID, AHEAD, AGAIN), "cpu", 4), (("fsdp_plain",), "cpu", 4)]
REAL = [(variant, "cpu", workers) for variant in VARIANTS for workers in (1, 2, 4)] + [(("fsdp", HYBRID), "cpu", 4)]
CASES += QUICK + [pytest.param(*case, marks=pytest.mark.slow) for case in REAL if case not in QUICK]


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


@pytest.mark.parametrize("problem", ["transformer", "cnn"])
@pytest.mark.parametrize("variant", [ALL, ("fsdp_plain",)], ids=str)
def test_any_chain_of_layers_will_do(variant, problem):
    chosen = [f"problem={problem}", "problem.dtype=float64", "problem.evaluated_samples=1", "budget.observations=1"]
    chosen += ["hardware=sim_ethernet", "hardware.num_workers=3", "algorithm.batch_size=4", "tracking=none"]
    chosen += ["budget.epochs=0.01" if problem == "transformer" else "budget.epochs=0.03"]
    found = []
    for algorithm, *more in (variant, ("all_reduce",)):
        done = execution(f"algorithm={algorithm}", *chosen, *more)
        assert done.failure is None, done.failure
        found.append(averaged(done.observations, 3)[0][-1].parameters)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("algorithm", ["fsdp", "zero1", "zero1_plain"])
def test_its_step_may_grow_with_the_workers(algorithm):
    weights, _ = run(algorithm, "sim_ethernet", 2, "algorithm.linear_scaling=true")
    reference, _ = run("all_reduce", "sim_ethernet", 2, "algorithm.linear_scaling=true")
    torch.testing.assert_close(weights, reference, rtol=1e-12, atol=1e-13)


def test_prefetch_hides_what_a_host_would_wait_for():
    waits_s, hides_s = (run("fsdp", "sim_ethernet", 2, *chosen)[1].run_s for chosen in [(), (AHEAD,)])
    assert hides_s < waits_s


def test_groups_in_a_host_are_faster_than_a_shard_on_every_one():
    hosts = [
        "hardware.network.devices_per_host=2",
        "hardware.network.bandwidth_bytes_per_s=1e6",
    ]  # costs more than launches
    wide_s, hybrid_s = (run("fsdp", "sim_dgx", 4, *hosts, *chosen)[1].run_s for chosen in [(), (HYBRID,)])
    assert hybrid_s < wide_s


def test_shards_are_equal_and_filled_up():
    assert [shard_of(torch.arange(5.0), rank, 3).tolist() for rank in range(3)] == [[0, 1], [2, 3], [4, 0]]
    assert [shard_of(torch.arange(1.0), rank, 2).tolist() for rank in range(2)] == [[0], [0]]


def test_joined_shards_know_where_they_are():
    vectors = [torch.arange(5.0), torch.arange(5.0, 6.0), torch.arange(6.0, 9.0)]
    for rank in range(3):
        shards = JoinedShards(vectors, rank, 3)
        assert len(shards.flat) == sum(shards.sizes) == 2 + 1 + 1
        assert shards.kept().tolist() == shards.indices.tolist()  # values are places here
    everyones = [JoinedShards(vectors, rank, 3).indices for rank in range(3)]
    assert torch.cat(everyones).sort().values.tolist() == list(range(9))


def test_groups_that_do_not_make_up_the_workers_are_refused():
    with pytest.raises(
        UserError, match=r"algorithm.shard_size must divide hardware.num_workers=4, or be 0 for all of them, got 3"
    ):
        setup("algorithm=fsdp", "algorithm.shard_size=3", *MLP, "hardware=sim_ethernet", "hardware.num_workers=4")


@pytest.mark.parametrize("algorithm", ["fsdp", "fsdp_plain"])
def test_a_model_without_layers_is_refused(algorithm):
    with pytest.raises(
        UserError, match=r"problem=least_squares: .* is no chain of layers: use problem=cnn\|digits_mlp"
    ):
        setup(f"algorithm={algorithm}", "problem=least_squares", "hardware=sim_ethernet")


@pytest.mark.parametrize("setting", ["algorithm.shard_size=-1", "algorithm.prefetch=-1", "algorithm.param_dtype=int8"])
def test_settings_that_mean_nothing_are_refused(setting):
    with pytest.raises(UserError, match=setting.partition("=")[0]):
        setup("algorithm=fsdp", *MLP, setting)


EVEN = "problem.hidden_sizes=[48]"
PARAMETERS = 48 * 64 + 48 + 10 * 48 + 10
PADDED = 48 * 64 + 48 + 12 * 48 + 12  # of 10 rows on 4 workers


def wire(algorithm, workers, *overrides):
    """Elements that all devices send in a step, by the counters of their links."""
    _, done = run(algorithm, "sim_dgx", workers, EVEN, *overrides)
    sent = [link["payload_bytes"] for name, link in done.facts["links"].items() if name.endswith(".out")]
    assert len(sent) == workers
    return sum(sent) / 8 / STEPS


def test_links_carry_what_is_said():
    """NCCL's rings of 4: (P - 1) n to gather or to reduce-scatter, 2 (P - 1) n to all-reduce."""
    assert wire("all_reduce", 4) == pytest.approx(6 * PARAMETERS)
    assert wire("fsdp", 4) == pytest.approx(1.5 * 6 * PADDED)
    assert wire("fsdp", 4, KEPT) == pytest.approx(6 * PADDED)
    assert wire("fsdp_plain", 4) == pytest.approx(1.5 * 6 * (PARAMETERS + 2))
    assert wire("zero1_plain", 4) == pytest.approx(6 * (PARAMETERS + 2))
    assert wire("zero1", 4) == pytest.approx(1.5 * 6 * PARAMETERS)
    assert wire("fsdp", 4, AGAIN) == wire("fsdp", 4, AHEAD) == wire("fsdp", 4)


def test_links_carry_what_is_said_of_groups():
    """Of 2 groups of 2: 4 x (3 n / 2 within + 2 n / 2 / 2 between them)."""
    assert wire("fsdp", 4, HYBRID) == pytest.approx(4 * (3 / 2 + 1 / 2) * PARAMETERS)
    assert wire("fsdp", 4, "algorithm.shard_size=1") == pytest.approx(6 * PARAMETERS)
    assert wire("fsdp", 2) == pytest.approx(2 * (3 / 2) * PARAMETERS)


def test_bytes_of_mixed_precision_are_of_what_is_gathered_and_of_what_is_summed():
    mixed = ["algorithm.param_dtype=bfloat16", "algorithm.reduce_dtype=float32"]
    assert wire("fsdp", 2, *mixed) == pytest.approx(2 * (2 / 2 / 4 + 1 / 2 / 2) * PARAMETERS)  # of 8 bytes 2, and 4


@pytest.mark.parametrize("hardware", ["sim_dgx", "cpu"])
def test_mixed_precision_rounds_what_is_computed_and_not_the_weights(hardware, minibatch_sgd):
    weights, _ = run("fsdp", hardware, 2, "algorithm.param_dtype=bfloat16")
    assert weights.dtype == torch.float64
    # 4 steps along gradients of 8 significant bits
    assert 0 < (weights - minibatch_sgd).abs().max() < 4 * 2**-8 * (minibatch_sgd[-1] - minibatch_sgd[0]).abs().max()


def taken(algorithm, workers, *overrides, hardware="sim_dgx"):
    """Elements of the worker that keeps most, by what they are for."""
    _, done = run(algorithm, hardware, workers, EVEN, "algorithm/optimizer=adamw", *overrides)
    found = {
        name: done.metrics[f"mem/{name}_bytes_max"] / 8 for name in ("parameter", "gradient", "optimizer", "activation")
    }
    return found | {"optimizer": found["optimizer"] - 4 / 2}  # which counts the steps of 4 tensors, in float32


@pytest.mark.parametrize("hardware", ["sim_ethernet", "sim_dgx", "cpu"])
def test_a_worker_keeps_its_shard(hardware):
    workers = 2 if hardware == "cpu" else 4
    own = (PARAMETERS if workers == 2 else PADDED) / workers
    samples = GLOBAL_BATCH // workers
    # of each image its pixels, hidden units, class and the logarithms of probabilities; of all the loss and a weight
    activations = samples * (64 + 48 + 1 + 10) + 2
    found = taken("fsdp", workers, hardware=hardware)
    assert found == {"parameter": own, "gradient": own, "optimizer": 2 * own, "activation": activations}


def test_groups_keep_more_and_optimizers_alone_less():
    whole = taken("fsdp", 4, "algorithm.shard_size=1")
    assert [whole[name] for name in ("parameter", "gradient", "optimizer")] == [PARAMETERS, PARAMETERS, 2 * PARAMETERS]
    hybrid = taken("fsdp", 4, HYBRID)
    assert [hybrid[name] * 2 for name in ("parameter", "gradient", "optimizer")] == [
        PARAMETERS,
        PARAMETERS,
        2 * PARAMETERS,
    ]
    plain = taken("zero1_plain", 4)
    assert (plain["parameter"], plain["gradient"]) == (PARAMETERS, PARAMETERS)
    assert plain["optimizer"] == pytest.approx(2 * (PARAMETERS + 2) / 4, abs=2)  # one tensor's steps are counted
    assert {each["activation"] for each in (whole, hybrid, plain)} == {6 * 123 + 2}


@dataclass(frozen=True)
class Deep(Layered):
    """Blocks of hidden layers, in which there is something to forget."""

    num_samples = 64

    def build_model(self, device, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(*(self.block() for _ in range(4)))

    def block(self):
        return nn.Sequential(*(part for _ in range(3) for part in (nn.Linear(96, 96), nn.Tanh())))

    def gather(self, samples):
        inputs = torch.arange(96.0).add(samples[:, None]).cos()
        return inputs, inputs.roll(1, 0)

    def objective(self, outputs, targets):
        return (outputs - targets).square().mean()

    def evaluate(self, model):
        return {}


def deep(*overrides):
    """A run of it without overheads, on devices for which flops are all that counts."""
    composed = setup(
        "algorithm=fsdp",
        "problem=digits_mlp",
        "hardware=sim_dgx",
        "hardware.num_workers=2",
        *overrides,
        "hardware.compute.operator_overhead_s=0",
        "hardware.compute.memory_bytes_per_s=1e30",
        "hardware.compute.backward_overhead_s=0",
        "hardware.compute.kernel_latency_s=0",
        "hardware.compute.flops_per_s={float32: 1e9}",
        "algorithm.batch_size=32",
        "algorithm.learning_rate=0.1",
        "tracking=none",
    )
    problem = Deep("float32", 0.1, 32, 0.1, 0.0)
    program = replace(composed.program(), problem=problem, budget_samples=128, milestones=(128,))
    done = composed.machine.execute(program, lambda samples: None)
    assert done.failure is None, done.failure
    return averaged(done.observations, 2)[0][-1].parameters, done


def test_checkpointing_computes_a_third_more_and_keeps_the_layers_inputs():
    (weights, whole), (same, again) = deep(), deep(AGAIN)
    assert torch.equal(weights, same)
    # forward, backward as much twice, and forward once more; the first layer's inputs need no gradient
    matrices = 4 * 3
    expected = (4 * matrices - 1) / (3 * matrices - 1)
    ratio = again.workers[0].compute_s / whole.workers[0].compute_s
    assert ratio == pytest.approx(expected, rel=0.02)  # tanh and the optimiser's step are no matrix products
    kept = {name: done.metrics["mem/activation_bytes_max"] for name, done in (("whole", whole), ("again", again))}
    # of 32 samples, 96 values each: the inputs of 4 blocks and the difference to the targets; else, of the 12 layers,
    # what tanh gives and the next one takes, and the first one's inputs; 4 bytes of loss
    assert (kept["whole"], kept["again"]) == (14 * 4 * 32 * 96 + 4, 5 * 4 * 32 * 96 + 4)


@pytest.fixture
def of_eight():
    """The rank in a group of 8 whose collectives do nothing, as fake tensors ask for."""
    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=8)
    yield 3
    dist.destroy_process_group()


@pytest.mark.parametrize("variant", [*VARIANTS, ("fsdp", HYBRID, AHEAD, "algorithm.param_dtype=bfloat16")], ids=str)
def test_nothing_asks_for_values(variant, of_eight):
    algorithm, *chosen = variant
    composed = setup(f"algorithm={algorithm}", *MLP, "hardware=sim_dgx", "hardware.num_workers=8", *chosen)
    batch, observed = torch.zeros(4), []
    with FakeTensorMode() as fake:
        worker = MagicMock(
            rank=of_eight, num_workers=8, device=torch.device("cpu"), seed=0, elapsed_epochs=0, total_epochs=1
        )
        worker.batches.return_value = [fake.from_tensor(batch)] * 2
        worker.observe = lambda model, samples, part=None: observed.append(samples)
        composed.algorithm.train(worker, Deep("float32", 0.1, 32, 0.1, 0.0))
    assert observed == [4, 4]


@pytest.mark.gpu
@pytest.mark.parametrize(("workers", "backend"), [(1, "nccl"), (2, "gloo")])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_devices_compute_the_same(minibatch_sgd, variant, workers, backend):
    """To rtol 1e-12: sums are in another order, exponentials and logarithms another library's."""
    weights, done = run(variant[0], "gpus", workers, f"hardware.backend={backend}", *variant[1:])
    torch.testing.assert_close(weights, minibatch_sgd, rtol=1e-12, atol=1e-12)
    assert workers == 1 or sum(worker.sent_bytes for worker in done.workers) > 0
