"""What methods do between epochs, with the engine behind them, against computations written for the test."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor
from training.test_training_processes import CPU, Points
from training.test_training_processes import model as classifier

from mmpareto.arguments import parse
from mmpareto.integration import OneJoint
from mmpareto.methods import Boundary, Method, MethodError, build_method, relearning
from mmpareto.models import MultimodalModel, fusion_maker
from mmpareto.training import boundary_engine
from mmpareto.training.boundary_engine import BoundaryEngine
from mmpareto.training.data import Loader
from mmpareto.training.optimizer import make_optimizer, set_rates
from mmpareto.training.processes import Processes
from mmpareto.training.watch import TrainingError


class Run:
    """A method on the points, up to the boundaries of its epochs."""

    def __init__(self, name: str, epochs: int = 4, samples: int = 29, rate: float = 0.1, **options: Any) -> None:
        self.method: Method = build_method(name, **options)
        self.model: MultimodalModel = classifier(0, self.method.fusion)
        flags = ["--gpu_ids", "cpu", "--batch_size", "8", "--learning_rate", str(rate), "--num_workers", "0"]
        self.config = parse(flags, Path())
        self.data = Points(samples)
        self.method.setup(self.model, 0, epochs)
        self.optimizer, self.schedule = make_optimizer(self.model, self.config.optim)
        self.validation = Points(samples // 2)
        self.engine = BoundaryEngine(
            self.model,
            {"train": self.data, "val": self.validation},
            self.config,
            CPU,
            Processes(),
            lambda: None,
        )
        self.epochs = epochs

    def boundary(self, epoch: int, **validation: float) -> dict[str, float]:
        self.engine.epoch = epoch
        labels = torch.from_numpy(self.data.labels)
        return self.method.boundary(
            Boundary(epoch, self.epochs, validation, labels, self.model, self.optimizer, self.engine)
        )

    def features(self, name: str) -> Tensor:
        with torch.no_grad():
            return self.model.encoders[name](self.data.x[name].float())


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([features[labels == c].mean(0) for c in range(3)])


def test_pmr_s_prototypes_are_class_means_with_momentum() -> None:
    run = Run("pmr", fraction=1.0, momentum=0.25)
    labels = torch.from_numpy(run.data.labels)
    run.boundary(1)
    first = class_means(run.features("x"), labels)
    torch.testing.assert_close(run.method.state["prototypes_x"], first)
    with torch.no_grad():
        run.model.encoders["x"][2].weight.mul_(2.0)
    run.boundary(2)
    expected = 0.25 * first + 0.75 * class_means(run.features("x"), labels)
    torch.testing.assert_close(run.method.state["prototypes_x"], expected)
    assert run.method.state["weights"].tolist() == [1, 0]
    assert run.model.training


def test_pmr_s_unseen_class_has_no_nan_and_its_terms_end() -> None:
    run = Run("pmr", fraction=0.04, mu=0.5, entropy_epochs=1, modulation_epochs=2)  # one of 29 points
    run.boundary(1)
    prototypes = run.method.state["prototypes_y"]
    assert run.method.state["known"].sum() == 1
    assert prototypes.isfinite().all()
    assert (prototypes == prototypes[0]).all()  # where that one point is
    assert run.method.state["weights"].tolist() == [1, 0.5]
    run.boundary(2)
    assert run.method.state["weights"].tolist() == [1, 0]
    run.boundary(3)
    assert run.method.state["weights"].tolist() == [0, 0]


def test_pmr_s_prototype_of_a_class_that_a_draw_lacks() -> None:
    run = Run("pmr", fraction=1.0, momentum=0.25)
    labels = run.data.labels.copy()
    run.boundary(1)
    before = run.method.state["prototypes_x"].clone()
    run.data.labels[labels == 2] = 0
    run.boundary(2)
    assert torch.equal(run.method.state["prototypes_x"][2], before[2])
    run.data.labels[:] = labels
    with torch.no_grad():
        run.model.encoders["x"][2].weight.mul_(2.0)
    run.boundary(3)
    now = class_means(run.features("x"), torch.from_numpy(labels))[2]
    torch.testing.assert_close(run.method.state["prototypes_x"][2], 0.25 * before[2] + 0.75 * now)

    never = Run("pmr", fraction=1.0)
    never.data.labels[never.data.labels == 2] = 0
    never.boundary(1)
    torch.testing.assert_close(never.method.state["prototypes_x"][2], never.features("x").mean(0))


@pytest.mark.parametrize(
    ("name", "options", "epochs", "expected"),
    [
        ("gblending", {"held_out": 0.3}, 3, [3, 3]),  # the unimodal networks, then the joint one
        ("gblending", {"held_out": 0.3, "online": True, "super_epoch": 2}, 5, [2, 2, 2, 2, 1, 1]),
        ("umt", {}, 3, [3]),
        ("g2d", {}, 3, [3]),
    ],
)
def test_copies_train_as_long_as_what_follows(
    name: str, options: dict[str, Any], epochs: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, lengths = Run(name, epochs=epochs, **options), []

    def fit(method: Method, epochs: int, samples: Tensor) -> MultimodalModel:
        lengths.append(epochs)
        return copy.deepcopy(run.model)

    monkeypatch.setattr(run.engine, "fit", fit)
    for epoch in range(1, epochs + 1):
        run.boundary(epoch)
    assert lengths == expected


def test_loaders_of_a_boundary_are_kept_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one would leave its shared memory, and what ends its workers, until the process ends."""
    closed: list[Loader] = []
    monkeypatch.setattr(Loader, "close", lambda self: closed.append(self))
    run = Run("gblending", estimate_epochs=1, held_out=0.3)
    run.boundary(1)
    loaders = dict(run.engine._loaders)
    assert loaders
    run.engine.release()
    assert closed == [loaders[name] for name in ("fit", "losses")]
    run.boundary(2)
    assert run.engine._loaders == loaders


