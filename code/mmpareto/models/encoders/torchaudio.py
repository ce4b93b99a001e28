"""wav2vec 2.0 and its relatives, from torchaudio."""

from typing import Any, Literal

import torch
from torch import Tensor

from mmpareto.inputs import Input, Padded, values_of
from mmpareto.models.encoders.base import ENCODERS, ModelError, TokenEncoder, load_weights, normalised, reason_of


@ENCODERS.register("torchaudio", argument="bundle")
class TorchaudioEncoder(TokenEncoder):
    """A speech model of torchaudio without its classifier, as in torchaudio:WAV2VEC2_BASE.

    wav2vec 2.0 (Baevski et al., NeurIPS 2020), HuBERT and XLSR. Tokens are the outputs of the last layer. Waveforms are
    normalised where the model expects it; they must have its sampling rate. LayerDrop is switched off. Padding changes
    no feature, but where a model has group norm over time (WAV2VEC2_BASE, HUBERT_BASE).

    Args:
        bundle: name in torchaudio.pipelines.
        kind: "waveform".
        shape: of one sample.
        weights: "pretrained" (downloaded once), "none" (random), or a file of the model's state_dict.
        pooling: of the tokens.
    """

    takes = frozenset({"waveform"})

    def __init__(
        self,
        bundle: str,
        kind: str,
        shape: tuple[int, ...],
        weights: str = "pretrained",
        pooling: Literal["mean", "max"] = "mean",
    ) -> None:
        super().__init__()
        from torchaudio import models, pipelines  # takes seconds to import

        about: Any = getattr(pipelines, bundle, None)
        if not isinstance(about, pipelines.Wav2Vec2Bundle):
            names = [name for name, value in vars(pipelines).items() if isinstance(value, pipelines.Wav2Vec2Bundle)]
            raise ModelError(f"torchaudio has no speech model {bundle!r:.100}; known: {', '.join(names)}")
        if about._model_type == "WavLM":
            raise ModelError(
                f"torchaudio:{bundle} takes no mask, and clips of a batch differ in length; use the model of "
                "transformers, as in hf:microsoft/wavlm-base"
            )
        self.network = models.wav2vec2_model(**about._params | {"aux_num_out": None, "encoder_layer_drop": 0.0})
        if weights == "pretrained":
            try:
                published = about.get_model()
            except Exception as error:  # whatever the network raises
                raise ModelError(
                    f"the weights of torchaudio:{bundle} cannot be downloaded ({reason_of(error)}). They are "
                    "downloaded once and need the network then; a file needs none: weights=FILE; or weights=none"
                ) from error
            state = getattr(published, "model", published).state_dict()  # some models are wrapped
            self.network.load_state_dict({key: value for key, value in state.items() if not key.startswith("aux.")})
        elif weights != "none":
            load_weights(self.network, weights)
        self.normalise, self.pooling = about._normalize_waveform, pooling
        self.width: int = about._params["encoder_embed_dim"]

    def tokens(self, x: Input) -> tuple[Tensor, Tensor | None]:
        """[B, L] -> [B, N, D]."""
        values, mask = values_of(x), x.mask if isinstance(x, Padded) else None
        if self.normalise:
            values = normalised(values, mask)
        tokens, lengths = self.network(values, None if mask is None else mask.sum(1))
        return tokens, None if lengths is None else torch.arange(tokens.shape[1], device=values.device) < lengths[
            :, None
        ]
