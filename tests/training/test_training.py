"""The batch step, the loader's order and the gradient log, against plain computations."""

from __future__ import annotations

import gc
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from entries.command import refused
from PIL import Image
from torch._dynamo import config as dynamo
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.exc import BackendCompilerFailed
from torch._functorch import config as functorch

from mmpareto import datasets, runs
from mmpareto.arguments import parse
from mmpareto.cli import train as entry
from mmpareto.errors import UsageError
from mmpareto.evaluation.all_heads import AllHeads
from mmpareto.evaluation.scores import Scores
from mmpareto.explanations import explained
from mmpareto.inputs import Padded
from mmpareto.integration import Integrator, MMPareto, OnFeatures, Uniform
from mmpareto.methods import Method, cross_entropies
from mmpareto.models import MultimodalModel, build_model
from mmpareto.training import gradient_log, setup
from mmpareto.training.board import Board
from mmpareto.training.capture import recording
from mmpareto.training.data import Loader, SharedBatches
from mmpareto.training.epochs import EpochRecord, RecordedStep, train_epoch
from mmpareto.training.gradient_log import GradientLog
from mmpareto.training.optimizer import make_optimizer
from mmpareto.training.records import epoch_scalars, integration_summary
from mmpareto.training.scoring import Scorer
from mmpareto.training.setup import make_method, make_step
from mmpareto.training.signals import Interrupted, Signals
from mmpareto.training.step import Step, TrainingStep
from mmpareto.training.switches import check_switches, compiled, fastest
from mmpareto.training.watch import FiniteWatch, TrainingError

ABOUT = {"x": ("vector", (6,)), "y": ("vector", (4,))}


def small(architecture: str = "late_fusion") -> MultimodalModel:
    torch.manual_seed(0)
    return build_model(ABOUT, 3, {"x": "mlp", "y": "mlp"}, None, architecture).double()


def batch(size: int = 5) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = {name: torch.randn(size, *shape, generator=generator).double() for name, (_, shape) in ABOUT.items()}
    return inputs, torch.randint(3, (size,), generator=generator)


def test_clipping_bounds_the_integrated_gradient() -> None:
    inputs, label = batch()
    free, clipped = small(), small()
    for model, norm in ((free, None), (clipped, 1e-3)):
        step = TrainingStep(model, Method(MMPareto()), torch.optim.SGD(model.parameters(), lr=0.0), clip_grad=norm)
        result = step(inputs, label)
    whole = torch.cat([p.grad.flatten() for p in free.parameters()])
    assert result.gradient_norm.item() == pytest.approx(whole.norm().item(), rel=1e-6)  # before clipping
    total = torch.cat([p.grad.flatten() for p in clipped.parameters()]).norm()
    assert total.item() == pytest.approx(1e-3, rel=1e-3)
    ratio = torch.cat([p.grad.flatten() for p in clipped.parameters()]) / whole
    assert torch.allclose(ratio[whole.abs() > 1e-9], ratio[whole.abs() > 1e-9][0], rtol=1e-6)


def loader(seed: int = 0, shuffle: bool = True, workers: int = 0) -> Loader:
    data = datasets.build("digits", None, "val", seed=seed)
    return Loader(data, 32, shuffle=shuffle, seed=seed, workers=workers, pin=False)


def order(loader: Loader, epoch: int) -> list[str]:
    return [clip for part in loader.epoch(epoch) for clip in part["id"]]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = order(loader(), 3)
    assert sorted(first) == sorted(order(loader(shuffle=False), 0))
    assert first == order(loader(), 3) == order(loader(workers=2), 3)
    assert first != order(loader(), 4)
    assert first != order(loader(seed=1), 3)


def test_scores_are_means_over_samples_also_with_a_smaller_last_batch() -> None:
    split = loader(shuffle=False)  # 200 = 6 * 32 + 8
    about = {name: (m.kind, m.shape) for name, m in split.dataset.modalities.items()}
    torch.manual_seed(0)
    model = build_model(about, 10, {"gray": "cnn", "colour": "cnn"})
    got = Scorer(model, torch.device("cpu"))(split)
    samples = [split.dataset[index] for index in range(len(split.dataset))]
    with torch.no_grad():
        output = model.eval()({name: torch.stack([s["inputs"][name] for s in samples]) / 255 for name in about})
    label = torch.tensor(split.dataset.labels)
    for name, logits in {"joint": output.joint, **output.unimodal}.items():
        assert got[name]["loss"] == pytest.approx(F.cross_entropy(logits, label).item(), rel=1e-5)
        assert got[name]["accuracy"] == pytest.approx(100 * np.mean((logits.argmax(1) == label).numpy()), abs=1e-4)


