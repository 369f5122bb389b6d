"""Compressed averages, and the algorithms that take them: the same on all workers, as small as they say, and they
converge."""

import pytest
import torch
import torch.distributed as dist
from composed import execution, options, setup
from simulated_ranks import execute, results
from torch import nn

from algorithms.compression.averaging import WholeMean
from algorithms.compression.compressor import Uncompressed
from algorithms.compression.power_sgd import PowerSGD
from algorithms.compression.quantization import QSGD, Half, Sign
from algorithms.compression.sparsification import RandomK, TopK
from harness.errors import UserError
from harness.trial import averaged, evaluate

WORKERS = 3
SHAPES = (6, 4), (5, 3)  # outputs and inputs of the layers of a model, which has biases too
SIZE = 6 * 4 + 6 + 5 * 3 + 5
COMPRESSORS = [Uncompressed(), Half(False, "float16"), Half(True, "bfloat16"), TopK(True, 0.2), Sign(True)]
COMPRESSORS += [RandomK(True, 0.2, False), RandomK(False, 0.2, True), QSGD(True, 4, False), QSGD(False, 4, True)]
MESSAGES = sorted({*options("algorithm/compression")} - {"power_sgd"})

CONVEX = ["problem=least_squares", "problem.samples=240", "problem.features=12", "problem.condition=3.0"]
CONVEX += ["problem.dtype=float64", "budget.observations=1", "tracking=none", "algorithm.batch_size=40"]
CONVEX += ["hardware=sim_ethernet", "hardware.num_workers=2", "algorithm.learning_rate=0.3", "budget.epochs=20"]
FEW = dict.fromkeys(("top_k", "random_k"), ("algorithm.compression.fraction=0.5",))  # one of 12 entries is late

