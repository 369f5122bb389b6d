"""CHOCO-SGD: compressed differences neither lose anything nor move the average."""

import pytest
import torch
from composed import execution, setup
from simulated_ranks import results

from algorithms.choco import CompressedAveraging
from algorithms.compression.compressor import Uncompressed
from algorithms.compression.quantization import QSGD, Half, Sign
from algorithms.compression.sparsification import RandomK, TopK
from algorithms.mixing.graphs import Ring
from harness.errors import UserError
from harness.trial import averaged

WORKERS, SIZE = 5, 40
COMPRESSORS = [Uncompressed(), TopK(True, 0.2), RandomK(True, 0.2, False), Sign(True), QSGD(True, 4, False)]
COMPRESSORS += [Half(False, "float16")]
SMALL = ["problem=least_squares", "problem.samples=240", "problem.features=40", "problem.condition=10.0"]
SMALL += ["problem.dtype=float64", "budget.epochs=2", "budget.observations=2", "tracking=none"]
SMALL += ["algorithm.learning_rate=0.1", "algorithm.batch_size=6"]


def after(compressor, steps):
    """Of every worker: its weights, what others know of them, what it knows of others, and what it sent in all."""
    start = torch.randn(WORKERS, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def average(worker):
        weights = torch.zeros(SIZE, dtype=torch.float64)
        (row,) = Ring("metropolis").rows(WORKERS, worker.rank)
        averaging = CompressedAveraging(weights, row, compressor, 0.3, worker.generator)
        weights += start[worker.rank]
        for _ in range(steps):
            averaging.step()
        return weights, averaging.known, averaging.average

    ends = results(average, WORKERS)
    return start, *(torch.stack(each) for each in zip(*ends, strict=True))


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
def test_everyone_comes_to_the_true_mean(compressor):
    start, weights, known, _ = after(compressor, 400)
    mean = start.mean(dim=0)
    # the mean is kept at every step, up to rounding
    torch.testing.assert_close(weights.mean(dim=0), mean, rtol=1e-10, atol=1e-12)
    assert (weights - mean).norm() < 1e-3 * (start - mean).norm()
    assert (known - weights).norm() < 1e-3 * (start - mean).norm()  # errors are fed back until nothing is left


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
def test_what_is_known_of_others_is_what_they_know_that_is_known(compressor):
    """The feedback telescopes: the messages sum to what is known, on both sides, after any number of steps."""
    _, _, known, average = after(compressor, 7)
    matrix = torch.from_numpy(Ring("metropolis").matrices(WORKERS)[0])
    torch.testing.assert_close(average, matrix @ known, rtol=1e-12, atol=1e-13)


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