def test_logits_that_are_no_numbers_are_no_right_answers() -> None:
    nothing, label = torch.full((3, 2), float("nan")), torch.tensor([0, 0, 1])
    scores, together = Scores(["x"], torch.device("cpu")), AllHeads(torch.device("cpu"))
    loss = torch.tensor(1.0)
    scores.update(loss, {"x": loss}, nothing, {"x": torch.tensor([[1.0, -torch.inf]] * 3)}, label)
    together.update(nothing, {"x": nothing}, label)
    result = scores.compute()
    assert (result["joint"]["accuracy"], round(result["x"]["accuracy"], 2)) == (0.0, 66.67)
    assert together.compute()["logarithms"]["accuracy"] == 0.0


def test_losses_of_samples_that_lack_a_modality_are_recorded_at_the_precision_of_all_losses() -> None:
    model = small().float()
    inputs, label = batch(6)
    inputs = {name: value.float() for name, value in inputs.items()}
    present = {name: torch.arange(6) != number for number, name in enumerate(inputs)}
    step = TrainingStep(model, Method(Uniform()), torch.optim.SGD(model.parameters(), 0.0), amp=torch.bfloat16)
    done = step(inputs, label, present=present)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(done.joint.float(), label)
    assert done.losses.joint.dtype == torch.float32
    assert done.losses.joint.item() == pytest.approx(expected.item(), abs=1e-6)


def test_scoring_begins_anew() -> None:
    split = loader(shuffle=False)
    model = digits_model(split)
    used, fresh = (Scorer(model, torch.device("cpu")) for _ in range(2))
    used(split, combine=True)
    split.sampler.choose(torch.arange(37))
    assert used(split, combine=True) == fresh(split, combine=True)
    assert used.all_heads.compute() == fresh.all_heads.compute()


def digits_model(split: Loader) -> torch.nn.Module:
    about = {name: (m.kind, m.shape) for name, m in split.dataset.modalities.items()}
    torch.manual_seed(0)
    return build_model(about, 10, {"gray": "cnn", "colour": "cnn"})


def epoch(split: Loader, step: TrainingStep, **options: Any) -> tuple[EpochRecord, FiniteWatch]:
    record = EpochRecord(["gray", "colour"], torch.device("cpu"))
    watch = FiniteWatch(["gray", "colour"], torch.device("cpu"))
    train_epoch(RecordedStep(step, record, watch, split.dataset.modalities), split, 1, **options)
    return record, watch


def test_the_first_step_that_is_not_finite_is_named_with_its_loss_and_clips() -> None:
    split = loader()
    model = digits_model(split)
    step = TrainingStep(model, Method(Uniform()), torch.optim.SGD(model.parameters(), lr=0.1))

    def poison(number: int, done: Step) -> bool:
        if number == 2:
            with torch.no_grad():
                model.heads["gray"].bias.fill_(float("nan"))
        return False

    _, watch = epoch(split, step, after_batch=poison)
    third = order(loader(), 0)[3 * 32 : 3 * 32 + 8]
    with pytest.raises(TrainingError) as caught:
        watch.check(1)
    assert "not finite in step 3 (epoch 1): gray loss, gradient; the batch held " + ", ".join(third) in str(
        caught.value
    )
    assert "and 24 more" in str(caught.value)
    assert (caught.value.epoch, caught.value.step) == (1, 3)


def test_a_step_that_is_not_finite_has_its_number_in_the_run() -> None:
    """In an epoch of 7 batches that was taken up within."""
    split = loader()
    model = digits_model(split)
    step = TrainingStep(model, Method(Uniform()), torch.optim.SGD(model.parameters(), lr=0.1))
    record = EpochRecord(["gray", "colour"], torch.device("cpu"))
    watch = FiniteWatch(["gray", "colour"], torch.device("cpu"))
    record.batches = 3

    def poison(number: int, done: Step) -> bool:
        if number == 11:
            with torch.no_grad():
                model.heads["gray"].bias.fill_(float("nan"))
        return False

    train_epoch(RecordedStep(step, record, watch, split.dataset.modalities), split, 2, after_batch=poison)
    with pytest.raises(TrainingError) as caught:
        watch.check(2)
    assert (caught.value.epoch, caught.value.step) == (2, 12)
    assert "the batch held " + ", ".join(order(loader(), 1)[5 * 32 : 5 * 32 + 8]) in str(caught.value)


