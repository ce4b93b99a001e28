"""Names that others chose are text wherever they are shown: no formula, markup, command or mathematics."""

from __future__ import annotations

import csv
import io
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from mmpareto.escape import (
    RED,
    coloured,
    counted,
    csv_cell,
    csv_text,
    figure_text,
    latex_text,
    markdown_text,
    on_one_line,
)
from mmpareto.reporting import evaluation_figures, figures, study_figures
from mmpareto.reporting.rendering import picture, plt
from mmpareto.reporting.tables import text_table
from mmpareto.runs import RunDirectory

FORMULAS = [
    '=cmd|"/c calc"!A1',
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "-",
    "=",
    "＝1+1",
    "-nan",
    "'=1",
    "''@x",
]
PLAIN = ["", "audio", "a=b", "'", "'tis", "-3.2", "+4", "-1e-5", "1,5", 'a"b', "a,b", "über", "x\ny", "'-3"]
NAMES = [
    "$a_{$",
    "$",
    "$$",
    r"\$x$",
    r"$\frac{1}{0}$",
    "a$b$c$",
    "_hidden",
    "__",
    "",
    " ",
    "x" * 5000,
    "a\nb\tc",
    "😀🎉",
    "视觉",
    "שלום عربى",
    "\u202eabc",
    "\udcff",
    "\x00\x1b[31m",
    "{}%s%(x)s",
    r"\unknown{",
    "^_^",
    "#1 & <b>",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_becomes_text_in_csv_and_comes_back(text: str) -> None:
    cell = csv_cell(text)
    assert cell == f"'{text}"
    assert csv_text(cell) == text


@pytest.mark.parametrize("text", [*PLAIN, *NAMES])
def test_other_text_comes_back_as_well(text: str) -> None:
    assert csv_text(csv_cell(text)) == text
    if text in PLAIN[:-1]:
        assert csv_cell(text) == text


def test_numbers_stay_numbers() -> None:
    values = [-3.2, -1, 0.5, None, True, float("-inf")]
    assert [csv_cell(value) for value in values] == values


def test_tables_of_a_run_come_back_as_they_were(tmp_path: Path) -> None:
    run, texts = RunDirectory(tmp_path), [*FORMULAS, *(text for text in PLAIN if "\n" not in text)]
    rows = [{"step": -1.5, "encoder": text} for text in texts]
    run.append_csv("gradients.csv", rows[:3])
    run.append_csv("gradients.csv", rows[3:])
    run.write_csv("metrics.csv", [{text: -number for number, text in enumerate(texts)}])
    text = io.StringIO((tmp_path / "gradients.csv").read_bytes().decode(), newline="")
    cells = [cell for row in csv.reader(text) for cell in row]
    assert not [cell for cell in cells if cell[:1] in ("=", "@", "\t", "\r", "+", "-") and not _number(cell)]
    assert [row["encoder"] for row in run.read_csv("gradients.csv")] == texts
    assert run.read_csv("metrics.csv") == [{text: str(-number) for number, text in enumerate(texts)}]


def _number(cell: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d+)?(e-?\d+)?", cell) is not None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("&lt;", "&amp;lt;"),
        ("[x](javascript:y)", r"\[x\](javascript:y)"),
        ("![x](http://y)", r"\!\[x\](http\://y)"),
        ("see https://evil.example", r"see https\://evil.example"),
        ("www.evil.example", r"www\.evil.example"),
        ("me@evil.example", r"me\@evil.example"),
        ("`code`", r"\`code\`"),
        ("**bold** ~~gone~~ $x$", r"\*\*bold\*\* \~\~gone\~\~ \$x\$"),
        ("_emphasis_ __init__ learning_rate", r"\_emphasis\_ \_\_init\_\_ learning_rate"),
        ("a\nb\r\n# c", "a b # c"),
        ("# heading", r"\# heading"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("===", r"\==="),
        (r"\|", r"\\\|"),
        ("-1.2", "-1.2"),
        ("42.0 ± 2.0", "42.0 ± 2.0"),
        ("12", "12"),
    ],
)
def test_markdown(text: str, shown: str) -> None:
    assert markdown_text(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        (r"-\write18{x}", r"-\textbackslash{}write18\{x\}"),
        ("+$x$", r"+\$x\$"),
        ("[1cm] * `", "{[}1cm{]} {*} {`}"),
        ("50% & #1_a^b~", r"50\% \& \#1\_a\textasciicircum{}b\textasciitilde{}"),
        ("a\n\nb", "a b"),
        ("-1.5", "$-1.5$"),
        ("+4.0", "$+4.0$"),
        ("-", "-"),
    ],
)
def test_latex(text: str, shown: str) -> None:
    assert latex_text(text) == shown


