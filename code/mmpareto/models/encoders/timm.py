"""Any image model of the library timm."""

import difflib
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mmpareto.inputs import Input, values_of
from mmpareto.models.encoders.base import (
    ENCODERS,
    ModelError,
    Preprocess,
    TokenEncoder,
    by_sample,
    channels,
    images,
    reason_of,
    resized,
)


@ENCODERS.register("timm", argument="model")
class TimmEncoder(TokenEncoder):
    """A model of timm (Wightman, 2019) without its classifier, as in timm:vit_tiny_patch16_224.

    Images and frames are resized to the model's own size, spectrograms only for models of a fixed size. The mean and
    the std of the model's configuration replace those of images and frames. The first layer is fitted to the number of
    channels, with its weights. Tokens are what the model gives before pooling: patches, after the class token where
    there is one, or positions of the last feature map.

    Args:
        model: name in timm.list_models(), with or without a tag of its weights: resnet18.a1_in1k.
        kind: "image", "spectrogram", or "frames", whose features are averaged over the frames.
        shape: of one sample.
        weights: "pretrained" (downloaded once), "none" (random), or a file of the model's weights.
        pooling: of the tokens; "own": as the model pools.
        size: height and width in pixels to which inputs are resized (None: the model's own).
    """

    takes = frozenset({"image", "spectrogram", "frames"})

    def __init__(
        self,
        model: str,
        kind: str,
        shape: tuple[int, ...],
        weights: str = "pretrained",
        pooling: Literal["own", "mean", "max", "cls"] = "own",
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.name = f"timm:{model}"
        import timm  # takes seconds to import

        try:
            published: Any = timm.get_pretrained_cfg(model, allow_unregistered=False)
        except RuntimeError as error:
            known = [*timm.list_models(), *timm.list_models(model.partition(".")[0] + "*", pretrained=True)]
            close = difflib.get_close_matches(model, known, n=3)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            raise ModelError(
                f"timm has no model {model!r:.100}; {hint}timm.list_models() in Python names them"
            ) from error
        inputs, fixed = channels(kind, shape), published.fixed_input_size
        arguments: dict[str, Any] = {"img_size": size} if fixed and size else {}
        if weights not in ("pretrained", "none"):
            if not Path(weights).is_file():
                raise ModelError(
                    f"weights={weights}: there is no such file; give pretrained, none, or a file. A tag of timm "
                    f"belongs to the name: timm:{model.partition('.')[0]}.TAG"
                )
            arguments["pretrained_cfg_overlay"] = {"file": weights}
        try:
            network: Any = timm.create_model(
                model, pretrained=weights != "none", num_classes=0, in_chans=inputs, **arguments
            )
        except Exception as error:  # of the network, the hub, the file or timm, which have no class in common
            raise ModelError(
                f"timm:{model} cannot be made with weights={weights} ({reason_of(error)}). Pretrained weights are "
                "downloaded once and need the network then; a file needs none: weights=FILE; or weights=none"
            ) from error
        self.network = network
        data_config = timm.data.resolve_model_data_config(network)
        height_width = (size, size) if size else tuple(data_config["input_size"][1:])
        pictures = kind != "spectrogram"
        self.size = height_width if pictures or fixed or size else None
        self.mode = (
            data_config["interpolation"] if data_config["interpolation"] in ("bilinear", "bicubic") else "bilinear"
        )
        statistics = Preprocess(self.size, tuple(data_config["mean"]), tuple(data_config["std"])).fitted(inputs)
        self.preprocess = statistics if pictures else Preprocess(self.size)
        class_token = getattr(network, "cls_token", None) is not None
        if pooling == "cls" and not class_token:
            raise ModelError(f"pooling=cls: timm:{model} has no class token; choose own, mean or max")
        self.own_pooling = pooling == "own"
        token_pool = class_token and getattr(network, "global_pool", "") == "token"
        self.pooling = ("cls" if token_pool else "mean") if self.own_pooling else pooling
        self.width = network.head_hidden_size if self.own_pooling else network.num_features

    def forward(self, x: Input) -> Tensor:
        """[B, channels, H, W] or [B, F, channels, H, W] -> [B, D]."""
        return self._pooled(self._maps(x), x)

    def tokens(self, x: Input) -> tuple[Tensor, Tensor | None]:
        """[B, channels, H, W] or [B, F, channels, H, W] -> [B, N, D], those of all frames one after the other."""
        return self._tokens(self._maps(x), x), None

    def feature_and_tokens(self, x: Input) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `TokenEncoder`."""
        maps = self._maps(x)
        return self._pooled(maps, x), self._tokens(maps, x), None

    def pool(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens of pictures [B, N, D] -> [B, D]; the mean and the greatest value leave class tokens out."""
        prefix = 0 if self.pooling == "cls" else getattr(self.network, "num_prefix_tokens", 0)
        return super().pool(tokens[:, prefix:], None if mask is None else mask[:, prefix:])

    def _maps(self, x: Input) -> Tensor:
        return self.network.forward_features(resized(images(x), self.size, self.mode))

    def _pooled(self, maps: Tensor, x: Input) -> Tensor:
        """Maps of images and frames -> [B, D]; a mean over frames."""
        features = (
            self.network.forward_head(maps, pre_logits=True) if self.own_pooling else self.pool(self._rows(maps), None)
        )
        return by_sample(features, values_of(x).shape[0])

    def _tokens(self, maps: Tensor, x: Input) -> Tensor:
        """Maps of images and frames -> [B, N, D]."""
        if self.width != self.network.num_features:
            raise ModelError(f"{self.name} has layers after its own pooling, which tokens lack: choose pooling=mean")
        return self._rows(maps).reshape(values_of(x).shape[0], -1, self.width)

    def _rows(self, maps: Tensor) -> Tensor:
        """[B, N, D] as it is; maps [B, D, H, W] or [B, H, W, D] -> [B, H W, D]."""
        if maps.dim() == 3:
            return maps
        if maps.shape[1] == self.network.num_features:
            return maps.flatten(2).transpose(1, 2)
        return maps.flatten(1, 2)
