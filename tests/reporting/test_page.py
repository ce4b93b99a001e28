"""The page: complete in itself, every number that of the tables, nothing of a run's name taken for markup."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert
from PIL import Image
from reporting.synthetic import make_run

from mmpareto.reporting import charts, page
from mmpareto.reporting.charts import Axes, Curves, Figure, Panel, collect, curve_figure
from mmpareto.reporting.comparison import rows_of
from mmpareto.reporting.comparison_figures import learning_curves, method_figures
from mmpareto.reporting.finished import find
from mmpareto.reporting.gradient_figures import conflict_rate, tensor_label
from mmpareto.reporting.histories import history
from mmpareto.reporting.summary import summaries
from mmpareto.runs import RunError

FIGURES = ("joint-accuracy", "learning-curves", "cosine", "norms", "joint-weight", "conflict-rate")


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self._tables: list[list[dict[str, str]]] = []
        self._label: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tbody":
            self._tables.append([])
        elif tag == "tr" and "tbody" in self.open:
            self._tables[-1].append({})
        elif tag == "td":
            self._label = dict(attrs)["data-label"]
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "td":
            self._label = None

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._label is not None:
            row = self._tables[-1][-1]
            row[self._label] = row.get(self._label, "") + data.strip()

    @property
    def tables(self) -> list[pd.DataFrame]:
        """Every table of the page, as text."""
        return [pd.DataFrame(rows) for rows in self._tables]

    @property
    def data(self) -> dict[str, Any]:
        """What the script draws."""
        (text,) = (text for text in self.text if text.startswith('{"config"'))
        return json.loads(text)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def tell(folder: Path, **values: list[float]) -> None:
    """Columns of a method's own in a run's metrics.csv, a value per epoch."""
    header, *lines = (folder / "metrics.csv").read_text().splitlines()
    columns = [",".join(map(str, column)) for column in zip(*values.values(), strict=True)]
    rows = [f"{header},{','.join(values)}", *(f"{line},{more}" for line, more in zip(lines, columns, strict=True))]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")


def test_what_methods_tell_of_themselves_is_drawn(tmp_path: Path) -> None:
    make_run(tmp_path / "u", "uniform", 0, 40.0)
    for place in range(9):
        make_run(tmp_path / f"s{place}", f"silent{place}", 0, 50.0 + place)
    for seed in range(2):
        run = make_run(tmp_path / f"g{seed}", "gblending", seed, 99.0)
        tell(run, method_weight_joint=[0.2, 0.5, 0.6 + 0.2 * seed], method_weight_gray=[0.1, 0.2, 0.3])
    tell(tmp_path / "u", method_rate=[1.0, 2.0, 3.0])
    curves = curves_of(tmp_path)
    drawn = method_figures("digits", curves, ["method_rate", "method_weight_joint", "method_weight_gray"])
    assert [panel.view["title"] for panel in drawn.panels] == ["rate", "weight joint", "weight gray"]
    rows = {line.row.label: line.place for line in curves}
    lines = {(line["panel"], line["row"]): line["mean"] for line in drawn.datasets["means"]}
    assert lines == {
        (0, rows["uniform"]): [1, 2, 3],
        (1, rows["gblending"]): [0.2, 0.5, pytest.approx(0.7)],
        (2, rows["gblending"]): [0.1, 0.2, 0.3],
    }
    assert "method-figures" not in [f.name for f in page.figures("digits", curves[1:2], ("gray", "colour"))]


def curves_of(folder: Path) -> list[Curves]:
    """A dataset's rows in the order of the table, with their histories."""
    rows = rows_of(find([folder])[0])
    return [Curves(row, [history(run) for run in row.runs], place) for place, row in enumerate(rows)]


def written(runs: Path, output: Path) -> Reader:
    finished, unfinished = find([runs])
    page.write(output, summaries(finished), unfinished)
    return Reader((output / page.PAGE).read_text())


