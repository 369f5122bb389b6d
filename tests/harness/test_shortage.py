"""Out of modelled memory names settings that there are, and leads on."""

import pytest
from composed import setup

from harness.shortage import Shortage

TOO_MUCH = Shortage(peak_bytes=100, kept_bytes=20, held_bytes=60)
STAYS = Shortage(peak_bytes=100, kept_bytes=80, held_bytes=30)
FAKE = ["problem=transformer_8b", "problem.layers=6", "hardware=sim_dgx", "tracking=none"]
CHOSEN = {
    "fsdp": ["hardware.num_workers=8", "algorithm.batch_size=4", "algorithm.reshard_after_forward=false"],
    "pipeline": ["hardware.num_workers=2", "algorithm.batch_size=16", "algorithm/optimizer=adam"],
    "model_parallel": ["hardware.num_workers=2", "algorithm.batch_size=4"],
    "tensor_parallel": ["hardware.num_workers=2", "algorithm.batch_size=4"],
    "parallel_3d": ["hardware.num_workers=8", "algorithm.mesh.tensor=2", "algorithm.batch_size=4"],
}


@pytest.mark.parametrize("algorithm", CHOSEN)
@pytest.mark.parametrize("lacks", [TOO_MUCH, STAYS], ids=["passing", "staying"])
def test_what_frees_memory_can_be_typed(algorithm, lacks):
    chosen = [f"algorithm={algorithm}", *FAKE, *CHOSEN[algorithm]]
    composed = setup(*chosen)
    ways = composed.algorithm.frees_memory(composed.problem, composed.num_workers, lacks)
    assert ways
    for way in ways:
        setup(*chosen, *way.split(" "))


def test_what_is_done_already_is_not_advised():
    composed = setup("algorithm=fsdp", *FAKE, "algorithm.checkpointing=true", "hardware.num_workers=8")
    ways = composed.algorithm.frees_memory(composed.problem, 8, TOO_MUCH)
    assert not any("checkpointing" in way or "reshard" in way or "shard_size" in way for way in ways)
