"""Evaluation: metrics of a trained or training model."""
