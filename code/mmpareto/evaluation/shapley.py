"""What each modality contributes to a score: its Shapley value."""

import math
import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TypeVar

from torch import Tensor

from mmpareto.evaluation.missing import Subset, subsets

Score = TypeVar("Score", float, Tensor)


def shapley(modalities: Sequence[str], value: Mapping[Subset, Score]) -> dict[str, Score]:
    """The Shapley value of each modality: what it adds to a score, averaged over all orders in which modalities come.

    Shapley, "A Value for n-Person Games", 1953; for the modalities of a model Hu, Li & Zhou, "SHAPE: An Unified
    Approach to Evaluate the Contribution and Cooperation of Individual Modalities", 2022 (arXiv:2205.00302). Of M
    modalities, with v the score of a subset:

        phi_i = sum over S without i of  |S|! (M - |S| - 1)! / M!  (v(S + i) - v(S))

    value  the score of every subset, the empty one included, a number or a tensor of them. For accuracies the empty
           set's is the classifier's own with all its features replaced, not the accuracy of guessing: the model is
           the game, and what its bias alone gets right is no modality's merit.

    Returns {modality: contribution}, in the unit of the score; they sum to v(all) - v(none), and may be negative.
    """
    count = len(modalities)
    contributions: dict[str, Score] = {}
    for name in modalities:
        others = [other for other in modalities if other != name]
        terms: list[Score] = [
            (value[chosen | {name}] - value[chosen]) / (count * math.comb(count - 1, len(chosen)))
            for chosen in subsets(others)
        ]
        contributions[name] = reduce(operator.add, terms)
    return contributions


def imbalance(contributions: Mapping[str, float]) -> float | None:
    """(greatest - least contribution) / sum of their absolute values.

    0 where all contribute the same, 1 where one contributes everything (with two modalities also where one helps and
    the other harms); None where none contributes anything.
    """
    total = math.fsum(abs(value) for value in contributions.values())
    return (max(contributions.values()) - min(contributions.values())) / total if total else None
