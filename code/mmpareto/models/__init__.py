"""Models: encoders, fusions, and the architectures that join them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpareto.models.base import ARCHITECTURES, MakeFusion, MultimodalModel, Output, Present
from mmpareto.models.encoders import ENCODERS, ModelError, build_encoder, default_encoder
from mmpareto.models.fusions import FUSIONS, ConcatFusion, CosineFusion, EnsembleFusion
from mmpareto.models.late_fusion import LateFusion
from mmpareto.models.losses import Losses, cross_entropies


def encoder_names(
    modalities: Mapping[str, tuple[str, tuple[int, ...]]], model: str | None, chosen: Mapping[str, str]
) -> dict[str, str]:
    """Which encoder each modality gets.

    Args:
        modalities: {name: (kind, shape of a sample)}.
        model: encoder for all modalities; None: chosen by kind and shape.
        chosen: {modality: encoder}; goes before `model`.

    Raises:
        ModelError: for a choice about a modality that does not exist.
    """
    for name in chosen:
        if name not in modalities:
            raise ModelError(
                f"an encoder is chosen for {name!r}, which is no modality; they are {', '.join(modalities)}"
            )
    return {name: chosen.get(name, model or default_encoder(*about)) for name, about in modalities.items()}


def fusion_maker(name: str, options: Mapping[str, Any]) -> MakeFusion:
    """What makes the fusion of a name in FUSIONS, or at `package.module:Class`, with its options."""
    return lambda widths, classes, heads: FUSIONS.build(name, widths, classes, **options)


def build_model(
    modalities: Mapping[str, tuple[str, tuple[int, ...]]],
    classes: int,
    encoders: Mapping[str, str],
    fusion: MakeFusion | None = None,
    architecture: str = "late_fusion",
    options: Mapping[str, Any] | None = None,
) -> MultimodalModel:
    """A classifier with the named encoder for each modality.

    Args:
        modalities: as `encoder_names` takes them.
        classes: number of classes C.
        encoders: as `encoder_names` gives them.
        fusion: see MultimodalModel.
        architecture: one of ARCHITECTURES, or `package.module:Class`; `options` are its own.

    Raises:
        ModelError: for an encoder that is unknown or cannot take its modality's input, or that the architecture
            cannot join.
    """
    built = {}
    for name, (kind, shape) in modalities.items():
        try:
            built[name] = build_encoder(encoders[name], kind, shape)
        except ModelError as error:
            raise ModelError(f"modality {name}: {error}") from error
    try:
        return ARCHITECTURES.build(architecture, built, classes, fusion, **(options or {}))
    except ValueError as error:
        raise ModelError(str(error)) from error


__all__ = [
    "ARCHITECTURES",
    "ENCODERS",
    "FUSIONS",
    "ConcatFusion",
    "CosineFusion",
    "EnsembleFusion",
    "LateFusion",
    "Losses",
    "MakeFusion",
    "ModelError",
    "MultimodalModel",
    "Output",
    "Present",
    "build_encoder",
    "build_model",
    "cross_entropies",
    "default_encoder",
    "encoder_names",
    "fusion_maker",
]
