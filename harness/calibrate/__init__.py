"""Measures this machine, and writes device files with which the simulator predicts it: `python -m harness.calibrate`.

probes.py   compiled loops that one core, or two, are timed in
memory.py   the constants of hardware.simulated.memory.SharedMemory
core.py     the constants of hardware.simulated.compute.Roofline
files.py    writes them
"""
