"""The engine on a GPU: captured, compiled and mixed-precision steps; skipped where there is none."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from entries.command import train

from mmpareto import runs
from mmpareto.arguments import parse
from mmpareto.config import Config
from mmpareto.datasets import Batch, Modality
from mmpareto.datasets.digits import Digits
from mmpareto.methods import METHODS, Method, build_method
from mmpareto.methods.scalarizations import GROUP
from mmpareto.models import ARCHITECTURES, MultimodalModel, build_model
from mmpareto.runs import RunDirectory
from mmpareto.training import capture
from mmpareto.training.capture import Captured
from mmpareto.training.data import Loader
from mmpareto.training.epochs import EpochRecord, RecordedStep
from mmpareto.training.optimizer import make_optimizer
from mmpareto.training.scoring import Scorer
from mmpareto.training.setup import hold_on_device, make_method, make_step
from mmpareto.training.switches import apply_switches, check_switches, fastest
from mmpareto.training.watch import FiniteWatch, TrainingError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none"),
]
ABOUT = {"gray": ("image", (1, 28, 28)), "colour": ("image", (3, 28, 28))}
ENCODERS = dict.fromkeys(ABOUT, "cnn")
GPU = torch.device("cuda", 0)


ON_DEVICE = [*METHODS.names(group=""), *METHODS.names(group=GROUP)]
CAPTURABLE = [name for name in ON_DEVICE if "cuda_graph" not in build_method(name).refuses]


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's deterministic kernels, chosen without timing them: two runs of the same steps are equal to the bit."""
    switched = apply_switches

    def apply(*arguments: Any) -> MultimodalModel:
        model = switched(*arguments)
        torch.backends.cudnn.benchmark = False
        return model

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setitem(globals(), "apply_switches", apply)


def ready(name: str, flags: list[str], folder: Path) -> tuple[Method, MultimodalModel, Config]:
    """A method, set up, and its model on the GPU."""
    options = parse(["--gpu_ids", "0", "--batch_size", "16", "--learning_rate", "0.01", *flags], folder)
    check_switches(options.data, options.engine, GPU, 1)
    method = build_method(name)
    torch.manual_seed(0)
    architecture = method.architecture or options.model.architecture
    built = build_model(ABOUT, 10, ENCODERS, method.fusion, architecture)
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
    step = recorded(model, method, optimizer, options)
    generator = torch.Generator().manual_seed(0)
    for number in range(steps):
        if number == steps // 2:
            for group in optimizer.param_groups:
                group["lr"] *= 0.1
        # every sixth step is measured, which a graph of the others does not do
        step(batch(16 if number % 5 != 4 else 7, generator, missing), number, diagnose=number % 6 == 5)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def recorded(model: MultimodalModel, method: Method, optimizer: torch.optim.Optimizer, options: Config) -> RecordedStep:
    """The step of a run with these settings."""
    modalities = {name: Modality(kind, shape) for name, (kind, shape) in ABOUT.items()}
    step = make_step(model, method, optimizer, options.engine, options.optim.clip_grad, modalities, GPU)
    record, watch = EpochRecord(list(ABOUT), GPU), FiniteWatch(list(ABOUT), GPU)
    return RecordedStep(step, record, watch, modalities, capture=options.engine.cuda_graph)


def batch(size: int, generator: torch.Generator, missing: bool = False) -> Batch:
    """Noise in pinned memory, as a loader gives it; with `missing` a third of the samples lacks the first modality."""
    inputs = {name: torch.randn(size, *shape, generator=generator).pin_memory() for name, (_, shape) in ABOUT.items()}
    label = torch.randint(10, (size,), generator=generator).pin_memory()
    drawn: Batch = {"inputs": inputs, "label": label, "id": [f"sample {number}" for number in range(size)]}
    gray = torch.rand(size, generator=generator) > 0.33
    if missing:
        drawn["present"] = {"gray": gray, "colour": torch.ones(size, dtype=torch.bool)}
    return drawn


