"""A report's folder: tables, figures, and one page that holds them all."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from mmpareto.escape import csv_text
from mmpareto.reporting.comparison import usual_settings
from mmpareto.reporting.comparison_figures import Curves, drawings
from mmpareto.reporting.finished import FinishedRun
from mmpareto.reporting.histories import history
from mmpareto.reporting.rendering import picture, write_together
from mmpareto.reporting.summary import Summary, as_csv, as_latex, as_markdown, marks
from mmpareto.runs import RunError

PAGE, TABLE, FIGURES = "index.html", "table.csv", "figures"
TITLE = "Methods compared"
KINDS = (
    "joint-accuracy",
    "over-.+",
    "learning-curves",
    "confusion",
    "cosine",
    "norms",
    "joint-weight",
    "conflict-rate",
    "conflict-in-layers",
    "method-figures",
)
DPI = 110
COLOURS = 256  # of a figure: a third of the bytes, and no difference that can be seen


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
    """Writes table.md, table.csv, table.tex, figures/*.png and index.html; other files in the folder stay.

    All input is read before anything is written. Raises RunError where a run's files or the folder cannot be used.
    """
    identifiers = unique_identifiers([summary.dataset for summary in summaries])
    pictures = [list(draw(summary, identifiers[summary.dataset])) for summary in summaries]
    names = short_names([*(run.path for summary in summaries for run in summary.runs), *unfinished])
    content = {
        "table.md": _encoded(as_markdown(summaries, [names[path] for path in unfinished])),
        TABLE: _encoded(as_csv(summaries)),
        "table.tex": _encoded(as_latex(summaries)),
        **{f"{FIGURES}/{drawn.name}.png": drawn.png for each in pictures for drawn in each},
        PAGE: _encoded(page(summaries, pictures, unfinished, names)),
    }
    try:
        known = _datasets(output / TABLE) | {summary.dataset for summary in summaries}
        before = [
            path
            for path in (output / FIGURES).glob("*.png")  # of the report that was there
            if f"{FIGURES}/{path.name}" not in content and _ours(path.name, known)
        ]
        write_together(output, content, before)
    except OSError as error:
        raise RunError(f"cannot write to {output}: {error.strerror}; name another folder with --output") from error
    return [output / name for name in content]


def _datasets(table: Path) -> set[str]:
    """The datasets of the report whose table this is; none where there is no such table."""
    if not table.is_file():
        return set()
    try:
        with open(table, newline="", encoding="utf-8") as file:
            return {csv_text(row["dataset"]) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return set()


def _ours(name: str, datasets: Iterable[str]) -> bool:
    """Whether a file's name is that of a figure of these datasets."""
    names = "|".join(re.escape(identifier(dataset)) for dataset in datasets)
    return re.fullmatch(rf"({names})(-\d+)?-({'|'.join(KINDS)})(-\d+)?\.png", name) is not None


def draw(summary: Summary, prefix: str) -> Iterator[Picture]:
    """A dataset's figures as PNG; prefix: of their names."""
    reference = [row for row in summary.rows if row.runs[0].method == summary.baseline]
    curves = [
        Curves(row, [history(run) for run in row.runs], place, reference == [row])
        for place, row in enumerate(summary.rows)
    ]
    for drawing in drawings(summary.dataset, curves, summary.modalities, summary.baseline):
        image, small = picture(drawing.figure, DPI), io.BytesIO()
        _few_colours(image).save(small, format="png")
        name = f"{prefix}-{identifier(drawing.name)}"
        yield Picture(name, drawing.title, drawing.alt, drawing.caption, small.getvalue(), *image.size)


def _few_colours(image: Image.Image) -> Image.Image:
    """An RGB image with a palette of COLOURS; its background, the first pixel's, exactly as it was."""
    made = image.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette, corner = made.getpalette() or [], made.getpixel((0, 0))
    assert isinstance(corner, int)
    palette[3 * corner : 3 * corner + 3] = image.getpixel((0, 0))
    made.putpalette(palette)
    return made


def page(
    summaries: Sequence[Summary],
    pictures: Sequence[Sequence[Picture]],
    unfinished: Sequence[Path],
    names: Mapping[Path, str],
) -> str:
    """The page, complete in itself: nothing is loaded from elsewhere. names: of the runs, as a reader sees them."""
    everything = [run for summary in summaries for run in summary.runs]
    identifiers = unique_identifiers([summary.dataset for summary in summaries])
    sections = [
        {
            "id": identifiers[summary.dataset],
            "summary": summary,
            "lines": [
                {"cells": cells, "best": best, "marked": row.runs[0].selected_on_test}
                for cells, best, row in zip(summary.cells, summary.best, summary.rows, strict=True)
            ],
            "pictures": own,
            "settings": {
                **{key: _text(value) for key, value in usual_settings(summary.runs).items()},
                **_method_options(summary.runs),
            },
            "runs": [_listed(run, names[run.path], summary) for run in summary.runs],
        }
        for summary, own in zip(summaries, pictures, strict=True)
    ]
    averaged = sum(len(row.runs) for summary in summaries for row in summary.rows)
    counted = f"{averaged} finished run{'s are' if averaged != 1 else ' is'} compared."
    if len(everything) > averaged:
        counted += f" {len(everything) - averaged} more repeat a seed and are in no mean."
    if unfinished:
        counted += f" {len(unfinished)} not finished: left out."
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=TITLE, counted=counted, sections=sections, unfinished=[names[path] for path in unfinished]
    )


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Folders by what tells them apart: from the folder that holds them all on; a single one by its last two parts."""
    if len(set(paths)) == 1:
        return {path: "/".join(path.parts[-2:]) for path in paths}
    common = os.path.commonpath(paths)
    return {path: path.relative_to(common).as_posix() if path != Path(common) else path.name for path in paths}


def identifier(name: str) -> str:
    """A name fit for a file and a link."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "dataset"


def unique_identifiers(names: Sequence[str]) -> dict[str, str]:
    """{name: identifier}, no two of them alike, also where file names have no case."""
    file_names: dict[str, str] = {}
    for name in names:
        candidates = (identifier(name) + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
        taken = {other.lower() for other in file_names.values()}
        file_names[name] = next(candidate for candidate in candidates if candidate.lower() not in taken)
    return file_names


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # halves of characters in names of folders


def _method_options(found: Sequence[FinishedRun]) -> dict[str, str]:
    """{method: its options}; without those that its runs do not have in common."""
    listed: dict[str, str] = {}
    for method in dict.fromkeys(run.method for run in found):
        first, *others = [run.config.get("method_options") or {} for run in found if run.method == method]
        same = [f"{key} {_text(value)}" for key, value in first.items() if all(o.get(key) == value for o in others)]
        if same:
            listed[f"options of {method}"] = ", ".join(same)
    return listed


def _listed(run: FinishedRun, name: str, summary: Summary) -> dict[str, Any]:
    return {
        "name": name,
        "method": run.method,
        "seed": run.seed,
        "joint": f"{run.joint:.2f}",
        "epoch": run.results.get("selected_epoch", "not recorded"),
        "marks": marks(run, summary),
    }


def _text(value: Any) -> str:
    return "not set" if value is None else str(value)
