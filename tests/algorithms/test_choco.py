"""CHOCO-SGD: without compression it is gossip, and it takes compressions that contract; see `compression/gossip.py`."""

import pytest
import torch
from composed import execution, setup

from harness.errors import UserError
from harness.trial import averaged

SMALL = ["problem=least_squares", "problem.samples=240", "problem.features=40", "problem.condition=10.0"]
SMALL += ["problem.dtype=float64", "budget.epochs=2", "budget.observations=2", "tracking=none"]
SMALL += ["algorithm.learning_rate=0.1", "algorithm.batch_size=6"]


def run(*overrides):
    """What every worker sent, and the average model at the end."""
    done = execution(*SMALL, *overrides, "hardware.num_workers=4")
    assert done.failure is None
    observations, _ = averaged(done.observations, 4)
    return [report.sent_bytes for report in done.workers], observations[-1].parameters


def test_without_compression_and_with_whole_steps_it_is_gossip():
    whole = ["algorithm/compression=none", "algorithm.consensus_step=1", "hardware=sim_ethernet"]
    choco = run("algorithm=choco_sgd", *whole)
    gossip = run("algorithm=gossip", "algorithm.overlap=false", "hardware=sim_ethernet")
    torch.testing.assert_close(choco, gossip, rtol=1e-12, atol=1e-13)


def test_real_and_simulated_alike_and_bytes_as_small():
    chosen = ["algorithm=choco_sgd", "algorithm/compression=sign"]
    sent_bytes, model = run(*chosen, "hardware=cpu")
    simulated = run(*chosen, "hardware=sim_ethernet")
    torch.testing.assert_close(model, simulated[1], rtol=1e-12, atol=1e-13)
    steps, neighbours, message_bytes = 240 * 2 // (6 * 4), 2, 40 // 8 + 8
    assert sent_bytes == simulated[0] == [steps * neighbours * message_bytes] * 4


def test_what_only_averages_is_refused():
    refusal = "algorithm/compression must make messages of one worker alone with algorithm=choco_sgd, got PowerSGD"
    with pytest.raises(UserError, match=refusal):
        setup("algorithm=choco_sgd", "algorithm/compression=power_sgd", "hardware=sim_ethernet", *SMALL)


def test_directed_and_changing_graphs_are_refused():
    for mixing in ("exponential", "one_peer_exponential"):
        with pytest.raises(UserError, match="algorithm/mixing must be symmetric and the same at every step: use ring"):
            setup("algorithm=choco_sgd", f"algorithm/mixing={mixing}", "hardware=sim_ethernet", *SMALL)


@pytest.mark.parametrize("compression", ["random_k", "qsgd"])
@pytest.mark.parametrize("feedback", ["true", "false"])
def test_an_unbiased_compressor_is_refused_and_told_what_to_be(compression, feedback):
    """With error_feedback=false, as one might be led to set, differences would grow without bound."""
    options = [f"algorithm/compression={compression}", f"algorithm.compression.error_feedback={feedback}"]
    with pytest.raises(
        UserError, match=r"^algorithm\.compression\.unbiased must be false .*compression\.unbiased=false"
    ):
        setup("algorithm=choco_sgd", *options, "algorithm.compression.unbiased=true", *SMALL)