def test_g_blending_takes_no_loss_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("gblending", estimate_epochs=1, held_out=0.3)
    monkeypatch.setattr(run.engine, "losses", lambda model, samples: {"joint": 1.0, "x": float("nan"), "y": 1.0})
    with pytest.raises(MethodError, match="losses that are not finite"):
        run.boundary(1)


def test_ogm_ge_s_noise_of_another_device_is_refused_with_the_reason() -> None:
    method = Run("ogm_ge").method
    state = copy.deepcopy(method.state_dict())
    state["own"]["generator"] = torch.zeros(16, dtype=torch.uint8)  # as long as a GPU's
    with pytest.raises(ValueError, match="on which it was begun"):
        method.load_state_dict(state)


def test_options_that_a_method_cannot_use_are_refused() -> None:
    for name, options in (("ogm", {"alpha": "big"}), ("metabalance", {"relax": "x"})):
        with pytest.raises(ValueError, match="cannot use the options"):
            build_method(name, **options)


@pytest.mark.parametrize("name", ["ogm", "ogm_ge", "agm"])
def test_modulation_ends_after_its_last_epoch(name: str) -> None:
    run = Run(name, modulation_epochs=2)
    results = []
    for epoch in (1, 2, 3):
        run.boundary(epoch)
        results.append(bool(run.method.state["active"]))
    assert results == [True, True, False]