def records(flags: list[str], folder: Path, name: str, broken: int) -> dict[str, Any]:
    """What is recorded of 70 steps of nearly no length, and the message about the first that is not finite."""
    method, model, options = ready(name, [*flags, "--learning_rate", "1e-9"], folder)
    optimizer, _ = make_optimizer(model, options.optim, options.engine.cuda_graph)
    step = recorded(model, method, optimizer, options)
    generator = torch.Generator().manual_seed(0)
    number = 0
    for epoch in (1, 2):
        step.record.reset()
        step.watch.begin(number)
        for position in range(70):  # more than the log keeps before it sums up
            drawn = batch(16 if position % 7 != 6 else 7, generator)
            if number == broken:
                inputs = drawn["inputs"]["gray"]
                assert isinstance(inputs, torch.Tensor)
                inputs[0] = float("nan")
                drawn["id"] = ["the culprit"]
            step(drawn, number, diagnose=number % 3 == 0)
            number += 1
        if number <= broken:
            step.watch.check(epoch)
            scores, gradients = step.record.scores.compute(), step.record.gradients
            names = {
                encoder: method.integrator.parameter_names(module) for encoder, module in model.partition()[0].items()
            }
            kept = {"scores": scores, "gradients": gradients.rows(1), "layers": gradients.layer_rows(1, names)}
    with pytest.raises(TrainingError) as caught:
        step.watch.check(2)
    return kept | {"message": str(caught.value)}


@pytest.mark.parametrize("name", ["uniform", "mmpareto"])
def test_a_captured_step_keeps_the_same_records(name: str, tmp_path: Path) -> None:
    """Of an epoch, after which the same memory records the next one, in which a step breaks."""
    plain, captured = (records(flags, tmp_path, name, 111) for flags in ([], ["--cuda_graph"]))
    assert captured["message"] == plain["message"]
    assert "not finite in step 111 (epoch 2)" in plain["message"]
    assert "the batch held the culprit" in plain["message"]
    for head, values in plain["scores"].items():
        assert captured["scores"][head] == pytest.approx(values, rel=1e-4)
    assert len(plain["gradients"]) == 2 * (70 if name == "mmpareto" else 24)
    for table, keys in (("gradients", ("step", "encoder")), ("layers", ("encoder", "layer", "steps"))):
        assert len(captured[table]) == len(plain[table])
        for ours, theirs in zip(captured[table], plain[table], strict=True):
            assert [ours[key] for key in keys] == [theirs[key] for key in keys]
            assert ours["cosine"] == pytest.approx(theirs["cosine"], abs=1e-2)


@pytest.mark.parametrize(("data_on", "fast"), [("device", True), ("host", True), ("device", False)])
def test_a_run_with_samples_on_the_device(data_on: str, fast: bool, tmp_path: Path) -> None:
    """Three epochs of digits, in a process of their own, against batches from the host in the same precision."""
    common = ("--dataset", "digits", "--epochs", "3", "--learning_rate", "0.05", "--ckpt_path")
    precision = ["--amp", "bf16", "--channels_last", "--tf32"] if fast else []  # what --fast takes, but the graph
    plain = train(*common, tmp_path / "plain", "--data_on", "host", *precision)
    flags = ["--data_on", data_on, *(["--fast"] if fast else [])]
    other = train(*common, tmp_path / "other", *flags)
    assert (plain.returncode, other.returncode) == (0, 0), plain.stderr + other.stderr
    assert ("data on the device" in other.stdout) == (data_on == "device")
    tables = [RunDirectory(tmp_path / folder) for folder in ("plain", "other")]
    first, second = (table.read_csv(runs.GRADIENTS) for table in tables)
    assert [(row["step"], row["encoder"]) for row in first] == [(row["step"], row["encoder"]) for row in second]
    first, second = (table.read_csv(runs.METRICS) for table in tables)
    for ours, theirs in zip(first, second, strict=True):
        assert float(ours["train_loss_joint"]) == pytest.approx(float(theirs["train_loss_joint"]), rel=0.2)