def test_gradients_that_overflow_are_seen_where_no_scaler_leaves_them_out() -> None:
    fine, broken = torch.tensor(1.0), torch.tensor(float("inf"))
    for gradients in (True, False):
        watch = FiniteWatch(["a", "b"], torch.device("cpu"), gradients=gradients)
        for step, (norm, clip) in enumerate(((fine, "x"), (broken, "y"), (fine, "z"))):
            watch.update([fine, fine, fine], norm)
            watch.note(step, [clip])
            if step == 0:
                watch.check(1)
        if gradients:
            with pytest.raises(TrainingError, match=r"step 1 \(epoch 1\): gradient; the batch held y"):
                watch.check(1)
        else:
            watch.check(1)


def test_gradients_that_overflow_at_any_scale_end_the_run() -> None:
    fine, broken = torch.tensor(1.0), torch.tensor(float("nan"))
    watch = FiniteWatch(["a", "b"], torch.device("cpu"), gradients=False)
    for norms, ends in (([broken] * 49 + [fine], False), ([broken] * 30, False), ([broken] * 20, True)):
        for norm in norms:
            watch.update([fine, fine, fine], norm)
        if ends:
            with pytest.raises(TrainingError, match="in the last 50 steps"):
                watch.check(1)
        else:
            watch.check(1)


def test_one_pass_methods_are_measured_at_their_interval_without_changing_the_step() -> None:
    """In float64: one pass and two differ by rounding alone, 1e-16 of a gradient, which seven steps amplify little."""
    split = loader()
    start = torch.cat([p.detach().flatten() for p in digits_model(split).parameters()]).double()
    moved = []
    for interval in (0, 3):
        trained = digits_model(split).double()
        for encoder in trained.encoders.values():  # the loader gives float32
            encoder.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        step = TrainingStep(trained, Method(Uniform()), torch.optim.SGD(trained.parameters(), lr=0.01))
        record, _ = epoch(split, step, diagnose_interval=interval)
        rows = record.gradients.rows(1) if interval else []
        moved.append(torch.cat([p.detach().flatten() for p in trained.parameters()]) - start)
        assert [row["step"] for row in rows if row["encoder"] == "gray"] == ([] if interval == 0 else [0, 3, 6])
    assert (moved[1] - moved[0]).norm() / moved[0].norm() < 1e-6


