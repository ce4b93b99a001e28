"""Encoders of libraries, options of encoders, and padding, with tiny models that the tests build themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from mmpareto.config import OptimConfig
from mmpareto.datasets import Modality
from mmpareto.models import ENCODERS, ModelError, build_encoder, build_model, options_by_modality
from mmpareto.training.setup import make_optimizer, set_rates, use_statistics

NONE = {"weights": "none"}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, str]:
    """timm's smallest vision transformer, and a file of its weights."""
    torch.manual_seed(0)
    network = timm.create_model("test_vit", pretrained=False).eval()
    file = tmp_path_factory.mktemp("weights") / "vit.pt"
    torch.save(network.state_dict(), file)
    return network, str(file)


def pair(encoders: dict[str, str], options: dict[str, dict[str, Any]], **rest: Any) -> Any:
    about = {"a": ("image", (3, 16, 16)), "b": ("vector", (4,))}
    return build_model(about, 3, encoders, encoder_options=options, **rest)


# options of all encoders


def test_frozen_encoders_do_not_learn_and_cost_no_graph() -> None:
    model = pair({"a": "cnn", "b": "mlp"}, {"a": {"frozen": "true"}})
    model.train()
    assert not model.encoders["a"].training
    assert model.encoders["b"].training
    output = model({"a": torch.randn(2, 3, 16, 16), "b": torch.randn(2, 4)})
    assert not output.features["a"].requires_grad
    assert output.features["b"].requires_grad
    assert output.unimodal["a"].requires_grad  # its head learns


def test_learning_rates_have_the_factor_of_their_encoder() -> None:
    model = pair({"a": "cnn", "b": "mlp"}, {"a": {"lr_factor": "0.25"}})
    optim = OptimConfig(learning_rate=0.8, momentum=0.9, lr_schedule="cosine", epochs=2)
    optimizer, schedule = make_optimizer(model, optim)

    def rates() -> dict[str, float]:
        return {group["name"]: group["lr"] for group in optimizer.param_groups}

    assert rates() == pytest.approx({"a": 0.2, "b": 0.8, "heads": 0.8})
    optimizer.step()
    schedule.step()
    assert rates() == pytest.approx({"a": 0.1, "b": 0.4, "heads": 0.4})
    set_rates(optimizer, schedule, {"a": 3.0})
    assert rates() == pytest.approx({"a": 0.3, "b": 0.4, "heads": 0.4})


