"""Balanced multimodal classification: gradient integration (MMPareto and others), models, datasets and training."""

__version__ = "0.1.0"
