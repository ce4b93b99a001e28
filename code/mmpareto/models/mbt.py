"""MBT: transformers that exchange information through a few bottleneck tokens."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmpareto.inputs import Input, Inputs
from mmpareto.models.base import ARCHITECTURES, MakeFusion, MultimodalModel, Output, Present, blank, width_of
from mmpareto.models.encoders.base import ModelError
from mmpareto.models.tokens import TransformerLayer, padding_of, tokens_of


class Tower(nn.Module):
    """The part of MBT that belongs to one modality: encoder, map to the common width, class token, layers.

    Args:
        encoder: of the modality.
        width: W of the tokens.
        layers: transformer layers.
        heads: attention heads.
    """

    def __init__(self, encoder: nn.Module, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.map = nn.Linear(width_of(encoder), width)
        self.token = nn.Parameter(0.02 * torch.randn(width))
        self.layers = nn.ModuleList(TransformerLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def begin(self, x: Input) -> tuple[Tensor, Tensor]:
        """Input of B samples -> class token and mapped tokens [B, 1 + N, W], and which are padding: bool [B, 1 + N]."""
        tokens, mask = tokens_of(self.encoder, x)
        mapped = self.map(tokens)
        with_class = torch.cat((self.token.expand(mapped.shape[0], 1, -1), mapped), 1)
        return with_class, nn.functional.pad(padding_of(mapped, mask), (1, 0), value=False)


@ARCHITECTURES.register("mbt")
class MBT(MultimodalModel):
    """Bottleneck transformer: modalities exchange information through a few shared tokens.

    Multimodal bottleneck transformer (Nagrani et al., "Attention Bottlenecks for Multimodal Fusion", NeurIPS 2021). The
    tokens of each modality's encoder, with a class token in front, go through layers of that modality. From layer
    `fusion_layer` on the layers see the bottleneck tokens b as well, which are then the mean over the modalities:

        [z_m; b_m] = layer_m([z_m; b]),    b = mean_m b_m                                   (Equations 8 and 9)

    A modality's feature is its class token after the last layer: the unimodal heads and the fusion see these (the paper
    averages the logits of a head on each; `--fusion sum` is that with trained weights).

    An encoder, for integration, is the modality's encoder, map, class token and layers; the bottleneck is shared and
    learns from the losses that reach the encoders, as MMTM's modules do. From `fusion_layer` on a feature has seen the
    other modalities. So the unimodal gradient of an encoder is that of the sum of all unimodal losses, those of the
    other modalities included.

    An absent modality is left out of the mean of the bottleneck tokens, and its feature is zero.

    Args:
        encoders: {modality: encoder}; one without tokens gives its feature as the only token.
        classes: C.
        fusion: see MultimodalModel.
        token_width: W of all tokens.
        layers: transformer layers of each modality; 12 in the paper.
        fusion_layer: the first layer (0, 1, ...) that sees the bottleneck; 8 of 12 in the paper.
        bottlenecks: bottleneck tokens; 4 in the paper.
        heads: attention heads; they divide the width.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        classes: int,
        fusion: MakeFusion | None = None,
        token_width: int = 128,
        layers: int = 4,
        fusion_layer: int = 2,
        bottlenecks: int = 4,
        heads: int = 4,
    ) -> None:
        if not 0 <= fusion_layer < layers:
            raise ModelError(f"mbt: fusion_layer must be from 0 to layers - 1 = {layers - 1}, found {fusion_layer}")
        if bottlenecks < 1:
            raise ModelError(f"mbt: bottlenecks must be 1 or more, found {bottlenecks}")
        towers = {name: Tower(encoder, token_width, layers, heads) for name, encoder in encoders.items()}
        super().__init__(towers, classes)
        self.fusion_layer = fusion_layer
        self.bottleneck = nn.Parameter(0.02 * torch.randn(bottlenecks, token_width))
        self._add_heads(dict.fromkeys(encoders, token_width), fusion)

    def forward(self, inputs: Inputs, present: Present | None = None) -> Output:
        """See MultimodalModel."""
        masks = self.masks(inputs, present)
        having = self.having(masks)
        towers: dict[str, Tower] = dict(self.encoders.items())  # type: ignore[arg-type]
        tokens, padding = {}, {}
        with self.statistics_of_present(masks):
            for name, tower in towers.items():
                tokens[name], padding[name] = tower.begin(self.rows(inputs[name], having[name]))
        first = next(iter(tokens.values()))
        bottleneck = self.bottleneck.expand(first.shape[0], -1, -1)
        count = bottleneck.shape[1]
        for number in range(len(next(iter(towers.values())).layers)):
            if number < self.fusion_layer:
                tokens = {name: tower.layers[number](tokens[name], padding[name]) for name, tower in towers.items()}
                continue
            results = {
                name: tower.layers[number](
                    torch.cat((tokens[name], bottleneck), 1), nn.functional.pad(padding[name], (0, count), value=False)
                )
                for name, tower in towers.items()
            }
            tokens = {name: result[:, :-count] for name, result in results.items()}
            bottleneck = self._mean({name: result[:, -count:] for name, result in results.items()}, masks, bottleneck)
        features = {name: blank(tower.norm(tokens[name][:, 0]), having[name]) for name, tower in towers.items()}
        return self.from_features(features, masks)

    def innermost(self) -> dict[str, nn.Module]:
        """See MultimodalModel."""
        return {name: tower.encoder for name, tower in self.encoders.items()}  # type: ignore[misc]

    @staticmethod
    def _mean(parts: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None, before: Tensor) -> Tensor:
        """The mean of [B, b, W] over the modalities that a sample has; where it has none, `before`."""
        if masks is None:
            return torch.stack(list(parts.values())).mean(0)
        having = torch.stack([masks[name] for name in parts])[..., None, None]  # [M, B, 1, 1]
        total = torch.where(having, torch.stack(list(parts.values())), 0.0).sum(0)
        count = having.sum(0)
        return torch.where(count > 0, total / count.clamp(min=1), before)