@pytest.mark.parametrize(
    ("reference", "flags", "tolerance"),
    [
        ([], ["--cuda_graph"], 1e-3),
        (["--optimizer", "adamw"], ["--optimizer", "adamw", "--cuda_graph"], 1e-3),
        ([], ["--channels_last"], 1e-2),
        ([], ["--compile"], 1e-2),
        ([], ["--compile", "--cuda_graph"], 1e-2),
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


@pytest.mark.parametrize("name", ["uniform", "mmpareto", "metabalance"])
@pytest.mark.usefixtures("deterministic")
def test_encoders_side_by_side_make_the_steps_of_one_after_the_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, with deterministic kernels. A race would read numbers that are there, only not yet the right ones.

    One encoder has more pieces of a graph than the other: while it goes on, memory of the other is given away.
    """
    monkeypatch.setitem(ENCODERS, "colour", "resnet18")
    side_by_side = [weights_after(["--cuda_graph"], 40, tmp_path, name) for _ in range(3)]
    monkeypatch.setattr(capture, "side_by_side", nullcontext)
    one_by_one = weights_after(["--cuda_graph"], 40, tmp_path, name)
    for weights in side_by_side:
        assert torch.equal(weights, one_by_one)


@pytest.mark.parametrize("name", CAPTURABLE)
def test_captured_methods_score_alike(name: str, tmp_path: Path) -> None:
    """Twice, with other weights the second time; the last batch is smaller."""
    _, model, _ = ready(name, [], tmp_path)
    data = Digits(None, "val")
    hold_on_device("device", [data], GPU)
    loader = Loader(data, 32, shuffle=False, seed=0, workers=0, pin=False)
    plain, captured = (Scorer(model, GPU, capture=capture) for capture in (False, True))
    for _ in range(2):
        expected, scores = plain(loader, combine=True), captured(loader, combine=True)
        for head, values in expected.items():
            assert scores[head] == pytest.approx(values, rel=1e-4)
        assert captured.all_heads.compute() == plain.all_heads.compute()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", CAPTURABLE)
def test_captured_methods_make_the_same_steps(name: str, tmp_path: Path) -> None:
    """To the bit. State that a graph lost, or changed in a memory of its own, would show after a few replays."""
    plain, start = (weights_after([], steps, tmp_path, name) for steps in (12, 0))
    assert not torch.equal(plain, start)
    assert torch.equal(weights_after(["--cuda_graph"], 12, tmp_path, name), plain)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES.names())
def test_captured_architectures_make_the_same_steps(architecture: str, missing: bool, tmp_path: Path) -> None:
    flags = ["--architecture", architecture]
    plain = weights_after(flags, 12, tmp_path, missing=missing)
    assert not torch.equal(plain, weights_after(flags, 0, tmp_path))
    assert torch.equal(weights_after([*flags, "--cuda_graph"], 12, tmp_path, missing=missing), plain)


def test_garbage_of_an_earlier_run_does_not_end_a_capture() -> None:
    """A graph that is freed during a capture would end it."""
    value = torch.zeros(4, device="cuda")

    def collecting(batch: torch.Tensor) -> torch.Tensor:
        if gc.isenabled() and torch.cuda.is_current_stream_capturing():
            gc.collect()  # as the collector may do at any time
        return batch + 1

    def captured() -> Captured[torch.Tensor]:
        run = Captured(collecting)
        for _ in range(Captured.WARM_UP + 1):
            assert torch.equal(run(value), torch.ones_like(value))
        return run

    gc.disable()
    try:
        earlier: list[Any] = [captured()]
        earlier.append(earlier)  # which only the collector frees
        del earlier
    finally:
        gc.enable()
    captured()


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
    step = recorded(model, method, optimizer, options)
    drawn = batch(16, torch.Generator().manual_seed(0))
    for number in range(2):
        step(drawn, number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(drawn, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