def test_page_is_complete_in_itself(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / "runs" / f"u{seed}", "uniform", seed, 40.0 + seed)
        make_run(tmp_path / "runs" / f"m{seed}", "mmpareto", seed, 45.0 - seed)
    make_run(tmp_path / "runs" / "pareto" / "half", "pareto", finished=False)
    reader = written(tmp_path / "runs", tmp_path / "report")
    assert reader.open == []  # every tag was closed
    for tag, attributes in reader.tags:
        assert tag not in ("link", "iframe", "object", "img")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith(("data:application/pdf;base64,", "#")), attributes
    text = (tmp_path / "report" / "index.html").read_text()
    assert len(text) < 3_000_000
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (policy,) = (tag["content"] for tag in reader.all("meta") if tag.get("http-equiv"))
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy.startswith("default-src 'none';")
    assert re.findall(r"'sha256-(.*?)'", policy) == hashes
    assert len(hashes) == 2
    assert "vegaEmbed" in scripts[0]
    figures = reader.data["sections"][0]["figures"]
    assert [figure["name"] for figure in figures] == [f"digits-{name}" for name in FIGURES]
    for figure, link in zip(figures, [tag for tag in reader.all("a") if "download" in tag], strict=True):
        pdf, svg, png = (
            (tmp_path / "report" / "figures" / f"{figure['name']}.{suffix}").read_bytes()
            for suffix in ("pdf", "svg", "png")
        )
        assert base64.b64decode((link["href"] or "").partition(",")[2]) == pdf
        assert pdf.startswith(b"%PDF")
        assert b"<svg" in svg[:100]
        assert "text/css" not in svg.decode()
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        assert np.asarray(picture.convert("L")).std() > 5  # not an empty sheet
        assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert all(len(tag["aria-label"] or "") > 40 for tag in reader.all("div") if tag.get("role") == "img")
    said = " ".join(reader.text)
    assert "4 finished runs are compared. 1 not finished: left out." in said
    assert "pareto/half" in reader.text
    assert "44.5 ± 0.7" in reader.text
    assert "not set" not in said


@pytest.mark.usefixtures("undrawn")
def test_numbers_on_the_page_are_those_of_the_tables(tmp_path: Path) -> None:
    """Read back from table.csv and missing.csv, and by hand: seconds 10 and 14, twice as many for uniform."""
    for seed in range(2):
        for method, more in (("uniform", 0.0), ("mmpareto", 4.0)):
            folder = make_run(tmp_path / "runs" / f"{method}{seed}", method, seed, 41.23 + seed + more)
            results = json.loads((folder / "results.json").read_text())
            seconds = (10.0 + 4 * seed) * (1 if more else 2)
            (folder / "results.json").write_text(json.dumps(results | {"seconds": seconds, "peak_memory_mib": 700.4}))
            evaluation = {
                "finished": True,
                "selected_epoch": 3,
                "joint": {"confusion": [[3]], "per_class": [{"class": "cat"}]},
                "subsets": [{"present": ["gray", "colour"], "accuracy": 90.0 + seed}],
                "missing_rates": [{"modality": "gray", "rate": 0.5, "accuracy": 61.37 + seed}],
            }
            (folder / "evaluation_test.json").write_text(json.dumps(evaluation))
    reader = written(tmp_path / "runs", tmp_path / "report")
    accuracy, cost, balance, missing, runs = reader.tables
    with open(tmp_path / "report" / "table.csv", newline="") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert list(accuracy["method"]) == list(cost["method"]) == ["mmpareto", "uniform"]  # the best first
    for shown, paid in zip(accuracy.to_dict("records"), cost.to_dict("records"), strict=True):
        row = {name: float(value) for name, value in rows[shown["method"]].items() if re.fullmatch(r"-?[\d.]+", value)}
        assert shown["joint"] == f"{row['joint_mean']:.1f} ± {row['joint_std']:.1f}"
        assert shown["gray alone"] == f"{row['gray_mean']:.1f} ± {row['gray_std']:.1f}"
        assert paid["training time, s"] == f"{row['seconds_mean']:.1f} ± {row['seconds_std']:.1f}"
        assert paid["s per epoch"] == f"{row['seconds_per_epoch']:.2f}"
        assert paid["times uniform"] == f"{row['times_baseline']:.2f}"
        assert paid["peak memory, MiB"] == f"{row['peak_memory_mib']:.0f}" == "700"
    assert list(cost["training time, s"]) == ["12.0 ± 2.8", "24.0 ± 5.7"]
    assert list(cost["times uniform"]) == ["0.50", "1.00"]
    assert list(cost["s per epoch"]) == ["4.00", "8.00"]
    assert "Training it takes 12.0 s, 0.50 times that of uniform" in " ".join(reader.text)
    finished, _ = find([tmp_path / "runs"])
    for shown in balance.to_dict("records"):
        rates = [
            100 * rate
            for run in finished
            if run.method == shown["method"]
            if (rate := run.conflict_rate("gray")) is not None
        ]
        assert shown["conflict, gray"] == f"{np.mean(rates):.1f}"
    lines = pd.read_csv(tmp_path / "report" / "missing.csv")
    for line in lines.to_dict("records"):
        (cell,) = missing[missing["method"] == line["method"]][f"{line['missing_percent']:g} % missing"]
        assert cell == f"{line['mean']:.1f} ± {line['std']:.1f}"
    assert missing["50 % missing"].tolist() == ["61.9 ± 0.7"] * 2
    assert sorted(runs["joint"]) == ["41.23", "42.23", "45.23", "46.23"]


