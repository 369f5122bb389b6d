"""One program, two clocks: the same float64 values from simulated ranks, from real gloo processes and from one worker."""

import pytest
import torch

from composed import execution

GLOBAL_BATCH = 24
MLP = ["problem=digits_mlp", "problem.dtype=float64", "budget.epochs=0.5", "budget.observations=3", "tracking=none"]


def parameters(*overrides):
    done = execution(*MLP, *overrides)
    assert done.failure is None
    return torch.stack([observation.parameters for observation in done.observations])  # (observations, parameters)


def all_reduce(hardware, workers):
    batch = f"algorithm.batch_size={GLOBAL_BATCH // workers}"
    return parameters("algorithm=all_reduce", batch, f"hardware={hardware}", f"hardware.num_workers={workers}")


@pytest.fixture(scope="module")
def sequential():
    return parameters("algorithm=sgd", f"algorithm.batch_size={GLOBAL_BATCH}", "hardware=cpu")


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("hardware", ["cpu", "sim_ethernet", "sim_numa2"])
def test_all_reduce_equals_minibatch_sgd_with_the_global_batch(sequential, hardware, workers):
    # rtol 1e-12: the order of sums differs between ranks; measured differences are below 1e-14
    torch.testing.assert_close(all_reduce(hardware, workers), sequential, rtol=1e-12, atol=1e-13)


def test_a_broken_collective_is_noticed(sequential, monkeypatch):
    import torch.distributed as dist

    whole = dist.all_reduce
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: whole(tensor[: len(tensor) // 2]))
    assert not torch.allclose(all_reduce("sim_ethernet", 2), sequential, rtol=1e-3)


@pytest.mark.parametrize("algorithm", ["all_reduce", "hogwild"])
def test_two_simulated_runs_are_identical(algorithm):
    first, second = (execution(*MLP, f"algorithm={algorithm}", "hardware=sim_numa2") for _ in range(2))
    assert [o.time_s for o in first.observations] == [o.time_s for o in second.observations]
    assert first.workers == second.workers
    for one, other in zip(first.observations, second.observations, strict=True):
        assert torch.equal(one.parameters, other.parameters)
