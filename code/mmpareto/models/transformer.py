"""A transformer over the tokens of all modalities."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmpareto.inputs import Inputs
from mmpareto.models.base import ARCHITECTURES, MakeFusion, MultimodalModel, Output, Present, blank, width_of
from mmpareto.models.encoders.base import ModelError
from mmpareto.models.tokens import TransformerLayer, feature_and_tokens_of, feature_as_token, padding_of


class JointTransformer(nn.Module):
    """Tokens of all modalities, with an embedding for each modality and a class token -> joint logits.

    Args:
        widths: {modality: D of its tokens}.
        classes: C.
        width: W.
        layers: transformer layers.
        heads: attention heads.
    """

    def __init__(self, widths: Mapping[str, int], classes: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({name: nn.Linear(size, width) for name, size in widths.items()})
        self.kinds = nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(width)) for name in widths})
        self.token = nn.Parameter(0.02 * torch.randn(width))
        self.layers = nn.ModuleList(TransformerLayer(width, heads) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, tokens: Mapping[str, Tensor], padding: Mapping[str, Tensor]) -> Tensor:
        """{modality: [B, N, D]} and {modality: bool [B, N], True where nobody attends} -> [B, C]."""
        mapped = [self.maps[name](value) + self.kinds[name] for name, value in tokens.items()]
        joined = torch.cat((self.token.expand(mapped[0].shape[0], 1, -1), *mapped), 1)
        hidden = nn.functional.pad(torch.cat([padding[name] for name in tokens], 1), (1, 0), value=False)
        for layer in self.layers:
            joined = layer(joined, hidden)
        return self.head(joined[:, 0])


@ARCHITECTURES.register("transformer")
class Transformer(MultimodalModel):
    """Transformer over the tokens of all modalities; the simple baseline of SimBaMM.

    After SimBaMM (arXiv 2512.22991), whose late-fusion transformer sees one token per modality; here it sees all tokens
    of the encoders, or one each with `pooled`. Joint logits come from a class token that attends to all of them. The
    unimodal heads see the encoders' features, which know nothing of the other modalities.

    The tokens of an absent modality are masked: no token attends to them. Its feature is zero.

    Args:
        encoders: {modality: encoder}; one without tokens gives its feature as the only token.
        classes: C.
        fusion: must be None: the transformer is the fusion.
        token_width: W of all tokens.
        layers: transformer layers.
        heads: attention heads; they divide the width.
        pooled: one token per modality, its feature.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        classes: int,
        fusion: MakeFusion | None = None,
        token_width: int = 128,
        layers: int = 2,
        heads: int = 4,
        pooled: bool = False,
    ) -> None:
        super().__init__(encoders, classes)
        widths = {name: width_of(encoder) for name, encoder in encoders.items()}
        joint = JointTransformer(widths, classes, token_width, layers, heads)
        self._add_heads(widths, None)
        if fusion is not None and fusion(widths, classes, self.heads) is not None:
            raise ModelError(
                "the architecture transformer is its own fusion: leave --fusion out, and choose a method that brings "
                "none"
            )
        self.fusion = joint
        self.pooled = pooled

    def forward(self, inputs: Inputs, present: Present | None = None) -> Output:
        """See MultimodalModel."""
        masks = self.masks(inputs, present)
        having = self.having(masks)
        with self.statistics_of_present(masks):
            filled = {name: self.rows(inputs[name], having[name]) for name in self.encoders}
            encoded = {
                name: feature_as_token(encoder, filled[name])
                if self.pooled
                else feature_and_tokens_of(encoder, filled[name])
                for name, encoder in self.encoders.items()
            }
        tokens, padding, features = {}, {}, {}
        for name, (pooled, sequence, mask) in encoded.items():
            features[name] = blank(pooled, having[name])
            hidden, present_here = padding_of(sequence, mask), having[name]
            tokens[name] = blank(sequence, present_here)
            padding[name] = hidden if present_here is None else hidden | ~present_here[:, None]
        unimodal = {name: head(features[name]) for name, head in self.heads.items()}
        return Output(features, unimodal, self.fusion(tokens, padding), masks)
