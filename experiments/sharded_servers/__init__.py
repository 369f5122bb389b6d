"""Sharded parameter servers against all-reduce, by latency and bandwidth."""
