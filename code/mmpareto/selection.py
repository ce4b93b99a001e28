"""Splits and model selection: which epoch of a run, and which settings of a grid, validation chooses.

The rule, the same for checkpoints, early stopping and `report.py --tune`:

1. the highest joint accuracy on the selecting split (of a grid: the mean over seeds);
2. on a tie the lowest joint loss there; a loss that is not finite counts as the highest;
3. on a tie of both the first: the earlier epoch, the smaller values of the settings.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SELECTED_ON_TEST = "SELECTED ON TEST"  # the mark of runs whose checkpoint the test split chose
RATES = (0.25, 0.5, 0.75)  # fractions of the samples that lose a modality, unless others are asked for
TIE = 9  # decimals of an accuracy in percent: means over seeds that differ by rounding alone are ties


# how the predictions of all heads are combined (see `evaluation.all_heads`), and what tables call that
COMBINATIONS = {"logarithms": "all heads, logs", "probabilities": "all heads, mean"}
LEAD = "joint - best single"  # what tables call the joint accuracy less that of the best unimodal head
SEARCHED_FROM = "searched from"  # beginning of a setting that was not set: its range
# what chooses between settings, by name
RULES = {
    "joint": "validation accuracy of the joint head",
    "all_heads": "validation accuracy of all heads together, by the sum of their log-probabilities",
    "test": "TEST accuracy of the joint head (an oracle: no fair comparison)",
}


def measured(results: Mapping[str, Any], rule: str) -> tuple[float, float | None]:
    """Accuracy in percent and joint loss of a finished run, on what a rule of RULES looks at.

    results  a run's results.json.
    """
    scores = results["test" if rule == "test" else "val"]
    chosen = scores["all_heads"]["logarithms"] if rule == "all_heads" else scores["joint"]
    return chosen["accuracy"], scores["joint"].get("loss")


def rank(accuracy: float, loss: float | None) -> tuple[float, float]:
    """Sort key of a candidate, the best one largest; `max` then takes the first of those that tie.

    accuracy  joint accuracy in percent on the selecting split.
    loss      joint loss there; None where it is not known, which counts as not finite.
    """
    known_accuracy = -math.inf if math.isnan(accuracy) else round(accuracy, TIE)
    return known_accuracy, -loss if loss is not None and math.isfinite(loss) else -math.inf
