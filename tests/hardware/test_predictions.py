"""Models without values: what is predicted of a step, by identities and closed forms."""

import pytest
from predicting import executed
from torch._subclasses.fake_tensor import FakeTensorMode

from hardware.simulated.fake_tensors import FakeTensors
from harness.errors import UserError

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


COPIES = ("algorithm/optimizer=adamw", "hardware.network.devices_per_host=2", *FEW)
RING = "hardware.protocol.algorithms={all_reduce: pipelined_ring}"
NAMES = ("all_reduce", "ddp", "zero1_plain", "fsdp_plain")
ALIKE = {"fsdp": (*SHARDED, *FEW), "tensor": SPLIT, "mesh": MESH}
ALIKE |= {name: (f"algorithm={name}", *COPIES, RING) for name in NAMES}
HYBRID = ("algorithm=fsdp", "algorithm.shard_size=2", "algorithm.checkpointing=true", "algorithm.prefetch=2")
SEQUENCE = ("algorithm.sequence_parallel=true", "problem.key_value_heads=4")
ORDERED = (*MESH, "algorithm.mesh.tensor=1", "hardware.num_workers=4")
ALIKE |= {
    "hsdp": (*HYBRID, "hardware.network.devices_per_host=2", *FEW),
    "sequence": (*SPLIT, *SEQUENCE, *FEW, "algorithm.batch_size=2"),
    "mesh sharded": (*MESH, *SEQUENCE, "algorithm.shard_data=true"),
    "mesh interleaved": (*ORDERED, "algorithm/pipeline_schedule=interleaved"),
    "mesh zero bubble": (*ORDERED, "algorithm/pipeline_schedule=zero_bubble", "algorithm.checkpointing=true"),
}


PART_OF_OTHERS = ("mesh", "mesh interleaved", "sequence", "fsdp_plain", "zero1_plain")


def alike(name):
    """What others consist of too is run when asked for."""
    return pytest.param(ALIKE[name], id=name, marks=pytest.mark.slow if name in PART_OF_OTHERS else ())


@pytest.mark.parametrize("overrides", [alike(name) for name in ALIKE])
def test_collapsed_or_not_the_same_is_predicted(overrides):
    found = {collapse: predicted(*overrides, f"hardware.collapse={collapse}") for collapse in ("auto", "none")}
    assert found["auto"].pop("predicted/simulated_ranks") < found["none"].pop("predicted/simulated_ranks")
    assert found["auto"]["predicted/step_s"] == pytest.approx(found["none"]["predicted/step_s"], rel=1e-9)
    exposed, of_all = (found[collapse]["predicted/exposed_comm_frac"] for collapse in ("auto", "none"))
    assert exposed >= of_all - 1e-9  # the last of a class to end a collective stands for it
    same = ("predicted/peak_memory_bytes_max", "predicted/mfu", "predicted/tokens_per_s_per_device")
    for key in same:
        assert found["auto"][key] == pytest.approx(found["none"][key], rel=1e-9)


def predicted(*overrides):
    done = executed(*overrides)[1]
    assert done.failure is None
    return {key: value for key, value in done.metrics.items() if key.startswith("predicted/")}


@pytest.mark.parametrize("overrides", [(*SHARDED, *FEW), (*MESH, "algorithm.checkpointing=true")], ids=["fsdp", "mesh"])
def test_what_is_remembered_of_operators_is_what_torch_finds(overrides, monkeypatch):
    remembered = predicted(*overrides)
    monkeypatch.setattr(FakeTensors, "dispatch", FakeTensorMode.dispatch)
    assert predicted(*overrides) == remembered


def test_workers_that_keep_tensors_of_their_own_are_simulated_each():
    """Torch's ZeRO-1 broadcasts new parameters from who has them: 1.5 times the traffic of an all-reduce."""
    found = predicted("algorithm=zero1", *COPIES)
    assert found["predicted/simulated_ranks"] == 4 and found["predicted/step_s"] > 0


def test_rates_follow_from_the_step():
    setup, execution = executed(*SHARDED)
    step_s, problem = execution.metrics["predicted/step_s"], setup.problem
    assert execution.metrics["predicted/steps"] == 2 and step_s > 0
    tokens = problem.tokens_per_sample / step_s  # one sample a worker
    assert execution.metrics["predicted/tokens_per_s_per_device"] == pytest.approx(tokens)
    compute = setup.hardware.compute
    peak = compute.peak_flops_per_s["bfloat16"]  # the data sheet's, not what products reach
    assert compute.flops_per_s["bfloat16"] < peak == compute.peak("bfloat16")
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
    "algorithm=pipedream is still filling its pipeline.*use algorithm=.*pipeline": ("algorithm=pipedream",),
    "algorithm=sgd needs values": ("algorithm=sgd", "hardware.num_workers=1"),
    "algorithm/compression must be none where": ("algorithm=all_reduce", "algorithm/compression=half"),
    "hardware=cpu computes with values": ("algorithm=fsdp", "hardware=cpu", "hardware.num_workers=1"),
    "does not know what an operator costs": (*SHARDED, "hardware/compute=fixed"),
    "hardware.collapse must be auto or none": (*SHARDED, "hardware.collapse=all"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_predicted_is_refused(words):
    with pytest.raises(UserError, match=words):
        executed(*REFUSED[words])
