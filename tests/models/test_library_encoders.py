"""Encoders of transformers and torchaudio, with tiny models that the tests build and save themselves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmpareto.inputs import Padded
from mmpareto.models import ENCODERS, ModelError, build_encoder
from mmpareto.models.encoders.base import Preprocess

LAYERS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
LENGTHS = (400, 90, 233)


def bert() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers, an extra, is not installed")
    return transformers.BertConfig(vocab_size=30, max_position_embeddings=40, pad_token_id=3, **LAYERS)


def vit() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers, an extra, is not installed")
    return transformers.ViTConfig(image_size=32, patch_size=8, **LAYERS)


def resnet() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers, an extra, is not installed")
    return transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")


def wav2vec2() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers, an extra, is not installed")
    return transformers.Wav2Vec2Config(
        **LAYERS, conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(5, 2), num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, feat_extract_norm="layer", do_stable_layer_norm=True,
    )  # fmt: skip


def saved(config: Any, folder: Path) -> Any:
    """A model with random weights, which is in the folder too."""
    import transformers

    torch.manual_seed(0)
    network = transformers.AutoModel.from_config(config).eval()
    network.save_pretrained(folder)
    return network


def padded(samples: list[Tensor]) -> Padded:
    values = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)
    return Padded(values, torch.arange(values.shape[1]) < torch.tensor([[len(sample)] for sample in samples]))


def waveforms() -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(length, generator=random) for length in LENGTHS]


def check_alone_and_together(encoder: Any, samples: list[Tensor]) -> None:
    """A batch gives what its samples give alone, and its tokens are pooled by their mask."""
    together = padded(samples)
    with torch.no_grad():
        tokens, mask = encoder.tokens(together)
        features = encoder(together)
        torch.testing.assert_close(encoder.pool(tokens, mask), features)
        for number, sample in enumerate(samples):
            alone, none = encoder.tokens(sample[None])
            assert none is None
            assert mask[number].sum() == alone.shape[1]
            torch.testing.assert_close(tokens[number, : alone.shape[1]], alone[0], atol=2e-6, rtol=1e-5)
            torch.testing.assert_close(encoder(sample[None])[0], features[number], atol=2e-6, rtol=1e-5)


# transformers


def test_text_models(tmp_path: Path) -> None:
    network = saved(bert(), tmp_path)
    encoder: Any = build_encoder(f"hf:{tmp_path}", "tokens", (9, 30)).eval()
    assert encoder.width == 16
    random = torch.Generator().manual_seed(0)
    samples = [torch.randint(4, 30, (length,), generator=random) for length in (9, 4, 6)]
    with torch.no_grad():
        expected = network(input_ids=samples[0][None]).last_hidden_state
        torch.testing.assert_close(encoder.tokens(samples[0][None])[0], expected)
        torch.testing.assert_close(encoder(samples[0][None]), expected.mean(1))
    check_alone_and_together(encoder, samples)
    first: Any = build_encoder(f"hf:{tmp_path}", "tokens", (9, 30), {"pooling": "cls"}).eval()
    with torch.no_grad():
        torch.testing.assert_close(first(samples[0][None]), expected[:, 0])
    trainable = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trainable
    encoder.train()(padded(samples)).square().sum().backward()
    reached = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert reached == trainable  # the pooler, which nothing reads, does not count as trainable


def test_a_restored_text_model_needs_no_folder(tmp_path: Path) -> None:
    network = saved(bert(), tmp_path / "bert")
    first: Any = build_encoder(f"hf:{tmp_path / 'bert'}", "tokens", (9, 30))
    for file in (tmp_path / "bert").iterdir():
        file.unlink()
    again: Any = build_encoder(
        f"hf:{tmp_path / 'bert'}", "tokens", (9, 30), load=False, configuration=first.configuration
    )
    assert not torch.equal(again.network.embeddings.word_embeddings.weight, network.embeddings.word_embeddings.weight)
    with pytest.raises(ModelError, match="the run lacks the configuration of its encoder"):  # it downloads nothing
        build_encoder(f"hf:{tmp_path / 'bert'}", "tokens", (9, 30), load=False)
    again.load_state_dict(first.state_dict())
    ids = torch.randint(30, (2, 9))
    with torch.no_grad():
        assert torch.equal(first.eval()(ids), again.eval()(ids))


@pytest.mark.parametrize("config", [vit, resnet])
def test_vision_models(config: Any, tmp_path: Path) -> None:
    network = saved(config(), tmp_path)
    import transformers

    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.6]).save_pretrained(
        tmp_path
    )
    encoder: Any = build_encoder(f"hf:{tmp_path}", "image", (3, 32, 32)).eval()
    assert encoder.preprocess.size == (32, 32)
    assert encoder.preprocess.mean == (0.1, 0.2, 0.6)
    clip: Any = build_encoder(f"hf:{tmp_path}", "frames", (2, 1, 20, 32)).eval()
    assert clip.preprocess.mean == pytest.approx((0.3,))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = network(pixel_values=x).last_hidden_state
        states = states if states.dim() == 3 else states.flatten(2).transpose(1, 2)
        torch.testing.assert_close(encoder.tokens(x)[0], states)
        torch.testing.assert_close(encoder(x), states.mean(1))
        gray = x[:, :1].repeat(1, 3, 1, 1)
        torch.testing.assert_close(clip(x[:, None, :1].expand(-1, 2, -1, -1, -1)), encoder(gray))
        assert clip.tokens(torch.randn(3, 2, 1, 20, 32))[0].shape == (3, 2 * states.shape[1], 16)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_frames_are_pooled_one_by_one(pooling: str, tmp_path: Path) -> None:
    saved(vit(), tmp_path)
    encoder: Any = build_encoder(f"hf:{tmp_path}", "frames", (3, 3, 32, 32), {"pooling": pooling}).eval()
    image: Any = build_encoder(f"hf:{tmp_path}", "image", (3, 32, 32), {"pooling": pooling}).eval()
    x = torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), torch.stack([image(x[:, f]) for f in range(3)]).mean(0))


def test_a_restored_vision_model_keeps_what_its_processor_said(tmp_path: Path) -> None:
    """Segformer's size and MobileViT's order of channels are in the processor alone."""
    transformers = pytest.importorskip("transformers", reason="transformers, an extra, is not installed")
    small: dict[str, Any] = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4}
    network = saved(transformers.SegformerConfig(**small, decoder_hidden_size=8), tmp_path)
    processor = transformers.SegformerImageProcessor(size={"height": 64, "width": 32}, image_mean=[0.1, 0.2, 0.6])
    processor.save_pretrained(tmp_path)
    first: Any = build_encoder(f"hf:{tmp_path}", "image", (3, 20, 20)).eval()
    assert first.preprocess.size == (64, 32)
    configuration = json.loads(json.dumps(first.configuration))
    name = f"hf:{tmp_path / 'gone'}"
    again: Any = build_encoder(name, "image", (3, 20, 20), load=False, configuration=configuration).eval()
    assert again.preprocess == first.preprocess
    assert again.configuration == configuration
    again.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(again(x), first(x))
        large = nn.functional.interpolate(x, (64, 32), mode="bilinear", align_corners=False, antialias=True)
        states = network(pixel_values=large).last_hidden_state.flatten(2)
        torch.testing.assert_close(first(x), states.mean(2))
    older = {key: configuration[key] for key in ("model", "normalise")}
    assert build_encoder(name, "image", (3, 20, 20), load=False, configuration=older).preprocess == Preprocess()


def test_a_processor_that_does_not_normalise_and_flips_the_channels(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers, an extra, is not installed")
    config = transformers.MobileViTConfig(
        hidden_sizes=[8] * 3, neck_hidden_sizes=[8] * 7, num_attention_heads=1, image_size=32
    )
    network = saved(config, tmp_path)
    without: Any = build_encoder(f"hf:{tmp_path}", "image", (3, 32, 32))
    assert without.preprocess.mean is None  # nothing says how its images are normalised
    transformers.MobileViTImageProcessor().save_pretrained(tmp_path)
    first: Any = build_encoder(f"hf:{tmp_path}", "image", (3, 32, 32)).eval()
    assert (first.preprocess.mean, first.preprocess.std) == ((0.0,) * 3, (1.0,) * 3)
    again: Any = build_encoder("hf:x", "image", (3, 32, 32), load=False, configuration=first.configuration).eval()
    again.load_state_dict(first.state_dict())
    assert again.preprocess == first.preprocess
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        states = network(pixel_values=x[:, [2, 1, 0]]).last_hidden_state.flatten(2).transpose(1, 2)
        torch.testing.assert_close(first.tokens(x)[0], states)
        assert torch.equal(again(x), first(x))


def test_the_vision_part_of_a_model_of_images_and_text(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers, an extra, is not installed")
    vision = transformers.CLIPVisionConfig(image_size=32, patch_size=8, **LAYERS)
    text = transformers.CLIPTextConfig(vocab_size=30, max_position_embeddings=12, **LAYERS)
    both = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    network = saved(both, tmp_path)
    images: Any = build_encoder(f"hf:{tmp_path}", "image", (3, 32, 32)).eval()
    texts: Any = build_encoder(f"hf:{tmp_path}", "tokens", (12, 30)).eval()
    x, ids = torch.randn(2, 3, 32, 32), torch.randint(30, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(images.tokens(x)[0], network.vision_model(pixel_values=x).last_hidden_state)
        torch.testing.assert_close(texts.tokens(ids)[0], network.text_model(input_ids=ids).last_hidden_state)


def test_speech_models(tmp_path: Path) -> None:
    network = saved(wav2vec2(), tmp_path)
    import transformers

    transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(tmp_path)
    encoder: Any = build_encoder(f"hf:{tmp_path}", "waveform", (400,)).eval()
    assert encoder.normalise
    samples = waveforms()
    x = 3 * samples[0] + 1
    with torch.no_grad():
        expected = network(input_values=((x - x.mean()) / x.std(correction=0))[None]).last_hidden_state
        torch.testing.assert_close(encoder.tokens(x[None])[0], expected, atol=1e-4, rtol=1e-4)
        quiet = 0.001 * samples[0]  # whose variance is near the extractor's epsilon
        extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
        given = torch.tensor(np.array(extractor(quiet.numpy(), sampling_rate=16000).input_values))
        torch.testing.assert_close(encoder.tokens(quiet[None])[0], network(input_values=given).last_hidden_state)
    check_alone_and_together(encoder, samples)
    encoder.train()(padded(samples)).square().sum().backward()  # SpecAugment would refuse so short a sample
    for pooling in ("mean", "max"):  # a clip below the first window has no position
        encoder = build_encoder(f"hf:{tmp_path}", "waveform", (400,), {"pooling": pooling}).eval()
        features = encoder(padded([samples[0], samples[1][:8]]))
        torch.testing.assert_close(features[:1], encoder(samples[0][None]), atol=2e-6, rtol=1e-5)
        assert not features[1].any()


def test_weights_from_another_folder_and_random_ones(tmp_path: Path) -> None:
    saved(bert(), tmp_path / "one")
    torch.manual_seed(1)
    other: Any = build_encoder(f"hf:{tmp_path / 'one'}", "tokens", (9, 30), {"weights": "none"})
    other.network.save_pretrained(tmp_path / "other")
    again: Any = build_encoder(f"hf:{tmp_path / 'one'}", "tokens", (9, 30), {"weights": str(tmp_path / "other")})
    ids = torch.randint(30, (2, 9))
    with torch.no_grad():
        assert torch.equal(again.eval()(ids), other.eval()(ids))


def test_the_longest_text_of_a_model_that_counts_positions_from_its_padding(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers, an extra, is not installed")
    saved(transformers.RobertaConfig(vocab_size=30, max_position_embeddings=12, pad_token_id=1, **LAYERS), tmp_path)
    encoder = build_encoder(f"hf:{tmp_path}", "tokens", (10, 30)).eval()
    assert encoder(torch.full((1, 10), 5)).isfinite().all()
    with pytest.raises(ModelError, match="takes 10 tokens at most, the dataset has texts of 11"):
        build_encoder(f"hf:{tmp_path}", "tokens", (11, 30))


def test_models_of_other_forms_are_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers, an extra, is not installed")
    saved(transformers.ASTConfig(num_mel_bins=16, max_length=32, patch_size=8, **LAYERS), tmp_path / "ast")
    with pytest.raises(ModelError, match=r"no model of waveforms .*its input_values are spectrograms"):
        build_encoder(f"hf:{tmp_path / 'ast'}", "waveform", (400,))
    small = {"width_coefficient": 0.1, "depth_coefficient": 0.1, "image_size": 32}
    saved(transformers.EfficientNetConfig(**small), tmp_path / "efficientnet")
    with pytest.raises(ModelError, match="no hidden_size and no hidden_sizes"):
        build_encoder(f"hf:{tmp_path / 'efficientnet'}", "image", (3, 32, 32))
    saved(wav2vec2(), tmp_path / "speech")
    saved(resnet(), tmp_path / "resnet")
    with pytest.raises(ModelError, match=r"pooling=cls: .* has no class token; choose mean or max"):
        build_encoder(f"hf:{tmp_path / 'speech'}", "waveform", (400,), {"pooling": "cls"})
    maps = build_encoder(f"hf:{tmp_path / 'resnet'}", "image", (3, 32, 32), {"pooling": "cls"})
    with pytest.raises(ModelError, match=r"pooling=cls: .* has no class token; choose mean or max"):
        maps(torch.zeros(2, 3, 32, 32))
    encoder: Any = build_encoder(f"hf:{tmp_path / 'resnet'}", "image", (3, 32, 32))
    encoder.width = 8  # as a configuration would say that names another layer
    with pytest.raises(ModelError, match="gives states of width 16, and its configuration says 8"):
        encoder(torch.zeros(2, 3, 32, 32))


def test_what_transformers_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = saved(bert(), tmp_path / "bert")
    name = f"hf:{tmp_path / 'bert'}"
    for shape, message in (((9, 31), "knows 30 tokens, the dataset has 31"), ((41, 30), "takes 40 tokens at most")):
        with pytest.raises(ModelError, match=message):
            build_encoder(name, "tokens", shape)
    with pytest.raises(ModelError, match="takes input_ids; image needs an encoder that takes pixel_values"):
        build_encoder(name, "image", (3, 32, 32))
    with pytest.raises(ModelError, match=r"cannot be made from /no/such .*hf:FOLDER"):
        build_encoder("hf:/no/such", "tokens", (9, 30))
    with pytest.raises(ModelError, match="hf needs the name of a model after a colon"):
        build_encoder("hf", "tokens", (9, 30))
    from safetensors.torch import load_file, save_file

    file = tmp_path / "bert" / "model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "layer.1" not in key}, file, {"format": "pt"})
    assert any("layer.1" in key for key in network.state_dict())
    with pytest.raises(ModelError, match=r"lack 16 tensors of the model, such as encoder\.layer\.1"):
        build_encoder(name, "tokens", (9, 30))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match="needs transformers: pip install transformers"):
        build_encoder(name, "tokens", (9, 30))


# torchaudio


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A bundle TINY in torchaudio.pipelines; the parameters of its model."""
    from torchaudio import pipelines

    layers = {"embed_dim": 16, "num_layers": 2, "num_heads": 2, "ff_interm_features": 32, "layer_norm_first": True}
    convolutions = [(8, 10, 5), (8, 3, 2)]
    parameters = {
        "extractor_mode": "layer_norm", "extractor_conv_layer_config": convolutions, "extractor_conv_bias": False,
        "encoder_projection_dropout": 0.0, "encoder_pos_conv_kernel": 8, "encoder_pos_conv_groups": 2,
        "encoder_attention_dropout": 0.0, "encoder_ff_interm_dropout": 0.0, "encoder_dropout": 0.0,
        "encoder_layer_drop": 0.5, "aux_num_out": 5, **{f"encoder_{key}": value for key, value in layers.items()},
    }  # fmt: skip
    bundle = pipelines.Wav2Vec2Bundle("tiny.pth", parameters, 16000, True, "Wav2Vec2")
    monkeypatch.setattr(pipelines, "TINY", bundle, raising=False)
    return parameters