@pytest.mark.usefixtures("undrawn")
def test_names_are_no_markup(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", "<b>mine</b>", dataset="<i>&")
    reader = written(tmp_path / "runs", tmp_path / "report")
    assert "<i>&" in reader.text
    assert "<b>mine</b>" in reader.text
    assert all("style" in tag for tag in reader.all("i"))  # the dots of the rows' colours
    assert not reader.all("b")


@pytest.mark.usefixtures("undrawn")
def test_confusion_and_layers_are_drawn_where_they_are_known(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "a", "mmpareto", epochs=3)
    make_run(tmp_path / "runs" / "b", "uniform", epochs=3)
    (folder / "evaluation_test.json").write_text(
        json.dumps(
            {
                "finished": True,
                "selected_epoch": 3,
                "joint": {"confusion": [[3, 1], [0, 0]], "per_class": [{"class": "cat"}, {"class": "dog"}]},
            }
        )
    )
    (folder / "layers.csv").write_text("epoch,encoder,layer,steps,conflict_rate,mean_cosine\n1,gray,w,3,0.5,0.1\n")
    reader = written(tmp_path / "runs", tmp_path / "report")
    (drawn,) = (f for f in reader.data["sections"][0]["figures"] if f["name"] == "digits-confusion")
    assert [(cell["class"], cell["predicted"], cell["share"]) for cell in drawn["datasets"]["cells"]] == [
        ("cat", "cat", 75.0),
        ("cat", "dog", 25.0),
    ]
    assert "mmpareto: 1 of 1 seed" in " ".join(reader.text)
    for name in ("confusion", "conflict-in-layers"):
        assert (tmp_path / "report" / "figures" / f"digits-{name}.svg").exists()


@pytest.mark.usefixtures("undrawn")
def test_figures_of_the_report_before_go_and_others_stay(tmp_path: Path) -> None:
    make_run(tmp_path / "old", dataset="cgmnist")
    make_run(tmp_path / "new")
    figures = tmp_path / "report" / "figures"
    written(tmp_path / "old", tmp_path / "report")
    (figures / "cgmnist-mine.png").touch()
    (figures / "other-cosine.png").touch()
    written(tmp_path / "new", tmp_path / "report")
    names = {path.name for path in figures.iterdir()}
    assert names == {"cgmnist-mine.png", "other-cosine.png"} | {
        f"digits-{name}.{suffix}" for name in FIGURES for suffix in ("svg", "pdf", "png")
    }


@pytest.mark.usefixtures("undrawn")
def test_of_many_rows_the_best_and_the_baseline_are_drawn_at_first(tmp_path: Path) -> None:
    for number in range(12):
        make_run(tmp_path / "runs" / str(number), "uniform" if number == 1 else f"method{number}", 0, 30.0 + number)
    reader = written(tmp_path / "runs", tmp_path / "report")
    (section,) = reader.data["sections"]
    assert section["names"] == [f"method{n}" if n != 1 else "uniform" for n in range(11, -1, -1)]
    assert [section["names"][row] for row in section["hidden"]] == ["method3", "method2", "method0"]
    boxes = [tag for tag in reader.all("input") if "value" in tag]
    assert [int(box["value"] or "") for box in boxes if "checked" not in box] == section["hidden"]
    specification = learning_curves("digits", curves_of(tmp_path / "runs"), ("gray", "colour")).specification(
        section["names"], section["hidden"]
    )
    labels = set(re.findall(r">((?:method|uniform)[^<]*)</text>", vl_convert.vegalite_to_svg(specification)))
    assert labels == {name for row, name in enumerate(section["names"]) if row not in section["hidden"]}


@pytest.mark.usefixtures("undrawn")
def test_runs_without_measured_gradients(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "a", "one_joint")
    (folder / "gradients.csv").unlink()
    reader = written(tmp_path / "runs", tmp_path / "report")
    assert len(reader.data["sections"][0]["figures"]) == 2


def test_nothing_is_written_where_a_run_cannot_be_read(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "a")
    (folder / "metrics.csv").write_text("epoch\n")
    with pytest.raises(RunError, match=r"metrics\.csv"):
        written(tmp_path / "runs", tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_names_tell_runs_apart() -> None:
    paths = [Path("/a/b/c/seed0"), Path("/a/b/d/seed0")]
    assert page.short_names(paths) == {paths[0]: "c/seed0", paths[1]: "d/seed0"}
    assert page.short_names(paths[:1]) == {paths[0]: "c/seed0"}
    assert page.short_names([Path("/a"), Path("/a/b")]) == {Path("/a"): "a", Path("/a/b"): "b"}
    assert page.identifier("pack.age:Cl ass") == "pack-age-Cl-ass"


def test_bands_stay_within_0_and_100_percent(tmp_path: Path) -> None:
    for seed, cosines in enumerate(([-1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])):
        make_run(tmp_path / f"m{seed}", seed=seed, epochs=1, steps=3, cosines={"gray": cosines, "colour": cosines})
    curves = curves_of(tmp_path)
    steps = collect(curves, lambda history: history.steps).rename(columns={"encoder": "panel"})
    for band in conflict_rate("digits", curves, steps).datasets["means"]:
        assert band["low"] == [0.0]
        assert band["high"] == [pytest.approx(100 / 9 + 100 / 3 * 3**-0.5, abs=1e-3)]


@pytest.mark.parametrize("limits", [(0.62, 0.81), (0.3, 9.0), (1e-4, 50.0)])
def test_a_logarithmic_axis_has_plain_numbers(limits: tuple[float, float]) -> None:
    values = pd.DataFrame({"panel": "norm", "place": 0, "run": 0, "x": [0.0, 1.0], "value": limits})
    axes = Axes(["norm"], "step", "norm", logarithmic=True)
    runs = {(0, 0): {"run": "a", "seed": 0}}
    drawn = curve_figure("n", "n", "n", "n", runs, values, axes)
    svg = vl_convert.vegalite_to_svg(drawn.specification(["one"], []))
    labels = re.findall(r"Y-axis.*?</g></g></g>", svg, re.DOTALL)
    shown = [float(text) for text in re.findall(r">([^<>]+)</text>", labels[0]) if re.fullmatch(r"[\d.]+", text)]
    assert len([label for label in shown if limits[0] <= label <= limits[1]]) >= 2
    assert "×" not in svg


def test_files_of_a_figure_are_the_same_each_time_and_its_pdf_is_whole(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), seed=seed, joint=40.0 + seed) for seed in range(2)]
    (summary,) = summaries(find(runs)[0])
    curves = page.curves_of(summary, {})
    specification = learning_curves("digits", curves, summary.modalities).specification(["mmpareto"], [])
    first, *others = [charts.files(specification) for _ in range(4)]
    assert all(other == first for other in others)
    pdf = first["pdf"]
    table = pdf[int(re.search(rb"startxref\s+(\d+)", pdf)[1]) :]  # type: ignore[index]
    offsets = [int(line[:10]) for line in table.splitlines() if line.rstrip().endswith(b" n")]
    assert len(offsets) > 10
    assert all(re.match(rb"%d 0 obj" % number, pdf[offset:]) for number, offset in enumerate(offsets, 1))


def test_tensors_of_a_sequential_are_layers() -> None:
    assert tensor_label("0.weight") == "layer 0 weight"
    assert tensor_label("4.1.bias") == "layer 4.1 bias"
    assert tensor_label("conv1.weight") == "conv1.weight"


def test_a_figure_whose_rows_are_all_hidden_shows_the_first_ones(tmp_path: Path) -> None:
    view: dict[str, Any] = {"mark": "point", "encoding": {}}
    figure = Figure("f", "t", "a", "c", [Panel(view, 9), Panel(view, 10)], {})
    assert len(figure.specification(["a"] * 11, range(8, 11))["concat"]) == 2


def test_confusion_matrices_of_other_classes_are_not_summed(tmp_path: Path) -> None:
    for seed, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        folder = make_run(tmp_path / "runs" / str(seed), "uniform", seed)
        classes = [{"class": name} for name in names]
        joint = {"confusion": [[3, 1], [0, 0]], "per_class": classes}
        content = {"finished": True, "selected_epoch": 3, "joint": joint}
        (folder / "evaluation_test.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="made on data with other classes"):
        page.write(tmp_path / "report", summaries(find([tmp_path / "runs"])[0]), [])
    assert not (tmp_path / "report").exists()