def test_any_encoder_begins_with_a_file_of_its_weights(tmp_path: Path) -> None:
    source = build_encoder("mlp", "vector", (4,))
    torch.save(source.state_dict(), tmp_path / "mlp.pt")
    options = {"weights": str(tmp_path / "mlp.pt")}
    loaded, restored = (build_encoder("mlp", "vector", (4,), options, load=load) for load in (True, False))
    x = torch.randn(2, 4)
    assert torch.equal(loaded(x), source(x))
    assert not torch.equal(restored(x), source(x))
    with pytest.raises(ModelError, match=r"mlp\.pt do not fit the encoder or cannot be read: .*size mismatch"):
        build_encoder("mlp", "vector", (5,), options)
    (tmp_path / "mlp.pt").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="do not fit the encoder or cannot be read"):
        build_encoder("mlp", "vector", (4,), options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"wieghts": "x"},
            "the encoder cnn has no option 'wieghts'; did you mean weights\\? its options: weights, froz",
        ),
        ({"weights": "/no/such"}, "weights=/no/such: there is no such file"),
        ({"frozen": "perhaps"}, "the encoder option frozen: expected true or false, found 'perhaps'"),
        ({"lr_factor": "0"}, "lr_factor must be above zero"),
        ({"pooling": "cls"}, "the encoder option pooling: expected one of mean, max, found 'cls'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_encoder("cnn", "image", (3, 16, 16), options)


def test_options_name_a_modality() -> None:
    assert options_by_modality({"a.x": "1", "a.y": "2", "b.x": "3"}, ["a", "b"]) == {
        "a": {"x": "1", "y": "2"},
        "b": {"x": "3"},
    }
    with pytest.raises(ModelError, match="'audoi', which is no modality; did you mean audio\\? they are audio, visual"):
        options_by_modality({"audoi.frozen": "true"}, ["audio", "visual"])


@pytest.mark.parametrize(
    ("name", "kind", "shape"), [("cnn", "image", (3, 12, 8)), ("resnet18", "frames", (2, 3, 64, 32))]
)
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_features_are_the_pooled_positions_of_the_last_map(
    name: str, kind: str, shape: tuple[int, ...], pooling: str
) -> None:
    encoder: Any = build_encoder(name, kind, shape, {"pooling": pooling}).eval()
    x = torch.randn(2, *shape)
    with torch.no_grad():
        tokens, mask = encoder.tokens(x)
        assert mask is None
        by_frame = tokens.unflatten(1, (shape[0] if kind == "frames" else 1, -1))
        expected = (by_frame.mean(2) if pooling == "mean" else by_frame.amax(2)).mean(1)
        torch.testing.assert_close(encoder(x), expected)


# names with a colon


def test_a_name_may_take_an_argument_and_paths_stay_paths() -> None:
    assert ENCODERS.canonical("TIMM:resnet18.a1_in1k") == "timm:resnet18.a1_in1k"
    assert not ENCODERS.is_path("timm:resnet18")
    assert ENCODERS.is_path("mine:Wide")
    assert ENCODERS.is_path("cnn:Wide")  # takes no argument
    assert list(ENCODERS["timm:resnet18"].options) == ["weights", "pooling", "size"]
    with pytest.raises(ModelError, match="the encoder timm needs the name of a model after a colon: timm:MODEL"):
        build_encoder("timm", "image", (3, 16, 16))
    with pytest.raises(ModelError, match="no model 'test_vti'; did you mean test_vit"):
        build_encoder("timm:test_vti", "image", (3, 16, 16))
    with pytest.raises(ModelError, match=r"no model 'test_vit\.nope'"):
        build_encoder("timm:test_vit.nope", "image", (3, 16, 16))


# timm


def test_timm_gives_the_features_of_its_model(vit: tuple[nn.Module, str]) -> None:
    """From a file, at the model's size; gray images see the sum of the first layer's weights."""
    network, file = vit
    encoder: Any = build_encoder("timm:test_vit", "image", (3, 160, 160), {"weights": file}).eval()
    assert (encoder.width, encoder.preprocess.size) == (64, (160, 160))
    assert encoder.preprocess.mean == (0.5, 0.5, 0.5)
    x = torch.randn(2, 3, 160, 160)
    gray: Any = build_encoder("timm:test_vit", "image", (1, 160, 160), {"weights": file}).eval()
    assert gray.preprocess.mean == pytest.approx((0.5,))
    with torch.no_grad():
        maps: Any = network.forward_features(x)  # type: ignore[operator]
        torch.testing.assert_close(encoder(x), network.forward_head(maps, pre_logits=True))  # type: ignore[operator]
        torch.testing.assert_close(gray(x[:, :1]), encoder(x[:, :1].expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4)
        tokens, mask = encoder.tokens(x)
        assert mask is None
        assert tokens.shape == (2, 101, 64)
        torch.testing.assert_close(tokens, maps)


@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
def test_timm_resizes_images_and_averages_over_frames(model: str) -> None:
    options = NONE | {"size": "32"}
    clip: Any = build_encoder(f"timm:{model}", "frames", (2, 3, 24, 40), options).eval()
    image: Any = build_encoder(f"timm:{model}", "image", (3, 24, 40), options).eval()
    image.load_state_dict(clip.state_dict())
    x = torch.rand(2, 2, 3, 24, 40)
    small = F.interpolate(x.flatten(0, 1), (32, 32), mode=image.mode, align_corners=False, antialias=True)
    with torch.no_grad():
        frames = torch.stack([image(x[:, f]) for f in range(2)], 1)
        torch.testing.assert_close(image(small), frames.flatten(0, 1))
        torch.testing.assert_close(clip(x), frames.mean(1))
        tokens = torch.cat([image.tokens(x[:, f])[0] for f in range(2)], 1)
        torch.testing.assert_close(clip.tokens(x)[0], tokens)


def test_spectrograms_keep_their_size_where_the_model_takes_any_and_their_statistics() -> None:
    for model, size in (("test_resnet", None), ("test_vit", (160, 160))):
        encoder: Any = build_encoder(f"timm:{model}", "spectrogram", (1, 96, 32), NONE)
        assert encoder.preprocess.size == encoder.size == size
        assert encoder.preprocess.mean is None
        assert encoder(torch.randn(2, 1, 96, 32)).shape == (2, encoder.width)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_timm_pools_as_told(pooling: str) -> None:
    encoder: Any = build_encoder("timm:test_vit", "image", (3, 32, 32), NONE | {"size": "32", "pooling": pooling})
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = encoder.eval().tokens(x)[0]
        expected = {"mean": tokens[:, 1:].mean(1), "max": tokens[:, 1:].amax(1), "cls": tokens[:, 0]}[pooling]
        torch.testing.assert_close(encoder(x), expected)
    with pytest.raises(ModelError, match="pooling=cls: timm:test_resnet has no class token; choose own, mean or max"):
        build_encoder("timm:test_resnet", "image", (3, 32, 32), NONE | {"pooling": "cls"})


def test_layers_after_the_pooling_are_no_part_of_tokens() -> None:
    name, shape, x = "timm:mobilenetv3_small_050", (3, 32, 32), torch.randn(2, 3, 32, 32)
    own: Any = build_encoder(name, "image", shape, NONE | {"size": "32"})
    assert own(x).shape == (2, own.width) == (2, 1024)
    with pytest.raises(ModelError, match="has layers after its own pooling, which tokens lack: choose pooling=mean"):
        own.tokens(x)
    mean: Any = build_encoder(name, "image", shape, NONE | {"size": "32", "pooling": "mean"})
    assert mean.tokens(x)[0].shape == (2, 1, mean.width) == (2, 1, 288)


def test_what_to_do_where_weights_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"timm:test_vit cannot be made with weights=pretrained .* weights=FILE"):
        build_encoder("timm:test_vit", "image", (3, 32, 32))
    with pytest.raises(ModelError, match=r"weights=in1k: there is no such file; .* the name: timm:test_vit\.TAG"):
        build_encoder("timm:test_vit", "image", (3, 32, 32), {"weights": "in1k"})
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"timm:test_vit cannot be made with weights=.*x\.pt"):
        build_encoder("timm:test_vit", "image", (3, 32, 32), {"weights": str(tmp_path / "x.pt")})


