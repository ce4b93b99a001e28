"""Linear probes: how well a linear classifier reads the classes off frozen features.

The accuracy of a modality's own head says how well that head was trained as well; of a method that trains none, or
trains it otherwise, it says nothing. A probe is the same for all (Alain & Bengio, "Understanding intermediate layers
using linear classifier probes", 2016).

Shapes: N samples, D feature width.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmpareto.evaluation import EvaluationError
from mmpareto.evaluation.collected import Collected

GRID = (0.01, 0.1, 1.0, 10.0)  # inverse strengths C of the l2 regularisation
MOST_STEPS = 1000  # of L-BFGS
_SINGLE = "the training split holds a single class: nothing to fit a probe to; give --no-probe"


def linear_probe(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    chosen: tuple[Tensor, Tensor],
    grid: Sequence[float] = GRID,
) -> dict[str, Any]:
    """Multinomial logistic regression of scikit-learn on standardised features.

    train, val, chosen  features [N, D] and labels [N]: it is fitted on train, with the C of `grid` that has the best
                        accuracy on val (the least such C), and scored on chosen. Mean and deviation are those of train.

    Returns {"accuracy", "val_accuracy"} in percent, "C", and "converged": whether L-BFGS reached its tolerance.

    Raises EvaluationError where train holds a single class.
    """
    from sklearn.exceptions import ConvergenceWarning  # takes a second to load
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    (x, y), (x_val, y_val), (x_chosen, y_chosen) = (
        (f.double().numpy(), lab.numpy()) for f, lab in (train, val, chosen)
    )
    if len(np.unique(y)) < 2:
        raise EvaluationError(_SINGLE)
    scaler = StandardScaler().fit(x)
    x, x_val, x_chosen = (scaler.transform(part) for part in (x, x_val, x_chosen))
    best: dict[str, Any] = {"val_accuracy": -1.0}
    for strength in sorted(grid):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", ConvergenceWarning)
            fitted = LogisticRegression(C=strength, max_iter=MOST_STEPS).fit(x, y)
        accuracy = 100 * float(np.mean(fitted.predict(x_val) == y_val))
        if accuracy > best["val_accuracy"]:
            best = {
                "accuracy": 100 * float(np.mean(fitted.predict(x_chosen) == y_chosen)),
                "val_accuracy": accuracy,
                "C": strength,
                # it also warns where the line search failed, after fewer steps
                "converged": not any(issubclass(warning.category, ConvergenceWarning) for warning in warned),
            }
    return best


def probes(train: Collected, val: Collected, chosen: Collected, *, partial: bool = False) -> dict[str, Any]:
    """Linear probes of each modality's features, and of all side by side, over the samples that have them.

    Args:
        train: what the probes are fitted on; C is chosen on `val`, accuracies are those on `chosen`.
        partial: give None for a modality that cannot be probed; else it is refused.

    Returns:
        {"unimodal": {modality: see `linear_probe`}, "concatenated": see `linear_probe`}; None where a split has no
        sample with the modality, or with all of them, or train one class of these samples.

    Raises:
        EvaluationError: where train holds a single class, or a modality cannot be probed.
    """
    if len(train.label.unique()) < 2:
        raise EvaluationError(_SINGLE)

    def probe(names: Sequence[str]) -> dict[str, Any] | None:
        parts = [(part, part.having(names)) for part in (train, val, chosen)]
        if not all(having.any() for _, having in parts) or len(train.label[parts[0][1]].unique()) < 2:
            return None
        fitted, selecting, scored = (
            (torch.cat([part.features[name] for name in names], 1)[having], part.label[having])
            for part, having in parts
        )
        return linear_probe(fitted, selecting, scored)

    unimodal = {name: probe([name]) for name in train.features}
    for name, result in unimodal.items():
        if result is None and not partial:
            raise EvaluationError(
                f"a split has no sample of {name}, or the training split a single class of them: nothing to fit a "
                "probe to"
            )
    return {"unimodal": unimodal, "concatenated": probe(list(train.features))}
