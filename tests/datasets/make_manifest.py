"""A small dataset that a manifest describes: a sound, a folder of frames, an image and an array for each clip."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from datasets.make_media import tone, write_wav
from PIL import Image

COLUMNS = ["id", "split", "label", "sound", "sight", "photo", "sensor"]


def write_manifest(root: Path, clips: int = 24, val: bool = False) -> list[dict[str, Any]]:
    """Writes media and manifest.csv; returns its rows. Three classes; every fourth clip is for test."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(clips):
        label = number % 3
        write_wav(root / "sound" / f"{number}.wav", tone(0.4 + 0.1 * (number % 4), 200 + 200 * label))
        (root / "sight" / str(number)).mkdir(parents=True)
        for frame in range(3):
            shade = (random.integers(0, 60, (20, 24, 3)) + 60 * label).astype(np.uint8)
            Image.fromarray(shade).save(root / "sight" / str(number) / f"{frame}.jpg")
        (root / "photo").mkdir(exist_ok=True)
        Image.fromarray(shade).save(root / "photo" / f"{number}.png")
        (root / "sensor").mkdir(exist_ok=True)
        np.save(root / "sensor" / f"{number}.npy", random.normal(size=5).astype(np.float32) + label)
        split = "test" if number % 4 == 3 else "val" if val and number % 4 == 2 else "train"
        paths = [f"sound/{number}.wav", f"sight/{number}", f"photo/{number}.png", f"sensor/{number}.npy"]
        rows.append(dict(zip(COLUMNS, [f"clip{number}", split, f"class {label}", *paths], strict=True)))
    write_rows(root, rows)
    return rows


def write_rows(root: Path, rows: list[dict[str, Any]], columns: list[str] | None = None) -> None:
    """Writes manifest.csv; its columns are those of `columns`, or of the first row."""
    with open(root / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
