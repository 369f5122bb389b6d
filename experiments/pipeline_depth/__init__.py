"""Throughput of pipelines over stages, micro-batches and orders of passes."""
