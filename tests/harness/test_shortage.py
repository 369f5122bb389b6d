"""Out of modelled memory names settings that there are, and leads on."""

import pytest
from composed import setup

from harness.shortage import Shortage

TOO_MUCH = Shortage(peak_bytes=100, kept_bytes=20, held_bytes=60)
STAYS = Shortage(peak_bytes=100, kept_bytes=80, held_bytes=30)
FAKE = ["problem=transformer_8b", "problem.layers=6", "hardware=sim_dgx", "tracking=none"]
MESH = ["algorithm=parallel_3d", "hardware.num_workers=4", "algorithm.micro_batches=4"]
CHOSEN = {
    "fsdp": ["hardware.num_workers=8", "algorithm.batch_size=4", "algorithm.reshard_after_forward=false"],
    "pipeline": ["hardware.num_workers=2", "algorithm.batch_size=16", "algorithm/optimizer=adam"],
    "pipeline of single samples": ["algorithm=pipeline", "hardware.num_workers=2", "algorithm.batch_size=8"],
    "model_parallel": ["hardware.num_workers=2", "algorithm.batch_size=4"],
    "tensor_parallel": ["hardware.num_workers=2", "algorithm.batch_size=4"],
    "parallel_3d": ["hardware.num_workers=8", "algorithm.mesh.tensor=2", "algorithm.batch_size=4"],
    "mesh of single samples": [*MESH, "algorithm.mesh.pipeline=2", "algorithm.batch_size=4"],
}


@pytest.mark.parametrize("case", CHOSEN)
@pytest.mark.parametrize("lacks", [TOO_MUCH, STAYS], ids=["passing", "staying"])
def test_what_frees_memory_can_be_typed(case, lacks):
    own = [] if " " in case else [f"algorithm={case}"]
    chosen = [*own, *FAKE, *CHOSEN[case]]
    composed = setup(*chosen)
    ways = composed.algorithm.frees_memory(composed.problem, composed.num_workers, lacks)
    assert ways
    for way in ways:
        setup(*chosen, *way.split(" "))


def test_what_is_done_already_is_not_advised():
    composed = setup("algorithm=fsdp", *FAKE, "algorithm.checkpointing=true", "hardware.num_workers=8")
    ways = composed.algorithm.frees_memory(composed.problem, 8, TOO_MUCH)
    assert not any("checkpointing" in way or "reshard" in way or "shard_size" in way for way in ways)


def test_what_would_free_nothing_is_not_advised():
    composed = setup(*MESH, *FAKE, "algorithm.batch_size=4", "algorithm/pipeline_schedule=gpipe")
    ways = composed.algorithm.frees_memory(composed.problem, 4, TOO_MUCH)
    assert not any("pipeline_schedule" in way or "batch_size" in way for way in ways)
