"""Benchmarks: each prints one JSON line; ratios are measured inside one run."""