def test_layers_are_counted_over_an_epoch_as_from_the_gradients_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of each step by torch.autograd.grad, cosines in NumPy; broken off and restored on the way."""
    torch.manual_seed(1)
    model = small()
    names = {name: [tensor for tensor, _ in encoder.named_parameters()] for name, encoder in model.encoders.items()}
    step = TrainingStep(model, Method(MMPareto()), torch.optim.SGD(model.parameters(), lr=0.3))
    log = GradientLog()
    cosines: dict[tuple[str, str], list[float]] = {}
    monkeypatch.setattr(gradient_log, "FOLD", 4)
    for number in range(12):
        inputs, _ = batch()
        inputs, label = {k: torch.randn_like(v) for k, v in inputs.items()}, torch.randint(3, (5,))
        loss = cross_entropies(model(inputs), label)
        for encoder, module in model.encoders.items():
            parameters = list(module.parameters())
            pairs = (
                torch.autograd.grad(value, parameters, retain_graph=True)
                for value in (loss.joint, loss.unimodal[encoder])
            )
            for name, a, b in zip(names[encoder], *pairs, strict=True):
                x, y = a.numpy().ravel(), b.numpy().ravel()
                size = np.linalg.norm(x) * np.linalg.norm(y)
                cosines.setdefault((encoder, name), []).append(x @ y / size if size else 0.0)
        log.write(step(inputs, label).diagnostics)
        log.count(number)
        if number == 5:
            state, log = log.state_dict(), GradientLog()
            log.load_state_dict(state, torch.device("cpu"))
    diagnostics = step(inputs, label).diagnostics
    overflow = {k: v._replace(gramians=torch.full_like(v.gramians, float("inf"))) for k, v in diagnostics.items()}
    log.write(overflow)  # in no mean
    log.count(12)
    rows = log.layer_rows(3, names)
    assert [(row["encoder"], row["layer"]) for row in rows] == list(cosines)
    assert {(row["epoch"], row["steps"]) for row in rows} == {(3, 12)}
    assert [row["cosine"] for row in rows] == pytest.approx([np.mean(c) for c in cosines.values()], abs=1e-6)
    assert [row["conflict_rate"] for row in rows] == pytest.approx([np.mean(np.array(c) < 0) for c in cosines.values()])
    assert any(0 < row["conflict_rate"] < 1 for row in rows)


def test_steps_that_a_scaler_leaves_out_are_in_no_mean_of_cosines() -> None:
    model = small().float()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainingStep(model, Method(MMPareto()), optimizer, scaler=scaler)
    log, cosines = GradientLog(), []
    inputs, label = batch()
    for number in range(3):
        done = step({name: 1e3 * value.float() for name, value in inputs.items()}, label)
        log.write(done.diagnostics)
        log.count(number)
        cosines += [float(done.diagnostics[name].cosine) for name in model.encoders]
    assert int(step.overflows) == 1
    rows, count = log.rows(1), len(model.encoders)
    assert [row["step"] for row in rows] == [1] * count + [2] * count
    summary = integration_summary(rows, list(model.encoders))
    means = [(cosines[count + k] + cosines[2 * count + k]) / 2 for k in range(count)]
    assert [of_encoder["mean_cosine"] for of_encoder in summary.values()] == pytest.approx(means, abs=1e-6)


def test_a_record_that_begins_again_is_a_new_one() -> None:
    """Broken off in the middle of a fold; what it has kept of the epoch before must not show."""
    model = small()
    names = {name: [tensor for tensor, _ in encoder.named_parameters()] for name, encoder in model.encoders.items()}
    step = TrainingStep(model, Method(MMPareto()), torch.optim.SGD(model.parameters(), lr=0.3))
    again, new = (EpochRecord(list(model.encoders), torch.device("cpu")) for _ in range(2))
    for number in range(5):
        done = step(*batch())
        if number == 3:
            again.reset()
        for record in (again, new) if number >= 3 else (again,):
            record.scores.update(*done.losses, done.joint, done.unimodal, batch()[1])
            record.gradients.write(done.diagnostics)
            record.gradients.count(number)
    assert [row["step"] for row in again.gradients.rows(2)] == [3] * len(names) + [4] * len(names)
    assert again.gradients.rows(2) == new.gradients.rows(2)
    assert again.gradients.layer_rows(2, names) == new.gradients.layer_rows(2, names)
    assert again.scores.compute() == new.scores.compute()


@pytest.mark.parametrize("method", [Uniform(), MMPareto(), MMPareto(rescale="encoder")])
@pytest.mark.parametrize("pieces", [2, 3, 5])
def test_micro_batches_make_the_whole_batch_s_step(method: Integrator, pieces: int) -> None:
    """Without batch norm, in float64; 5 samples in pieces of unequal size."""
    inputs, label = batch()
    gradients, results = [], []
    for parts in (1, pieces):
        model = small()
        step = TrainingStep(model, Method(method), torch.optim.SGD(model.parameters(), lr=0.1), accumulate=parts)
        results.append(step(inputs, label))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-14)
    assert torch.allclose(results[0].joint, results[1].joint, rtol=1e-12)
    assert results[0].losses.joint.item() == pytest.approx(results[1].losses.joint.item(), rel=1e-12)
    assert results[0].losses.unimodal["x"].item() == pytest.approx(results[1].losses.unimodal["x"].item(), rel=1e-12)


def test_a_scaled_step_is_the_plain_one_and_overflowing_steps_are_left_out() -> None:
    inputs, label = batch()
    inputs = {name: value.float() for name, value in inputs.items()}
    weights, norms = [], []
    for scaled in (False, True):
        model = small().float()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
        step = TrainingStep(
            model, Method(MMPareto()), torch.optim.SGD(model.parameters(), lr=0.1), scaler=scaler, clip_grad=1.0
        )
        done = step(inputs, label)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        norms.append([float(done.gradient_norm), *(float(done.diagnostics[n].joint_norm) for n in ABOUT)])
    assert torch.allclose(*weights, rtol=1e-5, atol=1e-7)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)

    assert scaler is not None
    before = weights[1].clone()
    step({name: value * float("inf") for name, value in inputs.items()}, label)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(before, after)
    assert int(step.overflows) == 1
    assert scaler.get_scale() == 512.0


def test_mixed_precision_agrees_to_its_precision() -> None:
    inputs, label = batch(64)
    inputs = {name: value.float() for name, value in inputs.items()}
    gradients = {}
    for amp in (None, torch.bfloat16):
        model = small().float()
        step = TrainingStep(model, Method(MMPareto()), torch.optim.SGD(model.parameters(), lr=0.1), amp=amp)
        done = step(inputs, label)
        assert done.joint.dtype == (amp or torch.float32)
        gradients[amp] = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert gradients[amp].dtype == torch.float32
    error = (gradients[None] - gradients[torch.bfloat16]).norm() / gradients[None].norm()
    assert 0 < error < 0.05  # bfloat16 keeps 8 bits


def test_channels_last_agrees() -> None:
    split = loader()
    weights = []
    for last in (False, True):
        model = digits_model(split).double()
        if last:
            model.to(memory_format=torch.channels_last)
        step = TrainingStep(model, Method(MMPareto()), torch.optim.SGD(model.parameters(), lr=0.01))
        data = next(split.epoch(0))
        step({name: value.double() / 255 for name, value in data["inputs"].items()}, data["label"])
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*weights, rtol=1e-9, atol=1e-12)


def test_a_loader_goes_on_at_any_batch() -> None:
    split = loader(workers=2)
    whole = [part["id"] for part in split.epoch(2)]
    for start in (0, 3, len(split)):
        assert [part["id"] for part in split.epoch(2, start)] == whole[start:]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("training", [True, False])
def test_shares_make_up_every_batch(size: int, training: bool) -> None:
    samples, batch_size = 50, 8  # the last batch holds 2: fewer than 3 or 7 processes
    samplers = [
        SharedBatches(samples, batch_size, shuffle=True, seed=1, rank=rank, size=size, training=training)
        for rank in range(size)
    ]
    plain = SharedBatches(samples, batch_size, shuffle=True, seed=1, rank=0, size=1, training=True)
    parts = [list(sampler) for sampler in samplers]
    for number, whole in enumerate(plain):
        counted: list[int] = []
        for sampler, part in zip(samplers, parts, strict=True):
            count, total = sampler.share(number)
            assert total == len(whole)
            if number < len(part):
                assert len(part[number]) == (count or 1)
                counted += part[number][:count]
            else:
                assert count == 0
                assert not training
        assert sorted(counted) == sorted(whole)
    assert not training or all(len(part) == len(plain) for part in parts)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], [1, 1, 1, 1, 1, 1]),
        (["--lr_decay_step", "2"], [1, 1, 0.1, 0.1, 0.01, 0.01]),
        (["--lr_decay_step", "3", "--lr_decay_ratio", "0.5"], [1, 1, 1, 0.5, 0.5, 0.5]),
        (["--lr_schedule", "cosine"], [1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]),
        (["--lr_schedule", "cosine", "--warmup_epochs", "2"], [1 / 3, 2 / 3, 1, 0.8535534, 0.5, 0.1464466]),
        (["--warmup_epochs", "1"], [0.5, 1, 1, 1, 1, 1]),
        (["--warmup_epochs", "2", "--lr_decay_step", "3"], [1 / 3, 2 / 3, 1, 1, 1, 0.1]),
    ],
)
def test_schedules(flags: list[str], expected: list[float], tmp_path: Path) -> None:
    optim = parse(["--epochs", "6", "--learning_rate", "0.2", *flags], tmp_path).optim
    model = small()
    optimizer, schedule = make_optimizer(model, optim)
    rates = []
    for _ in range(6):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.2 * factor for factor in expected], rel=1e-6)


@pytest.mark.parametrize(
    ("device", "flags", "message"),
    [
        ("cpu", ["--tf32"], "--tf32 is a mode of NVIDIA GPUs"),
        ("cpu", ["--cuda_graph"], "--cuda_graph needs an NVIDIA GPU"),
        ("cpu", ["--sync_batchnorm"], "GPUs only"),
        ("cuda", ["--sync_batchnorm"], "means nothing to one process"),
        ("cpu", ["--accumulate", "65", "--batch_size", "64"], "every one needs a sample"),
        ("cuda", ["--cuda_graph", "--amp", "fp16"], "take --amp bf16"),
        ("cuda", ["--cuda_graph", "--accumulate", "2"], "leave --accumulate out"),
    ],
)
def test_switches_that_cannot_work_are_refused_with_the_reason(
    device: str, flags: list[str], message: str, tmp_path: Path
) -> None:
    config = parse(flags, tmp_path)
    with pytest.raises(UsageError, match=message):
        check_switches(config.data, config.engine, torch.device(device), 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "nash_mtl", "--cuda_graph"], "--cuda_graph with --method nash_mtl: its weights are computed on"),
        (["--method", "ogm_ge", "--cuda_graph"], "--cuda_graph with --method ogm_ge: its noise"),
        (["--method", "agm", "--accumulate", "2"], "--accumulate with --method agm: its coefficients"),
        (["--method", "pmr", "--accumulate", "2"], "--accumulate with --method pmr: its coefficients"),
        (["--method", "gradnorm", "--amp", "fp16"], "--amp fp16 with --method gradnorm: .* take --amp bf16"),
        (["--method", "gradnorm", "--compile"], "--compile with --method gradnorm: it takes gradients"),
        (["--method", "ogm", "--method_options", "alpha=-1"], "alpha must be a finite number"),
        (["--method", "ogm", "--method_options", "alpha=big"], "alpha: expected a number, found 'big'"),
        (["--method", "mslr", "--method_options", "factors=gray"], "expected NAME:VALUE"),
    ],
)
def test_methods_refuse_what_they_cannot_do_with_the_reason(flags: list[str], message: str, tmp_path: Path) -> None:
    def make() -> None:
        config = parse(flags, tmp_path)
        make_method(config.method, config.engine)

    with pytest.raises(UsageError, match=message):
        make()


def test_fast_fills_in_what_is_off_and_keeps_what_was_asked_for(tmp_path: Path) -> None:
    config = parse(["--fast", "--amp", "fp16"], tmp_path)
    filled = config.engine.filled({"amp": "bf16", "channels_last": True})
    assert (filled.amp, filled.channels_last) == ("fp16", True)
    on_cpu = fastest(torch.device("cpu"), 1, make_method(config.method), config.engine)
    assert on_cpu["channels_last"] is True
    check_switches(config.data, config.engine.filled(on_cpu), torch.device("cpu"), 1)


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize(
    ("flags", "captured"),
    [
        ([], True),
        (["--method", "pcgrad"], False),
        (["--method", "ogm_ge"], False),
        (["--method", "gradnorm"], True),
        (["--compile"], True),
        (["--accumulate", "2"], False),
        (["--amp", "fp16"], False),
    ],
)
def test_fast_chooses_nothing_that_the_method_or_another_flag_refuses(
    bf16: bool, flags: list[str], captured: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    config = parse(["--fast", *flags], tmp_path)
    engine = config.engine.filled(fastest(torch.device("cuda"), 1, make_method(config.method), config.engine))
    assert engine.cuda_graph == (captured and bf16)
    assert engine.tf32
    check_switches(config.data, engine, torch.device("cuda"), 1)
    make_method(config.method, engine)


def test_adam_can_be_captured_where_the_step_is(tmp_path: Path) -> None:
    for flags in ([], ["--cuda_graph"]):
        config = parse(["--optimizer", "adam", *flags], tmp_path)
        optimizer, _ = make_optimizer(small(), config.optim, config.engine.cuda_graph)
        assert [group["capturable"] for group in optimizer.param_groups] == [bool(flags)] * 3


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.nn.Module]]:
    """The graphs that torch.compile compiles, by autograd's ahead-of-time tracing: no C++ compiler is needed."""
    torch._dynamo.reset()
    compile_, found = torch.compile, list[torch.nn.Module]()

    def backend(graph: torch.nn.Module, examples: list[torch.Tensor]) -> Any:
        found.append(graph)
        return aot_eager(graph, examples)

    monkeypatch.setattr(torch, "compile", lambda module, dynamic: compile_(module, dynamic=dynamic, backend=backend))
    with functorch.patch(donated_buffer=True), dynamo.patch(recompile_limit=8):
        yield found


