"""Algorithms: what every worker does. One file per family, none knows where it runs; folders hold what they share."""
