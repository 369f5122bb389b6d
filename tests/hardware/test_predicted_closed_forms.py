"""Predictions against what can be worked out by hand: bubbles, traffic, arithmetic, memory."""

import re

import pytest
from predicting import executed, setup_of
from simulated_ranks import machine
from uniform import NOWHERE, Products, Uniform, pipeline

from algorithms.pipelining.schedules import GPipe, Interleaved, OneFOneB, ZeroBubble
from harness.data import Partitioned
from harness.program import Program


class FakeUniform(Uniform):
    """Layers that take equally long, without values."""

    is_fake = True


@pytest.mark.parametrize("order", [GPipe(), OneFOneB(), Interleaved(2), ZeroBubble(1), ZeroBubble(2)], ids=str)
def test_bubbles_are_the_closed_forms(order, workers=3, micro_batches=6):
    """Stages of equal products and no network: steps 2 and 3 of a prediction, each filled and drained."""
    algorithm, budget = pipeline(order, micro_batches, micro_batches), 3 * micro_batches
    problem = FakeUniform("float64", 0.1, 1, 0.1, 0.1, workers * order.stages_per_worker, budget)
    program = Program(algorithm, problem, Partitioned("storage"), 0, budget, (budget,))
    hardware = machine(workers, Products("none", False, {"float64": 1.0}, 1.0, 0.0, None), NOWHERE)
    done = hardware.execute(program, lambda samples: None)
    assert done.failure is None
    expected, work_s = order.bubble_frac(workers, micro_batches), 3.0 * micro_batches * order.stages_per_worker
    assert done.metrics["predicted/bubble_frac"] == pytest.approx(expected, rel=1e-9)
    assert done.metrics["predicted/step_s"] == pytest.approx(work_s / (1 - expected), rel=1e-9)


ONE_HOST = ("hardware.num_workers=4", "problem.samples=4", "budget.epochs=3")
SLOW = (
    "hardware.network.inside_bandwidth_bytes_per_s=1e6",
    "hardware.protocol.algorithms={all_reduce: pipelined_ring}",
    "hardware.protocol.efficiency={LL: 1.0, LL128: 1.0, Simple: 1.0}",
)
TRAFFIC = {
    "ddp": ("algorithm=ddp",),
    "all_reduce": ("algorithm=all_reduce",),
    "zero1_plain": ("algorithm=zero1_plain",),
    "fsdp, not resharded": ("algorithm=fsdp", "algorithm.reshard_after_forward=false"),
    "fsdp": ("algorithm=fsdp",),
    "fsdp_plain": ("algorithm=fsdp_plain",),
}


@pytest.mark.parametrize("name", TRAFFIC)
def test_where_the_network_is_slow_a_step_is_its_traffic(name):
    """Of n bytes on P workers 2 n (P - 1) / P, of who gathers twice half as much again; computing is 1e-3."""
    setup, done = executed(*ONE_HOST, *SLOW, *TRAFFIC[name])
    exposed_s = done.metrics["predicted/exposed_comm_frac"] * done.metrics["predicted/step_s"]
    all_reduced_s = 2 * (2 * setup.problem.num_parameters) * 3 / 4 / 1e6
    factor = 1.5 if name in ("fsdp", "fsdp_plain") else 1.0
    assert exposed_s == pytest.approx(factor * all_reduced_s, rel=1e-3)


def test_flops_of_eight_billion_parameters_by_hand():
    block = 4096 * (4096 + 1024 + 1024 + 4096 + 3 * 14336)  # query, key, value, output, feed-forward
    products = 32 * block + 128256 * 4096
    own = [f"problem.{name}={size}" for name, size in EIGHT_BILLION.items()]
    problem = setup_of("algorithm=fsdp", *own).problem
    assert problem.num_parameters == products + 128256 * 4096 + (2 * 32 + 1) * 4096 == 8_030_261_248
    assert problem.flops_per_sample == 8192 * (6 * products + 12 * 32 * 4096 * 8192)


EIGHT_BILLION = {"layers": 32, "width": 4096, "hidden": 14336, "heads": 32, "key_value_heads": 8}
EIGHT_BILLION |= {"context": 8192, "vocabulary": 128256}
AT_PEAK = (
    *("operator_overhead_s=0.0", "backward_overhead_s=0.0", "kernel_latency_s=0.0"),
    *("flops_per_s.bfloat16=9.89e14", "memory_bytes_per_s=1e30", "attention_efficiency=1.0"),
)