@pytest.mark.parametrize(
    ("architecture", "integrator", "count"),
    [
        ("late_fusion", MMPareto(), 10),  # of each encoder, for each size of the batch
        ("late_fusion", OnFeatures(MMPareto()), 10),
        ("transformer", MMPareto(), 5),  # of the whole model
    ],
)
def test_a_compiled_forward_pass_makes_the_same_step(
    architecture: str, integrator: Integrator, count: int, graphs: list[torch.nn.Module], tmp_path: Path
) -> None:
    """The first of two backward passes must not give buffers away."""
    weights = []
    for flags in ([], ["--compile"]):
        model = small(architecture)
        step = make_step(
            model,
            Method(integrator),
            torch.optim.SGD(model.parameters(), lr=0.1),
            parse(["--gpu_ids", "cpu", *flags], tmp_path).engine,
            None,
            {name: datasets.Modality(kind, shape) for name, (kind, shape) in ABOUT.items()},
            torch.device("cpu"),
        )
        for size in (5, 4, 3, 2, 6, 5):
            step(*batch(size))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*weights, rtol=1e-10, atol=1e-13)
    assert len(graphs) == count
    with torch.no_grad():
        model.eval()(batch()[0])  # scoring does not wait for a compiler
    assert len(graphs) == count


def test_flags_reach_the_step(tmp_path: Path) -> None:
    config = parse(["--gpu_ids", "cpu", "--clip_grad", "0.25", "--accumulate", "3", "--amp", "bf16"], tmp_path)
    model = small()
    step = make_step(
        model,
        Method(Uniform()),
        torch.optim.SGD(model.parameters(), 0.1),
        config.engine,
        config.optim.clip_grad,
        {},
        torch.device("cpu"),
    )
    assert (step.clip_grad, step.accumulate, step.amp, step.scaler) == (0.25, 3, torch.bfloat16, None)


