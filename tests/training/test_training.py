"""The batch step, the loader's order and the gradient log, against plain computations."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmpareto import datasets
from mmpareto.integration import MMPareto, Uniform
from mmpareto.models import build_model
from mmpareto.training.data import Loader
from mmpareto.training.epochs import TrainingError, score, train_epoch
from mmpareto.training.step import training_step

ABOUT = {"x": ("vector", (6,)), "y": ("vector", (4,))}


def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(ABOUT, 3, {"x": "mlp", "y": "mlp"}).double()


def batch(size: int = 5) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = {name: torch.randn(size, *shape, generator=generator).double() for name, (_, shape) in ABOUT.items()}
    return inputs, torch.randint(3, (size,), generator=generator)


def test_uniform_step_is_plain_training() -> None:
    model, plain = small(), small()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, plain)]
    inputs, label = batch()
    for _ in range(3):
        training_step(model, Uniform(), optimizers[0], inputs, label)
        output = plain(inputs)
        loss = F.cross_entropy(output.joint, label)
        for logits in output.unimodal.values():
            loss = loss + F.cross_entropy(logits, label)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-14)


def test_clipping_bounds_the_integrated_gradient() -> None:
    inputs, label = batch()
    free, clipped = small(), small()
    for model, norm in ((free, None), (clipped, 1e-3)):
        training_step(model, MMPareto(), torch.optim.SGD(model.parameters(), lr=0.0), inputs, label, clip_grad=norm)
    total = torch.cat([p.grad.flatten() for p in clipped.parameters()]).norm()
    assert total.item() == pytest.approx(1e-3, rel=1e-3)
    whole = torch.cat([p.grad.flatten() for p in free.parameters()])
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
    got = score(model, split, torch.device("cpu"))
    samples = [split.dataset[index] for index in range(len(split.dataset))]
    with torch.no_grad():
        output = model.eval()({name: torch.stack([s["inputs"][name] for s in samples]) / 255 for name in about})
    label = torch.tensor(split.dataset.labels)
    for name, logits in {"joint": output.joint, **output.unimodal}.items():
        assert got[name]["loss"] == pytest.approx(F.cross_entropy(logits, label).item(), rel=1e-5)
        assert got[name]["accuracy"] == pytest.approx(100 * np.mean((logits.argmax(1) == label).numpy()), abs=1e-4)


def test_a_loss_that_is_not_finite_ends_training() -> None:
    split = loader()
    about = {name: (m.kind, m.shape) for name, m in split.dataset.modalities.items()}
    model = build_model(about, 10, {"gray": "cnn", "colour": "cnn"})
    with torch.no_grad():
        model.heads["gray"].bias.fill_(float("nan"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TrainingError, match="loss is nan in epoch 1; the learning rate may be too high"):
        train_epoch(model, Uniform(), optimizer, split, 1, torch.device("cpu"), clip_grad=None, diagnose_interval=0)


def test_one_pass_methods_are_measured_at_their_interval_without_changing_the_step() -> None:
    split = loader()
    about = {name: (m.kind, m.shape) for name, m in split.dataset.modalities.items()}
    torch.manual_seed(0)
    model = build_model(about, 10, {"gray": "cnn", "colour": "cnn"})
    weights = []
    for interval in (0, 3):
        trained = copy.deepcopy(model)
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.01)
        _, rows = train_epoch(
            trained, Uniform(), optimizer, split, 1, torch.device("cpu"), clip_grad=None, diagnose_interval=interval
        )
        weights.append(torch.cat([p.detach().flatten() for p in trained.parameters()]))
        assert [row["step"] for row in rows if row["encoder"] == "gray"] == ([] if interval == 0 else [0, 3, 6])
    assert torch.allclose(*weights, rtol=1e-3, atol=1e-6)
