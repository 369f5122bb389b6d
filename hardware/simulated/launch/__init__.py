"""Somebody's own training script on a simulated machine, the way torchrun would start it."""