def test_sequences_of_all_lengths_share_compiled_code(graphs: list[torch.nn.Module]) -> None:
    about = {"sensor": ("sequence", (12, 6)), "mean": ("vector", (4,))}
    model = build_model(about, 3, {"sensor": "sequence", "mean": "mlp"})
    forward = compiled(model, {name: kind for name, (kind, _) in about.items()})
    for length in (5, 7, 9, 4, 8):
        sensor = Padded(torch.randn(4, length, 6), torch.ones(4, length, dtype=torch.bool))
        inputs = {"sensor": sensor, "mean": torch.randn(4, 4)}
        assert torch.allclose(forward(inputs).joint, model(inputs).joint, atol=1e-6)
    assert len(graphs) == 3  # the first length, all others, the mean


def test_no_garbage_is_collected_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "graph", lambda *arguments, **options: nullcontext())
    graph = object()
    with recording(graph):
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), recording(graph):
        raise ZeroDivisionError
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "try fewer samples; then this"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: try"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "process that loads data died"),
        (torch.distributed.DistNetworkError("Connection reset by peer"), "another process of the job ended"),
        (PermissionError(13, "Permission denied", "/home/igloo/x.csv"), None),
        (BackendCompilerFailed(print, RuntimeError("out of resource: shared memory"), None), "leave --compile out"),
        (
            RuntimeError("unable to write to file </torch_7_8>: No space left on device (28)"),
            "--num_workers (0 needs none)",
        ),
        (OSError(28, "No space left on device"), "a disk is full"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "/dev/shm"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (BackendCompilerFailed(print, RuntimeError("C++ compile error"), None), "leave --compile out"),
        (OSError(28, "No space left on device", "runs/x"), None),  # of a disk: the file is named
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_errors_that_are_no_fault_of_the_program_are_explained(error: Exception, message: str | None) -> None:
    explanation = explained(error, "fewer samples", "then this")
    if message is None:
        assert explanation is None
    else:
        assert explanation is not None
        assert message in explanation
        assert "then this" in explanation
        assert "\n" not in explanation


def test_a_lost_connection_is_another_process_s_end_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("[../gloo/pair.cc:1] Connection closed by peer")
    for size, message in (("1", "None"), ("2", "another process of the job ended")):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert message in str(explained(error, "fewer samples", "then this"))


def test_the_way_to_continue_depends_on_the_checkpoint(tmp_path: Path) -> None:
    config = parse(["--ckpt_path", str(tmp_path)], tmp_path)
    assert "no checkpoint was written yet" in entry.how_to_continue(config)
    (tmp_path / "last.pt").touch()
    assert f"the last checkpoint in {tmp_path} is whole" in entry.how_to_continue(config)


def test_a_run_out_of_memory_says_what_to_try(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("mmpareto.training.run.run_training", full)
    printed = refused(entry.main, "--accumulate", "2", "--batch_size", "32", "--ckpt_path", tmp_path)
    assert "out of memory: try --accumulate 4" in printed
    assert "a --batch_size below 32; no checkpoint was written yet" in printed
    assert len(printed.splitlines()) == 1


def test_the_state_of_the_code_includes_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "code"
    (code / "mmpareto").mkdir(parents=True)
    monkeypatch.setattr(runs, "CODE", code)
    assert runs.environment(torch.device("cpu"))["git"] == {"commit": None, "changed": None}  # no repository
    (code / "train.py").write_text("one")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "code"], ["commit", "-qm", "One"]):
        subprocess.run([*git, *command], check=True)
    assert runs.environment(torch.device("cpu"))["git"]["changed"] is False
    (code / "train.py").write_text("two")
    assert runs.environment(torch.device("cpu"))["git"]["changed"] is True


