"""Checkpoint files: damage of any kind is refused by name, and nothing else than tensors and plain values is loaded."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.small import batch, make

from mmpareto.methods import METHODS
from mmpareto.runs import RunDirectory, RunError
from mmpareto.training.checkpoints import load_checkpoint, random_state, save_best, save_last, set_random_state
from mmpareto.training.state import KEYS
from mmpareto.training.step import TrainingStep

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run with a last.pt, a previous.pt and a best.pt."""
    run = RunDirectory(tmp_path_factory.mktemp("checkpoints"))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.BatchNorm1d(30))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(8, 40)).square().sum().backward()
    optimizer.step()
    content: dict[str, Any] = dict.fromkeys(KEYS, 0) | {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "record": {"batches": 0},
        "history": [{"epoch": 1, "loss": 0.5}],
        "best": {"accuracy": 50.0, "epoch": 1},
        "epoch": 2,
        "generator": torch.get_rng_state(),
    }
    save_last(run, content)
    save_last(run, content)
    save_best(run, model, {"epoch": 1})
    return run


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        if not isinstance(second, torch.Tensor) or (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        return bool(((first == second) | ((first != first) & (second != second))).all())  # NaN equals NaN
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return type(first) is type(second) and first == second


@pytest.mark.parametrize("name", METHODS.names())
def test_the_state_of_every_method_can_be_read_back(name: str, tmp_path: Path) -> None:
    method, model = make(name, **({"factors": "x:0.5"} if name == "mslr" else {}))
    step = TrainingStep(model, method, torch.optim.SGD(model.parameters(), lr=0.01))
    for seed in range(2):
        step(*batch(model, seed=seed))
    run = RunDirectory(tmp_path)
    save_last(run, dict.fromkeys(KEYS, 0) | {"method": method.state_dict()})
    assert equal(load_checkpoint(tmp_path / "last.pt", CPU, KEYS)["method"], method.state_dict())


def outcome(data: bytes, path: Path, whole: Any) -> str:
    """ "refused" or "harmless" where the damaged file `data` is either; the values that were loaded otherwise."""
    path.write_bytes(data)
    try:
        content = load_checkpoint(path, CPU, ("model",))
    except RunError as error:
        return "refused" if str(path) in str(error) else str(error)
    return "harmless" if equal(content, whole) else str(content)


@pytest.mark.parametrize("name", ["last.pt", "previous.pt", "best.pt"])
def test_flipped_bits_are_refused_wherever_they_are(name: str, saved: RunDirectory, tmp_path: Path) -> None:
    data = (saved / name).read_bytes()
    whole = load_checkpoint(saved / name, CPU, ("model",))
    chance = random.Random(0)
    directory = data.rindex(b"PK\x01\x02")
    places = [chance.randrange(len(data)) for _ in range(250)]
    places += [chance.randrange(directory, len(data)) for _ in range(50)]  # what no CRC of a record covers
    outcomes = []
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << chance.randrange(8)
        outcomes.append(outcome(bytes(damaged), tmp_path / name, whole))
    assert outcomes == ["refused"] * 300


def test_zeroed_ranges_truncations_and_appended_bytes_are_refused(saved: RunDirectory, tmp_path: Path) -> None:
    data = (saved / "last.pt").read_bytes()
    whole = load_checkpoint(saved / "last.pt", CPU, ("model",))
    chance = random.Random(1)
    path = tmp_path / "last.pt"
    for _ in range(40):
        start, length = chance.randrange(len(data)), chance.choice([1, 64, 512])
        damaged = data[:start] + bytes(min(length, len(data) - start)) + data[start + length :]
        assert outcome(damaged, path, whole) == ("harmless" if damaged == data else "refused")
    for length in (1, 21, 22, 64, 70, 71, 72, 93, len(data) // 2, len(data)):
        assert outcome(data[: len(data) - length], path, whole) == "refused"
    for extra in (b"\0", b"\n" * 71, data[-71:], data):
        assert outcome(data + extra, path, whole) == "refused"
        assert outcome(extra + data, path, whole) == "refused"


def test_a_checkpoint_without_a_digest_is_read_and_its_records_are_checked(saved: RunDirectory, tmp_path: Path) -> None:
    """Earlier versions wrote none."""
    path = tmp_path / "best.pt"
    whole = load_checkpoint(saved / "best.pt", CPU, ("model",))
    torch.save(whole, path)
    assert equal(load_checkpoint(path, CPU, ("model",)), whole)
    data, chance = path.read_bytes(), random.Random(2)
    outcomes = []
    for _ in range(300):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        outcomes.append(outcome(bytes(damaged), path, whole))
    assert set(outcomes) <= {"refused", "harmless"}
    assert outcomes.count("refused") > 200


def test_the_file_stays_one_that_torch_and_zip_read(saved: RunDirectory) -> None:
    assert torch.load(saved / "best.pt", weights_only=True)["epoch"] == 1
    with zipfile.ZipFile(saved / "best.pt") as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256:")


def archive_of(content: Any, edit: Callable[[str, bytes], bytes] = lambda name, data: data) -> bytes:
    """A file of torch.save, its records edited, with right CRCs and without a digest."""
    buffer, edited = io.BytesIO(), io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(edited, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            target.writestr(name, edit(name, source.read(name)))
    return edited.getvalue()


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_files_of_a_stranger_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    model = {"model": {"weight": torch.ones(4)}, "epoch": 1}

    def said(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(RunError, match="damaged or foreign") as refused:
            load_checkpoint(path, CPU, ("model", "epoch"))
        return str(refused.value)

    path.write_bytes(archive_of(model))
    assert load_checkpoint(path, CPU, ("model", "epoch"))["epoch"] == 1
    # records that announce what is not there
    plain = archive_of(model)
    entry = plain.index(b"PK\x01\x02", plain.index(b"PK\x01\x02") + 1)
    sizes = struct.pack("<LL", 0xFFFFFFF0, 0xFFFFFFF0)
    assert "is not as long as announced" in said(plain[: entry + 20] + sizes + plain[entry + 28 :])
    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    assert "is not as long as announced" in said(compressed.getvalue())
    # a storage of 2**31 - 1 numbers in a record of 4
    huge = b"J" + (2**31 - 1).to_bytes(4, "little")
    said(archive_of(model, lambda name, data: data.replace(b"K\x04", huge) if name.endswith("data.pkl") else data))
    # code, and kinds of tensors whose parts PyTorch does not check
    folder = tmp_path / "ran"
    assert "mkdir, which is no part of a tensor" in said(archive_of({"model": Evil(folder), "epoch": 1}))
    said(pickle.dumps(Evil(folder)))
    assert not folder.exists()
    indices, value = torch.tensor([[0]]), torch.ones(1)
    for other in (
        torch.sparse_coo_tensor(indices, value, (4,), check_invariants=True),
        torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        torch.ones(4, device="meta"),
    ):
        assert "which is no part of a tensor" in said(archive_of({"model": {"weight": other}, "epoch": 1}))
    path.write_bytes(archive_of(model | {"epoch": "\x1b[2J"}))
    with pytest.raises(RunError, match=r"its epoch is '\\x1b\[2J', expected int"):
        load_checkpoint(path, CPU, ("model", "epoch"))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RunError, match="expected a regular file"):
        load_checkpoint(path, CPU, ("model", "epoch"))


@pytest.mark.parametrize("position", [-1, 625, 2**31 - 8, 1.0, True])
def test_a_random_state_outside_of_its_numbers_is_refused(position: Any) -> None:
    state = random_state(CPU)
    state["numpy"]["pos"] = position
    with pytest.raises(ValueError, match="NumPy's random state is at"):
        set_random_state(state, CPU)


def test_a_damaged_checkpoint_names_what_can_stand_in_for_it(saved: RunDirectory, tmp_path: Path) -> None:
    for name in ("last.pt", "previous.pt", "best.pt"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    for name, offer in (
        ("best.pt", r"previous.pt holds the same model: train.py --resume previous.pt writes best.pt again"),
        ("last.pt", r"the one before it is whole \(epoch 2\): --resume previous.pt"),
    ):
        (tmp_path / name).write_bytes(b"damaged")
        with pytest.raises(RunError, match=offer):
            load_checkpoint(tmp_path / name, CPU, ("model",))
    (tmp_path / "previous.pt").unlink()
    with pytest.raises(RunError, match="no other file holds the selected model: train again with --overwrite"):
        load_checkpoint(tmp_path / "best.pt", CPU, ("model",))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_too_little_memory_is_no_damage(saved: RunDirectory, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)):
        load_checkpoint(saved / "last.pt", CPU, KEYS)
