"""The multimodal classifier: encoders, fusion by concatenation, a joint head and a unimodal head per modality.

Shapes: B batch, C classes, D feature width (each modality has its own).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Output(NamedTuple):
    """What the model says of a batch: features and logits by modality, and the joint logits."""

    features: dict[str, Tensor]  # {modality: [B, D]}
    unimodal: dict[str, Tensor]  # {modality: [B, C]}
    joint: Tensor  # [B, C]


class ConcatFusion(nn.Module):
    """Late fusion by concatenation: [f_1, ..., f_M] -> linear -> joint logits.

    widths   {modality: D}; their order is the order of concatenation.
    classes  C.
    """

    def __init__(self, widths: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.modalities = list(widths)
        self.head = nn.Linear(sum(widths.values()), classes)

    def forward(self, features: Mapping[str, Tensor], present: Collection[str] | None = None) -> Tensor:
        """{modality: [B, D]} -> [B, C].

        present  modalities to use; the others' features count as zero. None: all of them.
        """
        used = [
            features[name] if present is None or name in present else torch.zeros_like(features[name])
            for name in self.modalities
        ]
        return self.head(torch.cat(used, dim=1))


class MultimodalClassifier(nn.Module):
    """Two or more encoders with a fusion that sees all features and a unimodal head that sees each one's alone.

    encoders  {modality: module with an integer attribute `features`}.
    classes   C.
    fusion    module that maps {modality: [B, D]} (and the modalities present) to joint logits [B, C]; by default
              ConcatFusion.

    Raises ValueError for fewer than two modalities or classes, or a modality's name that a module cannot have.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], classes: int, fusion: nn.Module | None = None) -> None:
        super().__init__()
        if len(encoders) < 2:
            raise ValueError(f"a multimodal classifier needs two modalities or more, found {list(encoders)}")
        if classes < 2:
            raise ValueError(f"a classifier needs two classes or more, found {classes}")
        for name in encoders:
            if "." in name or name in ("", "joint") or hasattr(nn.ModuleDict, name):
                raise ValueError(f"a modality cannot be called {name!r}: rename it (letters, digits and _ are safe)")
        widths = {name: _width(encoder) for name, encoder in encoders.items()}
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = fusion if fusion is not None else ConcatFusion(widths, classes)
        self.heads = nn.ModuleDict({name: nn.Linear(width, classes) for name, width in widths.items()})

    def forward(self, inputs: Mapping[str, Tensor]) -> Output:
        """{modality: [B, ...]} -> features, unimodal logits and joint logits."""
        features = {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}
        unimodal = {name: head(features[name]) for name, head in self.heads.items()}
        return Output(features, unimodal, self.fusion(features))

    def partition(self) -> tuple[dict[str, nn.Module], list[tuple[str, nn.Parameter]]]:
        """The parameters as integration wants them: {modality: encoder}, and all others by name."""
        others = [(name, p) for name, p in self.named_parameters() if not name.startswith("encoders.")]
        return dict(self.encoders.items()), others


def _width(encoder: nn.Module) -> int:
    width = encoder.features
    assert isinstance(width, int)
    return width