def test_the_terminal_gets_no_control_characters() -> None:
    assert on_one_line("\x1b]0;title\x07a\nb\u202ec\u2028") == " ]0;title a b\ufffdc "
    assert len(text_table(["a\nb", "c"], [["x\x1b[2J\r\n", "1"]]).splitlines()) == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_shows_a_name_as_it_is(name: str) -> None:
    figure, axes = plt.subplots()
    axes.plot([0, 1], label=figure_text(name))
    axes.set_title(figure_text(name))
    (label,) = axes.legend().get_texts()
    cleaned, is_math = axes.title._preprocess_math(label.get_text())
    assert not is_math
    expected = on_one_line(name).strip() or "(no name)"
    assert cleaned.strip() == (expected if len(expected) <= 60 else f"{expected[:59]}…")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture(figure, 50)


def test_every_figure_of_one_run_takes_any_name() -> None:
    modalities = NAMES
    history = [
        {"epoch": epoch}
        | {f"{split}_{what}_{n}": 1.0 for split in ("train", "val") for what in ("loss", "accuracy") for n in names}
        for names in [["joint", *modalities]]
        for epoch in (1, 2)
    ]
    gradients = [
        {"encoder": name, "step": step, "cosine": -0.5, "conflict": 1, "joint_norm": 1.0, "unimodal_norm": 2.0}
        for name in modalities[:4]
        for step in range(3)
    ]
    classes = NAMES
    bins = [{"low": 0.0, "samples": 3, "accuracy": 50.0, "confidence": 40.0}]
    subsets = [{"present": [name], "accuracy": 10.0} for name in NAMES[:6]]
    noise = {"mean_norm": 1.0, "covariance_trace": 2.0}
    study = {
        "samples": 5,
        "split": "train",
        "directions": 1,
        "runs": [
            {
                "label": name,
                "noise": {other: {"joint": noise, "unimodal": noise} for other in NAMES[:2]},
                "loss": {"alphas": [-1, 0, 1], "losses": [[1.0, 0.5, 1.0]], "accuracies": [[1.0, 2.0, 1.0]]},
                "sharpness": {"value": 1.0, "converged": False},
            }
            for name in NAMES
        ],
    }
    drawn = [
        figures.learning_curves(history, modalities, 1, "val"),
        figures.gradient_figure(gradients),
        evaluation_figures.confusion_figure(np.eye(len(classes)), classes, NAMES[0]),
        evaluation_figures.subset_figure(subsets, dict.fromkeys(NAMES[:6], 1.0), NAMES[0]),
        evaluation_figures.reliability_figure(
            {name: {"reliability": bins, "calibration_error": 1.0} for name in NAMES[:4]}
        ),
        study_figures.noise_figure(study),
        study_figures.loss_figure(study),
        study_figures.sharpness_figure(study),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in drawn:
            assert figure is not None
            assert np.asarray(picture(figure, 40)).std() > 1
    assert len(drawn[0].axes[1].get_legend().get_texts()) == len(NAMES) + 2  # no name is hidden
    assert len(drawn[-1].axes[0].patches) == len(NAMES)
    assert len({bar.get_y() for bar in drawn[-1].axes[0].patches}) == len(NAMES)


def test_colour_is_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert coloured("x", RED) == "x"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert coloured("x", RED) == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("x", RED) == "x"


def test_counts_are_in_the_plural_unless_they_are_one() -> None:
    assert [counted(number, "run") for number in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
    assert [counted(number, "class") for number in (1, 3)] == ["1 class", "3 classes"]
