"""What programs and notebooks use: train, evaluate and compare runs, predict with a trained one, export it."""
