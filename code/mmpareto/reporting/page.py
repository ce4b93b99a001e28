"""A report's folder: tables, figures, and one page that holds them all."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from mmpareto.escape import csv_cell, csv_text
from mmpareto.reporting.comparison import usual_settings, worded
from mmpareto.reporting.comparison_figures import drawings, missing_table
from mmpareto.reporting.drawing import Curves
from mmpareto.reporting.finished import FinishedRun
from mmpareto.reporting.histories import history
from mmpareto.reporting.rendering import picture, write_together
from mmpareto.reporting.summary import JOINT, Summary, as_csv, as_latex, as_markdown, marks
from mmpareto.runs import RunError

PAGE, TABLE, MISSING, FIGURES = "index.html", "table.csv", "missing.csv", "figures"
TITLE = "Methods compared"
KINDS = (
    "joint-accuracy",
    "over-.+",
    "learning-curves",
    "confusion",
    "missing-modalities",
    "cosine",
    "norms",
    "joint-weight",
    "conflict-rate",
    "conflict-in-layers",
    "method-figures",
)
DPI = 110
COLOURS = 256  # of a figure: a third of the bytes, without a visible difference


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it."""

    name: str
    title: str
    alt: str
    caption: str
    png: bytes
    width: int
    height: int

    @property
    def data(self) -> str:
        """The image in base64."""
        return base64.b64encode(self.png).decode("ascii")


def write(output: Path, summaries: Sequence[Summary], unfinished: Sequence[Path]) -> list[Path]:
    """Write table.md, table.csv, table.tex, missing.csv, figures/*.png and index.html; other files in the folder stay.

    All input is read before anything is written. Raises RunError if a run's files or the folder cannot be used.
    """
    identifiers = unique_identifiers([summary.dataset for summary in summaries])
    pictures, tables = [], []
    for summary in summaries:
        curves = curves_of(summary)
        pictures.append(list(draw(summary, identifiers[summary.dataset], curves)))
        tables.append(missing_table(summary.dataset, curves))
    names = short_names([*(run.path for summary in summaries for run in summary.runs), *unfinished])
    texts = {
        "table.md": as_markdown(summaries, [names[path] for path in unfinished]),
        TABLE: as_csv(summaries),
        "table.tex": as_latex(summaries),
        PAGE: page(summaries, pictures, unfinished, names),
    }
    missing = pd.concat(tables)
    if len(missing):
        texts[MISSING] = missing.map(csv_cell).to_csv(index=False)
    # names of folders may hold bytes that are no UTF-8
    content = {name: text.encode(errors="backslashreplace") for name, text in texts.items()}
    content |= {f"{FIGURES}/{drawn.name}.png": drawn.png for of_dataset in pictures for drawn in of_dataset}
    try:
        datasets = _datasets(output / TABLE) | set(identifiers)
        kinds = "|".join(KINDS)
        prefixes = "|".join(re.escape(identifier(dataset)) for dataset in datasets)
        ours = re.compile(rf"({prefixes})(-\d+)?-({kinds})(-\d+)?\.png")
        older = [path for path in (output / FIGURES).glob("*.png") if ours.fullmatch(path.name)]
        outdated = [path for path in older if f"{FIGURES}/{path.name}" not in content]
        write_together(output, content, outdated)
    except OSError as error:
        raise RunError(f"cannot write to {output}: {error.strerror}; name another folder with --output") from error
    return [output / name for name in content]


