"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from mmpareto.escape import on_one_line
from mmpareto.evaluation.all_heads import RULES


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; the first is aligned left, the others right."""
    cells = [[on_one_line(cell) for cell in row] for row in rows]
    alignment = ["left", *["right"] * (len(header) - 1)]
    return tabulate(cells, [on_one_line(name) for name in header], colalign=alignment, disable_numparse=True)


def result_table(results: Mapping[str, Any]) -> str:
    """Accuracies of a run's results.json, validation and test, and the rate of conflict in each encoder.

    Columns: the joint head, each modality's own head, the best of these, joint minus best, all heads together by each
    rule ("-" in results of earlier versions).
    """
    modalities = list(results["test"]["unimodal"])
    header = ["accuracy in percent", "joint", *(f"{name} alone" for name in modalities)]
    header += ["best single", "joint - best", *RULES.values()]
    rows = []
    for split in ("val", "test"):
        scores = results[split]
        joint, own = scores["joint"]["accuracy"], [scores["unimodal"][name]["accuracy"] for name in modalities]
        combined = [scores.get("all_heads", {}).get(rule, {}).get("accuracy") for rule in RULES]
        cells = ["-" if value is None else f"{value:.2f}" for value in (joint, *own, max(own))]
        cells += [f"{joint - max(own):+.2f}", *("-" if value is None else f"{value:.2f}" for value in combined)]
        rows.append([split, *cells])
    rates = {name: results["integration"][name]["conflict_rate"] for name in modalities}
    conflict = ", ".join(f"{name} {'-' if rate is None else f'{100 * rate:.1f} %'}" for name, rate in rates.items())
    return f"{text_table(header, rows)}\n\nsteps in conflict: {on_one_line(conflict)}"


def run_probe_table(probe: Mapping[str, Any]) -> str:
    """The linear probes of a run's results.json: a row per modality, beside the encoder that was trained alone."""
    alone = probe["alone"]
    rows = []
    for name, own in probe["unimodal"].items():
        row = [name, f"{own['accuracy']:.2f}"]
        if alone is not None:
            other = alone["unimodal"][name]["accuracy"]
            row += [f"{other:.2f}", f"{own['accuracy'] - other:+.2f}"]
        rows.append(row)
    header = ["linear probe of the encoder, test", "this run", *(["trained alone", "difference"] if alone else [])]
    source = (
        f"trained alone: {on_one_line(alone['run'])}"
        if alone
        else "no finished run of --method unimodal with this seed to compare with; --probe_alone names one"
    )
    return f"{text_table(header, rows)}\n{source}"
