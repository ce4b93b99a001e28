"""Evaluation: metrics of a trained or training model, linear probes, missing modalities, contributions."""

from mmpareto.errors import UserError


class EvaluationError(UserError):
    """A model or a split cannot be scored."""