def test_a_last_batch_of_one_sample_is_explained() -> None:
    with pytest.raises(ValueError) as caught:
        torch.nn.BatchNorm2d(3).train()(torch.zeros(1, 3, 1, 1))  # what remains of 32 x 32 pixels in a ResNet
    explanation = explained(caught.value, "", "")
    assert explanation is not None
    assert "take another --batch_size" in explanation


def test_curves_are_written_and_those_of_a_lost_part_are_purged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Board(tmp_path, 0, {}) as board:
        for step in range(4):
            board.scalars({"a": float(step), "b": None}, step)
    time.sleep(1.1)  # event files are named by the second
    with Board(tmp_path, 2, {}) as board:
        board.scalars({"a": 20.0}, 2)
        Image.new("RGB", (4, 3), (255, 0, 0)).save(tmp_path / "x.png")
        board.picture("x", tmp_path / "x.png", 3)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(0, 0.0), (1, 1.0), (2, 20.0)]
    assert events.Tags()["scalars"] == ["a"]
    assert (events.Images("x")[0].width, events.Images("x")[0].height) == (4, 3)


def test_curves_that_cannot_be_written_end_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Board(tmp_path, 0, {}) as board:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # as a full disk: the event file ends there
        try:
            for step in range(200):
                board.scalars({"a": 1.0}, step)
            Image.new("RGB", (4, 3)).save(tmp_path / "x.png")
            board.picture("x", tmp_path / "x.png", 3)
            board._try("TensorBoard", board._writer.flush)  # its thread has met the limit by now
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capfd.readouterr().err
    assert said.count("curves for TensorBoard cannot be written ([Errno 27] File too large)") == 1
    assert len(said.splitlines()) == 1


