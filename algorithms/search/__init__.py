"""Hyperparameter search: what is tried, in which order, by whom."""
