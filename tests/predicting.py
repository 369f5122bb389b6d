"""Predicts steps of a small model without values."""

from harness.check import check
from harness.cli import composed
from harness.setup import compose

SMALL = ("layers=2", "width=256", "hidden=512", "heads=4", "key_value_heads=2", "context=128", "vocabulary=512")
LLAMA = ("problem=transformer_8b", *(f"problem.{each}" for each in SMALL))


def setup_of(*overrides):
    """Composed and checked, on eight devices of one host unless told otherwise."""
    chosen = ("hardware=sim_dgx", "hardware.num_workers=8", "tracking=none", *LLAMA, *overrides)
    return check(compose(composed(chosen, as_hydra=True)))[0]


def executed(*overrides):
    """The setup, and what came of it."""
    setup = setup_of(*overrides)
    return setup, setup.machine.execute(setup.program(), lambda samples: None)
