"""Layers that several workers split."""
