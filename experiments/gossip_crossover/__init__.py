"""Ring D-PSGD against all-reduce, by latency and bandwidth."""