STEPS = 5
MLP = ["problem=digits_mlp", "problem.dtype=float64", "budget.observations=1", "tracking=none"]
MLP += ["hardware.num_workers=2", "algorithm.batch_size=12", f"budget.epochs={STEPS * 24 / 1437}"]
LAYERS = (64, 64), (10, 64)
PARAMETERS = 64 * 64 + 64 + 10 * 64 + 10  # of that model
BYTES = {  # of one message of so many float64 numbers
    "none": lambda n: 8 * n,
    "half": lambda n: 2 * n,
    "top_k": lambda n: 12 * round(0.1 * n),
    "random_k": lambda n: 8 * round(0.1 * n) + 8,
    "sign": lambda n: 8 + -(-n // 8),
    "qsgd": lambda n: 8 + -(-n // 2),
    "power_sgd": lambda n: 8 * (64 + 10 + sum(2 * (rows + columns) for rows, columns in LAYERS)),
}


def vectors(rank, steps=3):
    return torch.randn(steps, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))


def model():
    return nn.Sequential(*(nn.Linear(inputs, outputs, dtype=torch.float64) for outputs, inputs in SHAPES))


def means(compression):
    """Of every worker: what it had after each average."""

    def body(worker):
        averaging = compression.averaging(model(), worker)
        for vector in (sequence := vectors(worker.rank)):
            averaging.average_(vector)
        return sequence

    return results(body, WORKERS)


@pytest.mark.parametrize("compressor", [*COMPRESSORS, PowerSGD(1, True, True), PowerSGD(1, False, False)], ids=str)
def test_all_workers_have_the_same(compressor):
    first, *others = means(compressor)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
def test_it_is_the_mean_of_what_all_say(compressor):
    def said(rank):
        sender = compressor.sender(torch.Generator().manual_seed(rank))  # of seed 0
        return torch.stack([compressor.decode(sender.encode(each), each).clone() for each in vectors(rank)])

    expected = sum(said(rank) for rank in range(WORKERS)) / WORKERS
    # whoever sums in half precision has 8 bits, three times rounded
    rtol = 2e-2 if isinstance(compressor, Half) else 1e-12
    torch.testing.assert_close(means(compressor)[0], expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
def test_the_payload_is_a_message_of_each(compressor):
    def body(worker):
        averaging = compressor.averaging(model(), worker)
        averaging.average_(vectors(worker.rank)[0])

    size = compressor.num_bytes(vectors(0)[0])
    assert [report.sent_bytes for report in execute(body, WORKERS).workers] == [size] * WORKERS


def test_whole_vectors_are_averaged_where_they_lie(monkeypatch):
    handed_in = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: handed_in.append(tensor))
    monkeypatch.setattr(dist, "get_world_size", lambda group: 1)
    WholeMean().average_(vector := torch.ones(3))
    assert handed_in[0] is vector
    assert Uncompressed().encode(vector, torch.Generator()).data_ptr() == vector.data_ptr()


def loss(*overrides):
    composed = setup(*CONVEX, *overrides)
    done = composed.machine.execute(composed.program(), lambda samples: None)
    assert done.failure is None, done.failure
    observations, _ = averaged(done.observations, composed.num_workers)
    return evaluate(composed.problem, 0, observations)[-1]["train/loss"], composed.problem.target_loss


@pytest.mark.parametrize("compression", options("algorithm/compression"))
def test_compressed_all_reduce_solves_a_convex_problem(compression):
    chosen = f"algorithm/compression={compression}", *FEW.get(compression, ())
    reached, target = loss("algorithm=all_reduce", *chosen)
    assert reached < target


@pytest.mark.parametrize(
    ("compression", "consistency"), [*((each, "synchronous") for each in MESSAGES), ("top_k", "asynchronous")]
)
def test_compressed_pushes_solve_a_convex_problem(compression, consistency):
    servers = ["algorithm=parameter_server", f"algorithm.consistency={consistency}", "algorithm.num_servers=2"]
    reached, target = loss(*servers, f"algorithm/compression={compression}", *FEW.get(compression, ()))
    assert reached < target


@pytest.mark.parametrize("compression", options("algorithm/compression"))
def test_compressed_changes_of_models_solve_a_convex_problem(compression):
    chosen = f"algorithm/compression={compression}", *FEW.get(compression, ())
    reached, target = loss("algorithm=local_sgd", "algorithm.period=2", *chosen)
    assert reached < target


def test_one_worker_does_what_many_do():
    """Compression does not depend on whether anybody listens."""
    alone, target = loss("algorithm=all_reduce", "algorithm/compression=sign", "hardware.num_workers=1")
    whole, _ = loss("algorithm=all_reduce", "hardware.num_workers=1")
    assert alone != whole and alone < target


def run(hardware, *overrides):
    """What each rank sent, and the weights at the end."""
    done = execution(*MLP, f"hardware={hardware}", *overrides)
    assert done.failure is None, done.failure
    return [report.sent_bytes for report in done.workers], done.observations[-1].parameters


@pytest.mark.parametrize("compression", BYTES)
def test_bytes_of_all_reduce_are_as_many_as_they_should_be(compression):
    sent, _ = run("sim_ethernet", "algorithm=all_reduce", f"algorithm/compression={compression}")
    assert sent == [STEPS * BYTES[compression](PARAMETERS)] * 2


@pytest.mark.parametrize("compression", ["half", "top_k", "power_sgd"])  # one of each way to average
def test_all_reduce_real_and_simulated_alike(compression):
    chosen = ["algorithm=all_reduce", f"algorithm/compression={compression}"]
    real, simulated = run("cpu", *chosen), run("sim_ethernet", *chosen)
    assert real[0] == simulated[0] == [STEPS * BYTES[compression](PARAMETERS)] * 2
    torch.testing.assert_close(real[1], simulated[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("compression", MESSAGES)
def test_bytes_of_pushes_are_as_many_as_they_should_be(compression):
    """The pull is whole; a push has its number of samples too, and one more says goodbye."""
    chosen = ["algorithm=parameter_server", f"algorithm/compression={compression}", "algorithm.consistency=synchronous"]
    sent, _ = run("sim_ethernet", *chosen)
    push = BYTES[compression](PARAMETERS) + 8
    assert sent == [(STEPS + 1) * push] * 2 + [2 * STEPS * PARAMETERS * 8]


def test_pushes_real_and_simulated_alike():
    chosen = ["algorithm=parameter_server", "algorithm/compression=top_k", "algorithm.consistency=synchronous"]
    real, simulated = run("cpu", *chosen), run("sim_ethernet", *chosen)
    assert real[0] == simulated[0]
    torch.testing.assert_close(real[1], simulated[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("compression", ["none", "half", "sign", "power_sgd"])
def test_bytes_of_changes_are_those_of_a_message_a_round(compression):
    sent, _ = run("sim_ethernet", "algorithm=local_sgd", "algorithm.period=2", f"algorithm/compression={compression}")
    assert sent == [STEPS // 2 * BYTES[compression](PARAMETERS)] * 2


def test_servers_hear_messages_of_one_worker():
    refusal = "algorithm/compression must make messages of one worker alone with algorithm=parameter_server, got PowerS"
    with pytest.raises(UserError, match=refusal):
        setup("algorithm=parameter_server", "algorithm/compression=power_sgd", "hardware=sim_ethernet")


@pytest.mark.parametrize("compression", ["none", "sign"])
def test_every_server_has_something_to_hear(compression):
    chosen = ["algorithm=parameter_server", f"algorithm/compression={compression}", "algorithm.num_servers=13"]
    with pytest.raises(UserError, match=r"algorithm\.num_servers must be at most 12, the parameters of the model"):
        setup(*CONVEX, *chosen)