def test_torchaudio_models(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchaudio import models, pipelines

    torch.manual_seed(0)
    network = models.wav2vec2_model(**tiny).eval()
    monkeypatch.setattr(pipelines.Wav2Vec2Bundle, "get_model", lambda bundle: network)
    encoder: Any = build_encoder("torchaudio:TINY", "waveform", (400,)).eval()
    assert encoder.width == 16
    samples = waveforms()
    x = nn.functional.layer_norm(samples[0], samples[0].shape)[None]
    network.aux = None
    with torch.no_grad():
        torch.testing.assert_close(encoder.tokens(samples[0][None])[0], network(x)[0])
    check_alone_and_together(encoder, samples)
    encoder.train()(padded(samples)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    torch.save(encoder.network.state_dict(), tmp_path / "tiny.pt")
    again: Any = build_encoder("torchaudio:TINY", "waveform", (400,), {"weights": str(tmp_path / "tiny.pt")}).eval()
    with torch.no_grad():
        assert torch.equal(again(x), encoder.eval()(x))


def test_what_torchaudio_cannot_do_is_refused(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from torchaudio import pipelines

    with pytest.raises(ModelError, match=r"no speech model 'NOPE'; known: .*WAV2VEC2_BASE"):
        build_encoder("torchaudio:NOPE", "waveform", (400,))
    with pytest.raises(ModelError, match=r"WAVLM_BASE takes no mask, .*hf:microsoft/wavlm-base"):
        build_encoder("torchaudio:WAVLM_BASE", "waveform", (400,), {"weights": "none"})
    with pytest.raises(ModelError, match="takes waveform, not image"):
        build_encoder("torchaudio:TINY", "image", (3, 8, 8))

    def fail(bundle: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(pipelines.Wav2Vec2Bundle, "get_model", fail)
    with pytest.raises(ModelError, match=r"TINY cannot be downloaded \(OSError: no route to host\).* weights=FILE"):
        build_encoder("torchaudio:TINY", "waveform", (400,))


def test_names_of_libraries_are_no_import_paths() -> None:
    for name in ("hf:org/model", "torchaudio:HUBERT_BASE", "hf:/a/folder"):
        assert not ENCODERS.is_path(name)
        assert ENCODERS.canonical(name) == name
