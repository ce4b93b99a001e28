"""Encoders: one modality's input -> a feature vector per sample. One file each; `ENCODERS` knows them by name."""

from mmpareto.models.encoders.base import ENCODERS as ENCODERS
from mmpareto.models.encoders.base import ModelError as ModelError
from mmpareto.models.encoders.base import build_encoder as build_encoder
from mmpareto.models.encoders.base import default_encoder as default_encoder