def test_relearning_draws_encoders_back_by_the_gap_of_purities() -> None:
    run = Run("relearning", samples=60, interval=2, times=1)
    first = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.boundary(1)
    with torch.no_grad():
        for p in run.model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    moved = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.boundary(2)
    assert all(torch.equal(p, moved[name]) for name, p in run.model.named_parameters())
    pulls = {}
    for name, encoder in run.model.encoders.items():
        purities = []
        for data in (run.data, run.validation):
            with torch.no_grad():
                features = encoder(data.x[name].float())
            low, high = features.amin(0), features.amax(0)
            scaled = ((features - low) / (high - low) * 2 - 1).float()
            cluster = torch.from_numpy(KMeans(3, n_init=10, random_state=0).fit_predict(scaled)).long()
            labels = torch.from_numpy(data.labels)
            counts = [labels[cluster == k].bincount(minlength=3).max().item() for k in range(3)]
            purities.append(sum(counts) / len(labels))
        pulls[name] = math.tanh(3 * abs(purities[0] - purities[1]))
    run.boundary(3)
    assert run.method.figures() == pytest.approx({f"pull_{name}": pull for name, pull in pulls.items()}, abs=0.15)
    pulls = {name: run.method.figures()[f"pull_{name}"] for name in pulls}
    assert 0 < min(pulls.values()) < max(pulls.values()) < 1
    for name, p in run.model.named_parameters():
        pull = pulls[name.split(".")[1]] if name.startswith("encoders.") else 0.0
        torch.testing.assert_close(p.detach(), pull * first[name] + (1 - pull) * moved[name], rtol=1e-9, atol=1e-12)
    after = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.boundary(5)  # once is all
    assert all(torch.equal(p, after[name]) for name, p in run.model.named_parameters())
    assert run.model.training


def test_relearning_s_pull_is_tanh_of_the_gap_times_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    purities = iter([0.9, 0.5, 0.6, 0.55])  # of x and y: training, then validation
    monkeypatch.setattr(relearning, "purity", lambda *_: next(purities))
    run = Run("relearning", interval=1, strength=3.0)
    run.boundary(1)
    run.boundary(2)
    assert run.method.figures() == pytest.approx({"pull_x": 0.716298, "pull_y": 0.148885}, abs=1e-6)


@pytest.mark.parametrize("name", ["umt", "g2d"])
def test_teachers_learn_from_their_own_losses_alone_and_are_kept(name: str) -> None:
    run = Run(name, epochs=3, samples=24, teacher_epochs=2)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    twin = copy.deepcopy(run.model)
    run.boundary(1)
    assert all(torch.equal(value, before[key]) for key, value in run.model.state_dict().items())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    labels = torch.from_numpy(run.data.labels)
    for epoch in range(2):
        for part in torch.randperm(24, generator=torch.Generator().manual_seed(epoch)).split(8):
            optimizer.zero_grad()
            output = twin({m: x[part].float() for m, x in run.data.x.items()})
            torch.stack([F.cross_entropy(u, labels[part]) for u in output.unimodal.values()]).sum().backward()
            optimizer.step()
    teacher = {key: value.clone() for key, value in run.method.state.items() if key.startswith("teacher.")}
    for key, p in twin.named_parameters():
        if not key.startswith("fusion."):
            torch.testing.assert_close(teacher[f"teacher.{key}"], p.detach(), rtol=1e-9, atol=1e-12)
    run.boundary(2)
    assert all(torch.equal(run.method.state[key], value) for key, value in teacher.items())
    again = Run(name, epochs=3, samples=24, teacher_epochs=2)
    again.method.load_state_dict(run.method.state_dict())
    assert all(torch.equal(again.method._teachers.state_dict()[key.removeprefix("teacher.")], value)  # type: ignore[attr-defined]
               for key, value in teacher.items())  # fmt: skip


def test_held_out_samples_may_have_gradients() -> None:
    run = Run("lfm", samples=40, learned=True)
    outputs, labels = zip(*run.engine.outputs(11, split="val", shared=False, gradients=True), strict=True)
    assert [len(label) for label in labels] == [8, 3]
    assert all(output.joint.requires_grad for output in outputs)
    assert run.model.training
    (output, _), *_ = run.engine.outputs(0.1, split="val")
    assert len(output.joint) == 2
    assert not output.joint.requires_grad


def test_relearning_without_strength_leaves_the_weights() -> None:
    run = Run("relearning", interval=1, strength=0.0)
    run.boundary(1)
    with torch.no_grad():
        for p in run.model.parameters():
            p.mul_(1.7)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.boundary(2)
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())


