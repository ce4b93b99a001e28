"""Small multimodal models in float64, with losses that conflict or agree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpareto.methods import METHODS, Method


class LateFusion(nn.Module):
    """M encoders of two layers, a joint head on all features, a unimodal head on each.

    opposed  the joint loss sees the labels in another order than the unimodal losses, so that gradients often conflict.
    """

    def __init__(
        self, modalities: int, seed: int, opposed: bool = False, encoders: list[nn.Module] | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        names = [f"m{i}" for i in range(modalities)]
        built = encoders or [nn.Sequential(nn.Linear(5 + i, 7), nn.Tanh(), nn.Linear(7, 4)) for i in range(modalities)]
        self.encoders = nn.ModuleDict(dict(zip(names, built, strict=True)))
        self.fusion = nn.Linear(4 * modalities, 3)
        self.heads = nn.ModuleDict({name: nn.Linear(4, 3) for name in names})
        self.opposed = opposed
        self.double()

    def batch(self, seed: int, size: int = 8) -> tuple[dict[str, Tensor], Tensor]:
        generator = torch.Generator().manual_seed(seed)
        inputs = {
            name: torch.randn(size, 5 + i, generator=generator, dtype=torch.float64)
            for i, name in enumerate(self.encoders)
        }
        return inputs, torch.randint(3, (size,), generator=generator)

    def losses(self, inputs: dict[str, Tensor], label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}
        joint_label = (label + 1) % 3 if self.opposed else label
        joint = F.cross_entropy(self.fusion(torch.cat(list(features.values()), 1)), joint_label)
        return joint, {name: F.cross_entropy(head(features[name]), label) for name, head in self.heads.items()}

    @property
    def others(self) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p in self.named_parameters() if not name.startswith("encoders.")]

    def arguments(self) -> dict[str, object]:
        """encoders= and heads= of `backward`."""
        return {"encoders": dict(self.encoders.items()), "heads": self.others}

    def gradients(self) -> dict[str, Tensor]:
        return {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}


# methods that are an integration routine and nothing else
ROUTINES = [
    name for name in METHODS if not (isinstance(METHODS[name].make, type) and issubclass(METHODS[name].make, Method))
]
