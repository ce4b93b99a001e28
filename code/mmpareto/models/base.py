"""The contract of multimodal models: what they take, what they give, which parts methods may rely on.

Shapes: B batch, C classes, D feature width (each modality has its own), N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmpareto import registries
from mmpareto.inputs import Input, Inputs, map_tensors, values_of
from mmpareto.models.fusions import ConcatFusion, Present
from mmpareto.registry import Registry

# ({modality: D}, C, the unimodal heads) -> a fusion module; None: the model's own
MakeFusion = Callable[[Mapping[str, int], int, nn.ModuleDict], nn.Module | None]


class Output(NamedTuple):
    """Output of a model for a batch.

    Attributes:
        features: {modality: [B, D]}, what the unimodal heads see; zeros where the modality is absent.
        unimodal: {modality: [B, C]}, logits of the modality's own head; without meaning where it is absent.
        joint: [B, C].
        present: {modality: bool [B]}; None: all samples have all modalities.
    """

    features: dict[str, Tensor]
    unimodal: dict[str, Tensor]
    joint: Tensor
    present: dict[str, Tensor] | None = None


class MultimodalModel(nn.Module):
    """Base of the architectures: an encoder and a unimodal head per modality, a fusion, joint logits.

    A subclass calls `_add_heads` in its constructor and implements `forward`. An encoder whose parameters are all
    frozen stays in evaluation mode: its batch norm keeps its statistics.

    Args:
        encoders: {modality: module with an integer attribute `width`}.
        classes: C.

    Raises:
        ValueError: for fewer than two modalities or classes, or a modality's name that a module cannot have.
    """

    fusion: nn.Module
    heads: nn.ModuleDict
    widths: dict[str, int]  # D of the features that heads and fusion see
    late = False  # whether the joint logits are a function of the features alone: `fusion(features, present)`
    auxiliary: nn.Module  # what a method trains beside the model, where it does

    def __init__(self, encoders: Mapping[str, nn.Module], classes: int) -> None:
        super().__init__()
        if len(encoders) < 2:
            raise ValueError(f"a multimodal classifier needs two modalities or more, found {list(encoders)}")
        if classes < 2:
            raise ValueError(f"a classifier needs two classes or more, found {classes}")
        containers = (nn.ModuleDict(), nn.ParameterDict())  # whose attributes their keys must not have
        for name in encoders:
            is_attribute = any(hasattr(container, name) for container in containers)
            if "." in name or name in ("", "joint", "heads", "any") or is_attribute:
                raise ValueError(f"a modality cannot be called {name!r}: rename it (letters, digits and _ are safe)")
        self.classes = classes
        self.encoders = nn.ModuleDict(encoders)

    def _add_heads(self, widths: Mapping[str, int], fusion: MakeFusion | None) -> None:
        """Make the fusion (by default, or where `fusion` gives None, ConcatFusion) and the unimodal heads."""
        self.widths = dict(widths)
        self.fusion = ConcatFusion(self.widths, self.classes)
        self.heads = nn.ModuleDict({name: nn.Linear(width, self.classes) for name, width in self.widths.items()})
        if fusion is not None:
            self.fusion = fusion(self.widths, self.classes, self.heads) or self.fusion

    def forward(self, inputs: Inputs, present: Present | None = None) -> Output:
        """{modality: input of B samples} -> features, unimodal logits and joint logits.

        Args:
            present: modalities that samples have, or a mask bool [B] of each modality. What stands in for the others is
                said by each architecture; the values of an absent one have no influence, and must have its shape.

        Raises:
            ValueError: where `inputs` or the masks lack a modality, or `present` names another one.
        """
        raise NotImplementedError

    @property
    def offers(self) -> frozenset[str]:
        """What methods may require: "features" (joint logits are a function of the features alone), "contributions"
        (they are a sum of one part per modality), "gates" (encoders scale one another's channels, see `MMTM`).
        """
        offered = {
            "features": self.late,
            "contributions": hasattr(self.fusion, "contributions"),
            "gates": hasattr(self, "exchange"),
        }
        return frozenset(name for name, holds in offered.items() if holds)

    def train(self, mode: bool = True) -> MultimodalModel:
        """Set training mode, but not of frozen encoders."""
        super().train(mode)
        for encoder in self.innermost().values():
            if not any(p.requires_grad for p in encoder.parameters()):
                encoder.eval()
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Restore `state_dict()`, without the weights of `auxiliary` where this model has none."""
        if not hasattr(self, "auxiliary"):
            state_dict = {name: value for name, value in state_dict.items() if not name.startswith("auxiliary.")}
        return super().load_state_dict(state_dict, strict, assign)

    def innermost(self) -> dict[str, nn.Module]:
        """{modality: the encoder that was given}."""
        return dict(self.encoders.items())

    def partition(self) -> tuple[dict[str, Any], list[tuple[str, nn.Parameter]]]:
        """The parameters as integration takes them: {modality: module or named parameters}, and all others by name."""
        others = [(name, p) for name, p in self.named_parameters() if not name.startswith("encoders.")]
        return dict(self.encoders.items()), others

    def from_features(self, features: dict[str, Tensor], masks: dict[str, Tensor] | None) -> Output:
        """The output from features that are there: {modality: [B, D]}, masks bool [B]."""
        unimodal = {name: head(features[name]) for name, head in self.heads.items()}
        joint = self.fusion(features) if masks is None else self.fusion(features, present=masks)
        return Output(features, unimodal, joint, masks)

    def masks(self, inputs: Inputs, present: Present | None) -> dict[str, Tensor] | None:
        """`present` as masks {modality: bool [B]}; raises ValueError, see `forward`."""
        for name in self.encoders:
            if name not in inputs:
                raise ValueError(f"inputs lack {name!r}; expected each of {self._known}; `present` says what is absent")
        if present is None:
            return None
        others = [present] if isinstance(present, str) else [name for name in present if name not in self.encoders]
        if others:
            raise ValueError(f"present: expected some of {self._known}, or a mask for each, found {others[0]!r:.100}")
        if isinstance(present, Mapping):
            if len(present) < len(self.encoders):
                raise ValueError(f"present: expected a mask for each of {self._known}, found {', '.join(present)}")
            return dict(present)
        values = values_of(next(iter(inputs.values())))
        return {name: values.new_full((values.shape[0],), name in present, dtype=torch.bool) for name in self.encoders}

    @property
    def _known(self) -> str:
        return ", ".join(self.encoders)

    def having(self, masks: dict[str, Tensor] | None) -> Mapping[str, Tensor | None]:
        """{modality: its mask; None where all samples have it}."""
        return dict.fromkeys(self.encoders) if masks is None else masks

    def rows(self, value: Input, mask: Tensor | None) -> Input:
        """The input of an encoder: what absent samples hold has no influence, not even where it is not finite.

        Their values are zeros. In training their rows are those of present samples instead, so that batch norm sees no
        stand-ins; where no sample is present see `statistics_of_present`. Nothing waits for the device.
        """
        if mask is None:
            return value
        places = torch.arange(mask.shape[0], device=mask.device)
        if self.training:
            present_first = torch.argsort((~mask).to(torch.uint8), stable=True)
            others = present_first[places % mask.sum().clamp(min=1)]
            places, mask = torch.where(mask, places, others), mask.any().expand(mask.shape)

        def filled(tensor: Tensor) -> Tensor:
            rows = tensor[places] if self.training else tensor
            return rows if rows.dtype == torch.bool else blank(rows, mask)  # a mask stays: it marks one step or more

        return map_tensors(filled, value)

    @contextmanager
    def statistics_of_present(self, masks: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Run encoders; where no sample has the modality, their running statistics (batch norm) stay as they were.

        Nothing waits for the device.

        Args:
            masks: {modality: bool [B]}; None: all samples have all modalities.
        """
        if masks is None or not self.training:
            yield
            return
        kept = [
            (masks[name].any(), buffer, buffer.clone())
            for name, encoder in self.encoders.items()
            for key, buffer in encoder.named_buffers()
            if key.rpartition(".")[2].startswith(("running_", "num_batches_tracked"))
        ]
        yield
        for some, buffer, before in kept:
            # .data: autograd saves the statistics, and would refuse tensors that were changed; it does not read them
            buffer.data.copy_(torch.where(some, buffer, before))


ARCHITECTURES: Registry[MultimodalModel] = registries.ARCHITECTURES


def blank(feature: Tensor, mask: Tensor | None) -> Tensor:
    """[B, ...] with zeros, which pass no gradient, where `mask` (bool [B]) is False."""
    if mask is None:
        return feature
    return torch.where(mask.view(-1, *[1] * (feature.dim() - 1)), feature, feature.new_zeros(()))


def width_of(encoder: nn.Module) -> int:
    """D of an encoder."""
    width = encoder.width
    assert isinstance(width, int)
    return width
