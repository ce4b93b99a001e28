"""Models, with values that can be worked out in the head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmpareto.models import ConcatFusion, LateFusion, ModelError, build_encoder, build_model, default_encoder


class Identity(nn.Identity):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.width = features


@pytest.fixture
def model() -> LateFusion:
    """Encoders that change nothing, and weights of ones: logits are sums of the inputs, plus the class's number."""
    model = LateFusion({"a": Identity(2), "v": Identity(3), "t": Identity(1)}, classes=2)
    with torch.no_grad():
        for layer in (model.fusion.head, *model.heads.values()):
            layer.weight.fill_(1.0)
            layer.bias.copy_(torch.tensor([0.0, 1.0]))
    return model


INPUTS = {"a": torch.tensor([[1.0, 2.0]]), "v": torch.tensor([[10.0, 20.0, 30.0]]), "t": torch.tensor([[100.0]])}


def test_logits_by_hand(model: LateFusion) -> None:
    output = model(INPUTS)
    assert output.joint.tolist() == [[163.0, 164.0]]
    assert {name: logits.tolist() for name, logits in output.unimodal.items()} == {
        "a": [[3.0, 4.0]],
        "v": [[60.0, 61.0]],
        "t": [[100.0, 101.0]],
    }
    assert output.features["v"] is INPUTS["v"]


def test_missing_modalities_count_as_zero_features(model: LateFusion) -> None:
    assert model.fusion(INPUTS, present={"a", "t"}).tolist() == [[103.0, 104.0]]
    assert model.fusion(INPUTS, present=set()).tolist() == [[0.0, 1.0]]


def test_inputs_and_masks_are_of_the_models_modalities(model: LateFusion) -> None:
    mask = torch.ones(1, dtype=torch.bool)
    for present in (["a", "smell"], "a", {"a": mask, "smell": mask}):
        with pytest.raises(
            ValueError, match=r"present: expected some of a, v, t, or a mask for each, found '(smell|a)'"
        ):
            model(INPUTS, present)
    with pytest.raises(ValueError, match="present: expected a mask for each of a, v, t, found a"):
        model(INPUTS, {"a": mask})
    with pytest.raises(ValueError, match="inputs lack 'v'; expected each of a, v, t"):
        model({"a": INPUTS["a"]}, present=["a"])


def test_concatenation_follows_the_order_of_the_modalities() -> None:
    fusion = ConcatFusion({"a": 1, "b": 1}, classes=2)
    with torch.no_grad():
        fusion.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        fusion.head.bias.zero_()
    features = {"b": torch.tensor([[7.0]]), "a": torch.tensor([[5.0]])}
    assert fusion(features).tolist() == [[5.0, 7.0]]


def test_partition_names_every_parameter_once() -> None:
    model = build_model({"x": ("vector", (4,)), "y": ("vector", (5,))}, 3, {"x": "mlp", "y": "mlp"})
    encoders, heads = model.partition()
    listed = [p for encoder in encoders.values() for p in encoder.parameters()] + [p for _, p in heads]
    assert len(listed) == len({id(p) for p in listed}) == len(list(model.parameters()))
    assert {name for name, _ in heads} == {
        f"{owner}.{kind}" for owner in ("fusion.head", "heads.x", "heads.y") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("name", "kind", "shape", "width"),
    [
        ("cnn", "image", (3, 28, 28), 64),
        ("pmr", "image", (1, 28, 28), 512),
        ("resnet18", "image", (3, 64, 64), 512),
        ("ResNet18", "spectrogram", (1, 96, 32), 512),
        ("resnet50", "image", (3, 64, 64), 2048),
        ("resnet18", "frames", (2, 3, 64, 64), 512),
        ("mlp", "vector", (7,), 512),
    ],
)
def test_encoders_take_their_kinds(name: str, kind: str, shape: tuple[int, ...], width: int) -> None:
    encoder = build_encoder(name, kind, shape)
    assert encoder.width == width
    assert encoder(torch.randn(3, *shape)).shape == (3, width)


def test_pmr_encoder_has_the_published_layers() -> None:
    """Parameters of the layers in facts, counted by hand for one channel."""
    counted = 2 + (25 * 32 + 32) + (9 * 32 * 32 + 32) + (9 * 32 * 64 + 64) + (9 * 64 * 64 + 64) + (64 * 512 + 512)
    assert sum(p.numel() for p in build_encoder("pmr", "image", (1, 28, 28)).parameters()) == counted


def test_frames_are_averaged() -> None:
    encoder = build_encoder("resnet18", "frames", (3, 3, 64, 64)).eval()
    clip = torch.randn(2, 3, 3, 64, 64)
    with torch.no_grad():
        one_by_one = torch.stack([encoder(clip[:, f]) for f in range(3)]).mean(0)
        assert torch.allclose(encoder(clip), one_by_one, atol=1e-5)


def test_default_encoders() -> None:
    assert default_encoder("image", (3, 28, 28)) == "cnn"
    assert default_encoder("image", (3, 224, 224)) == "resnet18"
    assert default_encoder("spectrogram", (1, 1024, 128)) == "resnet18"
    assert default_encoder("frames", (2, 3, 32, 32)) == "resnet18"
    assert default_encoder("vector", (10,)) == "mlp"


def test_impossible_models_are_refused() -> None:
    with pytest.raises(ModelError, match="unknown encoder 'vit'"):
        build_encoder("vit", "image", (3, 28, 28))
    with pytest.raises(ModelError, match="takes vector, not image"):
        build_encoder("mlp", "image", (3, 28, 28))
    with pytest.raises(ModelError, match="cannot be imported"):
        build_encoder("no.such:Thing", "image", (3, 28, 28))
    with pytest.raises(ModelError, match="two modalities"):
        build_model({"x": ("vector", (4,))}, 3, {"x": "mlp"})
    for name in ("a.b", "joint", "heads", "keys", "training", "_modules", "get", "fromkeys"):
        with pytest.raises(ValueError, match="cannot be called"):
            LateFusion({name: Identity(1), "b": Identity(1)}, 2)