@pytest.mark.parametrize("name", ["ogm", "agm", "pmr", "mslr", "gblending", "inforeg", "lfm", "opm", "relearning"])
def test_boundaries_change_state_in_place(name: str) -> None:
    """A CUDA graph goes on with the memory that it was captured with."""
    run = Run(name)
    scores = {"joint": 50.0, "x": 60.0, "y": 20.0}
    run.boundary(1)
    memory = {key: value.data_ptr() for key, value in run.method.state.items()}
    run.boundary(2, **scores)
    run.boundary(3, **scores)
    assert {key: value.data_ptr() for key, value in run.method.state.items()} == memory


def test_mslr_s_factors_are_rates_of_groups() -> None:
    run = Run("mslr", factors="x:0.5", window=2)
    assert run.boundary(1) == {"x": 0.5, "y": 1.0}
    assert run.boundary(2, joint=50.0, x=40.0, y=20.0) == {"x": 0.5, "y": 1.0}
    assert run.boundary(3, joint=50.0, x=60.0, y=20.0) == {"x": 0.5, "y": 1.0}
    factors = run.boundary(4, joint=50.0, x=75.0, y=10.0)
    assert factors == pytest.approx({"x": 0.5 * 75 / 50, "y": 0.5})
    set_rates(run.optimizer, run.schedule, factors)
    rates = {group["name"]: group["lr"] for group in run.optimizer.param_groups}
    assert rates == pytest.approx({"x": 0.075, "y": 0.05, "heads": 0.1})
    with pytest.raises(MethodError, match="factors: a value is given for 'sound'; the names are x, y"):
        Run("mslr", factors="sound:2")


@pytest.mark.parametrize("frozen", [False, True])
def test_fine_tuning_turns_once_draws_a_new_head_and_may_freeze(frozen: bool) -> None:
    run = Run("finetune", epochs=4, frozen=frozen)
    old = run.model.fusion.head.weight.detach().clone()
    for epoch in (1, 2):
        run.boundary(epoch)
        assert not run.method.selectable
        assert torch.equal(run.model.fusion.head.weight, old)
    run.optimizer.state[run.model.fusion.head.weight] = {"momentum_buffer": torch.ones(1)}
    run.boundary(3)
    new = run.model.fusion.head.weight.detach().clone()
    assert run.method.selectable
    assert not torch.equal(new, old)
    assert not run.optimizer.state
    assert type(run.method.integrator).__name__ == "OneJoint"
    assert [p.requires_grad for p in run.model.encoders.parameters()] == [not frozen] * 8
    run.model.train()
    assert [encoder.training for encoder in run.model.encoders.values()] == [not frozen] * 2
    run.boundary(4)
    assert torch.equal(run.model.fusion.head.weight, new)
    again = Run("finetune", epochs=4, frozen=frozen)
    again.method.load_state_dict(run.method.state_dict())
    assert again.method.selectable
    assert [p.requires_grad for p in again.model.encoders.parameters()] == [not frozen] * 8
    with pytest.raises(MethodError, match="give more --epochs"):
        Run("finetune", epochs=1)


@pytest.mark.parametrize("fusion", ["concat", "sum", "cosine", "mlp", "lmf", "attention"])
def test_fine_tuning_keeps_nothing_of_a_fusion(fusion: str) -> None:
    run = Run("finetune", epochs=4)
    run.model.fusion = fusion_maker(fusion, {})(run.model.widths, run.model.classes, run.model.heads)
    run.method.setup(run.model, 0, 4)
    with torch.no_grad():
        for parameter in run.model.fusion.parameters():
            parameter.fill_(7.0)
    run.boundary(3)
    assert [name for name, p in run.model.fusion.named_parameters() if (p == 7).any()] == []


