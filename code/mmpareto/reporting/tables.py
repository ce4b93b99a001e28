"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmpareto.escape import on_one_line


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; the first aligned left, the others right."""
    header, rows = list(map(on_one_line, header)), [list(map(on_one_line, row)) for row in rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def result_table(results: Mapping[str, Any]) -> str:
    """Accuracies of a run's results.json: a row for the joint head and each modality's own, validation and test."""
    integration = results["integration"]

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    rows = [["joint", f"{results['val']['joint']['accuracy']:.2f}", f"{results['test']['joint']['accuracy']:.2f}", ""]]
    for name, score in results["test"]["unimodal"].items():
        validation = results["val"]["unimodal"][name]["accuracy"]
        rows.append(
            [
                f"{name} alone",
                f"{validation:.2f}",
                f"{score['accuracy']:.2f}",
                percent(integration[name]["conflict_rate"]),
            ]
        )
    return text_table(["accuracy in percent", "val", "test", "conflict in"], rows)
