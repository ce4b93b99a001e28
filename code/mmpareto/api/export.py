"""Export the model of a trained run: ONNX, or a program of torch.export, checked against the model.

The exported model takes inputs [B, ...] of the modalities as the run's readers give them, float32 (bytes scaled to 0 to
1) or int64 token ids, and applies mean and standard deviation itself. A modality of varying length takes values and a
bool mask [B, L]. It computes in float32, also where the run has --amp, and gives the logits of the joint head and of
each modality's own, [B, C]; softmax makes probabilities of them.
"""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.export import Dim

from mmpareto.api.prediction import Predictor
from mmpareto.datasets import Modality
from mmpareto.datasets.base import statistics
from mmpareto.errors import UsageError, UserError
from mmpareto.inputs import VARIABLE, Input, Padded
from mmpareto.json_files import json_text
from mmpareto.models import MultimodalModel
from mmpareto.writing import atomically, write_text

Format = Literal["onnx", "torch_export"]
TOLERANCE = 1e-3  # greatest difference of logits, relative to the greatest logit
_EXAMPLE, _CHECKED = 3, 2  # samples of a batch; PyTorch takes a batch of one for a constant


class ExportError(UserError):
    """A model cannot be exported as requested."""


@dataclass(frozen=True)
class Exported:
    """What `export` made.

    Attributes:
        path: the file.
        inputs: names of its inputs, in their order.
        outputs: names of its outputs, `logits_<head>`, in their order.
        difference: greatest difference of its logits to the model's, relative to the greatest logit; None: not checked,
            because onnxruntime is missing.
    """

    path: Path
    inputs: list[str]
    outputs: list[str]
    difference: float | None


class _Positional(nn.Module):
    """The model with a tensor for each argument, and normalisation.

    Args:
        model: in evaluation mode.
        modalities: in the order of the arguments.
    """

    def __init__(self, model: MultimodalModel, modalities: dict[str, Modality]) -> None:
        super().__init__()
        self.model, self.modalities = model, modalities
        for name, modality in modalities.items():
            mean, std = statistics(modality, 1.0, torch.device("cpu"))
            self.register_buffer(f"mean_{name}", mean)
            self.register_buffer(f"std_{name}", std)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Inputs as `input_names` lists them -> logits of the joint head and of each modality's own."""
        tensors = iter(values)
        inputs: dict[str, Input] = {}
        for name, modality in self.modalities.items():
            value = next(tensors)
            if modality.mean is not None or modality.std is not None:
                value = (value - getattr(self, f"mean_{name}")) / getattr(self, f"std_{name}")
            if modality.kind in VARIABLE:
                mask = next(tensors)
                if modality.kind != "tokens":
                    value = value * mask.view(*mask.shape, *[1] * (value.dim() - 2))
                inputs[name] = Padded(value, mask)
            else:
                inputs[name] = value
        output = self.model(inputs)
        return (output.joint, *(output.unimodal[name] for name in self.modalities))


def input_names(modalities: dict[str, Modality]) -> list[str]:
    """The modalities; after one of varying length stands its mask."""
    names = ([name, f"{name}_mask"] if value.kind in VARIABLE else [name] for name, value in modalities.items())
    return [name for pair in names for name in pair]


def random_inputs(modalities: dict[str, Modality], batch: int, length: int = 5) -> list[Tensor]:
    """Inputs of `batch` samples, in the order of `input_names`; varying lengths are at most `length`."""
    generator = torch.Generator().manual_seed(batch)
    values: list[Tensor] = []
    for modality in modalities.values():
        shape = modality.shape
        if modality.kind not in VARIABLE:
            values.append(torch.rand(batch, *shape, generator=generator))
            continue
        longest = min(length, shape[0])
        mask = torch.arange(longest) < torch.randint(1, longest + 1, (batch, 1), generator=generator)
        mask[0] = True
        if modality.kind == "tokens":
            values += [torch.randint(0, shape[1], (batch, longest), generator=generator) * mask, mask]
        else:
            drawn = torch.rand(batch, longest, *shape[1:], generator=generator)
            values += [drawn * mask.view(batch, longest, *[1] * (drawn.dim() - 2)), mask]
    return values


