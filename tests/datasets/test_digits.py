"""The embedded digits: scikit-learn's images, read without importing it, in fixed stratified splits."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mmpareto import datasets
from mmpareto.datasets import SPLITS
from mmpareto.datasets.digits import scanned_digits


def test_images_are_those_of_scikit_learns_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_digits()
    read = scanned_digits()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for images, labels in (read, scanned_digits()):
        assert images.dtype == digits.images.dtype
        assert labels.dtype == digits.target.dtype
        assert np.array_equal(images, digits.images)
        assert np.array_equal(labels, digits.target)


def test_splits_are_those_of_scikit_learn() -> None:
    labels = load_digits().target
    rest, test = train_test_split(np.arange(len(labels)), test_size=400, stratify=labels, random_state=0)
    train, val = train_test_split(rest, test_size=200, stratify=labels[rest], random_state=0)
    for split, indices in zip(SPLITS, (train, val, test), strict=True):
        dataset = datasets.build("digits", None, split)
        assert list(dataset.sample_ids()) == [f"digit_{index:04d}" for index in sorted(indices)]
        assert np.array_equal(dataset.labels, labels[np.sort(indices)])
