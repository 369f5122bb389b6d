"""Copies, shards and split layers, as bandwidth falls."""