def export(
    predictor: Predictor, path: str | Path, format: Format = "onnx", *, batch_size: int | None = None
) -> Exported:
    """Export the model of a trained run; all modalities are present. `<path>.json` describes inputs and classes.

    Args:
        predictor: of `load`, on the CPU.
        path: the file to write.
        format: onnx (needs the extra `onnx`), or torch_export: a file of `torch.export.save`.
        batch_size: fixed number of samples a batch; None: any number.

    Raises:
        UsageError: for another format, or a batch size below 1.
        ExportError: where a library is missing, the model cannot be exported, or the exported one differs from it.
    """
    path, modalities = Path(path).expanduser(), predictor.modalities
    if format not in get_args(Format):
        raise UsageError(f"format must be {' or '.join(get_args(Format))}, found {format!r:.50}")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size must be 1 or more, or None for any, found {batch_size}")
    if predictor.device.type != "cpu":
        raise ExportError(f"the model is on {predictor.device}; load it with device='cpu'")
    model = _Positional(predictor.model, modalities).eval()
    names, outputs = input_names(modalities), [f"logits_{head}" for head in ("joint", *modalities)]
    example = tuple(random_inputs(modalities, batch_size or _EXAMPLE))
    dynamic = (tuple(_dynamic(modalities, Dim.STATIC if batch_size else Dim("batch"))),)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            # shapes of which PyTorch cannot prove that they fit are checked when the program runs
            program = torch.export.export(
                model, example, dynamic_shapes=dynamic, prefer_deferred_runtime_asserts_over_guards=True
            )
            with atomically(path) as file:
                if format == "torch_export":
                    torch.export.save(program, file)
                else:
                    _write_onnx(program, example, names, outputs, file)
                file.flush()
                inputs = random_inputs(modalities, batch_size or _CHECKED, length=4)
                difference = _difference(model, inputs, names, Path(file.name), format)
                if difference is not None and not difference <= TOLERANCE:
                    raise ExportError(
                        f"{path} is not written: its logits would differ from the model's by {difference:.1e} of the "
                        f"greatest one, more than {TOLERANCE:g}; try another --format"
                    )
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ExportError(
            f"the model cannot be exported{'' if batch_size else ' for any batch size'} ({type(error).__name__}: "
            f"{lines[0][:200] if lines else ''}); "
            + f"{'leave --batch_size out' if batch_size else 'try a fixed --batch_size'}, or try another --format"
        ) from error
    description = {
        "inputs": {
            name: {
                "kind": value.kind,
                "shape": list(value.shape),
                "dtype": "int64" if value.kind == "tokens" else "float32",
                "range": "bytes scaled to 0 to 1, else as read",
            }
            for name, value in modalities.items()
        },
        "arguments": names,
        "outputs": outputs,
        "classes": predictor.classes,
        "batch_size": batch_size,
    }
    write_text(path.with_name(f"{path.name}.json"), json_text(description))
    return Exported(path, names, outputs, difference)


def _dynamic(modalities: dict[str, Modality], batch: Any) -> list[dict[int, Any]]:
    """Which dimensions of each input may change: `batch`, and the length where it varies."""
    shapes: list[dict[int, Any]] = []
    for modality in modalities.values():
        if modality.kind in VARIABLE:
            shapes += [{0: batch, 1: Dim(f"length_{len(shapes)}")}] * 2
        else:
            shapes.append({0: batch})
    return shapes


def _write_onnx(
    program: torch.export.ExportedProgram, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str], file: Any
) -> None:
    try:
        import onnxscript  # noqa: F401  # what torch.onnx needs
    except ImportError as error:
        raise ExportError(
            "--format onnx needs onnx and onnxscript: pip install '.[onnx]' in the repository's folder"
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    exported = torch.onnx.export(program, example, input_names=inputs, output_names=outputs, dynamo=True, verbose=False)
    assert exported is not None
    file.write(exported.model_proto.SerializeToString())


@torch.no_grad()
def _difference(model: nn.Module, inputs: list[Tensor], names: list[str], path: Path, format: Format) -> float | None:
    """Greatest difference of the logits of a file to the model's, relative to the greatest logit."""
    if format == "torch_export":
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # of a buffer that is only read
            logits = list(torch.export.load(file).module()(*inputs))
    else:
        try:
            import onnxruntime
        except ImportError:
            return None
        feeds = dict(zip(names, (value.numpy() for value in inputs), strict=True))
        try:
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            logits = [torch.from_numpy(value) for value in session.run(None, feeds)]
        except Exception as error:  # its errors have no class in common
            raise RuntimeError(f"onnxruntime: {error}") from error
    expected = torch.cat(model(*inputs))
    return float((expected - torch.cat(logits)).abs().max() / expected.abs().max())
