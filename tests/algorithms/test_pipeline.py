"""What pipelines promise: the unsplit model's gradients, how long workers wait, what they keep and send."""

from itertools import product

import pytest
import torch
from composed import setup
from uniform import Uniform, pipeline, run

from algorithms.pipelining.micro_batches import filled, sizes
from algorithms.pipelining.schedules import GPipe, Interleaved, OneFOneB, ZeroBubble, ZeroBubbleV
from harness.errors import UserError
from harness.trial import averaged

ORDERS = ["gpipe", "one_f_one_b", "interleaved", "zero_bubble", "zero_bubble_v"]
DEEP = ["problem=digits_mlp", "problem.dtype=float64", "problem.hidden_sizes=[9,8,7,10,6,8,9]", "tracking=none"]
STEPS = ["algorithm.batch_size=24", "algorithm.learning_rate=0.5", "budget.observations=2"]
BUDGET = "budget.epochs=0.0786"  # four batches, and one of 17 samples
PIPELINES = [GPipe(), OneFOneB(), Interleaved(2), Interleaved(3), ZeroBubble(1), ZeroBubble(2), ZeroBubbleV()]


def models(*overrides):
    """What was observed, shape (observations, parameters), and what came of the run."""
    composed = setup(*DEEP, *STEPS, BUDGET, *overrides)
    done = composed.machine.execute(composed.program(), lambda samples: None)
    assert done.failure is None
    seen, _ = averaged(done.observations, composed.num_workers)
    return torch.stack([each.parameters for each in seen]), done


@pytest.fixture(scope="module")
def sequential():
    return models("algorithm=sgd", "hardware=sim_cpu", "hardware.num_workers=1")[0]


def assert_unsplit(sequential, *overrides):
    split, _ = models("algorithm=pipeline", *overrides)
    moved = (sequential[-1] - sequential[0]).abs().max()
    assert moved > 1e-3
    # rtol 1e-12: sums of gradients in another order; measured differences are below 1e-16
    torch.testing.assert_close(split, sequential, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("hardware", "workers"), [("sim_ethernet", 1), ("sim_ethernet", 2), ("sim_dgx", 4)])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_does_what_the_unsplit_model_does(sequential, hardware, order, workers):
    chosen = [f"hardware={hardware}", f"algorithm/pipeline_schedule={order}", f"hardware.num_workers={workers}"]
    assert_unsplit(sequential, *chosen)


def in_processes(order, workers):
    """All orders with two workers, and one with four; the others when asked for."""
    usual = workers == 2 or (order, workers) == ("one_f_one_b", 4)
    return pytest.param(order, workers, marks=() if usual else pytest.mark.slow)


@pytest.mark.parametrize(("order", "workers"), [in_processes(*each) for each in product(ORDERS, (1, 2, 4))])
def test_so_do_real_processes(sequential, order, workers):
    chosen = ["hardware=cpu", f"hardware.num_workers={workers}", f"algorithm/pipeline_schedule={order}"]
    assert_unsplit(sequential, *chosen)


@pytest.mark.parametrize("micro_batches", [5, 7, 24])
def test_so_do_micro_batches_that_do_not_divide_a_batch(sequential, micro_batches):
    chosen = ["hardware=sim_ethernet", "hardware.num_workers=3", f"algorithm.micro_batches={micro_batches}"]
    assert_unsplit(sequential, *chosen)


@pytest.mark.parametrize(("hardware", "workers"), [("sim_ethernet", 1), ("sim_dgx", 4), ("cpu", 2)])
def test_so_does_model_parallelism(sequential, hardware, workers):
    chosen = [f"hardware={hardware}", f"hardware.num_workers={workers}"]
    split, _ = models("algorithm=model_parallel", *chosen)
    torch.testing.assert_close(split, sequential, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("problem", ["transformer", "cnn"])
def test_layers_may_be_any_and_give_views(problem):
    """Flattened images at the end of a stage, for one."""
    chosen = [f"problem={problem}", "problem.dtype=float64", "algorithm.batch_size=8", "algorithm.learning_rate=0.1"]
    chosen += ["budget.observations=1", "tracking=none", "hardware=sim_ethernet"]
    chosen += [f"budget.epochs={16 / setup(*chosen, 'algorithm=sgd').problem.num_samples}"]
    split = ["algorithm=pipeline", "algorithm.micro_batches=4", "algorithm/pipeline_schedule=zero_bubble_v"]
    seen = []
    for workers, own in ((1, ["algorithm=sgd"]), (2, split)):
        composed = setup(*chosen, *own, f"hardware.num_workers={workers}")
        done = composed.machine.execute(composed.program(), lambda samples: None)
        assert done.failure is None
        seen.append(averaged(done.observations, workers)[0][-1].parameters)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-12, atol=1e-14)


