"""Late fusion: encoders that know nothing of one another, a fusion of their features."""

from collections.abc import Mapping

from torch import nn

from mmpareto import streams
from mmpareto.inputs import Inputs
from mmpareto.models.base import ARCHITECTURES, MakeFusion, MultimodalModel, Output, Present, blank, width_of


@ARCHITECTURES.register("late_fusion")
class LateFusion(MultimodalModel):
    """Encoders, a fusion that sees all features, and a unimodal head per modality.

    Zeros stand in for the feature of an absent modality.

    Args:
        encoders: {modality: module with an integer attribute `width`}.
        classes: C.
        fusion: makes the module that maps {modality: [B, D]} (and the modalities present) to joint logits [B, C]; by
            default, or where it gives None, ConcatFusion.

    Raises:
        ValueError: see MultimodalModel.
    """

    late = True

    def __init__(self, encoders: Mapping[str, nn.Module], classes: int, fusion: MakeFusion | None = None) -> None:
        super().__init__(encoders, classes)
        self._add_heads({name: width_of(encoder) for name, encoder in encoders.items()}, fusion)

    def forward(self, inputs: Inputs, present: Present | None = None) -> Output:
        """See MultimodalModel."""
        masks = self.masks(inputs, present)
        having = self.having(masks)
        features = {}
        with self.statistics_of_present(masks):
            for name, encoder in self.encoders.items():
                with streams.beside(name):
                    features[name] = blank(encoder(self.rows(inputs[name], having[name])), having[name])
            streams.join()
        return self.from_features(features, masks)
