"""Out of modelled memory names settings that there are, and leads on."""

import pytest
from composed import setup

from harness.shortage import GIB, Shortage, Way

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
        setup(*chosen, *way.typed.split(" "))
        assert 0 <= way.least_bytes <= way.most_bytes <= lacks.peak_bytes


def test_what_is_done_already_is_not_advised():
    composed = setup("algorithm=fsdp", *FAKE, "algorithm.checkpointing=true", "hardware.num_workers=8")
    ways = composed.algorithm.frees_memory(composed.problem, 8, TOO_MUCH)
    assert not any(word in way.typed for way in ways for word in ("checkpointing", "reshard", "shard_size"))


def test_what_would_free_nothing_is_not_advised():
    composed = setup(*MESH, *FAKE, "algorithm.batch_size=4", "algorithm/pipeline_schedule=gpipe")
    ways = composed.algorithm.frees_memory(composed.problem, 4, TOO_MUCH)
    assert not any(word in way.typed for way in ways for word in ("pipeline_schedule", "batch_size"))


ENOUGH, UNSURE, FEW, NOTHING = (
    Way(name, least * GIB, most * GIB)
    for name, least, most in (("enough", 5, 5), ("unsure", 1, 9), ("few", 2, 2), ("nothing", 0, 0.01))
)


@pytest.mark.parametrize(
    ("ways", "said"),
    [
        (
            [FEW, UNSURE, ENOUGH],
            "frees enough, by estimate, is enough (about 5 GiB); what may free enough is unsure (1 to",
        ),
        (
            [FEW, UNSURE],
            "may free enough, by estimate, is unsure (1 to 9 GiB); what frees some, and not enough by itself",
        ),
        ([NOTHING, FEW], "frees some, and not enough by itself, is few (about 2 GiB); devices of 10 GiB"),
        ([FEW, FEW], "frees some, and not enough by itself (several together may), is few (about 2 GiB), or few"),
        ([NOTHING], "devices of 10 GiB (hardware/compute) would do"),
    ],
)
def test_advice_begins_with_what_is_enough(ways, said):
    lacks = Shortage(peak_bytes=10 * GIB, kept_bytes=4 * GIB, held_bytes=6 * GIB)
    assert lacks.advice(ways).removeprefix("what ").startswith(said)
