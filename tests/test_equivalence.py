"""One program, two clocks: the same float64 values from simulated ranks, real gloo processes and one worker."""

import pytest
import torch
from composed import execution, setup

GLOBAL_BATCH = 24
SAMPLES = 20 * GLOBAL_BATCH  # a budget that 2, 3 and 4 workers deal evenly
MLP = ["problem=digits_mlp", "problem.dtype=float64", "budget.observations=3", "tracking=none"]
STEP = "algorithm.learning_rate=0.1"


def parameters(*overrides):
    done = execution(*MLP, f"budget.epochs={SAMPLES / setup(*MLP).problem.num_samples}", *overrides)
    assert done.failure is None
    return torch.stack([observation.parameters for observation in done.observations])  # (observations, parameters)


def all_reduce(hardware, workers):
    batch = f"algorithm.batch_size={GLOBAL_BATCH // workers}"
    return parameters("algorithm=all_reduce", batch, STEP, f"hardware={hardware}", f"hardware.num_workers={workers}")


@pytest.fixture(scope="module")
def sequential():
    return parameters("algorithm=sgd", f"algorithm.batch_size={GLOBAL_BATCH}", STEP, "hardware=cpu")


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("hardware", ["cpu", "sim_ethernet", "sim_numa2"])
def test_all_reduce_equals_minibatch_sgd_with_the_global_batch(sequential, hardware, workers):
    # rtol 1e-12: the order of sums differs between ranks; measured differences are below 1e-14
    torch.testing.assert_close(all_reduce(hardware, workers), sequential, rtol=1e-12, atol=1e-13)


def test_a_broken_collective_is_noticed(sequential, monkeypatch):
    import torch.distributed as dist

    whole = dist.all_reduce
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, **how: whole(tensor[: len(tensor) // 2], **how))
    assert not torch.allclose(all_reduce("sim_ethernet", 2), sequential, rtol=1e-3)


@pytest.mark.parametrize("algorithm", ["all_reduce", "hogwild"])
def test_two_simulated_runs_are_identical(algorithm):
    first, second = (
        execution(*MLP, "budget.epochs=0.2", f"algorithm={algorithm}", "hardware=sim_numa2") for _ in range(2)
    )
    assert [o.time_s for o in first.observations] == [o.time_s for o in second.observations]
    assert first.workers == second.workers
    for one, other in zip(first.observations, second.observations, strict=True):
        assert torch.equal(one.parameters, other.parameters)
