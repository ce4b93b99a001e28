"""Encoders: one modality's input -> a feature vector per sample. One file each; `ENCODERS` knows them by name."""

from mmpareto.models.encoders.base import ENCODERS, ModelError, build_encoder, default_encoder

__all__ = ["ENCODERS", "ModelError", "build_encoder", "default_encoder"]
