"""The page: complete in itself, every figure in it, nothing of a run's name taken for markup."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reporting.synthetic import make_run

from mmpareto.reporting import page
from mmpareto.reporting.comparison import rows_of
from mmpareto.reporting.comparison_figures import learning_curves, method_figures
from mmpareto.reporting.drawing import Curves, collect
from mmpareto.reporting.finished import find
from mmpareto.reporting.gradient_figures import conflict_rate, cosine, tensor_label
from mmpareto.reporting.histories import history
from mmpareto.reporting.rendering import plain_log_ticks, plt
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
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def tell(folder: Path, **values: list[float]) -> None:
    """Columns of a method's own in a run's metrics.csv, a value per epoch."""
    header, *lines = (folder / "metrics.csv").read_text().splitlines()
    told = [",".join(map(str, column)) for column in zip(*values.values(), strict=True)]
    rows = [f"{header},{','.join(values)}", *(f"{line},{more}" for line, more in zip(lines, told, strict=True))]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")


def test_what_methods_tell_of_themselves_is_drawn(tmp_path: Path) -> None:
    make_run(tmp_path / "u", "uniform", 0, 40.0)
    for place in range(9):
        make_run(tmp_path / f"s{place}", f"silent{place}", 0, 50.0 + place)
    for seed in range(2):
        told = make_run(tmp_path / f"g{seed}", "gblending", seed, 99.0)
        tell(told, method_weight_joint=[0.2, 0.5, 0.6 + 0.2 * seed], method_weight_gray=[0.1, 0.2, 0.3])
    tell(tmp_path / "u", method_rate=[1.0, 2.0, 3.0])
    rows = rows_of(find([tmp_path])[0])
    curves = [Curves(row, [history(run) for run in row.runs], place) for place, row in enumerate(rows)]
    assert [each.row.label for each in curves if each.colour == "C0"] == ["uniform", "gblending"]  # the first, the 11th
    (drawn,) = method_figures("digits", curves)
    axes = drawn.figure.axes
    assert [each.get_title() for each in axes] == ["rate", "weight joint", "weight gray"]
    lines = [list(each.lines[0].get_ydata()) for each in axes]
    assert lines == [[1, 2, 3], pytest.approx([0.2, 0.5, 0.7]), [0.1, 0.2, 0.3]]
    assert axes[0].lines[0].get_color() != axes[1].lines[0].get_color()
    plt.close(drawn.figure)
    assert list(method_figures("digits", curves[1:2])) == []


def written(runs: Path, output: Path) -> Reader:
    found, unfinished = find([runs])
    page.write(output, summaries(found), unfinished)
    return Reader((output / page.PAGE).read_text())


def test_page_is_complete_in_itself(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / "runs" / f"u{seed}", "uniform", seed, 40.0 + seed)
        make_run(tmp_path / "runs" / f"m{seed}", "mmpareto", seed, 45.0 - seed)
    make_run(tmp_path / "runs" / "pareto" / "half", "pareto", finished=False)
    reader = written(tmp_path / "runs", tmp_path / "report")
    assert reader.open == []  # every tag was closed
    for tag, attributes in reader.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), attributes
    images = reader.all("img")
    assert len(images) == len(FIGURES)
    for image, name in zip(images, FIGURES, strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,"))))
        assert [str(size) for size in picture.size] == [image["width"], image["height"]]
        assert np.asarray(picture.convert("L")).std() > 5  # not an empty sheet
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert len(image["alt"] or "") > 40
        assert (tmp_path / "report" / "figures" / f"digits-{name}.png").stat().st_size > 3000
    text = " ".join(reader.text)
    assert "4 finished runs are compared. 1 not finished: left out." in text
    assert "pareto/half" in reader.text
    assert "44.5 ± 0.7" in reader.text
    assert "not set" not in text


def test_names_are_no_markup(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", "<b>mine</b>", dataset="<i>&")
    reader = written(tmp_path / "runs", tmp_path / "report")
    assert "<i>&" in reader.text
    assert "<b>mine</b>" in reader.text
    assert not reader.all("i")
    assert not reader.all("b")


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
    assert any((image["alt"] or "").startswith("Confusion matrices") for image in reader.all("img"))
    assert "mmpareto: 1 of 1 seeds" in " ".join(reader.text)
    for name in ("confusion", "conflict-in-layers"):
        assert (tmp_path / "report" / "figures" / f"digits-{name}.png").exists()


def test_figures_of_the_report_before_go_and_others_stay(tmp_path: Path) -> None:
    make_run(tmp_path / "old", dataset="cgmnist")
    make_run(tmp_path / "new")
    figures = tmp_path / "report" / "figures"
    written(tmp_path / "old", tmp_path / "report")
    (figures / "cgmnist-mine.png").touch()
    (figures / "other-cosine.png").touch()
    written(tmp_path / "new", tmp_path / "report")
    names = {path.name for path in figures.iterdir()}
    assert names == {"cgmnist-mine.png", "other-cosine.png", *(f"digits-{name}.png" for name in FIGURES)}


def test_many_rows_are_split_over_figures(tmp_path: Path) -> None:
    """Twelve rows: two figures with the same axes, the baseline in each, no colour twice in one."""
    for number in range(12):
        folder = make_run(tmp_path / str(number), "uniform" if number == 5 else f"method{number}", 0, 30.0 + number)
        if number > 5:
            (folder / "gradients.csv").write_text("")
    rows = rows_of(find([tmp_path])[0])
    curves = [Curves(row, [history(run) for run in row.runs], place, place == 5) for place, row in enumerate(rows)]
    first, second = learning_curves("digits", curves, ("gray", "colour"))
    assert (first.name, second.name, first.caption) == ("learning-curves-1", "learning-curves-2", "")
    assert "split over 2 figures" in second.caption
    shown = [[text.get_text() for text in each.figure.legends[0].get_texts()] for each in (first, second)]
    assert shown[0] == [*(f"method{number}" for number in range(5)), "uniform", "method6"]
    assert shown[1] == ["uniform", *(f"method{number}" for number in range(7, 12))]
    for panel in range(3):
        axes = [each.figure.axes[panel] for each in (first, second)]
        assert axes[0].get_ylim() == axes[1].get_ylim()
        assert axes[0].get_ylim()[1] > max(line.get_ydata().max() for one in axes for line in one.lines)
        for one, names in zip(axes, shown, strict=True):
            assert len({line.get_color() for line in one.lines}) == len(one.lines) == len(names)
    steps = collect(curves, lambda history: history.steps).rename(columns={"encoder": "panel"})
    measured = list(cosine("digits", curves, steps))  # of the second part there is nothing but the baseline
    assert [each.name for each in measured] == ["cosine"]
    for each in (first, second, *measured):
        plt.close(each.figure)


def test_runs_without_measured_gradients(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "a", "one_joint")
    (folder / "gradients.csv").unlink()
    reader = written(tmp_path / "runs", tmp_path / "report")
    assert len(reader.all("img")) == 2


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
    (row,) = rows_of(find([tmp_path])[0])
    curves = [Curves(row, [history(run) for run in row.runs], 0)]
    steps = collect(curves, lambda history: history.steps).rename(columns={"encoder": "panel"})
    (drawn,) = conflict_rate("digits", curves, steps)
    (band,) = drawn.figure.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.0, pytest.approx(100 / 9 + 100 / 3 * 3**-0.5))
    plt.close(drawn.figure)


@pytest.mark.parametrize("limits", [(0.62, 0.81), (0.3, 9.0), (1e-4, 50.0)])
def test_a_logarithmic_axis_has_plain_numbers(limits: tuple[float, float]) -> None:
    figure, axes = plt.subplots()
    axes.set(yscale="log", ylim=limits)
    plain_log_ticks(axes.yaxis)
    figure.canvas.draw()
    labels = [text.get_text().replace("\N{MINUS SIGN}", "-") for text in axes.yaxis.get_ticklabels(which="both")]
    assert len([label for label in labels if label and limits[0] <= float(label) <= limits[1]]) >= 3
    plt.close(figure)


def test_tensors_of_a_sequential_are_layers() -> None:
    assert tensor_label("0.weight") == "layer 0 weight"
    assert tensor_label("4.1.bias") == "layer 4.1 bias"
    assert tensor_label("conv1.weight") == "conv1.weight"
