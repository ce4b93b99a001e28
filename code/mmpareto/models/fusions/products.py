"""Fusions by products of the features of all modalities.

Shapes: B batch, C classes, D feature width (each modality has its own), R rank.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmpareto.models.encoders.base import ModelError
from mmpareto.models.fusions.base import FUSIONS, Present, check_counts, used

MOST_COLUMNS = 2**16  # of an outer product: a batch of 64 in float32 takes 16 MiB


@FUSIONS.register("lmf")
class LowRankFusion(nn.Module):
    """Low-rank multimodal fusion (Liu et al., ACL 2018).

    The weight of `tensor` as a sum of R outer products, which is never formed:

        logits_c = sum_r w_r prod_m ([1; f_m] . F_m^r)_c + b_c

    The product with [1; f_m] is a linear map with a bias.

    Args:
        widths: {modality: D}.
        classes: C.
        rank: R; 4 in the published code.
    """

    def __init__(self, widths: Mapping[str, int], classes: int, rank: int = 4) -> None:
        super().__init__()
        check_counts(rank=rank)
        self.factors = nn.ModuleDict({name: nn.Linear(width, rank * classes) for name, width in widths.items()})
        self.weight = nn.Parameter(torch.empty(rank))
        self.bias = nn.Parameter(torch.empty(classes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give weight and bias their first values; the linear maps have their own."""
        nn.init.constant_(self.weight, len(self.weight) ** -0.5)
        nn.init.zeros_(self.bias)

    def forward(self, features: Mapping[str, Tensor], present: Present | None = None) -> Tensor:
        """{modality: [B, D]} -> [B, C]; absent features count as zero."""
        features = used(features, list(self.factors), present)
        product = torch.stack([factor(features[name]) for name, factor in self.factors.items()]).prod(0)
        return self.weight @ product.unflatten(1, (len(self.weight), -1)) + self.bias


@FUSIONS.register("tensor")
class TensorFusion(nn.Module):
    """Tensor fusion network (Zadeh et al., EMNLP 2017): a linear map of an outer product.

        logits = head([1; f_1] x ... x [1; f_M]),    prod_m (D_m + 1) columns

    Args:
        widths: {modality: D}.
        classes: C.
        width: map each modality linearly to this width first; 32 in the paper (None: no map).

    Raises:
        ModelError: for more than 2^16 columns.
    """

    def __init__(self, widths: Mapping[str, int], classes: int, width: int | None = None) -> None:
        super().__init__()
        if width is not None:
            check_counts(width=width)
        columns = math.prod((width or size) + 1 for size in widths.values())
        if columns > MOST_COLUMNS:
            fits = int(MOST_COLUMNS ** (1 / len(widths)) + 1e-9) - 1
            remedy = f"map features first with --fusion_options width={min(32, fits)}" if fits else "take --fusion lmf"
            raise ModelError(
                f"the fusion tensor would have {columns} columns for features of widths "
                f"{', '.join(str(width or size) for size in widths.values())}; the most are {MOST_COLUMNS}: {remedy}"
            )
        maps = {name: nn.Linear(size, width) if width else nn.Identity() for name, size in widths.items()}
        self.maps = nn.ModuleDict(maps)
        self.head = nn.Linear(columns, classes)

    def forward(self, features: Mapping[str, Tensor], present: Present | None = None) -> Tensor:
        """{modality: [B, D]} -> [B, C]; absent features count as zero."""
        return self.head(self.product(used(features, list(self.maps), present)))

    def product(self, features: Mapping[str, Tensor]) -> Tensor:
        """{modality: [B, D]} -> the outer product, [B, columns]."""
        product: Tensor | None = None
        for name, mapped in self.maps.items():
            value = nn.functional.pad(mapped(features[name]), (1, 0), value=1.0)
            product = value if product is None else (product[:, :, None] * value[:, None, :]).flatten(1)
        assert product is not None
        return product
