"""Predicts steps of a small model without values."""

from composed import setup

SMALL = ("layers=2", "width=256", "hidden=512", "heads=4", "key_value_heads=2", "context=128", "vocabulary=512")
LLAMA = ("problem=transformer_8b", *(f"problem.{each}" for each in SMALL))


def setup_of(*overrides):
    """Composed and checked, on eight devices of one host unless told otherwise."""
    return setup("hardware=sim_dgx", "hardware.num_workers=8", "tracking=none", *LLAMA, *overrides)


def executed(*overrides):
    """The setup, and what came of it."""
    composed = setup_of(*overrides)
    return composed, composed.machine.execute(composed.program(), lambda samples: None)