def test_momentum_is_each_stage_s_own():
    momentum = ["algorithm/optimizer=momentum", "algorithm.learning_rate=0.1"]
    one, _ = models("algorithm=all_reduce", "hardware=sim_cpu", "hardware.num_workers=1", *momentum)
    split, _ = models("algorithm=pipeline", "hardware=sim_ethernet", "hardware.num_workers=4", *momentum)
    torch.testing.assert_close(split, one, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("workers", "micro_batches"), [(1, 3), (2, 4), (3, 9), (4, 8)])
@pytest.mark.parametrize("order", PIPELINES, ids=str)
def test_workers_wait_as_long_as_the_closed_forms_say(order, workers, micro_batches):
    steps = 3
    layers = workers * order.stages_per_worker
    _, done = run(pipeline(order, micro_batches, micro_batches), workers, layers, steps)
    work_s = 3.0 * steps * micro_batches * order.stages_per_worker
    assert [worker.compute_s for worker in done.workers] == [work_s] * workers
    waits = 1 - work_s / done.run_s
    if isinstance(order, ZeroBubbleV):  # a step goes over into the next: the pipeline is filled and drained once
        assert done.run_s == pytest.approx(work_s + workers - 1, rel=1e-9)
    else:
        assert waits == pytest.approx(order.bubble_frac(workers, micro_batches), rel=1e-9, abs=1e-12)


def test_one_micro_batch_leaves_all_but_one_worker_waiting():
    _, done = run(pipeline(GPipe(), 1, 4), 4, 4, 2)
    assert done.run_s == 2 * 4 * 3.0
    assert sum(worker.compute_s for worker in done.workers) == pytest.approx(done.run_s)


PROMISED = [  # forward passes that a worker keeps at most
    (GPipe(), lambda p, m, rank: m),
    (OneFOneB(), lambda p, m, rank: p - rank),
    (Interleaved(2), lambda p, m, rank: 2 * (p - 1 - rank) + p + 1),
    (ZeroBubble(1), lambda p, m, rank: p),
    (ZeroBubbleV(), lambda p, m, rank: 2 * p),
]


@pytest.mark.parametrize(("workers", "micro_batches"), [(2, 6), (4, 12)])
@pytest.mark.parametrize(("order", "promised"), PROMISED, ids=[str(order) for order, _ in PROMISED])
def test_activations_are_kept_as_long_as_promised(order, promised, workers, micro_batches):
    layers = workers * order.stages_per_worker
    problem, _ = run(pipeline(order, micro_batches, micro_batches), workers, layers, 2)
    most = {min(held.layers): held.most for held in problem.held if held.layers}
    assert most == {rank: promised(workers, micro_batches, rank) for rank in range(workers)}
    assert all(held.now == 0 for held in problem.held)


