"""Exported models give the logits of the model, whatever the batch size."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmpareto.api import export as exporting
from mmpareto.api.export import ExportError, Format, export, random_inputs
from mmpareto.api.prediction import Predictor
from mmpareto.arguments import parse
from mmpareto.datasets import Modality
from mmpareto.datasets.reading import reader_from
from mmpareto.errors import UsageError
from mmpareto.models import build_model, fusion_maker

SIGHT = Modality("image", (3, 28, 28), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
SENSOR = Modality("vector", (5,))
WORDS = Modality("tokens", (7, 50))
STEPS = Modality("sequence", (7, 3), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


def predictor(
    modalities: dict[str, Modality],
    encoders: dict[str, str],
    architecture: str = "late_fusion",
    fusion: str | None = None,
    **options: Any,
) -> Predictor:
    torch.manual_seed(0)
    about = {name: (modality.kind, modality.shape) for name, modality in modalities.items()}
    model = build_model(
        about, 3, encoders, None if fusion is None else fusion_maker(fusion, {}), architecture=architecture, **options
    )
    config = parse(["--dataset", "digits"], Path("/nowhere"))
    readers = {name: reader_from(None, modality) for name, modality in modalities.items()}
    return Predictor(config, readers, modalities, ["a", "b", "c"], model, 1, torch.device("cpu"))


def needs(format: Format) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript", reason="needs the extra onnx")
        pytest.importorskip("onnxruntime", reason="needs the extra onnx")


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_the_file_gives_the_logits_of_the_model(format: Format, batch_size: int | None, tmp_path: Path) -> None:
    needs(format)
    source = predictor({"sight": SIGHT, "sensor": SENSOR}, {"sight": "cnn", "sensor": "mlp"})
    file = tmp_path / "model"
    exported = export(source, file, format, batch_size=batch_size)
    assert exported.difference is not None
    assert exported.difference < 1e-5
    assert exported.inputs == ["sight", "sensor"]
    assert exported.outputs == ["logits_joint", "logits_sight", "logits_sensor"]
    about = json.loads((tmp_path / "model.json").read_text())
    assert (about["classes"], about["batch_size"]) == (["a", "b", "c"], batch_size)
    bytes_of = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    expected = source.predict(sight=bytes_of, sensor=torch.ones(5)).logits["joint"]
    inputs = [bytes_of.float()[None] / 255, torch.ones(1, 5)]
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file))
        joint = torch.from_numpy(
            session.run(["logits_joint"], dict(zip(exported.inputs, (v.numpy() for v in inputs), strict=True)))[0]
        )
    else:
        joint = torch.export.load(file).module()(*inputs)[0]
    torch.testing.assert_close(joint[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_varying_lengths_have_a_mask(format: Format, tmp_path: Path) -> None:
    needs(format)
    source = predictor({"steps": STEPS, "sensor": SENSOR}, {"steps": "sequence", "sensor": "mlp"})
    exported = export(source, tmp_path / "model", format)
    assert exported.inputs == ["steps", "steps_mask", "sensor"]
    assert exported.difference is not None
    assert exported.difference < 1e-5


NETWORK = {"left eye": {"network": "transformer"}}


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
@pytest.mark.parametrize(
    ("architecture", "fusion", "options", "batch_size"),
    [
        ("late_fusion", "attention", {}, None),
        ("late_fusion", None, {"encoder_options": NETWORK}, None),
        ("late_fusion", None, {"encoder_options": NETWORK}, 4),
        ("mbt", None, {"options": {"token_width": 16, "heads": 2, "layers": 2, "fusion_layer": 1}}, None),
        ("transformer", None, {}, None),
    ],
    ids=["attention", "sequence", "sequence of 4", "mbt", "transformer"],
)
def test_models_with_attention_take_other_batches_and_lengths(
    architecture: str,
    fusion: str | None,
    options: dict[str, Any],
    batch_size: int | None,
    format: Format,
    tmp_path: Path,
) -> None:
    """And a modality's name need not be one of Python's."""
    needs(format)
    kinds = {"left eye": STEPS, "sight": SIGHT, "words": WORDS}
    encoders = {"left eye": "sequence", "sight": "cnn", "words": "text"}
    source = predictor(kinds, encoders, architecture, fusion, **options)
    file = tmp_path / "model"
    exported = export(source, file, format, batch_size=batch_size)
    assert exported.difference is not None
    assert exported.difference < 1e-5
    if format == "onnx":
        return
    module, model = torch.export.load(file).module(), exporting._Positional(source.model, kinds)
    for batch, length in ((1, 7), (5, 3), (2, 1)):
        inputs = random_inputs(kinds, batch_size or batch, length)
        with torch.no_grad():
            expected = model(*inputs)
        for logits, other in zip(module(*inputs), expected, strict=True):
            torch.testing.assert_close(logits, other, rtol=1e-4, atol=1e-5)


def test_a_file_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = predictor({"sight": SIGHT, "sensor": SENSOR}, {"sight": "cnn", "sensor": "mlp"})

    def other(*_: object, **__: object) -> float:
        return 0.5

    monkeypatch.setattr(exporting, "_difference", other)
    with pytest.raises(ExportError, match=r"differ from the model's by 5.0e-01 of the greatest one"):
        export(source, tmp_path / "model", "torch_export")
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    source = predictor({"sight": SIGHT, "sensor": SENSOR}, {"sight": "cnn", "sensor": "mlp"})

    def on_the_host(module: torch.nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output * 2 if output.sum().item() > 0 else output

    source.model.encoders["sensor"].register_forward_hook(on_the_host)
    with pytest.raises(ExportError, match=r"cannot be exported for any batch size .*; try a fixed --batch_size"):
        export(source, tmp_path / "model", "torch_export")
    assert not list(tmp_path.iterdir())


def test_a_model_on_a_gpu_is_loaded_on_the_cpu_first(tmp_path: Path) -> None:
    source = predictor({"sensor": SENSOR, "sight": SIGHT}, {"sight": "cnn", "sensor": "mlp"})
    source.device = torch.device("cuda", 0)
    with pytest.raises(ExportError, match=r"the model is on cuda:0; load it with device='cpu'"):
        export(source, tmp_path / "model", "torch_export")


def test_random_inputs_have_the_form_of_the_modalities() -> None:
    steps, mask, sensor = random_inputs({"steps": STEPS, "sensor": SENSOR}, 4)
    assert steps.shape == (4, 5, 3)
    assert mask[0].all()
    assert not steps[~mask].any()
    assert sensor.shape == (4, 5)


def test_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"pip install '\.\[onnx\]'"):
        export(
            predictor({"sight": SIGHT, "sensor": SENSOR}, {"sight": "cnn", "sensor": "mlp"}), tmp_path / "model.onnx"
        )
    assert not list(tmp_path.iterdir())


def test_what_the_command_refuses_the_function_refuses(tmp_path: Path) -> None:
    source = predictor({"sight": SIGHT, "sensor": SENSOR}, {"sight": "cnn", "sensor": "mlp"})
    with pytest.raises(UsageError, match="format must be onnx or torch_export, found 'pt2'"):
        export(source, tmp_path / "model", "pt2")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch_size must be 1 or more"):
        export(source, tmp_path / "model", "torch_export", batch_size=0)


def test_an_error_of_onnxruntime_is_an_export_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OperatorError(Exception):
        """As those of onnxruntime, which have no class in common."""

    def session(*_: object, **__: object) -> None:
        raise OperatorError("no kernel for Foo")

    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=session))
    monkeypatch.setattr(exporting, "_write_onnx", lambda *_: None)
    source = predictor({"sight": SIGHT, "sensor": SENSOR}, {"sight": "cnn", "sensor": "mlp"})
    with pytest.raises(ExportError, match=r"onnxruntime: no kernel for Foo.* or try another --format"):
        export(source, tmp_path / "model.onnx", "onnx")
