"""Gradient integration inside encoders: pure, pluggable, usable in anybody's training loop.

from mmpareto.integration import MMPareto

integrator = MMPareto(gamma=1.5)
diagnostics = integrator.backward(
    joint_loss,
    {"audio": audio_loss, "visual": visual_loss},
    encoders={"audio": model.audio, "visual": model.visual},
    model=model,  # all its other parameters are heads
)
optimizer.step()
"""

from mmpareto.integration.diagnostics import EncoderDiagnostics, diagnose
from mmpareto.integration.features import OnFeatures
from mmpareto.integration.gramian import float64_device, to_float64
from mmpareto.integration.integrator import Integrator
from mmpareto.integration.metabalance import MetaBalance
from mmpareto.integration.mmpareto import MMPareto
from mmpareto.integration.one_pass import OneJoint, OneUnimodal, Uniform
from mmpareto.integration.pareto import Pareto, minimum_norm_weights
from mmpareto.integration.partition import PartitionError
from mmpareto.integration.torchjd_weighting import WEIGHTINGS, TorchJDWeighting

__all__ = [
    "WEIGHTINGS",
    "EncoderDiagnostics",
    "Integrator",
    "MMPareto",
    "MetaBalance",
    "OnFeatures",
    "OneJoint",
    "OneUnimodal",
    "Pareto",
    "PartitionError",
    "TorchJDWeighting",
    "Uniform",
    "diagnose",
    "float64_device",
    "minimum_norm_weights",
    "to_float64",
]
