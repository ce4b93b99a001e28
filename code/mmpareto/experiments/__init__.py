"""Grids of training runs: which runs there are, how each is run as a process, and on which machine."""
