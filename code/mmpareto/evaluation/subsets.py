"""The joint head with some modalities missing: from cached features, or by passes of the model.

Shapes: N samples, D feature width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, combinations

import torch
from torch import Tensor, nn

from mmpareto.datasets import Batch, Modality, batch_to_device
from mmpareto.models import MultimodalModel

Subset = frozenset[str]


def subsets(modalities: Sequence[str]) -> list[Subset]:
    """All subsets of the modalities, the empty one first and all of them last."""
    chosen = chain.from_iterable(combinations(modalities, size) for size in range(len(modalities) + 1))
    return [frozenset(names) for names in chosen]


@torch.inference_mode()
def subset_accuracies(
    fusion: nn.Module,
    features: Mapping[str, Tensor],
    label: Tensor,
    instead: Mapping[str, Tensor],
    device: torch.device,
    *,
    batch_size: int,
    amp: torch.dtype | None = None,
    having: Mapping[str, Tensor] | None = None,
) -> dict[Subset, float]:
    """Accuracy in percent of the joint head for every subset of modalities: 2^M passes through the fusion alone.

    fusion      maps {modality: [N, D]} to joint logits [N, C].
    features    {modality: [N, D]}; label [N].
    instead     {modality: [D]}: what each sample's features are replaced by where the modality is missing.
    batch_size  that of the pass which made the features: then the full set gives that pass's logits bit for bit.
    amp         type of automatic mixed precision, as in training.
    having      {modality: bool [N]}, the samples that have it; `instead` stands in for the others in every subset.
    """
    right = dict.fromkeys(subsets(list(features)), 0)
    fusion.eval()
    for start in range(0, len(label), batch_size):
        part = slice(start, start + batch_size)
        there = {name: value[part].to(device) for name, value in features.items()}
        missing = {name: instead[name].to(device).expand_as(value) for name, value in there.items()}
        if having is not None:
            masks = {name: having[name][part, None].to(device) for name in there}
            there = {name: torch.where(masks[name], value, missing[name]) for name, value in there.items()}
        answer = label[part].to(device)
        for present in right:
            used = {name: there[name] if name in present else missing[name] for name in there}
            with torch.autocast(device.type, amp, enabled=amp is not None):
                logits = fusion(used)
            right[present] += int((logits.argmax(1) == answer).sum())
    return {present: 100 * (count / len(label)) for present, count in right.items()}


@torch.inference_mode()
def subset_accuracies_by_passes(
    model: MultimodalModel,
    batches: Iterable[Batch],
    modalities: Mapping[str, Modality],
    device: torch.device,
    amp: torch.dtype | None = None,
) -> dict[Subset, float]:
    """As `subset_accuracies`, for any architecture: 2^M passes of the whole model, which knows its stand-ins."""
    model.eval()
    right, samples = dict.fromkeys(subsets(list(modalities)), 0), 0
    for batch in batches:
        inputs, label, having = batch_to_device(batch, modalities, device)
        everywhere = torch.ones_like(label, dtype=torch.bool)
        for present in right:
            masks = {name: (having or {}).get(name, everywhere) & (name in present) for name in modalities}
            with torch.autocast(device.type, amp, enabled=amp is not None):
                logits = model(inputs, masks).joint
            right[present] += int((logits.argmax(1) == label).sum())
        samples += len(label)
    return {present: 100 * (count / samples) for present, count in right.items()}