def test_g_blending_s_estimate_is_that_of_networks_trained_alone() -> None:
    """Against plain loops: each unimodal network and the joint one on its own copy, full batches of the same order."""
    run = Run("gblending", epochs=3, samples=150, rate=0.02, estimate_epochs=2, held_out=0.3)
    run.data.labels = (run.data.x["x"][:, :3] + run.data.x["y"][:, :3]).argmax(1).numpy()  # something to generalise
    labels = torch.from_numpy(run.data.labels)
    kept, held = run.method._cut(labels)  # type: ignore[attr-defined]
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(150))
    assert len(held) == sum(int(0.3 * (labels == c).sum()) for c in range(3))
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    random = torch.get_rng_state()

    def losses(model: MultimodalModel, samples: Tensor) -> dict[str, float]:
        with torch.no_grad():
            output = model({name: x[samples].float() for name, x in run.data.x.items()})
        logits = {"joint": output.joint, **output.unimodal}
        return {head: F.cross_entropy(value, labels[samples]).item() for head, value in logits.items()}

    def alone(head: str) -> tuple[float, float]:
        model = copy.deepcopy(run.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
        for epoch in range(2):
            order = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(epoch))]
            for part in order.split(8):
                optimizer.zero_grad()
                output = model({name: x[part].float() for name, x in run.data.x.items()})
                F.cross_entropy(output.joint if head == "joint" else output.unimodal[head], labels[part]).backward()
                optimizer.step()
        return losses(model, kept)[head], losses(model, held)[head]

    raw = {}
    for head in ("joint", "x", "y"):
        trained, new = losses(run.model, kept)[head], losses(run.model, held)[head]
        trained_then, new_then = alone(head)
        overfitting = (new_then - trained_then) - (new - trained)
        raw[head] = max(0.0, new - new_then) / max(overfitting**2, 1e-8)
    total = sum(raw.values())
    assert len([value for value in raw.values() if value > 0.01 * total]) > 1
    run.boundary(1)
    expected = [value / total for value in raw.values()] if total else [1 / 3] * 3
    assert run.method.state["weights"].tolist() == pytest.approx(expected, rel=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in run.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)  # the run's own chance is as it was
    assert run.engine._loaders
    run.engine.release()
    assert all(loader.batches._iterator is None for loader in run.engine._loaders.values())

    weights = run.method.state["weights"].clone()
    run.boundary(2)
    assert torch.equal(run.method.state["weights"], weights)  # offline: once


def test_a_copy_learns_at_the_rates_of_the_epochs_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("gblending")
    run.engine.config = run.config.changed(epochs=6, warmup_epochs=1, lr_schedule="step", lr_decay_step=3)
    rates: list[float] = []

    def noted(step: Any, *others: Any, **named: Any) -> bool:
        rates.append(step.step.optimizer.param_groups[0]["lr"])
        return True

    monkeypatch.setattr(boundary_engine, "train_epoch", noted)
    for run.engine.epoch, epochs in ((1, 4), (5, 3)):
        run.engine.fit(Method(OneJoint()), epochs, torch.arange(8))
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])


def test_g_blending_online_estimates_before_every_super_epoch() -> None:
    run = Run("gblending", epochs=4, online=True, super_epoch=2, estimate_epochs=1, held_out=0.3)
    calls = []
    run.method.state["weights"].zero_()
    fit = run.engine.fit
    run.engine.fit = lambda method, epochs, samples: calls.append(epochs) or fit(method, epochs, samples)  # type: ignore[method-assign, func-returns-value]
    for epoch in range(1, 5):
        run.boundary(epoch)
        assert len(calls) == (2 if epoch < 3 else 4)  # one copy for all unimodal networks, one for the joint
    assert run.method.state["weights"].sum().item() == pytest.approx(1)
    wild = Run("gblending", estimate_epochs=1, held_out=0.3)
    wild.data.x["x"].fill_(torch.nan)
    with pytest.raises(TrainingError, match="a copy that was trained for an estimate: not finite in step"):
        wild.boundary(1)
    kept, held = Run("gblending", held_out=0.01).method._cut(torch.arange(29) % 3)  # type: ignore[attr-defined]
    assert sorted((held % 3).tolist()) == [0, 1, 2]  # one of each class
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(29))
    with pytest.raises(MethodError, match="no class has two training samples"):
        Run("gblending").method._cut(torch.arange(5))  # type: ignore[attr-defined]
