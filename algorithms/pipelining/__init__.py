"""Chains of layers cut into stages."""
