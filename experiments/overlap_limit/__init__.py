"""Speedup of all-reduce over workers, where a batch is shared by ever more of them."""
