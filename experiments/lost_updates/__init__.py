"""How many additions a run without locks loses, by counting, for real and simulated."""
