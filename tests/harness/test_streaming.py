"""Data servers: what they send, that it changes no weights, what it costs, and how it ends."""

import io
import time
from dataclasses import replace

import pytest
import torch
from composed import execution, setup
from rich.console import Console

from algorithms.flat import flat_parameters
from harness.baseline import alone, run_key, sequential
from harness.batch import Batch, message_bytes, packed, unpacked
from harness.check import check
from harness.errors import UserError, WorkerFailed
from harness.progress import Progress
from harness.setup import run_info
from harness.trial import averaged, evaluate, execute
from tests.hardware.toys import DyingServer, Mean, MeetsAndBeginsAgain
from tests.harness.test_problems import OPTIONS, somewhere
from tests.small_steps import flat_gradient

MLP = ["problem=digits_mlp", "problem.dtype=float64", "budget.observations=1", "tracking=none"]
BATCH, SAMPLES, ROW_BYTES = 16, 480, 64 * 8 + 8  # pixels and a class
EPOCHS = f"budget.epochs={SAMPLES / 1438:.6f}"
REQUEST_BYTES = 16
STREAMED, SIM = "data=streamed", "hardware=sim_ethernet"
SYNCHRONOUS = ["all_reduce", "local_sgd", "gossip", "choco_sgd", "stochastic_gradient_push"]
ASYNCHRONOUS = ["elastic_averaging", "ad_psgd", "parameter_server"]


def run(*overrides, algorithm="all_reduce", workers=2, hardware=SIM):
    chosen = [f"algorithm={algorithm}", "algorithm.learning_rate=0.1", f"algorithm.batch_size={BATCH}"]
    done = execution(*MLP, EPOCHS, *chosen, hardware, f"hardware.num_workers={workers}", *overrides)
    assert done.failure is None
    return done


def last_model(done, workers):
    return averaged(done.observations, workers)[0][-1].parameters


def sent_bytes(done):
    return sum(worker.sent_bytes for worker in done.workers)


@pytest.mark.parametrize("name", OPTIONS)
def test_rows_that_came_by_message_have_the_loss_of_those_at_hand(name):
    p, model, _ = somewhere(name)
    samples = torch.tensor([3, 1, 4, 15, 9, 2], dtype=torch.int32)
    message = packed(p.gather(samples))
    layout = p.layout(samples)
    assert len(message) == message_bytes(layout)
    batch = Batch(p, unpacked(message.clone(), layout), len(samples))
    for mine, other in zip(batch.rows, p.gather(samples), strict=True):
        assert mine.dtype == other.dtype and torch.equal(mine, other)
    assert torch.equal(p.loss(model, batch), p.loss(model, samples))
    for part, numbers in zip(batch.tensor_split(4), samples.tensor_split(4), strict=True):
        assert len(part) == len(numbers)
        assert torch.equal(p.loss(model, part), p.loss(model, numbers))
    p.loss(model, batch).backward()
    assert flat_gradient(model).abs().sum() > 0 and flat_parameters(model).grad is None


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("algorithm", SYNCHRONOUS)
def test_synchronous_weights_are_those_of_rows_at_hand(algorithm, workers):
    streamed, at_hand = (
        last_model(run(data, algorithm=algorithm, workers=workers), workers) for data in (STREAMED, "data=partitioned")
    )
    assert torch.equal(streamed, at_hand)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("servers", [1, 2, 5])
def test_neither_servers_nor_prefetching_change_weights(servers, prefetch):
    chosen = [f"data.num_servers={servers}", f"data.prefetch={prefetch}"]
    streamed = last_model(run(STREAMED, *chosen, workers=3), 3)
    assert torch.equal(streamed, last_model(run("data=partitioned", workers=3), 3))


@pytest.mark.parametrize("algorithm", ["all_reduce", "gossip"])
def test_real_weights_are_those_of_rows_at_hand(algorithm):
    streamed, at_hand = (
        run(data, algorithm=algorithm, hardware="hardware=cpu") for data in (STREAMED, "data=partitioned")
    )
    torch.testing.assert_close(last_model(streamed, 2), last_model(at_hand, 2), rtol=1e-12, atol=1e-13)
    assert len(streamed.workers) == 3
    assert sent_bytes(streamed) - sent_bytes(at_hand) == in_messages(2, prefetch=2)


def in_messages(workers, prefetch):
    """Bytes of rows, of requests, and of a goodbye for every credit."""
    requests = SAMPLES // BATCH + workers * max(prefetch, 1)
    return SAMPLES * ROW_BYTES + requests * REQUEST_BYTES


@pytest.mark.parametrize(("workers", "servers", "prefetch"), [(1, 1, 0), (3, 2, 1), (2, 1, 4)])
def test_bytes_are_those_of_rows_and_requests(workers, servers, prefetch):
    streamed = run(STREAMED, f"data.num_servers={servers}", f"data.prefetch={prefetch}", workers=workers)
    assert sent_bytes(streamed) - sent_bytes(run("data=partitioned", workers=workers)) == in_messages(workers, prefetch)


