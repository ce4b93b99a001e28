"""What a fusion is, fusions by name, and what stands in for an absent modality.

Shapes: B batch, C classes, D feature width (each modality has its own), M modalities.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmpareto import registries
from mmpareto.errors import ModelError
from mmpareto.registry import Registry

# A fusion is made of the widths {modality: D} and the number of classes, in this order. `forward(features, present)`
# maps {modality: [B, D]} to joint logits [B, C]. Where these are a sum of parts, one for each modality, the fusion has
# `contributions(features)`: {modality: [B, C]}. See `ConcatFusion`.
FUSIONS: Registry[nn.Module] = registries.FUSIONS

# The modalities to use: names, or {name: bool [B]}, one value per sample.
Present = Collection[str] | Mapping[str, Tensor]


def used(features: Mapping[str, Tensor], names: Collection[str], present: Present | None) -> dict[str, Tensor]:
    """Features in the order of `names`; zeros for modalities that are not present. None: all are."""
    if isinstance(present, Mapping):
        return {name: features[name].where(present[name][:, None], 0.0) for name in names}
    return {
        name: features[name] if present is None or name in present else torch.zeros_like(features[name])
        for name in names
    }


def mask_of(features: Mapping[str, Tensor], names: Sequence[str], present: Present | None) -> Tensor:
    """Which modalities are present in which sample: bool [B, M], in the order of `names`."""
    if isinstance(present, Mapping):
        return torch.stack([present[name] for name in names], 1)
    first = features[names[0]]
    every, none = (torch.full((first.shape[0],), value, device=first.device) for value in (True, False))
    return torch.stack([every if present is None or name in present else none for name in names], 1)


def two_modalities(fusion: str, widths: Mapping[str, int], chosen: str | None) -> tuple[str, str]:
    """The modality that conditions and the one that is conditioned.

    Args:
        fusion: its name, for messages.
        widths: {modality: D}.
        chosen: the modality that conditions; None: the first.

    Raises:
        ModelError: for another number of modalities than two, or an unknown modality.
    """
    if len(widths) != 2:
        raise ModelError(
            f"the fusion {fusion} is defined for two modalities, one that conditions the other; found {len(widths)}: "
            f"{', '.join(widths)}; choose another --fusion, such as lmf or attention"
        )
    first, second = widths
    if chosen not in (None, first, second):
        raise ModelError(f"the fusion {fusion}: condition={chosen} is no modality; they are {first} and {second}")
    return (second, first) if chosen == second else (first, second)


def check_counts(**options: int) -> None:
    """Raise ModelError for an option that must be 1 or more and is less."""
    for name, value in options.items():
        if value < 1:
            raise ModelError(f"the fusion's option {name} must be 1 or more, found {value}")
