"""Parameters of which every worker keeps a shard."""
