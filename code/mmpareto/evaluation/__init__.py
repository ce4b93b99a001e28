"""Evaluation: metrics of a trained or training model, linear probes, missing modalities, contributions."""


class EvaluationError(Exception):
    """A model or a split that cannot be scored; the message says why and what to do."""
