"""What every algorithm keeps on every hardware found in conf/: a new YAML file is tested the moment it exists."""

from functools import cache
from itertools import product

import pytest
import torch
from composed import options, setup

from harness.errors import UserError
from harness.trial import averaged, evaluate

CONVEX = ["problem=least_squares", "problem.samples=250", "problem.features=10", "problem.condition=10.0"]
SHORT = ["problem.dtype=float64", "budget.epochs=20", "budget.observations=4", "tracking=none"]
REGULARISED = ["problem=logistic_regression", "problem.synthetic_samples=250", "problem.synthetic_features=20"]
REGULARISED += ["problem.synthetic_nonzeros_per_sample=5", "problem.l2=0.01", "problem.target_loss=0.5217"]
EXACT = ["algorithm.learning_rate=1"]  # a share of an exact step
PROBLEMS = {"dual_coordinate_descent": REGULARISED + EXACT, "coordinate_descent": CONVEX + EXACT}
PROBLEMS["diloco"] = [*CONVEX, "algorithm.learning_rate=0.004"]  # a step of Adam is about as long as that
PROBLEMS["federated"] = [*CONVEX, "algorithm.num_clients=10", "algorithm.participation=0.5"]
PROBLEMS["fedbuff"] = [*CONVEX, "algorithm.num_clients=10", "algorithm.buffer_size=5"]
PROBLEMS["sgld"] = [*CONVEX, "algorithm.temperature=0.01"]  # the variance of the noise, as Bayes would have it
NATIVE = ("sgd", "hogwild", "svrg", "sgld", "dual_coordinate_descent", "coordinate_descent")
SINGLE = ("diloco", "federated", "fedbuff", *NATIVE)
DISTINCT = ("cpu", "sim_numa2", "sim_ethernet", "sim_dgx")  # other hardware differs from these in numbers alone


def pair(algorithm, hardware):
    """What sends messages by its own code runs on all hardware, but for one algorithm only when asked for."""
    usual = algorithm in (*NATIVE, "all_reduce") or hardware in DISTINCT
    marks = pytest.mark.gpu if hardware == "gpus" else () if usual else pytest.mark.slow
    return pytest.param(algorithm, hardware, marks=marks)


PAIRS = [pair(*each) for each in product(options("algorithm"), options("hardware"))]


def steps(algorithm):
    """Single samples for those that have native kernels or send few messages, batches for those that send many."""
    single = algorithm in SINGLE
    return f"algorithm.batch_size={1 if single else 5}", f"algorithm.learning_rate={0.05 if single else 0.1}"


@cache
def run(algorithm, hardware, workers, taken=None):
    chosen = [f"algorithm={algorithm}", *(taken or steps(algorithm)), f"hardware={hardware}"]
    try:
        chosen += ["hardware.backend=gloo"] if hardware == "gpus" else []  # which carries messages, and shares devices
        composed = setup(*chosen, f"hardware.num_workers={workers}", *PROBLEMS.get(algorithm, CONVEX), *SHORT)
    except UserError as refusal:
        known = "needs memory that all workers share", f"native kernel, which hardware={hardware} does not run"
        assert any(words in str(refusal) for words in known)  # any other refusal is a defect
        pytest.skip(f"refused: {refusal}")
    program = composed.program()
    execution = composed.machine.execute(program, lambda samples: None)
    assert execution.failure is None
    return composed, program, execution


def losses(composed, execution):
    observations, _ = averaged(execution.observations, composed.num_workers)
    return [values["train/loss"] for values in evaluate(composed.problem, 0, observations)]


@pytest.mark.parametrize(("algorithm", "hardware"), PAIRS)
def test_two_workers_solve_a_convex_problem(algorithm, hardware):
    composed, _, execution = run(algorithm, hardware, 2)
    if (algorithm, hardware) == ("ad_psgd", "sim_wan"):
        pytest.xfail("the passive worker spends the whole budget during a few round trips of the active one")
    assert losses(composed, execution)[-1] < composed.problem.target_loss


@pytest.mark.parametrize(("algorithm", "hardware"), [each for each in PAIRS if each.values[0] != "sgd"])
def test_one_worker_equals_sequential(algorithm, hardware):
    """SGD on the same hardware, or the same method on the other clock."""
    composed, program, execution = run(algorithm, hardware, 1)
    other = "sim_cpu" if hardware == "cpu" else "cpu"
    sgd = composed.algorithm.is_sgd
    _, _, sequential = run("sgd", hardware, 1, steps(algorithm)) if sgd else run(algorithm, other, 1)
    mine, reference = execution.observations[-1], sequential.observations[-1]
    assert mine.samples == reference.samples == program.budget_samples
    # float64: the kernel and autograd sum in different orders
    torch.testing.assert_close(mine.parameters, reference.parameters, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("algorithm", "hardware"), PAIRS)
def test_accounts_for_samples_and_time(algorithm, hardware):
    composed, program, execution = run(algorithm, hardware, 2)
    assert [o.samples for o in execution.observations] == sorted(o.samples for o in execution.observations)
    assert execution.observations[-1].samples >= program.budget_samples
    assert len(execution.workers) == composed.num_workers + composed.algorithm.servers()
    for worker in execution.workers:
        assert 0 < worker.finish_s <= execution.run_s
        spent_s = worker.compute_s + worker.comm_s + worker.idle_s
        assert 0 <= spent_s <= execution.run_s * (1 + 1e-9)
