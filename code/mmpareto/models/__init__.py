"""Models: encoders, fusions, and the architectures that join them."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from mmpareto.models.base import ARCHITECTURES as ARCHITECTURES
from mmpareto.models.base import MakeFusion as MakeFusion
from mmpareto.models.base import MultimodalModel as MultimodalModel
from mmpareto.models.base import Output as Output
from mmpareto.models.encoders import ENCODERS as ENCODERS
from mmpareto.models.encoders import ModelError as ModelError
from mmpareto.models.encoders import build_encoder as build_encoder
from mmpareto.models.encoders import default_encoder as default_encoder
from mmpareto.models.fusions import FUSIONS as FUSIONS
from mmpareto.models.fusions import BoostedSum as BoostedSum
from mmpareto.models.fusions import ConcatFusion as ConcatFusion
from mmpareto.models.fusions import CosineFusion as CosineFusion
from mmpareto.models.fusions import EnsembleFusion as EnsembleFusion
from mmpareto.models.late_fusion import LateFusion as LateFusion
from mmpareto.models.losses import Losses as Losses
from mmpareto.models.losses import cross_entropies as cross_entropies


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


def options_by_modality(options: Mapping[str, Any], modalities: Collection[str]) -> dict[str, dict[str, Any]]:
    """{"modality.option": value} -> {modality: {option: value}}.

    Raises:
        ModelError: for a modality that does not exist.
    """
    split: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        modality, _, key = name.partition(".")
        if modality not in modalities:
            close = difflib.get_close_matches(modality, modalities, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ModelError(
                f"an encoder option is set for {modality!r}, which is no modality; {hint}they are "
                f"{', '.join(modalities)}"
            )
        split.setdefault(modality, {})[key] = value
    return split


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
    *,
    encoder_options: Mapping[str, Mapping[str, Any]] | None = None,
    restored: Mapping[str, Mapping[str, Any]] | None = None,
) -> MultimodalModel:
    """A classifier with the named encoder for each modality.

    Args:
        modalities: as `encoder_names` takes them.
        classes: number of classes C.
        encoders: as `encoder_names` gives them.
        fusion: see MultimodalModel.
        architecture: one of ARCHITECTURES, or `package.module:Class`; `options` are its own.
        encoder_options: {modality: {option: value}}, see `build_encoder`.
        restored: {modality: configuration of its encoder, where it has one}; weights are not loaded, since a checkpoint
            follows. None: the encoders begin with the weights that their options name.

    Raises:
        ModelError: for an encoder that is unknown or cannot take its modality's input, or that the architecture
            cannot join.
    """
    built = {}
    for name, (kind, shape) in modalities.items():
        try:
            built[name] = build_encoder(
                encoders[name],
                kind,
                shape,
                (encoder_options or {}).get(name),
                load=restored is None,
                configuration=(restored or {}).get(name),
            )
        except ModelError as error:
            raise ModelError(f"modality {name}: {error}") from error
    try:
        return ARCHITECTURES.build(architecture, built, classes, fusion, **(options or {}))
    except ValueError as error:
        raise ModelError(str(error)) from error
