"""Run folders from strangers: names that are markup, files that are damaged; no hang, no traceback."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from entries.command import inside, refused
from reporting.synthetic import make_run, write_rows

from mmpareto.cli import report as entry
from mmpareto.reporting import finished
from mmpareto.reporting.balance import balance
from mmpareto.runs import RunError

EVIL = "=cmd|x!A1"
NAMES = ('$a_{$ <script>alert("1")</script>', EVIL)


class Text(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.filterwarnings("error::UserWarning")
def test_names_are_text_in_every_file_of_a_report(tmp_path: Path) -> None:
    method = r"_m [x](http://y) ![p](z) `c` | <img src=x onerror=1> $\frac{ \input{q} 😀 שלום" + "\n# heading"
    for seed in range(2):
        for place, value in enumerate((r"-\write18{x}", "<b>&", EVIL)):
            folder = make_run(
                tmp_path / "runs" / f"{place}{seed}<b>|",
                method if place else "_uniform",
                seed,
                50 + seed * place,
                dataset="@data <i>$x$",
                modalities=NAMES,
                encoder={"gray": value},
                method_options={"$o_{$": place},
                classes=["a"] * 10,
                trained=(50, 5, 5),
            )
            layers = [[1, name, f"$l_{number}", 5, 0.5, 0.1] for name in NAMES for number in range(2)]
            write_rows(
                folder / "layers.csv", [["epoch", "encoder", "layer", "steps", "conflict_rate", "mean_cosine"], *layers]
            )
            (folder / "evaluation_test.json").write_text(
                json.dumps(
                    {
                        "finished": True,
                        "selected_epoch": 3,
                        "joint": {"confusion": [[3, 1], [0, 2]], "per_class": [{"class": "$c_{"}, {"class": "_\n"}]},
                    }
                )
            )
    output = tmp_path / "report"
    done = inside(entry.main, tmp_path / "runs", "--output", output)
    assert (done.returncode, done.stderr) == (0, "")

    with open(output / "table.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    header = lines[0]
    assert {f"'{EVIL}_mean", f"{NAMES[0]}_mean"} <= set(header)
    for cell in (cell for line in lines for cell in line):
        assert cell[:1] not in tuple("=+@\t\r")
        assert cell[:1] != "-" or re.fullmatch(r"-[\d.e-]+", cell)
    assert all(float(line[header.index("joint_mean")]) >= 50 for line in lines[1:])

    page = Text((output / "index.html").read_text())
    assert not {"b", "img"} & set(page.tags)
    assert page.tags.count("script") == 3  # data, library, and the page's own
    for figure in (output / "figures").glob("*.svg"):
        assert not re.search("<(script|b|i|img|a|foreignObject)[ >]", figure.read_text())
    assert page.tags.count("figure") == len(list((output / "figures").glob("*.pdf")))
    for name in NAMES:
        assert name in page.text

    for text in ((output / "table.md").read_text(), done.stdout):
        assert "<" not in text
        assert not re.search(r"(?<!\\)(\[x\]|`|\$)", text)
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1

    tex = (output / "table.tex").read_text()
    assert not re.search(r"\\(input|write18|frac)", tex)
    assert r"\$a\_\{\$" in tex


@pytest.mark.usefixtures("undrawn")
def test_datasets_whose_file_names_would_be_one_have_figures_of_their_own(tmp_path: Path) -> None:
    for number, dataset in enumerate(("图", "文", "a b", "A-b")):
        folder = make_run(tmp_path / "runs" / str(number), dataset=dataset, epochs=1)
        (folder / "gradients.csv").unlink()  # and four figures the fewer
    assert inside(entry.main, tmp_path / "runs", "--output", tmp_path / "report").returncode == 0
    figures = [path.name for path in (tmp_path / "report" / "figures").glob("*joint-accuracy.svg")]
    assert len(figures) == 4
    page = (tmp_path / "report" / "index.html").read_text()
    assert len(set(re.findall(r'<section id="(\w[^"]*)"', page))) == 4


@pytest.mark.usefixtures("undrawn")
def test_the_terminal_shows_the_tuned_table_of_the_files(tmp_path: Path) -> None:
    for method in ("uniform", "mmpareto"):
        for seed in range(2):
            for rate, val in ((0.01, 50.0), (0.1, 60.0), (1.0, 40.0)):
                folder = tmp_path / "runs" / f"{method}{rate}{seed}"
                make_run(folder, method, seed, 30 + 10 * rate + seed, val=val, learning_rate=rate)
    done = inside(entry.main, tmp_path / "runs", "--output", tmp_path / "report", "--tune", "learning_rate")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line]
    printed = {tuple(row[:4]) for row in rows[2:]}
    with open(tmp_path / "report" / "table.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["chosen_learning_rate"] for line in lines} == {"0.1"}
    assert printed == {
        (
            line["dataset"],
            line["label"],
            line["n_seeds"],
            f"{float(line['joint_mean']):.1f} ± {float(line['joint_std']):.1f}",
        )
        for line in lines
    }
    assert done.stdout.count("chosen by mean validation accuracy") == 2


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def huge(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, 2**40)


def with_text(text: str | bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return write


def with_cell(column: str, value: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        header, line, *rest = path.read_text().splitlines()
        cells = line.split(",")
        cells[header.split(",").index(column)] = value
        path.write_text("\n".join([header, ",".join(cells), *rest]) + "\n")

    return write


def with_value(value: Any, *keys: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        content = part = yaml.safe_load(path.read_text())  # JSON is YAML
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        path.write_text(json.dumps(content))

    return write


FIELD = "x" * 200_000
STRANGE = {
    "metrics.csv": {
        "pipe": pipe,
        "loop": loop,
        "device": device,
        "folder": folder,
        "huge": huge,
        "binary": with_text(b"\xff\xfe\x00junk\n\x80"),
        "nul": with_text("epoch\0,x\n1,2\n"),
        "huge field": with_text(f"epoch,val_accuracy_joint\n1,{FIELD}\n"),
        "open quote": with_text('epoch,"val_accuracy_joint\n1,2\n' * 50),
        "huge epoch": with_cell("epoch", "1e18"),
        "infinite epoch": with_cell("epoch", "inf"),
        "negative epoch": with_cell("epoch", "-5"),
    },
    "gradients.csv": {
        "pipe": pipe,
        "loop": loop,
        "device": device,
        "folder": folder,
        "huge": huge,
        "huge field": with_cell("encoder", FIELD),
        "nan step": with_cell("step", "nan"),
        "huge step": with_cell("step", "1e300"),
        "huge epoch": with_cell("epoch", "1e18"),
    },
    "layers.csv": {"pipe": pipe, "loop": loop, "binary": with_text(b"\x00\x01\x02\n"), "folder": folder},
    "evaluation_test.json": {
        "loop": loop,
        "folder": folder,
        "broken": with_text('{"finished": true, "selected_epoch": 3'),
        "no counts": with_text(
            '{"finished": true, "selected_epoch": 1, "joint": {"confusion": [[NaN]], "per_class": [{"class": "a"}]}}'
        ),
        "huge count": with_text(
            f'{{"finished": true, "selected_epoch": 1, "joint": {{"confusion": [[1{"0" * 400}]], '
            '"per_class": [{"class": "a"}]}}'
        ),
    },
    "results.json": {
        "pipe": pipe,
        "device": device,
        "folder": folder,
        "binary": with_text(b"\xff\xfe\x00"),
        "list for a method": with_value(["a"], "method"),
        "infinite accuracy": with_value(float("inf"), "test", "joint", "accuracy"),
        "huge accuracy": with_value(10**400, "test", "joint", "accuracy"),
        "text for an accuracy": with_value("50", "test", "joint", "accuracy"),
        "list of modalities": with_value([], "test", "unimodal"),
        "text for modalities": with_value("gray", "test", "unimodal"),
        "text for an epoch": with_value("3", "selected_epoch"),
        "list for a split": with_value([], "selected_on"),
        "huge conflict rate": with_value(1e308, "integration", "gray", "conflict_rate"),
        "list for the integration": with_value([], "integration"),
    },
    "config.yaml": {
        "pipe": pipe,
        "folder": folder,
        "list for data": with_value([1], "data_root"),
    },
    "resolved.json": {"pipe": pipe, "number for classes": with_value(7, "classes")},
    "environment.json": {"loop": loop, "folder": folder, "list for git": with_value([1], "git")},
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in STRANGE.items() for kind in kinds])
def test_a_damaged_file_is_named(name: str, kind: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "strange", epochs=1, steps=2)
    if not (run / name).exists():
        (run / name).write_text("{}")
    STRANGE[name][kind](run / name)
    said = refused(entry.main, tmp_path / "runs", "--output", tmp_path / "report")
    assert str(run) in said
    assert name in said
    assert len(said.splitlines()) == 1
    assert len(said) < 1000
    assert not (tmp_path / "report").exists()


@pytest.mark.filterwarnings("error::UserWarning")
def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "a", epochs=2, steps=3)
    for value, column in (
        ("nan", "cosine"),
        ("inf", "joint_norm"),
        ("-inf", "unimodal_norm"),
        ("1e308", "joint_weight"),
    ):
        with_cell(column, value)(run / "gradients.csv")
    with_cell("val_accuracy_joint", "inf")(run / "metrics.csv")
    with_cell("val_accuracy_gray", "-1e309")(run / "metrics.csv")
    config = {"learning_rate": float("nan"), "momentum": 10**18, "nothing": None, "deep": {"er": [{}]}}
    make_run(tmp_path / "runs" / "b", seed=1, epochs=2, steps=3, **config)
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    os.mkfifo(tmp_path / "runs" / "pipe")
    done = inside(entry.main, tmp_path / "runs", "--output", tmp_path / "report")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "report" / "index.html").exists()


def test_a_link_to_a_whole_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finished, "MOST_FOLDERS", 10)
    for number in range(12):
        (tmp_path / "disk" / str(number)).mkdir(parents=True)
    make_run(tmp_path / "runs" / "a")
    assert inside(entry.main, tmp_path / "runs").returncode == 0
    (tmp_path / "runs" / "b").symlink_to(tmp_path / "disk")
    assert f"{tmp_path / 'runs'} has more than 10 folders below it" in refused(entry.main, tmp_path / "runs")


@pytest.mark.parametrize(
    "probe", [{}, {"unimodal": {"gray": {}}}, {"unimodal": 3}, {"unimodal": {"gray": {"accuracy": "x"}}}]
)
def test_damaged_probes_are_named(probe: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "uniform", 0)
    file = folder / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"probe": probe}))
    (run,), _ = finished.find([folder])
    with pytest.raises(RunError, match=r"the probe of .*results\.json is damaged"):
        balance(run)
