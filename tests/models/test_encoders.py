"""Encoders of libraries, options of encoders, and padding, with tiny models that the tests build themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpareto.config import OptimConfig
from mmpareto.datasets import Modality
from mmpareto.inputs import Padded
from mmpareto.models import (
    ENCODERS,
    ModelError,
    build_encoder,
    build_model,
    default_encoder,
    options_by_modality,
)
from mmpareto.training.optimizer import make_optimizer, set_rates
from mmpareto.training.setup import use_statistics

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


def test_options_reach_the_encoder_inside_of_a_dense_architecture() -> None:
    """The layers that MBT puts around an encoder have the plain learning rate, and learn where it is frozen."""
    options = {"a": {"lr_factor": "0.25"}, "b": {"frozen": "true"}}
    model = pair({"a": "cnn", "b": "mlp"}, options, architecture="mbt").train()
    optimizer, _ = make_optimizer(model, OptimConfig(learning_rate=0.8, momentum=0.9, lr_schedule="constant"))
    groups = [(group["name"], pytest.approx(group["lr"]), len(group["params"])) for group in optimizer.param_groups]
    inner = len(list(build_encoder("cnn", "image", (3, 16, 16)).parameters()))
    assert groups[0] == ("a", 0.2, inner)
    assert [group[:2] for group in groups[1:]] == [("a", 0.8), ("b", 0.8), ("heads", 0.8)]
    assert sum(group[2] for group in groups) == len(list(model.parameters()))
    assert not model.innermost()["b"].training
    model({"a": torch.randn(2, 3, 16, 16), "b": torch.randn(2, 4)}).joint.sum().backward()
    learning = {name for name, parameter in model.encoders["b"].named_parameters() if parameter.grad is not None}
    assert "map.weight" in learning
    assert not any(name.startswith("encoder.") for name in learning)


def test_any_encoder_begins_with_a_file_of_its_weights(tmp_path: Path) -> None:
    source = build_encoder("mlp", "vector", (4,))
    torch.save(source.state_dict(), tmp_path / "mlp.pt")
    options = {"weights": str(tmp_path / "mlp.pt")}
    loaded, restored = (build_encoder("mlp", "vector", (4,), options, load=load) for load in (True, False))
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
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


@pytest.mark.parametrize("architecture", ["mmtm", "transformer"])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_an_architecture_pools_as_its_encoders_do(architecture: str, pooling: str) -> None:
    about = {"a": ("frames", (2, 3, 64, 64)), "b": ("image", (3, 64, 64))}
    options = {name: {"pooling": pooling} for name in about}
    names = dict.fromkeys(about, "resnet18")
    model = build_model(about, 3, names, architecture=architecture, encoder_options=options).eval()
    for excitation in getattr(model, "exchange", ()):  # gates of 1
        for excite in excitation.excite:
            nn.init.zeros_(excite.weight), nn.init.zeros_(excite.bias)
    inputs = {name: torch.randn(2, *shape) for name, (_, shape) in about.items()}
    with torch.no_grad():
        features = model(inputs).features
        for name, encoder in model.encoders.items():
            torch.testing.assert_close(features[name], encoder(inputs[name]))


# padding

SMALL = {"width": "16", "layers": "2"}
LENGTHS = (7, 200, 1, 83)
PADDED = [
    pytest.param("text", "tokens", (200, 11), {}, id="text"),
    pytest.param("text", "tokens", (200, 11), {"pooling": "max"}, id="text-max"),
    *(
        pytest.param("sequence", kind, shape, {"network": network}, id=f"{kind}-{network}")
        for network in ("conv", "transformer")
        for kind, shape in (("sequence", (200, 3)), ("waveform", (200,)))
    ),
    pytest.param("sequence", "sequence", (200, 3), {"pooling": "max"}, id="sequence-max"),
]


def ragged(kind: str, shape: tuple[int, ...]) -> list[Tensor]:
    random = torch.Generator().manual_seed(3)
    if kind == "tokens":
        return [torch.randint(shape[1], (length,), generator=random) for length in LENGTHS]
    return [torch.randn(length, *shape[1:], generator=random) for length in LENGTHS]


def padded(samples: list[Tensor], fill: float) -> Padded:
    values = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=fill)
    return Padded(values, torch.arange(values.shape[1]) < torch.tensor([[len(sample)] for sample in samples]))


@pytest.mark.parametrize(("name", "kind", "shape", "options"), PADDED)
def test_padding_changes_neither_features_nor_gradients(
    name: str, kind: str, shape: tuple[int, ...], options: dict[str, str]
) -> None:
    """Whatever stands in the padding: a batch gives what its samples give alone, to 1e-6 in float32."""
    torch.manual_seed(0)
    encoder: Any = build_encoder(name, kind, shape, SMALL | options)
    samples, weights = ragged(kind, shape), torch.randn(len(LENGTHS), encoder.width) / 10

    def gradients(features: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((features * weights).mean(), list(encoder.parameters())))

    alone = torch.cat([encoder(padded([sample], 0)) for sample in samples])
    expected = gradients(alone)
    for fill in (0, 5):
        together = encoder(padded(samples, fill))
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)
        for gradient, wanted in zip(gradients(together), expected, strict=True):
            torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-6)
    for inference in (encoder.train, encoder.eval):
        inference()
        with torch.no_grad():
            torch.testing.assert_close(encoder(padded(samples, 0)), alone, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize(("name", "kind", "shape", "options"), PADDED)
def test_tokens_have_a_mask_and_whole_batches_need_none(
    name: str, kind: str, shape: tuple[int, ...], options: dict[str, str]
) -> None:
    encoder: Any = build_encoder(name, kind, shape, SMALL | options).eval()
    samples = ragged(kind, shape)
    with torch.no_grad():
        tokens, mask = encoder.tokens(padded(samples, 0))
        step = 80 if kind == "waveform" else 1
        assert mask.sum(1).tolist() == [-(-length // step) for length in LENGTHS]
        torch.testing.assert_close(encoder.pool(tokens, mask), encoder(padded(samples, 0)))
        plain, none = encoder.tokens(samples[1][None])
        assert none is None
        torch.testing.assert_close(plain[0], tokens[1], atol=2e-6, rtol=1e-6)
        nothing = Padded(samples[1][None], torch.zeros(1, 200, dtype=torch.bool))
        assert encoder.pooling == "max" or torch.isfinite(encoder(nothing)).all()


def test_order_matters_to_text() -> None:
    encoder: Any = build_encoder("text", "tokens", (4, 9), SMALL).eval()
    with torch.no_grad():
        first, second = encoder(torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]]))
    assert (first - second).abs().max() > 0.01


def test_encoders_by_kind() -> None:
    assert [default_encoder(kind, (9, 4)) for kind in ("tokens", "sequence")] == ["text", "sequence"]
    assert default_encoder("waveform", (900,)) == "sequence"
    for options, message in (({"kernel": "4"}, "kernel odd; found .*kernel=4"), ({"layers": "0"}, "layers=0")):
        with pytest.raises(ModelError, match=message):
            build_encoder("sequence", "sequence", (9, 4), options)
    with pytest.raises(ModelError, match="3 attention heads must divide the width of the tokens, 16"):
        build_encoder("text", "tokens", (9, 4), {"width": "16", "heads": "3"})


def test_the_documentation_has_a_row_for_each_encoder() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()
    rows = [line for line in page.partition("## Encoders\n")[2].partition("\n## ")[0].splitlines() if line[:3] == "| `"]
    for name in ENCODERS:
        entry = ENCODERS[name]
        if entry.source.__module__.startswith("mmpareto."):
            label = f"`{name}:{entry.argument.upper()}`" if entry.argument else f"`{name}`"
            (row,) = [row for row in rows if label in row]
            assert all(f"`{option}`" in row for option in entry.options), name


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


@pytest.mark.parametrize("model", ["test_vit", "test_convnext"])
@pytest.mark.parametrize("pooling", ["own", "mean"])
def test_timm_pools_frames_the_same_in_the_architecture_transformer(model: str, pooling: str) -> None:
    """ConvNeXt has a norm after its own pooling."""
    about = {"a": ("frames", (2, 3, 32, 32)), "b": ("vector", (4,))}
    options = {"a": NONE | {"size": "32", "pooling": pooling}}
    both: Any = build_model(
        about, 3, {"a": f"timm:{model}", "b": "mlp"}, architecture="transformer", encoder_options=options
    ).eval()
    encoder, x = both.encoders["a"], torch.rand(2, 2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(both({"a": x, "b": torch.randn(2, 4)}).features["a"], encoder(x))
        torch.testing.assert_close(encoder(x), torch.stack([encoder(x[:, f]) for f in range(2)]).mean(0))


def test_a_transformer_over_features_needs_no_tokens() -> None:
    about = {"sight": ("image", (3, 32, 32)), "sensor": ("vector", (4,))}
    encoders = {"sight": "timm:mobilenetv3_small_050", "sensor": "mlp"}
    small = {"token_width": 8, "layers": 1, "heads": 2, "pooled": True}
    model = build_model(about, 3, encoders, None, "transformer", small, encoder_options={"sight": NONE}).eval()
    assert model({"sight": torch.rand(2, 3, 32, 32), "sensor": torch.rand(2, 4)}).joint.shape == (2, 3)


def test_layers_after_the_pooling_are_no_part_of_tokens() -> None:
    name, shape, x = "timm:mobilenetv3_small_050", (3, 32, 32), torch.randn(2, 3, 32, 32)
    encoder: Any = build_encoder(name, "image", shape, NONE | {"size": "32"})
    assert encoder(x).shape == (2, encoder.width) == (2, 1024)
    with pytest.raises(ModelError, match="has layers after its own pooling, which tokens lack: choose pooling=mean"):
        encoder.tokens(x)
    mean: Any = build_encoder(name, "image", shape, NONE | {"size": "32", "pooling": "mean"})
    assert mean.tokens(x)[0].shape == (2, 1, mean.width) == (2, 1, 288)


@pytest.mark.parametrize(("name", "kind", "shape"), [("resnet18", "image", (3, 32, 32)), ("mlp", "vector", (4,))])
def test_an_encoder_without_pretrained_weights_says_so(name: str, kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="this encoder has no pre-trained weights, those of timm:"):
        build_encoder(name, kind, shape, {"weights": "pretrained"})


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
