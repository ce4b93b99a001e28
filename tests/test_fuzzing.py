"""Damaged files of every kind that is read: refused by name, or harmless; never a hang, a crash or a traceback.

Harmless: a checkpoint or a list gives the same values, media and arrays give finite numbers. The damage is drawn from a
seed. One process reads them all, so that the imports are paid once; where it dies it is started again.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from datasets.make_manifest import write_manifest
from datasets.make_media import tone, write_video, write_wav
from PIL import Image
from settings import write_settings

from mmpareto.arguments import parse
from mmpareto.runs import RunDirectory
from mmpareto.training.checkpoints import save_last
from mmpareto.training.state import KEYS

TESTS = Path(__file__).resolve().parent
MUTATIONS = 36  # of a kind
SECONDS = 60  # for one file, on a busy machine


def wav(folder: Path) -> Path:
    """A second of stereo."""
    return write_wav(folder / "sound.wav", np.stack([tone(1), tone(1, 300)], 1))


def mp3(folder: Path) -> Path:
    """Two seconds of mono."""
    path = folder / "sound.mp3"
    with av.open(str(path), "w") as container:
        track = container.add_stream("mp3", rate=16000)
        track.layout = "mono"
        block = av.AudioFrame.from_ndarray(tone(2).astype(np.float32)[None], format="fltp", layout="mono")
        block.sample_rate, block.pts = 16000, 0
        container.mux(track.encode(block))
        container.mux(track.encode())
    return path


def mp4(folder: Path) -> Path:
    """Two seconds of picture and sound."""
    return write_video(folder / "video.mp4", 20, sound=tone(2))


def picture(folder: Path, name: str) -> Path:
    """Noise in three channels."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def npy(folder: Path) -> Path:
    """A spectrogram."""
    np.save(folder / "array.npy", np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32))
    return folder / "array.npy"


def pt(folder: Path) -> Path:
    """The same in a file of torch.save."""
    torch.save(torch.from_numpy(np.load(npy(folder))), folder / "array.pt")
    return folder / "array.pt"


def csv(folder: Path) -> Path:
    """A manifest of 24 clips."""
    write_manifest(folder / "data")
    return folder / "data" / "manifest.csv"


def config(folder: Path) -> Path:
    """The settings of a run on digits."""
    options = parse(["--dataset", "digits", "--gpu_ids", "cpu"], Path("/"))
    run = RunDirectory(folder)
    write_settings(run.path, options.flat() | {"encoders": {"gray": "cnn", "colour": "cnn"}})
    return folder / "config.yaml"


def checkpoint(folder: Path) -> Path:
    """A small last.pt."""
    model = torch.nn.Linear(20, 10)
    content = dict.fromkeys(KEYS, 0) | {"model": model.state_dict(), "epoch": 3, "history": [{"epoch": 1}]}
    save_last(RunDirectory(folder), content)
    return folder / "last.pt"


SEEDS: dict[str, Callable[[Path], Path]] = {
    "wav": wav,
    "mp3": mp3,
    "mp4": mp4,
    "png": lambda folder: picture(folder, "picture.png"),
    "jpg": lambda folder: picture(folder, "picture.jpg"),
    "npy": npy,
    "pt": pt,
    "csv": csv,
    "json": config,
    "checkpoint": checkpoint,
}
EXTREMES = (b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\xff" * 3 + b"\x7f", b"\x00" * 4, b"\x80" + b"\x00" * 3, b"\xff" * 8)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` with one kind of damage."""
    size = len(data)
    place, length = chance.randrange(size), min(chance.choice([1, 4, 16, 64, 512]), size)
    head = chance.randrange(min(size, 128))  # where sizes, counts and names are
    kind = chance.randrange(8)
    if kind == 0:  # single bits
        changed = bytearray(data)
        for _ in range(chance.choice([1, 1, 1, 8])):
            changed[chance.randrange(size)] ^= 1 << chance.randrange(8)
        return bytes(changed)
    if kind == 1:  # zeros
        return data[:place] + bytes(length) + data[place + length :]
    if kind == 2:  # the end is missing
        return data[:place]
    if kind == 3:  # something new
        return data[:place] + chance.randbytes(length) + data[place:]
    if kind == 4:  # a block twice
        return data[:place] + data[place : place + length] + data[place:]
    if kind == 5:  # a block is missing
        return data[:place] + data[place + length :]
    if kind == 6:  # a field of the head is extreme
        extreme = chance.choice(EXTREMES)
        return data[:head] + extreme + data[head + len(extreme) :]
    return data[:head] + bytes([chance.randrange(256)]) + data[head + 1 :]


def read(paths: list[Path]) -> dict[Path, str]:
    """What `fuzzed.py` says of each file; "died: ..." where it ended at one, and is started again for the rest."""
    outcomes: dict[Path, str] = {}
    while rest := paths[len(outcomes) :]:
        done = subprocess.run(
            [sys.executable, str(TESTS / "fuzzed.py"), str(SECONDS), *map(str, rest)],
            env={**os.environ, "PYTHONPATH": f"{TESTS.parent / 'code'}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1000,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith(("read: ", "refused: "))]
        outcomes |= dict(zip(rest, lines, strict=False))
        if len(lines) < len(rest):
            outcomes[rest[len(lines)]] = f"died: status {done.returncode}, {done.stderr[-3000:]}"
    return outcomes


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[Path, str]]:
    """{kind: {file: what came of it}}; the first file of a kind is whole."""
    files: dict[str, list[Path]] = {}
    for kind, make in SEEDS.items():
        root = tmp_path_factory.mktemp(kind)
        (root / "whole").mkdir()
        whole = make(root / "whole")
        files[kind], chance = [whole], random.Random(kind)
        for number in range(MUTATIONS):
            (root / str(number)).mkdir()
            path = root / str(number) / whole.name
            path.write_bytes(mutated(whole.read_bytes(), chance))
            files[kind].append(path)
    outcomes = read([path for paths in files.values() for path in paths])
    return {kind: {path: outcomes[path] for path in paths} for kind, paths in files.items()}


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", SEEDS)
def test_damaged_files_are_refused_by_name_or_harmless(kind: str, damaged: dict[str, dict[Path, str]]) -> None:
    whole, *outcomes = damaged[kind].values()
    assert whole.startswith("read: "), whole
    assert not [outcome for outcome in outcomes if outcome.startswith("died: ")]
    refused = [outcome.removeprefix("refused: ") for outcome in outcomes if outcome.startswith("refused: ")]
    assert len(refused) > MUTATIONS / 10
    assert all(len(json.loads(message).splitlines()) <= 4 for message in refused)
    if kind == "checkpoint":
        assert all(outcome == whole for outcome in outcomes if outcome.startswith("read: "))


def test_the_damage_is_at_least_300_files_of_all_kinds() -> None:
    assert MUTATIONS * len(SEEDS) >= 300
    data = bytes(range(256)) * 4
    chance = random.Random(0)
    assert sum(mutated(data, chance) != data for _ in range(100)) > 90