def test_signals_act_at_once_before_training_and_wait_for_a_safe_point_within(monkeypatch: pytest.MonkeyPatch) -> None:
    with Signals() as signals, pytest.raises(Interrupted, match="SIGHUP"):
        signal.raise_signal(signal.SIGHUP)
    with pytest.raises(Interrupted, match="SIGHUP"):
        signals.defer()
    with Signals() as signals:
        signals.defer()
        for _ in range(3):  # torchrun passes on what the terminal has already sent
            signal.raise_signal(signal.SIGTERM)
        assert signals.number == signal.SIGTERM
        monkeypatch.setattr(Signals, "REPEAT", -1.0)
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(signal.SIGTERM)
    assert caught.value.again
    assert not isinstance(caught.value, Exception)  # no handler of errors may take it for one


def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_weights_and_biases_is_asked_for_by_name_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert entry.main(["--wandb", "--ckpt_path", str(tmp_path / "run")]) == 2
    assert "pip install wandb" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_and_biases_gets_the_same_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with the three calls that are used."""
    calls: list[tuple[str, Any]] = []
    run = SimpleNamespace(
        log=lambda values: calls.append(("log", values)), finish=lambda exit_code: calls.append(("finish", exit_code))
    )

    def init(**named: Any) -> SimpleNamespace:
        calls.append(("init", named))
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    config = {"dataset": "twoview", "method": "uniform", "random_seed": 3}
    for _ in range(2):  # a resumed run goes on under its name
        with Board(tmp_path, 0, config, "project") as board:
            board.scalars({"a": 1.0, "b": None}, 7)
    first, second = (named for name, named in calls if name == "init")
    assert first["id"] == second["id"]
    assert (first["project"], first["config"], first["resume"]) == ("project", config, "allow")
    assert (first["group"], first["name"]) == ("twoview uniform", "uniform seed 3")
    assert calls[1:3] == [("log", {"a": 1.0, "trainer/step": 7}), ("finish", 0)]


@pytest.mark.slow
def test_weights_and_biases_keeps_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    run.mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "x.png")
    with Board(run, 0, {"dataset": "twoview", "method": "uniform", "random_seed": 3}, "balance") as board:
        board.scalars({"val/accuracy/joint": 71.0}, 7)
        board.picture("gradients", tmp_path / "x.png", 7)
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")  # records of protocol buffers, names in plain text
    content = file.read_bytes()
    for name in (
        b"val/accuracy/joint",
        b"trainer/step",
        b"gradients",
        b"balance",
        b"uniform seed 3",
        b"twoview uniform",
    ):
        assert name in content
    assert len(list(run.glob("wandb/offline-run-*/files/media/images/gradients*.png"))) == 1


def test_curves_are_grouped_by_what_they_measure() -> None:
    row = {"train_loss_joint": 1.0, "val_accuracy_left_hand": 2.0, "conflict_rate_joint_angle": None}
    row |= {"mean_cosine_left_hand": 3.0, "method_loss_weight": 4.0, "test_accuracy_joint": 5.0, "learning_rate": 6.0}
    assert epoch_scalars(row) == {
        "train/loss/joint": 1.0,
        "val/accuracy/left_hand": 2.0,
        "integration/conflict_rate/joint_angle": None,
        "integration/mean_cosine/left_hand": 3.0,
        "method/loss_weight": 4.0,
        "test/accuracy/joint": 5.0,
        "epoch/learning_rate": 6.0,
    }


def test_a_trained_model_is_made_without_its_routine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run of nash_mtl can be evaluated where cvxpy is missing; one of mmcosine needs its method's fusion."""

    def missing(*named: Any) -> None:
        raise UsageError("not installed")

    monkeypatch.setattr(setup, "make_method", missing)
    data, device = datasets.build("digits", None, "val"), torch.device("cpu")
    model, _ = setup.make_model(parse(["--method", "nash_mtl"], tmp_path), data, device)
    assert type(model.fusion).__name__ == "ConcatFusion"
    with pytest.raises(UsageError, match="not installed"):
        setup.make_model(parse(["--method", "mmcosine"], tmp_path), data, device)
