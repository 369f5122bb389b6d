"""SSP against BSP, backup workers and AD-PSGD, under jitter and with a straggler."""
