"""Tables for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmpareto.escape import counted, on_one_line, shortened
from mmpareto.selection import COMBINATIONS, LEAD

if TYPE_CHECKING:
    from mmpareto.reporting.summary import Summary

_WIDTH = 80  # characters of a terminal


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], label_width: int | None = None) -> str:
    """Columns of equal width; the first is aligned left, the others right.

    Args:
        header: names of the columns.
        rows: their cells.
        label_width: characters of the first column, in which longer cells take several lines; None: any number.
    """
    from tabulate import tabulate

    cells = [[on_one_line(cell) for cell in row] for row in rows]
    others = len(header) - 1
    return tabulate(
        cells,
        [on_one_line(name) for name in header],
        colalign=["left", *["right"] * others],
        maxcolwidths=[label_width, *[None] * others],
        disable_numparse=True,
    )


def result_table(results: Mapping[str, Any]) -> str:
    """Accuracies of a run's results.json, validation and test, and the rate of conflict in each encoder.

    Rows: the joint head, each modality's own head, joint minus the best of these, all heads together by each rule ("-"
    in results of earlier versions). A line below says which heads were scored on a part of the samples.
    """
    splits = [results[split] for split in ("val", "test")]

    def cells(values: Iterable[float | None], form: str = ".2f") -> list[str]:
        return ["-" if value is None else f"{value:{form}}" for value in values]

    rows = [["joint", *cells(scores["joint"]["accuracy"] for scores in splits), ""]]
    for name in results["test"]["unimodal"]:
        rate = results["integration"][name]["conflict_rate"]
        accuracies = cells(scores["unimodal"][name]["accuracy"] for scores in splits)
        rows.append([f"{shortened(name, 40)} alone", *accuracies, *cells([rate and 100 * rate], ".1f")])
    leads = []
    for scores in splits:
        alone = [head["accuracy"] for head in scores["unimodal"].values() if head["accuracy"] is not None]
        leads.append(scores["joint"]["accuracy"] - max(alone) if alone else None)
    rows.append([LEAD, *cells(leads, "+.2f"), ""])
    for rule, label in COMBINATIONS.items():
        combined = [scores.get("all_heads", {}).get(rule, {}).get("accuracy") for scores in splits]
        rows.append([label, *cells(combined), ""])
    table = text_table(["accuracy in percent", "val", "test", "conflict, % of measured steps"], rows)
    present = {
        name: [scores["unimodal"][name].get("present", 100.0) for scores in splits]
        for name in results["test"]["unimodal"]
    }
    note = present_note(present, ("val", "test"))
    return f"{table}\n{note}" if note else table


def present_note(present: Mapping[str, Sequence[float]], splits: Sequence[str]) -> str:
    """A line that says over which samples a modality's head was scored; "" where all of them have every modality.

    Args:
        present: {modality: percent of the samples that have it, by split}.
        splits: their names, in that order.
    """
    parts = [
        f"{shortened(on_one_line(name), 40)} "
        + ", ".join(f"{share:.1f} % ({split})" for share, split in zip(shares, splits, strict=True))
        for name, shares in present.items()
        if min(shares) < 100
    ]
    said = "a modality's own head is scored on the samples that have it, the joint head on all of them"
    return f"{said}: {'; '.join(parts)}" if parts else ""


def run_probe_table(probe: Mapping[str, Any]) -> str:
    """The linear probes of a run's results.json: a row per modality, beside the encoder that was trained alone."""
    alone = probe["alone"]
    rows = []
    for name, probed in probe["unimodal"].items():
        row = [name, f"{probed['accuracy']:.2f}"]
        if alone is not None:
            other = alone["unimodal"][name]["accuracy"]
            row += [f"{other:.2f}", f"{probed['accuracy'] - other:+.2f}"]
        rows.append(row)
    header = ["linear probe of the encoder, test", "this run", *(["trained alone", "difference"] if alone else [])]
    source = (
        f"trained alone: {on_one_line(alone['run'])}"
        if alone
        else "no finished run of --method unimodal with this seed to compare with; --probe_alone names one"
    )
    return f"{text_table(header, rows)}\n{source}"


def comparison_text(summary: Summary) -> str:
    """The table of a dataset, a sentence on the best row, and what is in no mean."""
    alone = {f"{name} alone": name for name in summary.modalities}
    kept = {"method", "seeds", "joint", *alone, "difference", "p (Holm)"}
    table = summary.table[[column for column in summary.table if column in kept]].rename(columns=alone)
    over = ""
    if table["seeds"].nunique() == 1:
        over = f", {counted(int(table['seeds'].iloc[0]), 'seed')}"
        table = table.drop(columns="seeds")
    against = f"; difference from {summary.baseline}" if "difference" in table else ""
    heading = f"{summary.dataset}, test accuracy in percent, joint and each modality alone{over}{against}"
    sentences = [summary.verdict, *(row.repetition for row in summary.rows if row.repeated)]
    heading, *below = (textwrap.fill(on_one_line(part), _WIDTH) for part in (heading, *sentences))
    widths = [2 + max(2 + len(name), *map(len, table[name])) for name in table]  # as tabulate sets them
    label_width = max(16, _WIDTH - sum(widths[1:]))
    return "\n\n".join([heading, text_table(list(table), table.to_numpy().tolist(), label_width), *below])
