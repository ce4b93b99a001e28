"""The multimodal classifier: encoders, fusion by concatenation, a joint head and a unimodal head per modality.

Shapes: B batch, C classes, D feature width (each modality has its own).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from mmpareto.models.fusions import ConcatFusion

# ({modality: D}, C, the unimodal heads) -> a fusion module; None: the model's own
MakeFusion = Callable[[Mapping[str, int], int, nn.ModuleDict], nn.Module | None]


class Output(NamedTuple):
    """What the model says of a batch: features and logits by modality, and the joint logits."""

    features: dict[str, Tensor]  # {modality: [B, D]}
    unimodal: dict[str, Tensor]  # {modality: [B, C]}
    joint: Tensor  # [B, C]


class MultimodalClassifier(nn.Module):
    """Two or more encoders with a fusion that sees all features and a unimodal head that sees each one's alone.

    An encoder whose parameters are all frozen stays in evaluation mode: its batch norm keeps its statistics.

    Args:
        encoders: {modality: module with an integer attribute `width`}.
        classes: C.
        fusion: makes the module that maps {modality: [B, D]} (and the modalities present) to joint logits [B, C]; by
            default, or where it gives None, ConcatFusion.

    Raises:
        ValueError: for fewer than two modalities or classes, or a modality's name that a module cannot have.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], classes: int, fusion: MakeFusion | None = None) -> None:
        super().__init__()
        if len(encoders) < 2:
            raise ValueError(f"a multimodal classifier needs two modalities or more, found {list(encoders)}")
        if classes < 2:
            raise ValueError(f"a classifier needs two classes or more, found {classes}")
        for name in encoders:
            if "." in name or name in ("", "joint", "heads") or hasattr(nn.ModuleDict, name):
                raise ValueError(f"a modality cannot be called {name!r}: rename it (letters, digits and _ are safe)")
        self.classes = classes
        self.widths = {name: _width(encoder) for name, encoder in encoders.items()}
        self.encoders = nn.ModuleDict(encoders)
        self.fusion: nn.Module = ConcatFusion(self.widths, classes)
        self.heads = nn.ModuleDict({name: nn.Linear(width, classes) for name, width in self.widths.items()})
        if fusion is not None:
            self.fusion = fusion(self.widths, classes, self.heads) or self.fusion

    def forward(self, inputs: Mapping[str, Tensor]) -> Output:
        """{modality: [B, ...]} -> features, unimodal logits and joint logits."""
        features = {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}
        unimodal = {name: head(features[name]) for name, head in self.heads.items()}
        return Output(features, unimodal, self.fusion(features))

    def train(self, mode: bool = True) -> MultimodalClassifier:
        """As Module's; frozen encoders stay in evaluation mode."""
        super().train(mode)
        for encoder in self.encoders.values():
            if not any(p.requires_grad for p in encoder.parameters()):
                encoder.eval()
        return self

    def partition(self) -> tuple[dict[str, nn.Module], list[tuple[str, nn.Parameter]]]:
        """The parameters as integration wants them: {modality: encoder}, and all others by name."""
        others = [(name, p) for name, p in self.named_parameters() if not name.startswith("encoders.")]
        return dict(self.encoders.items()), others


def _width(encoder: nn.Module) -> int:
    width = encoder.width
    assert isinstance(width, int)
    return width
