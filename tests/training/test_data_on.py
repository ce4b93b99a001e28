"""Samples that are held on a device: the same batches, and the same run, as from the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from entries.command import inside, refused

from mmpareto import datasets, runs
from mmpareto.cli import train as entry
from mmpareto.datasets import Held, Modality, MultimodalDataset, Rows, Split, batch_to_device
from mmpareto.datasets.in_memory import InMemoryImages
from mmpareto.errors import UsageError
from mmpareto.integration import MMPareto
from mmpareto.methods import Method
from mmpareto.models import build_model
from mmpareto.runs import RunDirectory
from mmpareto.training.data import Loader
from mmpareto.training.epochs import EpochRecord, RecordedStep
from mmpareto.training.run import Run
from mmpareto.training.setup import hold_on_device
from mmpareto.training.step import TrainingStep
from mmpareto.training.watch import FiniteWatch, TrainingError

CPU = torch.device("cpu")


class Dots(InMemoryImages):
    """Forty pairs of images whose brightness is their class; modalities `left` (with statistics) and `right`."""

    embedded = True

    def __init__(self, root: Path | None, split: Split, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(len(split))
        label = torch.arange(40) % 3
        pixels = torch.randint(80, (40, 2, 8, 8), generator=generator) + 80 * label.view(-1, 1, 1, 1)
        left, right = pixels.to(torch.uint8).split(1, 1)
        super().__init__(
            "dots",
            {"left": left, "right": right},
            {"left": Modality("image", (1, 8, 8), (0.3,), (0.2,)), "right": Modality("image", (1, 8, 8))},
            label.numpy(),
            ["a", "b", "c"],
            [f"{split}_{number}" for number in range(40)],
            seed,
        )


def splits() -> list[MultimodalDataset]:
    """A split and a copy of it that is held on the CPU; some samples lack a modality."""
    both: list[MultimodalDataset] = [Dots(None, "train"), Dots(None, "train")]
    for data in both:
        data.drop_modalities({"left": 0.3}, 1, "train")
    both[1].held = Held(both[1], CPU)
    return both


@pytest.mark.parametrize(("shuffle", "rank", "size"), [(True, 0, 1), (False, 0, 1), (True, 1, 3)])
@pytest.mark.parametrize("start", [0, 2])
def test_batches_are_those_of_the_host(shuffle: bool, rank: int, size: int, start: int) -> None:
    """Order, values, labels, ids and presence; of a share, from the middle of an epoch, of samples that were chosen."""
    loaders = [
        Loader(data, 7, shuffle=shuffle, seed=5, workers=0, pin=False, rank=rank, size=size) for data in splits()
    ]
    modalities = loaders[0].dataset.modalities
    for chosen in (None, torch.arange(39, 3, -2)):
        for loader in loaders:
            if chosen is not None:
                loader.sampler.choose(chosen)
        pairs = list(zip(*(loader.stream(2, start) for loader in loaders), strict=True))
        assert len(pairs) == len(loaders[0]) - start
        for batch, rows in pairs:
            assert batch["id"] == rows.ids()
            plain, cut = (batch_to_device(part, modalities, CPU) for part in (batch, rows))
            assert torch.equal(plain.label, cut.label)
            assert plain.present is not None
            assert cut.present is not None
            for name in modalities:
                assert torch.equal(plain.inputs[name], cut.inputs[name])
                assert torch.equal(plain.present[name], cut.present[name])


def trained(folder: Path, *flags: str) -> dict[str, Any]:
    """What a run leaves: its tables, and the weights of its last checkpoint."""
    common = ("--dataset", f"{__name__}:Dots", "--epochs", "2", "--batch_size", "12")
    done = inside(entry.main, *common, "--gpu_ids", "cpu", "--num_workers", "0", "--ckpt_path", folder, *flags)
    assert done.returncode == 0, done.stderr
    tables: dict[str, Any] = {
        name: RunDirectory(folder).read_csv(name) for name in (runs.METRICS, runs.GRADIENTS, runs.LAYERS)
    }
    for row in tables[runs.METRICS]:
        del row["seconds"]
    assert ("data on the device" in done.stdout) == ("device" in flags)
    return tables | {"weights": torch.load(folder / runs.LAST, weights_only=True)["model"]}


def test_a_run_is_the_same_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a method that looks at samples between epochs; the second epoch on the other side."""
    monkeypatch.setattr(Run, "draw", lambda run, selected: None)
    flags = ("--method", "pmr", "--diagnose_interval", "2")
    host = trained(tmp_path / "host", *flags, "--data_on", "host")
    trained(tmp_path / "both", *flags, "--epochs", "1", "--data_on", "host")
    both = trained(tmp_path / "both", *flags, "--resume", "--data_on", "device")
    assert all(torch.equal(value, both["weights"][name]) for name, value in host["weights"].items())
    assert {**host, "weights": None} == {**both, "weights": None}


