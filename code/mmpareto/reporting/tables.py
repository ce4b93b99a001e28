"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from mmpareto.escape import on_one_line


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; the first is aligned left, the others right."""
    cells = [[on_one_line(cell) for cell in row] for row in rows]
    alignment = ["left", *["right"] * (len(header) - 1)]
    return tabulate(cells, [on_one_line(name) for name in header], colalign=alignment, disable_numparse=True)


def result_table(results: Mapping[str, Any]) -> str:
    """Accuracies of a run's results.json: a row for the joint head and each modality's own, validation and test."""
    val, test = results["val"], results["test"]
    rows = [["joint", f"{val['joint']['accuracy']:.2f}", f"{test['joint']['accuracy']:.2f}", ""]]
    for name, score in test["unimodal"].items():
        rate = results["integration"][name]["conflict_rate"]
        conflict = "-" if rate is None else f"{100 * rate:.1f} %"
        accuracy = val["unimodal"][name]["accuracy"]
        rows.append([f"{name} alone", f"{accuracy:.2f}", f"{score['accuracy']:.2f}", conflict])
    return text_table(["accuracy in percent", "val", "test", "conflict in"], rows)
