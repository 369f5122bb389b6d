"""Tensor parallelism: the unsplit model's weights, and activations alone are sent, as many as the papers count."""

import copy

import pytest
import torch
import torch.distributed as dist
from composed import execution, setup
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed import fake_pg

from algorithms.splitting.layers import LayerSplit
from harness.errors import UserError
from harness.trial import averaged

LAYERS, WIDTH, CONTEXT, BATCH, VOCABULARY = 2, 16, 8, 4, 20
SIZES = {"layers": LAYERS, "width": WIDTH, "hidden": 24, "heads": 4, "key_value_heads": 4}
SIZES |= {"context": CONTEXT, "vocabulary": VOCABULARY, "samples": 16}
LENGTH = ["problem.dtype=float64", "tracking=none", "budget.observations=2"]
LLAMA = ["problem=transformer_8b", "problem.fake=false", *(f"problem.{name}={size}" for name, size in SIZES.items())]
LLAMA += [*LENGTH, "budget.epochs=1", "algorithm.learning_rate=0.1", f"algorithm.batch_size={BATCH}"]
MLP = ["problem=digits_mlp", "problem.hidden_sizes=[8,12,16]", *LENGTH, f"budget.epochs={5 * 24 / 1437}"]
MLP += ["algorithm.learning_rate=0.1", "algorithm.batch_size=24"]
SEQUENCE = "algorithm.sequence_parallel=true"
RING = "hardware.protocol.algorithms={all_reduce: ring, all_gather: ring, reduce_scatter: ring}"
STEPS = 4
ACTIVATION = BATCH * CONTEXT * WIDTH * 8  # bytes


def run(problem, hardware, workers, *overrides):
    chosen = "algorithm=tensor_parallel", f"hardware={hardware}", f"hardware.num_workers={workers}"
    done = execution(*problem, *chosen, *overrides)
    assert done.failure is None, done.failure
    return done


def weights(done):
    observations, _ = averaged(done.observations, len(done.workers))
    return torch.stack([observation.parameters for observation in observations])


@pytest.fixture(scope="module")
def sequential():
    """By problem."""
    chosen = "algorithm=sgd", "hardware=sim_ethernet"
    done = {problem[0]: execution(*problem, *chosen) for problem in (LLAMA, MLP)}
    return {name: torch.stack([each.parameters for each in one.observations]) for name, one in done.items()}


CASES = [(LLAMA, "sim_ethernet", 1, SEQUENCE), (LLAMA, "sim_ethernet", 2), (LLAMA, "sim_dgx", 4)]
CASES += [(LLAMA, "sim_dgx", 2, SEQUENCE), (LLAMA, "sim_ethernet", 4, SEQUENCE), (LLAMA, "cpu", 2, SEQUENCE)]
CASES += [(MLP, "sim_ethernet", 1), (MLP, "sim_dgx", 2), (MLP, "sim_ethernet", 4), (MLP, "cpu", 2)]
CASES += [
    pytest.param((MLP, "cpu", 4), marks=pytest.mark.slow),
    pytest.param((LLAMA, "cpu", 4, SEQUENCE), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, [case[0][0], *case[1:]])))