def test_samples_that_are_read_one_by_one_stay_where_they_are(tmp_path: Path) -> None:
    class Noisy(Dots):
        def __getitems__(self, indices: list[int]) -> Any:
            return super().__getitems__(indices[::-1])

    other = Noisy(None, "train")
    assert other.stored is None
    hold_on_device(None, [other], CPU)
    assert other.held is None
    plain = Dots(None, "train")
    hold_on_device(None, [plain], CPU)  # by default on GPUs alone
    assert plain.held is None
    assert "reads its samples one by one" in refused(
        entry.main,
        "--dataset",
        f"{__name__}:OneByOne",
        "--gpu_ids",
        "cpu",
        "--data_on",
        "device",
        "--ckpt_path",
        tmp_path,
    )


class OneByOne(Dots):
    """As `Dots`, each sample read for itself."""

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)


@pytest.mark.parametrize(("free", "data_on", "moves"), [(1000, None, True), (999, None, False), (250, "device", True)])
def test_by_default_samples_take_a_quarter_of_the_free_memory(
    free: int, data_on: str | None, moves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = datasets.build("digits", None, "val")
    needed = 200 * 4 * 28 * 28  # bytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * needed // 250, 0))
    placed: list[MultimodalDataset] = []
    monkeypatch.setattr("mmpareto.training.setup.Held", lambda dataset, device: placed.append(dataset))
    hold_on_device(data_on, [data], torch.device("cuda"))
    assert placed == ([data] if moves else [])


def test_more_samples_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**18, 0))
    with pytest.raises(UsageError, match="the samples take 1 MiB, and cuda has 0 MiB free"):
        hold_on_device("device", [datasets.build("digits", None, "val")], torch.device("cuda"))


def test_ids_are_named_where_a_step_is_not_finite() -> None:
    loader = Loader(splits()[1], 7, shuffle=True, seed=5, workers=0, pin=False)
    watch = FiniteWatch(["left", "right"], CPU)
    batches = list(loader.stream(0))
    for number, rows in enumerate(batches):
        loss = torch.tensor(float("nan") if number == 3 else 1.0)
        watch.update([loss, loss, loss], loss)
        watch.note(number, rows)
    with pytest.raises(TrainingError, match="the batch held " + ", ".join(batches[3].ids()[:7])):
        watch.check(1)


def test_a_step_reads_nothing_but_tensors_that_stay() -> None:
    """As a CUDA graph replays it: each batch copied into the same memory, what runs on the device called alone."""
    data = splits()[1]
    loader = Loader(data, 8, shuffle=True, seed=5, workers=0, pin=False)
    left = []
    for replayed in (False, True):
        torch.manual_seed(0)
        about = {name: (modality.kind, modality.shape) for name, modality in data.modalities.items()}
        model = build_model(about, 3, dict.fromkeys(about, "cnn"))
        step = TrainingStep(model, Method(MMPareto()), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        recorded = RecordedStep(step, EpochRecord(list(about), CPU), FiniteWatch(list(about), CPU), data.modalities)
        kept: Rows | None = None
        for epoch in (0, 1):
            recorded.record.reset()
            for number, rows in enumerate(loader.stream(epoch)):
                assert isinstance(rows, Rows)
                if not replayed:
                    recorded(rows, number)
                    continue
                kept = kept or Rows(rows.held, rows.indices.clone())
                kept.indices.copy_(rows.indices)
                recorded._on_device(kept, 1.0, True, False)
                recorded.record.gradients.count(number)
        state = recorded.record.state_dict()
        left.append((model.state_dict(), state["scores"], state["gradients"]["values"], state["gradients"]["recent"]))
    for plain, alone in zip(*left, strict=True):
        assert plain.keys() == alone.keys()
        assert all(torch.equal(value, alone[name]) for name, value in plain.items())