def test_a_restored_model_needs_no_weights(vit: tuple[nn.Module, str]) -> None:
    """As evaluation does it: the files may be gone."""
    encoders = {"a": "timm:test_vit", "b": "mlp"}
    model = pair(encoders, {"a": {"weights": vit[1], "size": "32"}})
    gone = {"a": {"weights": "/gone.pt", "size": "32"}, "b": {"weights": "/gone.pt"}}
    again = pair(encoders, gone, restored={})
    again.load_state_dict(model.state_dict())
    x = {"a": torch.randn(2, 3, 16, 16), "b": torch.randn(2, 4)}
    with torch.no_grad():
        assert torch.equal(model.eval()(x).joint, again.eval()(x).joint)


def test_statistics_of_the_encoder_replace_those_of_images() -> None:
    class Data:
        modalities = {"a": Modality("image", (3, 16, 16), (0.1,) * 3, (0.2,) * 3), "b": Modality("vector", (4,))}

    data: Any = Data()
    use_statistics(pair({"a": "timm:test_vit", "b": "mlp"}, {"a": NONE}), [data])
    assert data.modalities["a"] == Modality("image", (3, 16, 16), (0.5,) * 3, (0.5,) * 3)
    assert data.modalities["b"] == Modality("vector", (4,))
    assert Data.modalities["a"].mean == (0.1,) * 3
    use_statistics(pair({"a": "cnn", "b": "mlp"}, {}), [data])
    assert data.modalities["a"].mean == (0.5,) * 3