def test_a_device_at_its_peak_loses_what_causal_attention_skips_and_no_product_does():
    """Two layers of the shape of 8B, alone on a device on which nothing but arithmetic takes time."""
    shape = EIGHT_BILLION | {"layers": 2, "vocabulary": 512, "context": 4096}
    own = [f"problem.{name}={size}" for name, size in shape.items()]
    free = [f"hardware.compute.{each}" for each in AT_PEAK]
    setup, done = executed("algorithm=fsdp", *own, *free, "hardware.num_workers=1", "problem.samples=3")
    attention = 4096 * 12 * 2 * 4096 * 4096
    asked = setup.problem.flops_per_sample
    done_of_attention = attention / 2 * 7 / 6  # half is masked; its backward pass computes the scores once more
    spent = asked - attention + done_of_attention
    assert done.metrics["predicted/mfu"] == pytest.approx(asked / spent, rel=0.02)  # sums and norms are counted too


BLOCK = 256 * (256 + 128 + 128 + 256 + 3 * 512) + 2 * 256  # its parameters


def test_memory_of_layers_by_hand():
    """What four layers more take at the peak, the backward pass of the head: parameters, moments, their inputs."""
    wide = (
        "problem.context=2048",
        "problem.vocabulary=4096",
        "algorithm.checkpointing=true",
        "algorithm/optimizer=adamw",
    )
    peaks = [
        executed("algorithm=fsdp", *ONE_HOST, *wide, f"problem.layers={layers}")[1].metrics[
            "predicted/peak_memory_bytes_max"
        ]
        for layers in (4, 8)
    ]
    kept_bytes = BLOCK / 4 * (2 + 2 + 2)  # a quarter, in bfloat16, and two moments of it
    inputs_bytes = 2048 * 256 * 2
    assert peaks[1] - peaks[0] == pytest.approx(4 * (kept_bytes + inputs_bytes), rel=0.01)


def test_memory_of_copies_by_hand():
    """Of plain SGD on one token: weights and gradients, of DDP those in its buckets too, and little else."""
    few = ("problem.context=1", "algorithm/optimizer=sgd")
    for name, copies in (("all_reduce", 2), ("ddp", 3)):
        setup, done = executed(f"algorithm={name}", *ONE_HOST, *few)
        whole_bytes = copies * 2 * setup.problem.num_parameters + 2 * 512 * 256  # a gradient before it is added
        assert done.metrics["predicted/peak_memory_bytes_max"] == pytest.approx(whole_bytes, rel=0.01)


STAGES = ("problem.layers=6", "algorithm.balance=layers", "problem.samples=16")  # 8 layers with the first and the last


def peak_and_kept_bytes(*overrides):
    """As told where it is too much; kept from step to step."""
    failure = executed(*overrides, "hardware.compute.memory_bytes=1000.0")[1].failure
    needs = re.search(r"needs (\S+) GiB, of which (\S+) GiB stay", str(failure))
    return [float(gib) * 2**30 for gib in needs.groups()]


@pytest.mark.parametrize(("workers", "fullest"), [(2, 3 * BLOCK + 512 * 256 + 256), (4, 2 * BLOCK)])
def test_stages_take_less_the_more_there_are(workers, fullest):
    """Of plain SGD on one token: weights and gradients of the fullest stage, and two matrices at the peak."""
    small = ("algorithm=pipeline", "algorithm/optimizer=sgd", "problem.context=1", "algorithm.batch_size=4")
    many = f"hardware.num_workers={workers}", "algorithm.micro_batches=4"
    peak_bytes, kept_bytes = peak_and_kept_bytes(*small, *STAGES, *many)
    assert kept_bytes == pytest.approx(2 * 2 * fullest, rel=0.005)
    assert kept_bytes < peak_bytes < kept_bytes + 2 * 2 * 512 * 256


def test_memory_of_micro_batches_by_hand():
    """What two more of GPipe take between the ends: inputs of two layers that are computed again, outputs, gradients.

    Torch has memory of its own for what each receives: the inputs of the first of the layers, and gradients.
    """
    split = ("algorithm=parallel_3d", "algorithm.mesh={pipeline: 4}", "algorithm.checkpointing=true", *STAGES)
    long = ("hardware.num_workers=4", "problem.context=2048", "problem.vocabulary=16")
    peaks = [
        executed(
            *split,
            *long,
            "algorithm/pipeline_schedule=gpipe",
            f"algorithm.batch_size={count}",
            f"algorithm.micro_batches={count}",
        )[1].metrics["predicted/peak_memory_bytes_max"]
        for count in (2, 4)
    ]
    assert peaks[1] - peaks[0] == 2 * (2 + 1 + 1) * 2048 * 256 * 2


@pytest.mark.parametrize("name", ["fsdp_plain", "tensor_parallel"])
def test_no_activation_stays_from_step_to_step(name):
    """Of longer samples rotations stay, in float32, and the tokens."""
    chosen = f"algorithm={name}", "algorithm/optimizer=sgd", "hardware.num_workers=2", "problem.samples=4"
    kept = [peak_and_kept_bytes(*chosen, f"problem.context={context}")[1] for context in (128, 1024)]
    assert kept[1] - kept[0] < (1024 - 128) * (2 * 32 * 4 + 2 * 8)
