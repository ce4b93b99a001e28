"""The engine on a GPU: captured, compiled and mixed-precision steps; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmpareto.arguments import parse
from mmpareto.config import Config
from mmpareto.methods import METHODS, Method, build_method
from mmpareto.methods.scalarizations import GROUP
from mmpareto.models import ARCHITECTURES, MultimodalModel, build_model
from mmpareto.training.optimizer import make_optimizer
from mmpareto.training.setup import make_method, make_step
from mmpareto.training.step import CapturedStep
from mmpareto.training.switches import apply_switches, check_switches, fastest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none"),
]
ABOUT = {"gray": ("image", (1, 28, 28)), "colour": ("image", (3, 28, 28))}
GPU = torch.device("cuda", 0)


ON_DEVICE = [*METHODS.names(group=""), *METHODS.names(group=GROUP)]
CAPTURABLE = [name for name in ON_DEVICE if "cuda_graph" not in build_method(name).refuses]


def ready(name: str, flags: list[str], folder: Path) -> tuple[Method, MultimodalModel, Config]:
    """A method, set up, and its model on the GPU."""
    options = parse(["--gpu_ids", "0", "--batch_size", "16", "--learning_rate", "0.01", *flags], folder)
    check_switches(options.data, options.engine, GPU, 1)
    method = build_method(name)
    torch.manual_seed(0)
    encoders = dict.fromkeys(ABOUT, "cnn")
    architecture = method.architecture or options.model.architecture
    built = build_model(ABOUT, 10, encoders, method.fusion, architecture)
    model = apply_switches(built, options.engine, GPU)
    method.setup(model, 0, 2)
    return method, model, options


def weights_after(
    flags: list[str], steps: int, folder: Path, name: str = "mmpareto", missing: bool = False
) -> torch.Tensor:
    """The weights after some steps on batches of 16, the last one smaller, with a decay of the learning rate.

    With `missing` a third of the samples lacks the first modality.

    A bias in front of batch norm has no gradient but rounding errors. Adam with its own eps of 1e-8 takes steps of full
    length in their direction; a larger eps keeps them small. On a CPU, plain against channels_last: 0.048 of the way
    with 1e-8, 4.4e-5 with 1e-3, and 0.14 where a step is left out.
    """
    method, model, options = ready(name, flags, folder)
    optimizer, _ = make_optimizer(model, options.optim, options.engine.cuda_graph)
    for group in optimizer.param_groups:
        if "eps" in group:
            group["eps"] = 1e-3
    step = make_step(model, method, optimizer, options.engine, options.optim.clip_grad, GPU)
    assert isinstance(step, CapturedStep) == options.engine.cuda_graph
    generator = torch.Generator().manual_seed(0)
    for number in range(steps):
        size = 16 if number % 5 != 4 else 7
        if number == steps // 2:
            for group in optimizer.param_groups:
                group["lr"] *= 0.1
        inputs = {name: torch.randn(size, *shape, generator=generator).to(GPU) for name, (_, shape) in ABOUT.items()}
        label = torch.randint(10, (size,), generator=generator).to(GPU)
        masks = {"gray": torch.rand(size, generator=generator) > 0.33, "colour": torch.ones(size, dtype=torch.bool)}
        present = {name: mask.to(GPU) for name, mask in masks.items()} if missing else None
        # every sixth step is measured, which a graph of the others does not do
        step(inputs, label, present=present, diagnose=number % 6 == 5)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("reference", "flags", "tolerance"),
    [
        ([], ["--cuda_graph"], 1e-3),
        (["--optimizer", "adamw"], ["--optimizer", "adamw", "--cuda_graph"], 1e-3),
        ([], ["--channels_last"], 1e-2),
        ([], ["--compile"], 1e-2),
        ([], ["--tf32"], 5e-2),  # measured, with MMPareto: 0.018
        ([], ["--amp", "bf16"], 0.2),  # measured, with MMPareto: 0.072
        ([], ["--amp", "fp16"], 0.1),
        (["--amp", "bf16"], ["--amp", "bf16", "--channels_last", "--cuda_graph"], 0.15),  # measured, likewise: 0.051
    ],
)
def test_switches_agree_with_the_plain_path(
    reference: list[str], flags: list[str], tolerance: float, tmp_path: Path
) -> None:
    """The plain sum, since MMPareto's direction jumps where rounding turns the sign of a cosine (0.0038 of the way)."""
    plain, start = (weights_after(reference, steps, tmp_path, "uniform") for steps in (12, 0))
    switched = weights_after(flags, 12, tmp_path, "uniform")
    assert (switched - plain).norm() / (plain - start).norm() < tolerance


@pytest.mark.parametrize("name", CAPTURABLE)
def test_captured_methods_make_the_same_steps(name: str, tmp_path: Path) -> None:
    """State that a graph lost, or changed in a memory of its own, would show after a few replays.

    MMPareto keeps no state. Its direction jumps where rounding turns the sign of a cosine: two runs of the same plain
    path differed by 0.0038 (one H200). It gets five times that; leaving a step out moves them by 0.029 to 0.49 (CPU).
    """
    plain, start = (weights_after([], steps, tmp_path, name) for steps in (12, 0))
    captured = weights_after(["--cuda_graph"], 12, tmp_path, name)
    tolerance = 0.02 if name == "mmpareto" else 1e-3
    assert (captured - plain).norm() / (plain - start).norm() < tolerance


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES.names())
def test_captured_architectures_make_the_same_steps(architecture: str, missing: bool, tmp_path: Path) -> None:
    flags = ["--architecture", architecture]
    start = weights_after(flags, 0, tmp_path)
    plain = weights_after(flags, 12, tmp_path, missing=missing)
    captured = weights_after([*flags, "--cuda_graph"], 12, tmp_path, missing=missing)
    assert (captured - plain).norm() / (plain - start).norm() < 1e-2


def test_fast_is_a_set_that_works(tmp_path: Path) -> None:
    options = parse(["--fast"], tmp_path)
    engine = options.engine.filled(fastest(GPU, 1, make_method(options.method), options.engine))
    check_switches(options.data, engine, GPU, 1)
    assert engine.channels_last
    assert engine.tf32


@pytest.mark.parametrize("name", ON_DEVICE)
def test_a_step_does_not_wait(name: str, tmp_path: Path) -> None:
    torch.cuda.set_sync_debug_mode("default")
    method, model, options = ready(name, [], tmp_path)
    optimizer, _ = make_optimizer(model, options.optim, options.engine.cuda_graph)
    step = make_step(model, method, optimizer, options.engine, options.optim.clip_grad, GPU)
    inputs = {name: torch.randn(16, *shape, device=GPU) for name, (_, shape) in ABOUT.items()}
    label = torch.zeros(16, dtype=torch.int64, device=GPU)
    for _ in range(2):
        step(inputs, label)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(inputs, label)
    finally:
        torch.cuda.set_sync_debug_mode("default")
