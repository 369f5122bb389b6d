"""Reproduced results and benchmarks. Imports anything; nobody imports it."""
