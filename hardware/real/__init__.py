"""This machine: pinned threads and processes, timed by the wall clock."""
