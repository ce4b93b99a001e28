"""Training: loaders, the batch step, epochs, seeds, devices."""
