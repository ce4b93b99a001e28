"""MMTM: convolutional encoders that scale one another's channels."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmpareto.inputs import Inputs, values_of
from mmpareto.models.base import ARCHITECTURES, MakeFusion, MultimodalModel, Output, Present, blank, width_of
from mmpareto.models.encoders.base import ConvolutionalEncoder, ModelError, by_sample, images


class Excitation(nn.Module):
    """Gates of all modalities' channels from the means of all modalities' maps.

    Args:
        widths: channels of each modality.
        ratio: the joint vector has 2 sum(channels) / ratio numbers.
        factor: of the gates' sigmoid.
    """

    def __init__(self, widths: Sequence[int], ratio: float, factor: float) -> None:
        super().__init__()
        size = max(1, int(2 * sum(widths) / ratio))
        self.squeeze = nn.Linear(sum(widths), size)
        self.excite = nn.ModuleList(nn.Linear(size, width) for width in widths)
        self.widths, self.factor = tuple(widths), factor
        self.replace: Callable[[list[Tensor]], list[Tensor]] | None = None  # the gates, in training

    def forward(self, means: Sequence[Tensor]) -> list[Tensor]:
        """Means [B, C_m] of the modalities -> gates [B, C_m]."""
        joint = torch.relu(self.squeeze(torch.cat(list(means), 1)))
        gates = [self.factor * torch.sigmoid(excite(joint)) for excite in self.excite]
        return gates if self.replace is None or not self.training else self.replace(gates)


@ARCHITECTURES.register("mmtm")
class MMTM(MultimodalModel):
    """Squeeze-and-excitation between convolutional encoders.

    Multimodal transfer module (Joze et al., "MMTM: Multimodal Transfer Module for CNN Fusion", CVPR 2020). After every
    stage but the first, with s_m the mean of modality m's map over its positions (and frames):

        z = relu(W [s_1; ...; s_M] + b),    map_m <- factor sigmoid(E_m z + e_m) map_m       (Equations 2 to 4)

    An encoder, for integration, is the modality's encoder; the modules between them are shared and learn from the sum
    of the losses that reach the encoders: all of them, but with one joint loss or unimodal training. A feature has seen
    the other modalities. So the unimodal gradient of an encoder is that of the sum of all unimodal losses, those of the
    other modalities included.

    For an absent modality s_m is zero, and so is its feature.

    Args:
        encoders: {modality: encoder}; convolutional ones with as many stages as each other.
        classes: C.
        fusion: see MultimodalModel.
        ratio: z has 2 (C_1 + ... + C_M) / ratio numbers; 4 in the paper.
        factor: of the gates; 2 in the paper, so that a gate of zeros changes nothing; 1 in the code of Wu et al. (ICML
            2022).
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        classes: int,
        fusion: MakeFusion | None = None,
        ratio: float = 4.0,
        factor: float = 2.0,
    ) -> None:
        super().__init__(encoders, classes)
        if not ratio > 0 or not factor > 0:
            raise ModelError(f"mmtm: ratio and factor must be positive, found {ratio} and {factor}")
        stages: dict[str, tuple[int, ...]] = {}
        for name, encoder in encoders.items():
            if not isinstance(encoder, ConvolutionalEncoder):
                raise ModelError(
                    f"the architecture mmtm exchanges information between stages of convolutional encoders, and "
                    f"{type(encoder).__name__} of the modality {name} has none; choose cnn or resnet18, for example"
                )
            stages[name] = encoder.stage_widths
        if len({len(widths) for widths in stages.values()}) > 1:
            shown = ", ".join(f"{name} {len(widths)}" for name, widths in stages.items())
            raise ModelError(f"the architecture mmtm needs encoders with as many stages as each other, found {shown}")
        self.exchange = nn.ModuleList(
            Excitation(widths, ratio, factor) for widths in list(zip(*stages.values(), strict=True))[1:]
        )
        self._add_heads({name: width_of(encoder) for name, encoder in encoders.items()}, fusion)

    def forward(self, inputs: Inputs, present: Present | None = None) -> Output:
        """See MultimodalModel."""
        masks = self.masks(inputs, present)
        having = self.having(masks)
        filled = {name: self.rows(inputs[name], having[name]) for name in self.encoders}
        batch = values_of(next(iter(filled.values()))).shape[0]
        maps = {name: images(value) for name, value in filled.items()}
        stages = {name: encoder.stages() for name, encoder in self.encoders.items()}  # type: ignore[operator]
        with self.statistics_of_present(masks):
            for number in range(len(self.exchange) + 1):
                maps = {name: stages[name][number](value) for name, value in maps.items()}
                if number:
                    means = [blank(_mean(value, batch), having[name]) for name, value in maps.items()]
                    for name, gate in zip(maps, self.exchange[number - 1](means), strict=True):
                        frames = maps[name].shape[0] // batch
                        maps[name] = maps[name] * gate.repeat_interleave(frames, 0)[:, :, None, None]
        features = {}
        for name, value in maps.items():
            pooled = self.encoders[name].pool(value.flatten(2).transpose(1, 2), None)  # type: ignore[operator]
            features[name] = blank(by_sample(pooled, batch), having[name])
        return self.from_features(features, masks)


def _mean(maps: Tensor, batch: int) -> Tensor:
    """[B F, C, H, W] -> [B, C]."""
    return maps.mean((2, 3)).view(batch, -1, maps.shape[1]).mean(1)
