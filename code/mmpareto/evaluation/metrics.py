"""Metrics of one head over a split, by torchmetrics.

All are in percent, 0 to 100. Classes without a sample in the split have no recall, average precision or AUROC: they are
None there, and left out of the means over classes. (torchmetrics counts their AUROC as 0.)

Shapes: N samples, C classes.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BINS = 15  # of confidence, of equal width, as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017


def head_metrics(logits: Tensor, label: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Score a head.

    logits   [N, C]; label [N].
    classes  the C names.

    Returns
      accuracy                top-1.
      macro_f1                mean over classes of F1; 0 for a class that is there and never found.
      mean_average_precision  mean over classes of the area under precision against recall, one class against the rest.
      auroc                   mean over classes of the area under the ROC curve, one against the rest; None where the
                              split holds a single class.
      calibration_error       expected calibration error: mean distance of confidence and accuracy over the samples'
                              bins (BINS of equal width; see `reliability`).
      confusion               C rows of C counts: row the class, column the prediction.
      per_class               for each class its name, samples, recall, precision (None where it is never predicted) and
                              F1.
      reliability             see `reliability`.
    """
    from torchmetrics.functional import classification as tm  # takes two seconds to load

    count = len(classes)
    predicted = logits.argmax(1)
    probabilities = logits.double().softmax(1)  # in float32 the surest samples would tie
    confusion = tm.multiclass_confusion_matrix(predicted, label, count)
    samples, predictions = confusion.sum(1), confusion.sum(0)
    present = samples > 0
    options: dict[str, Any] = {"num_classes": count, "average": None}
    recall = tm.multiclass_recall(predicted, label, **options)
    precision = tm.multiclass_precision(predicted, label, **options)
    f1 = tm.multiclass_f1_score(predicted, label, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of absent classes, which are left out below
        average_precision = tm.multiclass_average_precision(probabilities, label, **options)
        auroc = tm.multiclass_auroc(probabilities, label, **options)
    return {
        "accuracy": 100 * (int(confusion.trace()) / len(label)),  # exactly that of results.json
        "macro_f1": _percent(f1[present].mean()),
        "mean_average_precision": _percent(average_precision[present].mean()),
        "auroc": _percent(auroc[present].mean()) if int(present.sum()) > 1 else None,
        "calibration_error": _percent(
            tm.multiclass_calibration_error(_confidences(probabilities), label, count, n_bins=BINS, norm="l1")
        ),
        "confusion": confusion.tolist(),
        "per_class": [
            {
                "class": name,
                "samples": int(samples[index]),
                "recall": _percent(recall[index]) if present[index] else None,
                "precision": _percent(precision[index]) if predictions[index] else None,
                "f1": _percent(f1[index]) if present[index] else None,
            }
            for index, name in enumerate(classes)
        ],
        "reliability": reliability(logits, label),
    }


def reliability(logits: Tensor, label: Tensor) -> list[dict[str, Any]]:
    """The BINS bins of confidence, the greatest softmax probability of a sample: those of `calibration_error`.

    Each has its bounds low and high (low belongs to it, high does not, but 1 to the last), samples, and the mean
    confidence and accuracy of these in percent, None where there are none.
    """
    confidence, predicted = _confidences(logits.double().softmax(1)).max(1)
    right = (predicted == label).double()
    confidence = confidence.float()  # the type in which torchmetrics compares it with the bounds
    bounds = torch.linspace(0, 1, BINS + 1)
    place = torch.bucketize(confidence, bounds, right=True) - 1
    bins = []
    for index in range(BINS):
        inside = place == index
        some = bool(inside.any())
        bins.append(
            {
                "low": index / BINS,
                "high": (index + 1) / BINS,
                "samples": int(inside.sum()),
                "confidence": _percent(confidence[inside].double().mean()) if some else None,
                "accuracy": _percent(right[inside].mean()) if some else None,
            }
        )
    return bins


def _confidences(probabilities: Tensor) -> Tensor:
    """Probabilities, kept below the 1 of float32: torchmetrics gives a confidence of 1 a bin of its own."""
    return probabilities.clamp(max=1 - 2**-24)


def _percent(value: Tensor) -> float:
    return 100 * float(value)
