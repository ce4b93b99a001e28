"""Names that others chose, made harmless where they are shown: figures, Markdown, LaTeX, CSV.

Methods, modalities, classes, datasets, folders and values of flags may hold any character. HTML is escaped by jinja2.
"""

import csv
import math
import os
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

RED, GREEN = 31, 32
NAMELESS = "(no name)"
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")  # control characters and line breaks
_MISLEADING = re.compile("[\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # bidirectional overrides; halves of characters
_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")  # how a cell begins that spreadsheets compute
_MARKDOWN = re.compile(r"[\\`*\[\]|~$@]|(?<![^\W_])_|_(?![^\W_])")
_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    # `\\` before a row takes [ and * for its own; quotes become ligatures
    **{character: f"{{{character}}}" for character in "[]*`'"},
}


def on_one_line(text: str) -> str:
    """Text without control characters and line breaks, which become spaces, and without what turns its direction."""
    return _MISLEADING.sub("\ufffd", _UNSEEN.sub(" ", text))


def coloured(text: str, colour: int) -> str:
    """Text in a colour (RED, GREEN) where standard output is a terminal, and as it is elsewhere.

    The variable NO_COLOR switches colours off (https://no-color.org).
    """
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def counted(number: int, noun: str) -> str:
    """A number and its noun, in the plural unless it is one: "1 run", "2 runs", "3 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def shortened(text: str, most: int) -> str:
    """Text cut to so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def figure_text(text: str, most: int = 60) -> str:
    """A name as matplotlib shows it: no mathematics between dollar signs, no `_` that hides it from a legend."""
    text = shortened(on_one_line(text), most)
    if not text.strip():
        return NAMELESS
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def markdown_text(text: str) -> str:
    """A name in Markdown, in a cell of a table, a heading or an item of a list: no markup, link, image or HTML."""
    text = on_one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _MARKDOWN.sub(r"\\\g<0>", text).replace("://", r"\://").replace("www.", r"www\.")
    return re.sub(r"^(\s*)([#+=!-](?=\D)|\d+(?=[.)]\s))", _block, text)


def latex_text(text: str) -> str:
    """A name in LaTeX."""
    text = on_one_line(text)
    if re.fullmatch(r"[+-]\d+(\.\d+)?", text):  # a difference
        return f"${text}$"
    return "".join(_LATEX.get(character, character) for character in text)


def csv_cell(value: Any) -> Any:
    """A value of a CSV file: text that a spreadsheet would compute gets an apostrophe in front, numbers stay.

    See `csv_text`.
    """
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def write_csv_rows(file: TextIO, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows of a CSV file, every value by `csv_cell`."""
    for row in rows:
        cells = [csv_cell(value) for value in row]
        # Python before 3.13 does not quote a carriage return, behind which a spreadsheet begins a new row
        broken = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if broken else csv.QUOTE_MINIMAL)
        writer.writerow(cells)


def csv_text(cell: str) -> str:
    """The text that `csv_cell` made this cell of."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell[1:]) else cell


def _is_formula(text: str) -> bool:
    if _FORMULA.match(text) is None:
        return False
    try:
        return math.isnan(float(text))  # "-3.2", a number as text, is harmless
    except ValueError:
        return True


def _block(match: re.Match[str]) -> str:
    """What would begin a heading, a list or a rule, escaped."""
    space, mark = match.groups()
    return f"{space}{mark}\\" if mark.isdigit() else f"{space}\\{mark}"
