"""Every mesh trains the unsplit model on the same batch."""

import pytest
import torch
from composed import execution, setup

from harness.errors import UserError
from harness.trial import averaged

SIZES = {"layers": 2, "width": 8, "hidden": 12, "heads": 2, "key_value_heads": 2, "context": 4, "vocabulary": 10}
LLAMA = ["problem=transformer_8b", "problem.fake=false", *(f"problem.{name}={size}" for name, size in SIZES.items())]
LLAMA += ["problem.samples=16", "problem.dtype=float64", "tracking=none", "budget.observations=2", "budget.epochs=1"]
MLP = ["problem=digits_mlp", "problem.hidden_sizes=[8,12,8]", "problem.dtype=float64", "tracking=none"]
MLP += ["budget.observations=2", f"budget.epochs={40 / 1437}"]
GLOBAL_BATCH, STEP = 4, "algorithm.learning_rate=0.1"
TWO, SEQUENCE, SHARD = "algorithm.micro_batches=2", "algorithm.sequence_parallel=true", "algorithm.shard_data=true"
INTERLEAVED = "algorithm/pipeline_schedule=interleaved", "algorithm.pipeline_schedule.stages=2"
ZERO_BUBBLE = "algorithm/pipeline_schedule=zero_bubble"
V_SHAPED = "algorithm/pipeline_schedule=zero_bubble_v", "algorithm.micro_batches=4"
CHECKPOINTING = "algorithm.checkpointing=true"
SLOW = pytest.mark.slow


def weights(problem, *overrides):
    done = execution(*problem, STEP, *overrides)
    assert done.failure is None, done.failure
    observations, _ = averaged(done.observations, len(done.workers))
    return torch.stack([each.parameters for each in observations])


def meshed(problem, hardware, data, tensor, pipeline, *overrides):
    chosen = f"hardware={hardware}", f"hardware.num_workers={data * tensor * pipeline}"
    mesh = f"algorithm.mesh={{data: {data}, tensor: {tensor}, pipeline: {pipeline}}}"
    return "algorithm=parallel_3d", mesh, *chosen, f"algorithm.batch_size={GLOBAL_BATCH // data}", *overrides


@pytest.fixture(scope="module")
def sequential():
    chosen = "algorithm=sgd", "hardware=sim_dgx", f"algorithm.batch_size={GLOBAL_BATCH}"
    return {problem[0]: weights(problem, *chosen) for problem in (LLAMA, MLP)}


CASES = [
    (LLAMA, "sim_dgx", 1, 1, 1, TWO),
    (LLAMA, "sim_ethernet", 2, 1, 1),
    (LLAMA, "sim_dgx", 2, 1, 1, SHARD),
    (LLAMA, "sim_ethernet", 1, 2, 2, TWO, SEQUENCE),
    (LLAMA, "sim_dgx", 1, 2, 2, TWO, *INTERLEAVED),
    (LLAMA, "sim_dgx", 2, 2, 2, TWO, SHARD, SEQUENCE),
    (LLAMA, "sim_dgx", 2, 2, 1, TWO, SHARD, SEQUENCE, CHECKPOINTING),
    (LLAMA, "sim_dgx", 2, 2, 2, TWO, ZERO_BUBBLE, SHARD, SEQUENCE, CHECKPOINTING),
    (LLAMA, "sim_dgx", 1, 2, 2, *V_SHAPED),
    (MLP, "sim_ethernet", 2, 2, 2, TWO),
    (MLP, "cpu", 2, 2, 1),
]
REAL = [(LLAMA, "cpu", 1, 2, 2, TWO, SEQUENCE), (LLAMA, "cpu", 2, 1, 2, TWO, SHARD), (LLAMA, "cpu", 2, 2, 1, SHARD)]
REAL += [(LLAMA, "cpu", 2, 2, 2, TWO, SHARD, SEQUENCE)]
PARTS = [(LLAMA, "sim_dgx", 2, 2, 1, SHARD), (LLAMA, "sim_dgx", 2, 2, 1, SHARD, SEQUENCE)]  # of other cases
PARTS += [(LLAMA, "sim_dgx", 2, 1, 2, TWO)]


@pytest.mark.parametrize(
    "case",
    [*CASES, *(pytest.param(case, marks=SLOW) for case in REAL + PARTS)],
    ids=lambda case: "-".join(map(str, case[1:])),
)
def test_it_is_the_unsplit_model(sequential, case):
    # rtol 1e-12: the order of sums differs
    torch.testing.assert_close(weights(case[0], *meshed(*case)), sequential[case[0][0]], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("overrides", [(), (SEQUENCE,)], ids=["sums", "sequence"])
def test_bytes_are_as_declared(overrides):
    chosen = [*LLAMA, STEP, *meshed(LLAMA, "sim_dgx", 2, 2, 1, *overrides)]
    done, composed = execution(*chosen), setup(*chosen)
    declared = composed.algorithm.bytes_per_update(composed.problem, torch.zeros(1), 4)
    assert sum(report.sent_bytes for report in done.workers) == declared * done.observations[-1].updates


def test_sharded_gradients_travel_scattered():
    """FSDP2 sends what an all-reduce does and gathers weights once more; on one micro-batch."""
    whole, shards = (
        sum(report.sent_bytes for report in execution(*LLAMA, STEP, *meshed(LLAMA, "sim_dgx", 2, 1, 1, *more)).workers)
        for more in ((), (SHARD,))
    )
    assert shards == 2 * whole  # of n bytes on 2 workers: n scattered, n / 2 gathered twice, against n reduced


@pytest.mark.parametrize("order", [(), INTERLEAVED], ids=["gpipe", "interleaved"])
def test_one_stage_gathers_shards_for_each_micro_batch_whatever_the_order(order):
    once, twice = (
        sum(report.sent_bytes for report in execution(*LLAMA, STEP, *meshed(LLAMA, "sim_dgx", 2, 1, 1, *more)).workers)
        for more in ((SHARD,), (SHARD, TWO, *order))
    )
    assert twice == 2 * once


def refused(*overrides):
    with pytest.raises(UserError) as refusal:
        setup("algorithm=parallel_3d", "hardware=sim_dgx", *overrides)
    return str(refusal.value)


def test_what_no_axis_can_split_is_refused():
    wide = refused(*LLAMA, "hardware.num_workers=4", "algorithm.mesh={tensor: 4}")
    assert (
        wide == "algorithm.mesh.tensor must divide problem.heads=2, which it splits, got 4: set algorithm.mesh.tensor=2"
    )
    deep = refused(*MLP, "hardware.num_workers=8", "algorithm.mesh={pipeline: 8}", "algorithm.micro_batches=8")
    assert "and the model has 4" in deep
    few = refused(*MLP, "hardware.num_workers=2", "algorithm.mesh={pipeline: 2}")
    assert "algorithm.micro_batches must be at least 2" in few
    assert "algorithm.mesh must multiply" in refused(*MLP, "hardware.num_workers=4", "algorithm.mesh={tensor: 3}")