def test_it_is_the_unsplit_model(sequential, case):
    # rtol 1e-12: the order of sums differs
    torch.testing.assert_close(weights(run(*case)), sequential[case[0][0]], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_an_optimizer_steps_on_parts(optimizer):
    alone = execution(*LLAMA, "algorithm=sgd", "hardware=sim_dgx", f"algorithm/optimizer={optimizer}").observations
    split = run(LLAMA, "sim_dgx", 2, SEQUENCE, f"algorithm/optimizer={optimizer}")
    torch.testing.assert_close(weights(split)[-1], alone[-1].parameters, rtol=1e-12, atol=1e-13)


def test_activations_of_a_layer_are_reduced_four_times_a_step():
    """Shoeybi et al., section 3; beside the layers for the embedding and where scores are made; numbers in the loss."""
    workers = 4
    done = run(LLAMA, "sim_dgx", workers)
    loss = 3 * BATCH * CONTEXT * 8  # the largest score, the sum of exponentials, the target's score
    expected = STEPS * workers * ((4 * LAYERS + 2) * ACTIVATION + loss)
    assert sum(report.sent_bytes for report in done.workers) == expected


def on_links(done):
    """Payload that leaves each device, bytes."""
    return {name: link["payload_bytes"] for name, link in done.facts["links"].items() if name.endswith(".out")}


def test_sequence_parallelism_moves_no_more_than_reductions_do():
    """Korthikanti et al., section 4.2.2, in a ring: but for the gradients of norms, that of the embedding the same."""
    workers = 4
    reduced, scattered = (on_links(run(LLAMA, "sim_dgx", workers, RING, *more)) for more in ((), (SEQUENCE,)))
    loss = 3 * BATCH * CONTEXT * 8
    norms = STEPS * (2 * LAYERS + 1) * WIDTH * 8
    around = 2 * (workers - 1) / workers
    assert len(reduced) == workers
    for link, moved in reduced.items():
        assert moved == pytest.approx(STEPS * around * ((4 * LAYERS + 2) * ACTIVATION + loss))
        assert scattered[link] - moved == pytest.approx(around * norms)


@pytest.mark.parametrize(("hardware", "workers"), [("sim_ethernet", 4), ("cpu", 2)])
@pytest.mark.parametrize("problem", [(MLP,), (LLAMA,), (LLAMA, SEQUENCE)], ids=["mlp", "llama", "sequence"])
def test_bytes_are_as_declared(problem, hardware, workers):
    chosen, *more = problem
    done = run(chosen, hardware, workers, *more)
    composed = setup(*chosen, "algorithm=tensor_parallel", *more)
    declared = composed.algorithm.bytes_per_update(composed.problem, torch.zeros(1), workers)
    assert sum(report.sent_bytes for report in done.workers) == declared * done.observations[-1].updates


@pytest.fixture
def group():
    """Of 4 workers, of which this is rank 1, who never answer."""
    assert fake_pg is not None  # its import makes the backend known
    dist.init_process_group("fake", rank=1, world_size=4, store=dist.HashStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_parts_are_where_they_are_in_the_whole_model(group):
    problem = setup(*LLAMA).problem
    model = problem.build_model(torch.device("cpu"), 0)
    flat = torch.nn.utils.parameters_to_vector(model.parameters())
    split = LayerSplit(problem, group, False, torch.device("cpu"))
    parts = split.indices(model)
    split.split_(model)
    for parameter, part in zip(model.parameters(), parts, strict=True):
        torch.testing.assert_close(flat[part].view(parameter.shape), parameter, rtol=0, atol=0)
    down = dict(model.named_parameters())["1.feed_forward.down.weight"]
    assert down.shape == (WIDTH, 24 // 4)  # columns: no piece of the whole


def test_a_model_without_values_is_split(group):
    problem = setup("problem=transformer_405b", "problem.layers=2", "problem.fake=false").problem
    with FakeTensorMode():
        model = problem.build_model(torch.device("cpu"), 0)
        split = LayerSplit(problem, group, True, torch.device("cpu"))
        part = torch.cat(split.indices(model))
        split.split_(model)
        inputs, targets = problem.gather(torch.arange(2))
        split.objective(model(inputs), targets).backward()
        split.sum_gradients()
        assert {each.grad.shape for each in model.parameters()} == {each.shape for each in model.parameters()}
        held = sum(each.numel() for each in model.parameters())
    norms = 5 * 16384
    assert len(part) == held == (problem.num_parameters - norms) // 4 + norms


def refused(*overrides):
    with pytest.raises(UserError) as refusal:
        setup("algorithm=tensor_parallel", "hardware=sim_ethernet", *overrides)
    return str(refusal.value)


def test_what_cannot_be_split_is_refused():
    planless = refused("problem=least_squares")
    assert planless.startswith("algorithm=tensor_parallel cannot do problem=least_squares: ")
    assert "there is no plan (`tensor_plan`) of how to split these: use problem=cnn|digits_mlp|" in planless
    assert "of which these have none: use problem=transformer" in refused("problem=digits_mlp", SEQUENCE)
    odd = refused(*LLAMA, "hardware.num_workers=3")
    assert odd == "hardware.num_workers must divide problem.heads=4, which it splits, got 3: set hardware.num_workers=2"
    uneven = refused("problem=digits_mlp", "problem.hidden_sizes=[10]", "hardware.num_workers=4")
    assert "hardware.num_workers must divide problem.hidden_sizes[0]=10" in uneven
    short = refused(*LLAMA, SEQUENCE, "problem.context=6", "hardware.num_workers=4")
    assert "must divide problem.context=6" in short


def test_a_plan_changes_nothing_for_one_worker():
    problem = setup(*LLAMA).problem
    model = problem.build_model(torch.device("cpu"), 0)
    before = copy.deepcopy(model.state_dict())
    split = LayerSplit(problem, None, True, torch.device("cpu"))
    split.split_(model)
    assert len(torch.cat(split.indices(model))) == problem.num_parameters
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
