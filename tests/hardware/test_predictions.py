"""Models without values: what is predicted of a step, by identities and closed forms."""

import pytest

from harness.check import check
from harness.cli import composed
from harness.errors import UserError
from harness.setup import compose

SMALL = ("layers=2", "width=256", "hidden=512", "heads=4", "key_value_heads=2", "context=128", "vocabulary=512")
LLAMA = ("problem=transformer_8b", *(f"problem.{each}" for each in SMALL))


def setup_of(*overrides):
    chosen = ("hardware=sim_dgx", "hardware.num_workers=8", "tracking=none", *LLAMA, *overrides)
    return check(compose(composed(chosen, as_hydra=True)))[0]


def executed(*overrides):
    setup = setup_of(*overrides)
    return setup, setup.machine.execute(setup.program(), lambda samples: None)


SHARDED = ("algorithm=fsdp", "algorithm/optimizer=adamw", "hardware.network.devices_per_host=2")
SPLIT = ("algorithm=tensor_parallel", "hardware.num_workers=2", "hardware.network.devices_per_host=2")
MESH = (
    "algorithm=parallel_3d",
    "algorithm.mesh.pipeline=2",
    "algorithm.mesh.tensor=2",
    "algorithm.batch_size=2",
    "algorithm.micro_batches=2",
    "problem.samples=4",
    "budget.epochs=2",
    "hardware.network.devices_per_host=2",
)


FEW = ("hardware.num_workers=4", "problem.samples=4", "budget.epochs=2")  # two steps over two hosts


@pytest.mark.parametrize("overrides", [(*SHARDED, *FEW), SPLIT, MESH], ids=["fsdp", "tensor", "mesh"])
def test_collapsed_or_not_the_same_is_predicted(overrides):
    found = {}
    for collapse in ("auto", "none"):
        _, execution = executed(*overrides, f"hardware.collapse={collapse}")
        assert execution.failure is None
        found[collapse] = {key: value for key, value in execution.metrics.items() if key.startswith("predicted/")}
    assert found["auto"].pop("predicted/simulated_ranks") < found["none"].pop("predicted/simulated_ranks")
    assert found["auto"]["predicted/step_s"] == pytest.approx(found["none"]["predicted/step_s"], rel=1e-9)
    same = ("predicted/peak_memory_bytes_max", "predicted/mfu", "predicted/tokens_per_s_per_device")
    for key in same:
        assert found["auto"][key] == pytest.approx(found["none"][key], rel=1e-9)


def test_rates_follow_from_the_step():
    setup, execution = executed(*SHARDED)
    step_s, problem = execution.metrics["predicted/step_s"], setup.problem
    assert execution.metrics["predicted/steps"] == 2 and step_s > 0
    tokens = problem.tokens_per_sample / step_s  # one sample a worker
    assert execution.metrics["predicted/tokens_per_s_per_device"] == pytest.approx(tokens)
    peak = setup.hardware.compute.flops_per_s["bfloat16"]
    assert execution.metrics["predicted/mfu"] == pytest.approx(problem.flops_per_sample / step_s / peak)


def test_what_stays_is_shards_and_what_the_optimizer_keeps():
    setup, execution = executed(*SHARDED, "hardware.compute.memory_bytes=1000.0")
    assert isinstance(execution.failure, UserError)
    words = str(execution.failure)
    assert words.startswith("out of modelled memory: rank 0 needs ") and "algorithm/optimizer=sgd" in words
    stays_gib = float(words.split("of which ")[1].split()[0])
    shards = 3 * 2 * setup.problem.num_parameters / 8  # bfloat16 weights, and two averages of each
    assert stays_gib * 2**30 == pytest.approx(shards, rel=0.05)  # blocks of 512 bytes, norms, and numbers of samples
    assert execution.metrics["predicted/peak_memory_bytes_max"] > shards


def test_activations_are_what_batches_and_checkpoints_say():
    peaks = {}
    for batch_size, checkpointing in ((1, False), (4, False), (4, True)):
        given = (f"algorithm.batch_size={batch_size}", f"algorithm.checkpointing={checkpointing}")
        peaks[batch_size, checkpointing] = executed(*SHARDED, *given)[1].metrics["predicted/peak_memory_bytes_max"]
    assert peaks[1, False] < peaks[4, True] < peaks[4, False]


REFUSED = {
    "hardware.stragglers makes ranks differ.*hardware.collapse=none": (*SHARDED, "hardware.stragglers={3: 2.0}"),
    "hardware.compute.jitter makes ranks differ": (*SHARDED, "hardware.compute.jitter=exponential"),
    "network.changes makes ranks differ": (*SHARDED, "hardware.network.changes={card0.up: {1.0: 0.5}}"),
    "values, which algorithm=ddp needs": ("algorithm=ddp",),
    "hardware=cpu computes with values": ("algorithm=fsdp", "hardware=cpu", "hardware.num_workers=1"),
    "does not know what an operator costs": (*SHARDED, "hardware/compute=fixed"),
    "hardware.collapse must be auto or none": (*SHARDED, "hardware.collapse=all"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_predicted_is_refused(words):
    with pytest.raises(UserError, match=words):
        executed(*REFUSED[words])
