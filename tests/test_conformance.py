"""What every algorithm keeps on every hardware found in conf/: a new YAML file is tested the moment it exists."""

from itertools import product

import pytest
import torch
from composed import options, setup
from small_runs import COMMON, NATIVE, SENDING, UNTRAINED, run, settings
from watching import Watching

from harness.trial import averaged, evaluate

DISTINCT = ("cpu", "sim_numa2", "sim_ethernet", "sim_dgx")  # other hardware differs from these in numbers alone


def usual(algorithm):
    """For real and in virtual time: all who need shared memory where there is that."""
    return ("cpu", "sim_numa2" if algorithm in NATIVE else "sim_ethernet")


def pair(algorithm, hardware):
    """All-reduce on all hardware, others on two kinds; the rest when asked for."""
    asked_for = algorithm != "all_reduce" and hardware not in usual(algorithm)
    marks = pytest.mark.gpu if hardware == "gpus" else pytest.mark.slow if asked_for else ()
    return pytest.param(algorithm, hardware, marks=marks)


PAIRS = [pair(*each) for each in product(sorted({*options("algorithm")} - {*UNTRAINED}), options("hardware"))]


def losses(composed, execution):
    observations, _ = averaged(execution.observations, composed.num_workers)
    return [values["train/loss"] for values in evaluate(composed.problem, 0, observations)]


def crowd(algorithm, hardware, workers, marks=()):
    """Three workers for real, four simulated and two on other hardware; the others only when asked for."""
    many = dict(zip(usual(algorithm), (3, 4), strict=True))
    asked_for = [] if workers == many.get(hardware, 2) else [pytest.mark.slow]
    return pytest.param(algorithm, hardware, workers, marks=[*marks, *asked_for])


SEVERAL = [crowd(*each.values, 2, each.marks) for each in PAIRS]
SEVERAL += [crowd(*each.values, workers) for each in PAIRS if each.values[1] in DISTINCT for workers in (3, 4)]


def more(algorithm, workers):
    """Of 100 messages a worker sends a fourth, and the centre of elastic averaging, or a late worker, is far behind."""
    epochs = {"elastic_averaging": 20, "ad_psgd": 60}.get(algorithm)
    return [f"budget.epochs={epochs}"] if epochs and workers > 2 else []


@pytest.mark.parametrize(("algorithm", "hardware", "workers"), SEVERAL)
def test_several_workers_solve_a_convex_problem(algorithm, hardware, workers):
    composed, _, execution = run(algorithm, hardware, workers, *more(algorithm, workers))
    if (algorithm, hardware) == ("ad_psgd", "sim_wan"):
        pytest.xfail("the passive worker spends the whole budget during a few round trips of the active one")
    assert losses(composed, execution)[-1] < composed.problem.target_loss


DIFFERENCES = {"elastic_averaging": [], "stochastic_gradient_push": ["algorithm/mixing=exponential"]}


@pytest.mark.parametrize("compression", ["half", "qsgd", "sign", "top_k"])
@pytest.mark.parametrize("algorithm", DIFFERENCES)
def test_compressed_differences_solve_it_too(algorithm, compression):
    chosen = [*more(algorithm, 4), f"algorithm/compression={compression}", *DIFFERENCES[algorithm]]
    composed, _, execution = run(algorithm, "sim_ethernet", 4, *chosen)
    assert losses(composed, execution)[-1] < composed.problem.target_loss


def alone(algorithm, hardware, marks):
    """One worker sends nothing: hardware of messages differs in streams alone."""
    asked_for = [] if hardware in (*usual(algorithm), "sim_dgx") else [pytest.mark.slow]
    return pytest.param(algorithm, hardware, marks=[*marks, *asked_for])


@pytest.mark.parametrize(
    ("algorithm", "hardware"), [alone(*each.values, each.marks) for each in PAIRS if each.values[0] != "sgd"]
)
def test_one_worker_equals_sequential(algorithm, hardware):
    """SGD on the same hardware, or the same method on the other clock."""
    composed, program, execution = run(algorithm, hardware, 1)
    other = usual(algorithm)[hardware == "cpu"]
    sgd = composed.algorithm.is_sgd
    _, _, sequential = run("sgd", hardware, 1, like=algorithm) if sgd else run(algorithm, other, 1)
    mine, reference = execution.observations[-1], sequential.observations[-1]
    assert mine.samples == reference.samples == program.budget_samples
    # float64: a kernel and autograd sum in different orders; where torch computes both, a mean of one model rounds
    rtol, atol = (1e-9, 1e-12) if algorithm in NATIVE else (1e-12, 1e-14)
    torch.testing.assert_close(mine.parameters, reference.parameters, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("algorithm", "hardware", "workers"), SEVERAL)
def test_accounts_for_samples_and_time(algorithm, hardware, workers):
    composed, program, execution = run(algorithm, hardware, workers, *more(algorithm, workers))
    assert [o.samples for o in execution.observations] == sorted(o.samples for o in execution.observations)
    assert execution.observations[-1].samples >= program.budget_samples
    assert len(execution.workers) == composed.num_workers + composed.algorithm.servers()
    for worker in execution.workers:
        assert 0 < worker.finish_s <= execution.run_s
        spent_s = worker.compute_s + worker.comm_s + worker.idle_s
        assert 0 <= spent_s <= execution.run_s * (1 + 1e-9)


@pytest.mark.parametrize("algorithm", SENDING)
def test_worker_processes_import_nothing_on_the_clock(algorithm):
    """As torch's optimisers would, at their first step, for a second."""
    composed = setup(f"algorithm={algorithm}", *settings(algorithm), *COMMON, "hardware=cpu", "hardware.num_workers=2")
    execution = composed.machine.execute(Watching(**vars(composed.program())), lambda samples: None)
    assert execution.failure is None and execution.metrics["imports_max"] == 0