@pytest.mark.parametrize("algorithm", ASYNCHRONOUS)
def test_asynchronous_algorithms_spend_the_budget_and_learn(algorithm):
    composed = setup(*MLP, f"algorithm={algorithm}", "algorithm.learning_rate=0.5", "budget.epochs=3", STREAMED, SIM,
                     "hardware.num_workers=3", "data.num_servers=2")  # fmt: skip
    done = composed.machine.execute(composed.program(), lambda samples: None)
    assert done.failure is None
    assert done.observations[-1].samples == composed.program().budget_samples
    (loss,) = evaluate(composed.problem, 0, averaged(done.observations, 3)[0][-1:])
    assert loss["train/loss"] < 0.8 * 2.3  # ln 10 is that of a guess


def test_servers_of_the_algorithm_come_first():
    chosen = ["algorithm.consistency=synchronous", "algorithm.num_servers=2"]
    streamed, at_hand = (run(*chosen, data, algorithm="parameter_server") for data in (STREAMED, "data=partitioned"))
    assert torch.equal(last_model(streamed, 2), last_model(at_hand, 2))
    others = [worker.sent_bytes for worker in streamed.workers][2:]
    assert others == [*[worker.sent_bytes for worker in at_hand.workers][2:], SAMPLES * ROW_BYTES]


def test_a_real_asynchronous_run_is_repeated_in_virtual_time():
    chosen = [*MLP, EPOCHS, "algorithm=parameter_server", "algorithm.learning_rate=0.1", "hardware.num_workers=2"]
    chosen += [f"algorithm.batch_size={BATCH}", STREAMED]
    real = execution(*chosen, "hardware=cpu")
    program = setup(*chosen, SIM)
    repeated = program.machine.execute(replace(program.program(), replay=real.interleavings), lambda samples: None)
    assert real.failure is repeated.failure is None
    mine, other = (done.observations[-1].parameters for done in (repeated, real))
    torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-13)


LATENCY_S, BYTES_PER_S = 50e-6, 1.25e9 * 0.941  # of sim_ethernet, and gloo's efficiency
TRIP_S = 2 * LATENCY_S + (REQUEST_BYTES + BATCH * ROW_BYTES) / BYTES_PER_S  # from a request to its rows
COMPUTE_S = 16e-6  # of a batch
FIXED = ["hardware/compute=fixed", f"hardware.compute.seconds_per_sample={COMPUTE_S / BATCH}"]


@pytest.mark.parametrize(
    ("prefetch", "step_s"),
    [
        (0, TRIP_S + COMPUTE_S),  # one after the other
        (1, TRIP_S),  # computing is hidden
        (2, TRIP_S / 2),  # two trips are under way together
        (4, TRIP_S / 4),
        (12, COMPUTE_S),  # communication is hidden
    ],
)
def test_prefetching_hides_the_way_to_the_server(prefetch, step_s):
    done = run(STREAMED, f"data.prefetch={prefetch}", *FIXED, "budget.epochs=3", algorithm="sgd", workers=1)
    steps, ends_s = 3 * 1438 / BATCH, 2 * TRIP_S + prefetch * COMPUTE_S  # the first trip, the last batches and goodbye
    assert steps * step_s <= done.run_s <= steps * step_s + ends_s
    (worker, server) = done.workers
    assert worker.compute_s == pytest.approx(3 * 1438 * COMPUTE_S / BATCH)
    assert worker.idle_s + worker.comm_s == pytest.approx(done.run_s - worker.compute_s, rel=0.05)
    assert server.compute_s == 0


def test_on_a_slow_network_workers_wait_for_rows():
    """Where bandwidth is what lacks, rows take as long as they take, however many have been asked for."""
    slow = ["hardware.network.bandwidth_bytes_per_s=1e7", *FIXED]
    rows_s = SAMPLES * ROW_BYTES / (1e7 * 0.941)
    for prefetch in (1, 4):
        done = run(STREAMED, f"data.prefetch={prefetch}", *slow, algorithm="sgd", workers=1)
        assert done.run_s == pytest.approx(rows_s, rel=0.2)
        assert done.workers[0].comm_s + done.workers[0].idle_s > 0.9 * rows_s


def test_a_second_server_halves_the_way_rows_have_to_go():
    """Two workers that never average, and slow ports: with one server both fetch through its one."""
    slow = ["hardware.network.bandwidth_bytes_per_s=1e6", "algorithm.period=100", *FIXED]
    one, two = (
        run(STREAMED, f"data.num_servers={servers}", *slow, algorithm="local_sgd", workers=2) for servers in (1, 2)
    )
    assert two.run_s == pytest.approx(one.run_s / 2, rel=0.01)


def test_a_batch_may_be_cut():
    chosen = ["algorithm.accumulate=3", "problem=logistic_regression", "problem.synthetic_samples=600", *MLP[1:]]
    chosen += ["problem.synthetic_features=50", "problem.synthetic_nonzeros_per_sample=5", "budget.epochs=1"]
    streamed, at_hand = (last_model(run(data, *chosen), 2) for data in (STREAMED, "data=partitioned"))
    assert torch.equal(streamed, at_hand)


