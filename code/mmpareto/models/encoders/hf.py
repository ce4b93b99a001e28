"""Any text, vision or audio model of Hugging Face's library transformers."""

import json
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mmpareto.escape import counted
from mmpareto.inputs import Input, Padded, values_of
from mmpareto.models.encoders.base import (
    ENCODERS,
    ModelError,
    Preprocess,
    TokenEncoder,
    channels,
    images,
    normalised,
    reason_of,
    resized,
)

# The argument of a model's forward that takes the inputs of a kind
ARGUMENTS = {"tokens": "input_ids", "image": "pixel_values", "frames": "pixel_values", "waveform": "input_values"}


@ENCODERS.register("hf", argument="model")
class HuggingFaceEncoder(TokenEncoder):
    """A model of Hugging Face's transformers (Wolf et al., EMNLP 2020) without a head, as in hf:bert-base-uncased.

    Tokens are the last hidden states. Images and frames are resized to the model's size; the mean and the std of its
    image processor replace those of the dataset; gray images are repeated for models of three channels. Waveforms are
    normalised where the model's feature extractor does so; they must have its sampling rate. SpecAugment and LayerDrop
    are switched off. Padding changes no feature, but where a speech model has group norm over time (wav2vec 2.0 base).

    Args:
        model: name on the hub, or a folder with its configuration and weights.
        kind: "tokens" (ids of the model's own tokenizer), "image", "frames", or "waveform".
        shape: of one sample.
        weights: "pretrained" (those of `model`), "none" (random), or another folder.
        pooling: of the tokens; "cls": the first one.
        configuration: see ENCODERS.
    """

    takes = frozenset(ARGUMENTS)
    by_frame = True

    def __init__(
        self,
        model: str,
        kind: str,
        shape: tuple[int, ...],
        weights: str = "pretrained",
        pooling: Literal["mean", "max", "cls"] = "mean",
        configuration: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        source = model if weights in ("pretrained", "none") else weights
        network, config = _network(model, source, kind, weights != "none", configuration)
        self.kind, self.pooling, self.network = kind, pooling, network.train()
        self._check(model, config, shape)
        if isinstance(getattr(network, "pooler", None), torch.nn.Module):
            network.pooler.requires_grad_(False)  # nothing is computed from it
        self.name, self.width = f"hf:{model}", _width(model, config)
        self.padding_id = getattr(config, "pad_token_id", None) or 0
        # a run of an earlier version saved "model" and "normalise" alone
        processing = configuration or _processing(_processor(source, kind))
        self.normalise = bool(processing.get("normalise"))
        if kind in ("image", "frames"):
            size = getattr(config, "image_size", None) or processing.get("size")
            self.channels = getattr(config, "num_channels", 3)
            self.flip = bool(processing.get("flip"))
            statistics = (processing.get("mean"), processing.get("std"))
            self.preprocess = Preprocess(
                None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1]),
                *(None if values is None else tuple(map(float, values)) for values in statistics),
            ).fitted(channels(kind, shape))
        self.configuration = {**processing, "model": json.loads(config.to_json_string(use_diff=False))}

    def _check(self, model: str, config: Any, shape: tuple[int, ...]) -> None:
        """Raise ModelError for a model that cannot take the inputs."""
        wanted, argument = self.network.main_input_name, ARGUMENTS[self.kind]
        if wanted != argument or getattr(config, "is_encoder_decoder", False):
            what = "is an encoder with a decoder" if wanted == argument else f"takes {wanted}"
            raise ModelError(f"hf:{model} {what}; {self.kind} needs an encoder that takes {argument}")
        if self.kind == "waveform" and not hasattr(self.network, "_get_feature_vector_attention_mask"):
            raise ModelError(
                f"hf:{model} is no model of waveforms such as wav2vec 2.0: its {argument} are spectrograms or codes"
            )
        if self.pooling == "cls" and self.kind == "waveform":
            raise ModelError(f"pooling=cls: hf:{model} has no class token; choose mean or max")
        if self.kind == "tokens":
            longest, vocabulary = getattr(config, "max_position_embeddings", shape[0]), config.vocab_size
            positions = getattr(getattr(self.network, "embeddings", None), "position_embeddings", None)
            padding = getattr(positions, "padding_idx", None)
            if padding is not None:  # RoBERTa counts positions from here on
                longest -= padding + 1
            if shape[1] > vocabulary:
                raise ModelError(f"hf:{model} knows {vocabulary} tokens, the dataset has {shape[1]}: use its tokenizer")
            if 0 < longest < shape[0]:
                raise ModelError(f"hf:{model} takes {longest} tokens at most, the dataset has texts of {shape[0]}")
        elif self.kind in ("image", "frames"):
            inputs = getattr(config, "num_channels", 3)
            if channels(self.kind, shape) not in (1, inputs):
                raise ModelError(f"hf:{model} takes {inputs} channels, found {channels(self.kind, shape)}")

    def tokens(self, x: Input) -> tuple[Tensor, Tensor | None]:
        """Input of B samples -> last hidden states [B, N, D], those of frames one after the other, and their mask."""
        values, mask = values_of(x), x.mask if isinstance(x, Padded) else None
        if self.kind == "tokens":
            ids = values if mask is None else values.masked_fill(~mask, self.padding_id)
            return self._states(input_ids=ids, attention_mask=None if mask is None else mask.long()), mask
        if self.kind == "waveform":
            return self._from_waveform(normalised(values, mask, 1e-7) if self.normalise else values, mask)
        pictures = resized(images(x), self.preprocess.size)
        pictures = pictures.expand(-1, self.channels, -1, -1)
        states = self._states(pixel_values=pictures.flip(1) if self.flip else pictures)
        if states.dim() == 4:  # maps [B, D, H, W]
            if self.pooling == "cls":
                raise ModelError(f"pooling=cls: {self.name} has no class token; choose mean or max")
            states = states.flatten(2).transpose(1, 2)
        if states.shape[2] != self.width:
            raise ModelError(
                f"{self.name} gives states of width {states.shape[2]}, and its configuration says {self.width}; take "
                "another model, or one of timm"
            )
        return states.reshape(values.shape[0], -1, self.width), None

    def _from_waveform(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if mask is None:
            return self._states(input_values=values), None
        attention = mask.long()
        states = self._states(input_values=values, attention_mask=attention)
        kept = self.network._get_feature_vector_attention_mask(states.shape[1], attention).bool()
        # of a clip below one window it marks all positions
        lengths = self.network._get_feat_extract_output_lengths(attention.sum(1))
        return states, kept & (lengths > 0)[:, None]

    def _states(self, **inputs: Any) -> Tensor:
        return self.network(**inputs, return_dict=True).last_hidden_state


def _network(
    model: str, source: str, kind: str, load: bool, configuration: Mapping[str, Any] | None
) -> tuple[Any, Any]:
    """The model and its configuration.

    Args:
        model: as the user named it, for messages.
        source: name on the hub or folder that it comes from.
        kind: of the modality.
        load: whether its weights are loaded.
        configuration: see ENCODERS; the source is not read for it.

    Raises:
        ModelError: where it cannot be had, or weights are missing in it.
    """
    try:
        import transformers  # takes seconds to import
    except ImportError as error:
        raise ModelError(f"the encoder hf:{model} needs transformers: pip install transformers") from error
    try:
        if configuration is None:
            config: Any = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        else:
            config = transformers.AutoConfig.for_model(**configuration["model"])
        part = getattr(config, "text_config" if kind == "tokens" else "vision_config", None)
        config = config if part is None else part  # of a model of images and text
        config.apply_spec_augment, config.layerdrop = False, 0.0
        if not load:
            return transformers.AutoModel.from_config(config, trust_remote_code=False), config
        network, loaded = transformers.AutoModel.from_pretrained(
            source, config=config, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # of the network, the hub, the files or transformers, which have no class in common
        raise ModelError(
            f"hf:{model} cannot be made from {source} ({reason_of(error)}). It is downloaded once and needs the "
            "network then; a folder with its configuration and weights needs none: hf:FOLDER"
        ) from error
    lacking = [key for key in loaded["missing_keys"] if not key.startswith(("pooler.", "masked_spec_embed"))]
    if lacking:
        raise ModelError(
            f"the weights of {source} lack {counted(len(lacking), 'tensor')} of the model, such as {lacking[0]}"
        )
    return network, config


def _width(model: str, config: Any) -> int:
    """Width of the last hidden states."""
    sizes = [getattr(config, "hidden_size", None), *(getattr(config, "hidden_sizes", None) or ())]
    width = sizes[-1] if sizes[0] is None else sizes[0]
    if not isinstance(width, int):
        raise ModelError(
            f"hf:{model}: its configuration has no hidden_size and no hidden_sizes; take another model, or one of timm"
        )
    return width


def _processor(source: str, kind: str) -> Any:
    """The image processor or feature extractor of a model; None where it has none."""
    import transformers

    if kind == "tokens":
        return None
    auto = transformers.AutoFeatureExtractor if kind == "waveform" else transformers.AutoImageProcessor
    try:
        return auto.from_pretrained(source)
    except (OSError, ValueError, ImportError):
        return None


def _processing(processor: Any) -> dict[str, Any]:
    """What a model expects of its inputs, in types of JSON.

    Args:
        processor: see `_processor`.

    Returns:
        {"normalise": whether waveforms are normalised, "size": [H, W], "mean" and "std": of images in 0 .. 1, "flip":
        whether the channels are blue, green and red}; None where it is not known.
    """
    mean, std = _statistics(processor)
    return {
        "normalise": bool(getattr(processor, "do_normalize", False)),
        "size": _size_of(processor),
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
        "flip": bool(getattr(processor, "do_flip_channel_order", False)),
    }


def _size_of(processor: Any) -> list[int] | None:
    size = getattr(processor, "size", None) or {}
    try:
        height, width = size["height"], size["width"]
    except (KeyError, TypeError):
        return None
    return None if height is None or width is None else [height, width]


def _statistics(processor: Any) -> tuple[Any, Any]:
    """Mean and std of an image processor: 0 and 1 where it applies none, None without a processor."""
    if processor is None:
        return None, None
    if not getattr(processor, "do_normalize", False):
        return (0.0,), (1.0,)
    return getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