def _datasets(table: Path) -> set[str]:
    """The datasets of an earlier report's table; none if there is no readable table."""
    try:
        with open(table, newline="", encoding="utf-8") as file:
            return {csv_text(row["dataset"]) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return set()


def curves_of(summary: Summary) -> list[Curves]:
    """A dataset's rows with their histories."""
    baselines = [row for row in summary.rows if row.method == summary.baseline]
    return [
        Curves(row, [history(run) for run in row.runs], place, baselines == [row])
        for place, row in enumerate(summary.rows)
    ]


def draw(summary: Summary, prefix: str, curves: Sequence[Curves]) -> Iterator[Picture]:
    """A dataset's figures as PNG; prefix: of their names."""
    for drawing in drawings(summary.dataset, curves, summary.modalities, summary.baseline):
        image, file = picture(drawing.figure, DPI), io.BytesIO()
        _few_colours(image).save(file, format="png")
        name = f"{prefix}-{identifier(drawing.name)}"
        yield Picture(name, drawing.title, drawing.alt, drawing.caption, file.getvalue(), *image.size)


def _few_colours(image: Image.Image) -> Image.Image:
    """An RGB image with a palette of COLOURS; the background, the first pixel's colour, stays exact."""
    reduced = image.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette, corner = reduced.getpalette() or [], reduced.getpixel((0, 0))
    assert isinstance(corner, int)
    palette[3 * corner : 3 * corner + 3] = image.getpixel((0, 0))
    reduced.putpalette(palette)
    return reduced


def page(
    summaries: Sequence[Summary],
    pictures: Sequence[Sequence[Picture]],
    unfinished: Sequence[Path],
    names: Mapping[Path, str],
) -> str:
    """The page, complete in itself: nothing is loaded from elsewhere. names: of the runs, as a reader sees them."""
    identifiers = unique_identifiers([summary.dataset for summary in summaries])
    sections = [
        {
            "id": identifiers[summary.dataset],
            "summary": summary,
            "lines": [
                {"cells": cells, "bold": bold, "marked": row.selected_on_test}
                for cells, bold, row in zip(summary.table.to_numpy(), summary.bold, summary.rows, strict=True)
            ],
            "pictures": of_dataset,
            "settings": usual_settings(summary.runs) | _method_options(summary.runs),
            "runs": [_listed(run, names[run.path], summary) for run in summary.runs],
        }
        for summary, of_dataset in zip(summaries, pictures, strict=True)
    ]
    runs = sum(len(summary.runs) for summary in summaries)
    averaged = sum(len(row.runs) for summary in summaries for row in summary.rows)
    counted = f"{averaged} finished run{'s are' if averaged != 1 else ' is'} compared."
    if runs > averaged:
        counted += f" {runs - averaged} more repeat a seed and are in no mean."
    if unfinished:
        counted += f" {len(unfinished)} not finished: left out."
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=TITLE, counted=counted, sections=sections, unfinished=[names[path] for path in unfinished], joint=JOINT
    )


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Folders from the folder that holds them all on; a single one by its last two parts."""
    if len(set(paths)) == 1:
        return {path: "/".join(path.parts[-2:]) for path in paths}
    common = os.path.commonpath(paths)
    return {path: path.relative_to(common).as_posix() if path != Path(common) else path.name for path in paths}


def identifier(name: str) -> str:
    """A name fit for a file and a link."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "dataset"


def unique_identifiers(names: Sequence[str]) -> dict[str, str]:
    """{name: identifier}, no two of them alike, also if file names have no case."""
    identifiers: dict[str, str] = {}
    for name in names:
        taken = {other.lower() for other in identifiers.values()}
        candidates = (identifier(name) + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
        identifiers[name] = next(candidate for candidate in candidates if candidate.lower() not in taken)
    return identifiers


def _method_options(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """{method: its options}; without those that its runs do not have in common."""
    listed: dict[str, str] = {}
    for method in dict.fromkeys(run.method for run in runs):
        first, *others = [run.config.get("method_options") or {} for run in runs if run.method == method]
        shared = {key: value for key, value in first.items() if all(o.get(key) == value for o in others)}
        if shared:
            listed[f"options of {method}"] = ", ".join(f"{key} {worded(value)}" for key, value in shared.items())
    return listed


def _listed(run: FinishedRun, name: str, summary: Summary) -> dict[str, Any]:
    """A line of the table of runs."""
    return {
        "name": name,
        "method": run.method,
        "seed": run.seed,
        "joint": f"{run.joint:.2f}",
        "epoch": run.results.get("selected_epoch", "not recorded"),
        "marks": marks(run, summary),
    }