@pytest.mark.parametrize("hardware", ["cpu", "sim_ethernet"])
def test_workers_meet_without_servers_and_begin_again_without_what_they_left(hardware):
    chosen = ["algorithm=parameter_server", STREAMED, f"hardware={hardware}", "hardware.num_workers=2"]
    composed = setup("problem=least_squares", "problem.samples=100", "tracking=none", "budget.epochs=1", *chosen)
    composed = replace(composed, algorithm=MeetsAndBeginsAgain(0.1, 5))
    done = composed.machine.execute(composed.program(), lambda samples: None)
    assert done.failure is None and len(done.workers) == 3
    sizes = done.observations[-1].parameters - composed.problem.build_model(torch.device("cpu"), 0).weight.flatten()
    assert (sizes == 50).all()  # 7 batches of 7, and what was left of a half


def test_who_a_rank_is_depends_on_what_it_does():
    chosen = ["algorithm=parameter_server", "algorithm.num_servers=2", STREAMED, SIM, "hardware.num_workers=1"]
    program = setup(*MLP, *chosen).program()
    names = ["worker 0", "server 0 (rank 1)", "server 1 (rank 2)", "data server 0 (rank 3)"]
    assert [program.name_of(rank, 4) for rank in range(4)] == names
    assert program.name_of(0, 4, worker="rank") == "rank 0"


def test_a_dead_data_server_ends_a_simulated_run():
    done = execution(
        *MLP, "algorithm=all_reduce", STREAMED, SIM, "hardware.num_workers=2", "hardware.deaths={2: 0.001}"
    )
    assert isinstance(done.failure, WorkerFailed) and "data server 0 (rank 2) died" in str(done.failure)


def test_a_dead_data_server_ends_a_real_run():
    composed = setup(*MLP, "algorithm=all_reduce", STREAMED, "hardware=cpu", "hardware.num_workers=2")
    composed = replace(composed, problem=DyingServer("float64", 0.1, 1, 0.1, 0.0))
    begin_s = time.perf_counter()
    done = composed.machine.execute(composed.program(), lambda samples: None)
    assert str(done.failure).startswith("data server 0 (rank 2) (pid ") and "SIGKILL" in str(done.failure)
    assert time.perf_counter() - begin_s < composed.hardware.timeout_s


def test_servers_are_in_the_summary():
    composed = setup(*MLP, EPOCHS, "algorithm=parameter_server", STREAMED, SIM, "hardware.num_workers=2",
                     "data.num_servers=2")  # fmt: skip
    progress = Progress(Console(file=io.StringIO()))
    summary = execute(composed, run_info(composed, {}, None), "run", progress).summary
    assert (summary["run/num_workers"], summary["run/num_servers"]) == (2, 3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["algorithm=hogwild", "hardware=sim_numa2"],
            "workers of algorithm=hogwild have them in memory that all share",
        ),
        (["algorithm=sgd", "algorithm.batch_size=1", "problem=least_squares", SIM], "runs a native kernel on rows at"),
        (
            ["algorithm=all_reduce", "hardware=gpus", "hardware.num_workers=2"],
            "hardware=gpus would give a device to each",
        ),
        (["algorithm=all_reduce", SIM, "data.num_servers=0"], "data.num_servers must be >= 1"),
        (["algorithm=all_reduce", SIM, "data.prefetch=-1"], "data.prefetch must be >= 0"),
        (
            ["algorithm=all_reduce", SIM, "data.order=permuted"],
            "data.order must be index or storage with data=streamed",
        ),
    ],
)
def test_what_cannot_be_streamed_is_one_sentence(overrides, words):
    with pytest.raises(UserError, match=words):
        setup(*MLP, STREAMED, *overrides)


def test_rows_are_streamed_to_processes_of_any_vector_instructions():
    composed = setup(
        *MLP, "algorithm=all_reduce", STREAMED, "hardware=cpu", "hardware.num_workers=2", "hardware.simd=default"
    )
    assert not composed.hardware.runs_kernels and composed.num_servers == 1


def test_a_problem_that_cannot_say_what_its_rows_are_is_refused():
    composed = replace(setup(*MLP, "algorithm=all_reduce", STREAMED, SIM), problem=Mean("float64", 0.1, 1, 0.1, 0.0))
    with pytest.raises(UserError, match="has no method `gather`"):
        check(composed)


def test_the_baseline_has_its_rows_at_hand():
    streamed, at_hand = (setup(*MLP, "algorithm=all_reduce", data, SIM) for data in (STREAMED, "data=partitioned"))
    assert run_key(sequential(streamed)) == run_key(sequential(at_hand))
    ids = [run_info(each, {}, None) for each in (streamed, at_hand)]
    assert ids[0].problem_id == ids[1].problem_id and ids[0].pair_id != ids[1].pair_id
    assert alone(streamed).data == streamed.data


def test_servers_take_their_share_of_a_machine_that_is_used_whole():
    offered, left = (
        setup(*MLP, "algorithm=all_reduce", "hardware=cpu", "hardware.num_workers=null", *data)
        for data in ([], [STREAMED])
    )
    assert left.num_workers == max(1, offered.num_workers - 1)
    assert left.machine.workers_offered == left.num_workers + 1
