"""The joint head where modalities are missing: subsets of them, or a fraction of the samples of each.

A case says which samples have which modality: {modality: bool [N]}.

Shapes: N samples, D feature width, C classes.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain, combinations
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mmpareto.datasets import Batch, Modality, batch_to_device
from mmpareto.datasets.base import draw_absent
from mmpareto.models import MultimodalModel

Subset = frozenset[str]
Case = Mapping[str, Tensor]
Key = TypeVar("Key", bound=Hashable)
ANY = "any"  # in the place of a modality: each one is dropped on its own


def subsets(modalities: Sequence[str]) -> list[Subset]:
    """All subsets of the modalities, the empty one first and all of them last."""
    chosen = chain.from_iterable(combinations(modalities, size) for size in range(len(modalities) + 1))
    return [frozenset(names) for names in chosen]


def subset_cases(having: Case) -> dict[Subset, Case]:
    """A case for every subset of the modalities; a sample still lacks what it lacks by itself (`having`)."""
    return {
        present: {name: mask if name in present else torch.zeros_like(mask) for name, mask in having.items()}
        for present in subsets(list(having))
    }


def rate_cases(having: Case, rates: Sequence[float], seed: int) -> dict[tuple[str, float], Case]:
    """A case for every modality (or ANY) and rate: the modality is dropped in this fraction of the samples.

    Every sample keeps one modality at least. The samples are drawn from the seed; a greater rate drops those of a
    smaller one, and more. Of ANY, a sample that would lose all keeps one, maybe one that it lacks at a smaller rate.
    """
    names = list(having)
    before = ~torch.stack(list(having.values())).numpy()
    cases: dict[tuple[str, float], Case] = {}
    for dropped in (*names, ANY):
        for rate in rates:
            rates_of = [rate if dropped in (name, ANY) else 0.0 for name in names]
            absent = draw_absent(before, rates_of, np.random.default_rng(seed))
            cases[dropped, rate] = {name: ~torch.from_numpy(row) for name, row in zip(names, absent, strict=True)}
    return cases


@torch.inference_mode()
def accuracies_from_features(
    cases: Mapping[Key, Case],
    fusion: nn.Module,
    features: Mapping[str, Tensor],
    label: Tensor,
    device: torch.device,
    *,
    batch_size: int,
    instead: Mapping[str, Tensor] | None = None,
    amp: torch.dtype | None = None,
    types: Mapping[str, torch.dtype] | None = None,
) -> dict[Key, float]:
    """Accuracy in percent of the joint head in every case, by the fusion alone: for late fusion.

    Args:
        fusion: maps {modality: [N, D]} and the case to joint logits [N, C].
        features: {modality: [N, D]}; label int64 [N].
        batch_size: that of the pass which made the features: where all is present, the logits are that pass's to the
            bit.
        instead: {modality: [D]} that replaces the features of an absent modality; None: the fusion's own stand-in.
        amp: type of automatic mixed precision, as in training.
        types: {modality: type of the features in that pass}; None: that of `features`.
    """
    right = dict.fromkeys(cases, 0)
    types = {name: value.dtype for name, value in features.items()} | dict(types or {})
    fusion.eval()
    for start in range(0, len(label), batch_size):
        part = slice(start, start + batch_size)
        stored = {name: value[part].to(device, types[name]) for name, value in features.items()}
        answer = label[part].to(device)
        for key, case in cases.items():
            masks = {name: case[name][part].to(device) for name in stored}
            used = {
                name: torch.where(masks[name][:, None], value, 0.0 if instead is None else instead[name].to(value))
                for name, value in stored.items()
            }
            with torch.autocast(device.type, amp, enabled=amp is not None):
                logits = fusion(used, present=masks) if instead is None else fusion(used)
            right[key] += int((logits.argmax(1) == answer).sum())
    return {key: 100 * (count / len(label)) for key, count in right.items()}


@torch.inference_mode()
def accuracies_by_passes(
    cases: Mapping[Key, Case],
    model: MultimodalModel,
    batches: Iterable[Batch],
    modalities: Mapping[str, Modality],
    device: torch.device,
    amp: torch.dtype | None = None,
) -> dict[Key, float]:
    """As `accuracies_from_features`, for any architecture: a pass of the whole model for every case."""
    right, start = dict.fromkeys(cases, 0), 0
    model.eval()
    for batch in batches:
        moved = batch_to_device(batch, modalities, device)
        part = slice(start, start + len(moved.label))
        for key, case in cases.items():
            present = {name: mask[part].to(device) for name, mask in case.items()}
            with torch.autocast(device.type, amp, enabled=amp is not None):
                output = model(moved.inputs, present)
            right[key] += int((output.joint.argmax(1) == moved.label).sum())
        start = part.stop
    return {key: 100 * (count / start) for key, count in right.items()}
