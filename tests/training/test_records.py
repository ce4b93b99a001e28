"""The table of epochs fits a terminal of 80 columns, whatever the modalities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmpareto.arguments import parse
from mmpareto.training.records import EpochTable, settings_text
from mmpareto.training.setup import build_split, make_model


def row(modalities: list[str], epoch: int, rate: float | None = 0.25) -> dict[str, Any]:
    values: dict[str, Any] = {"epoch": epoch, "learning_rate": 0.0123}
    for number, name in enumerate(["joint", *modalities]):
        values |= {f"train_loss_{name}": 1.2345 + number, f"val_accuracy_{name}": 10.04 * (number + 1)}
        values[f"conflict_rate_{name}"] = rate
    return values


@pytest.mark.parametrize("epochs", [3, 1000])
@pytest.mark.parametrize("count", [2, 3, 4, 6, 12])
def test_lines_fit_and_are_aligned(count: int, epochs: int) -> None:
    names = [f"modality of a long name {number}" for number in range(count)]
    table = EpochTable(epochs, names)
    first, second = table.header.split("\n")
    lines = [second, table.row(row(names, 1), 5.67, True), table.row(row(names, epochs, None), 12345.6, False)]
    assert all(len(line) <= 80 for line in (first, *lines))
    bars = [[place for place, letter in enumerate(line) if letter == "|"] for line in lines]
    assert bars[0] == bars[1] == bars[2]
    assert [place for place in bars[0] if place < len(first)] == [p for p, letter in enumerate(first) if letter == "|"]


def test_two_modalities_show_everything() -> None:
    table = EpochTable(20, ["gray", "colour"])
    assert table.header.split("\n") == [
        "      | loss                 | val %              | conflict %  |",
        "epoch |  joint   gray colour | joint  gray colour | gray colour | seconds",
    ]
    line = table.row(row(["gray", "colour"], 7), 5.67, True)
    assert line == " 7/20 |  1.234  2.234  3.234 |  10.0  20.1   30.1 |   25     25 |     5.7 *"
    assert table.row(row(["gray", "colour"], 7, None), 5.67, False).endswith("|    -      - |     5.7")


def test_more_modalities_leave_out_what_matters_least() -> None:
    header = EpochTable(20, ["audio", "visual", "text"]).header.split("\n")[1]
    assert header == "epoch |  joint | joint audio visual  text | audio visual text | seconds"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--fusion", "sum"], "; sum; "),
        (["--method", "mmcosine"], "; cosine; "),
        (["--method", "ensemble"], "; EnsembleFusion; "),
        (["--architecture", "transformer"], "; transformer, "),
    ],
)
def test_the_model_line_names_the_fusion_that_is_used(flags: list[str], named: str, tmp_path: Path) -> None:
    config = parse(["--dataset", "twoview", *flags], tmp_path)
    device = torch.device("cpu")
    data = build_split(config.data, 0, "train")
    model, encoders = make_model(config, data, device)
    text = settings_text(config, {"train": data}, encoders, model, device, tmp_path)
    (line,) = (line for line in text.splitlines() if line.startswith("model "))
    assert named in line
    assert ("concat" in line) == ("concat" in named)
