"""A small multimodal classifier and random data, shared by the examples."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Classifier(nn.Module):
    """An encoder and a head for each of two modalities, and a joint head on both features."""

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.visual = (
            nn.Sequential(nn.Linear(40, 16), nn.Tanh()),
            nn.Sequential(nn.Linear(64, 16), nn.Tanh()),
        )
        self.joint_head, self.audio_head, self.visual_head = (nn.Linear(width, 5) for width in (32, 16, 16))

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """{modality: its encoder}; all other parameters are heads."""
        return {"audio": self.audio, "visual": self.visual}

    def forward(self, audio: Tensor, visual: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Joint logits [B, 5], and {modality: logits [B, 5]}."""
        a, v = self.audio(audio), self.visual(visual)
        return self.joint_head(torch.cat((a, v), 1)), {"audio": self.audio_head(a), "visual": self.visual_head(v)}


def samples(count: int = 128) -> TensorDataset:
    """Audio [40], visual [64] and label of each sample; the visual part is easier."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(5, (count,), generator=generator)
    centres = torch.randn(5, 104, generator=generator)
    inputs = centres[label] + torch.randn(count, 104, generator=generator)
    return TensorDataset(0.5 * inputs[:, :40], inputs[:, 40:], label)
