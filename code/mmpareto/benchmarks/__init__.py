"""What the benchmark measures: training steps, the loader, and what an epoch costs beyond the two."""
