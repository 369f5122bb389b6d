"""A model in memory that all workers update."""
