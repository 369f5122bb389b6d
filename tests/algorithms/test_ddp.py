"""DistributedDataParallel: what all_reduce computes, in buckets that hide their way, and torch's own compression."""

import pytest
import torch
from composed import checked, execution, setup

from harness.errors import UserError

STEPS = 6
MLP = ["problem=digits_mlp", "problem.dtype=float64", "budget.observations=2", "tracking=none"]
MLP += [f"budget.epochs={STEPS * 24 / 1437}", "algorithm.learning_rate=0.1"]
PARAMETERS = 64 * 64 + 64 + 10 * 64 + 10
SMALL = "algorithm.bucket_bytes=1000"  # a bucket for each layer's weights and biases
BUCKETS = 2
FACTORS = 8 * (64 + 10 + 2 * (64 + 64) + 2 * (10 + 64))  # bytes of rank 2, and of what stays whole


def run(hardware, workers, *overrides):
    """The weights at all observations, and what was sent."""
    shares = f"algorithm.batch_size={24 // workers}", f"hardware={hardware}", f"hardware.num_workers={workers}"
    done = execution(*MLP, *shares, *overrides)
    assert done.failure is None, done.failure
    weights = torch.stack([observation.parameters for observation in done.observations])
    return weights, [report.sent_bytes for report in done.workers], done


def order(buckets):
    """Bytes by which rank 0 tells the others, once, which of the 4 parameters are in which bucket."""
    return 4 * (4 + 1 + buckets)


@pytest.fixture(scope="module")
def sequential():
    return run("sim_ethernet", 1, "algorithm=sgd")[0]


@pytest.mark.parametrize(
    ("hardware", "workers"), [("sim_ethernet", 1), ("sim_ethernet", 2), ("sim_dgx", 4), ("cpu", 2)]
)
def test_it_is_minibatch_sgd(sequential, hardware, workers):
    weights, sent, _ = run(hardware, workers, "algorithm=ddp", SMALL)
    # rtol 1e-12: the order of sums differs
    torch.testing.assert_close(weights, sequential, rtol=1e-12, atol=1e-13)
    gradients = STEPS * PARAMETERS * 8
    assert sent == ([gradients + order(BUCKETS), *[gradients] * (workers - 1)] if workers > 1 else [0])


def test_momentum_and_scaled_steps_are_those_of_all_reduce():
    chosen = "algorithm/optimizer=nesterov", "algorithm.linear_scaling=true"
    bucketed = run("sim_ethernet", 2, "algorithm=ddp", SMALL, *chosen)[0]
    torch.testing.assert_close(
        bucketed, run("sim_ethernet", 2, "algorithm=all_reduce", *chosen)[0], rtol=1e-12, atol=1e-13
    )


def test_of_several_passes_the_last_one_sends(sequential):
    weights, sent, _ = run("sim_ethernet", 2, "algorithm=ddp", SMALL, "algorithm.accumulate=5")
    torch.testing.assert_close(weights, sequential, rtol=1e-12, atol=1e-13)  # of sums in another order
    gradients = STEPS * PARAMETERS * 8
    assert sent == [gradients + order(BUCKETS), gradients]


def test_buckets_travel_while_gradients_are_computed():
    layers = "hardware=sim_ethernet", "problem.hidden_sizes=[256,256,256,256]"
    bucketed = run("sim_ethernet", 2, "algorithm=ddp", "algorithm.bucket_bytes=300000", *layers)[2]
    one = run("sim_ethernet", 2, "algorithm=ddp", *layers)[2]
    assert bucketed.run_s < one.run_s
    assert bucketed.metrics["perf/overlap_frac"] > 0.1 > one.metrics["perf/overlap_frac"]


@pytest.mark.parametrize("hardware", ["sim_ethernet", "cpu"])
def test_half_precision_halves_the_half(sequential, hardware):
    weights, sent, _ = run(hardware, 2, "algorithm=ddp", SMALL, "algorithm/compression=half")
    assert sent == [STEPS * PARAMETERS * 2 + order(BUCKETS), STEPS * PARAMETERS * 2]
    assert 0 < (weights - sequential).abs().max() < 1e-3  # steps of up to 0.1, rounded to 11 bits


@pytest.mark.parametrize("hardware", ["sim_ethernet", "cpu"])
def test_power_sgd_is_torchs_own(sequential, hardware):
    weights, sent, _ = run(hardware, 2, "algorithm=ddp", "algorithm/compression=power_sgd")
    expected = 2 * PARAMETERS * 8 + (STEPS - 2) * FACTORS  # it begins with the third step
    assert sent == [expected + order(1), expected]
    assert 0 < (weights - sequential).norm() < 0.1 * sequential.norm()


def test_power_sgd_says_that_it_begins_late_and_what_it_sends_then():
    composed, notices = checked(*MLP, "algorithm=ddp", "algorithm/compression=power_sgd", "hardware=sim_ethernet")
    assert composed.algorithm.bytes_per_update(composed.problem, torch.zeros(1, dtype=torch.float64), 2) == 2 * FACTORS
    whole = "the first 2 steps send whole gradients, as torch's PowerSGD begins after them"
    assert notices == [f"algorithm/compression=power_sgd with algorithm=ddp: {whole}"]


def refused(*overrides):
    with pytest.raises(UserError) as refusal:
        setup(*MLP, "algorithm=ddp", "hardware=sim_ethernet", *overrides)
    return str(refusal.value)


def test_what_torch_has_no_hook_for_is_refused():
    needs = "algorithm/compression must be none, half or power_sgd with algorithm=ddp"
    assert needs in refused("algorithm/compression=top_k")
    feedback = refused("algorithm/compression=half", "algorithm.compression.error_feedback=true")
    assert "algorithm.compression.error_feedback must be false" in feedback
    precision = refused("algorithm/compression=half", "algorithm.compression.precision=bfloat16")
    assert "algorithm.compression.precision must be float16 with algorithm=ddp" in precision


def test_power_sgd_in_several_buckets_is_refused():
    """Gloo adds what does not belong together where workers call collectives in different orders."""
    needs = f"algorithm.bucket_bytes must be at least {PARAMETERS * 8}, the bytes of the model"
    assert needs in refused("algorithm/compression=power_sgd", SMALL)