@pytest.mark.parametrize("order", PIPELINES, ids=str)
def test_activations_and_their_gradients_are_all_that_is_sent(order):
    workers, batch, micro_batches, steps = 3, 14, 6, 2
    layers = workers * order.stages_per_worker
    _, done = run(pipeline(order, micro_batches, batch), workers, layers, steps)
    held = [order.held(rank, workers) for rank in range(workers)]
    owner = {stage: rank for rank, stages in enumerate(held) for stage in stages}
    crossings = sum(owner[stage] != owner[stage + 1] for stage in range(layers - 1))
    rows = micro_batches * -(-batch // micro_batches)  # with those that fill up micro-batches
    sent = sum(worker.sent_bytes for worker in done.workers)
    assert sent == 2 * crossings * steps * rows * 3 * 8  # float64, three wide


@pytest.mark.parametrize("samples", [28, 29, 31])
def test_a_last_batch_may_be_smaller_than_there_are_micro_batches(samples):
    one, split = (run(pipeline(OneFOneB(), 8, 8), workers, 4, 0, samples=samples)[1].observations for workers in (1, 4))
    parameters = torch.cat([seen.parameters for seen in sorted(split, key=lambda seen: seen.member)])
    torch.testing.assert_close(parameters, one[-1].parameters, rtol=1e-12, atol=1e-14)


def test_batches_are_divided_as_equally_as_can_be():
    assert sizes(2, 4) == [1, 1, 0, 0]
    assert filled([2, 1, 0]).tolist() == [0, 1, 2, 0, 0, 0]


REFUSED = [
    (
        ["hardware.num_workers=4", "problem.hidden_sizes=[8,8]"],
        r"needs 4 layers .*: set hardware.num_workers=3, or problem.hidden_sizes=\[8,8,8\]",
    ),
    (
        ["algorithm/pipeline_schedule=interleaved", "problem.hidden_sizes=[]"],
        r"the model has 1: set problem.hidden_sizes=\[64,64,64\]",
    ),
    (
        ["algorithm.micro_batches=25"],
        "at most algorithm.batch_size=24, got 25: set algorithm.micro_batches=24, or algorithm.batch_size=25",
    ),
    (
        ["algorithm.micro_batches=1", "hardware.num_workers=2"],
        "must be at least 2, the workers of the pipeline.*: set algorithm.micro_batches=2",
    ),
    (
        ["algorithm.micro_batches=7", "algorithm/pipeline_schedule=interleaved"],
        "must be a multiple of 2, the workers",
    ),
    (
        ["hardware.num_workers=5", "algorithm/pipeline_schedule=zero_bubble_v"],
        "needs 10 layers with parameters, 2 a worker",
    ),
    (["hardware/compute=fixed"], "hardware/compute=fixed charges a worker for whole samples"),
    (["algorithm.balance=height"], "algorithm.balance must be one of layers, parameters, flops, measured"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=str)
def test_what_cannot_be_is_refused_in_one_sentence(overrides, message):
    with pytest.raises(UserError, match=message):
        setup(*DEEP, *STEPS, "algorithm=pipeline", "hardware=sim_ethernet", "hardware.num_workers=2", *overrides)


def test_a_model_that_is_no_chain_of_layers_cannot_be_cut():
    with pytest.raises(
        UserError,
        match=r"cannot do problem=\w+: .* is no chain of layers: use problem=cnn\|digits_mlp\|resnet20\|transformer",
    ):
        setup("problem=logistic_regression", "algorithm=pipeline", "hardware=sim_ethernet")


@pytest.mark.parametrize("algorithm", ["pipeline", "parallel_3d", "model_parallel"])
def test_what_has_no_values_is_not_measured(algorithm):
    rule = "algorithm.balance must be layers, parameters or flops where the problem has shapes and no values"
    with pytest.raises(UserError, match=rule):
        setup(f"algorithm={algorithm}", "problem=transformer_8b", "hardware=sim_dgx", "algorithm.balance=measured")


def test_what_is_predicted_stands_beside_what_is_measured():
    composed = setup(*DEEP, *STEPS, "algorithm=pipeline", "hardware=sim_ethernet", "hardware.num_workers=4")
    assert composed.algorithm.constants(4) == {"pipeline/bubble_frac": 3 / 11}
    assert composed.algorithm.constants(1) == {"pipeline/bubble_frac": 0.0}


def test_shapes_are_known_beforehand(monkeypatch):
    """Torch would otherwise run the model once to learn them, on the clock."""
    calls = []
    forward = Uniform.objective
    monkeypatch.setattr(Uniform, "objective", lambda *given: calls.append(1) or forward(*given))
    run(pipeline(GPipe(), 4, 4), 2, 2, 1)
    assert len(calls) <= 4 + 1  # one by the harness, before the clock starts
