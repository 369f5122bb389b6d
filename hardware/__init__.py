"""Hardware: where workers run and what time is."""
