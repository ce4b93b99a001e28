"""Text of the command line to values, with messages that say what was expected."""

import argparse
import math
import os
import re
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MOST = 2**31 - 1  # of whole numbers: PyTorch, NumPy and operating systems count that far
MOST_WORKERS = 1024


def number(text: str, kind: type, holds: Callable[[Any], bool], wanted: str) -> Any:
    """`text` as a number of `kind` for which `holds`; else an error that says what is `wanted`."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if kind is int and value is not None and holds(value) and abs(value) > MOST:
        value, wanted = None, f"a whole number of at most {MOST}"
    if value is None or not holds(value):
        raise argparse.ArgumentTypeError(f"expected {wanted}, found {text!r:.100}")
    return value


def count(text: str) -> int:
    """1, 2, ..."""
    return number(text, int, lambda x: x > 0, "a whole number above zero")


def count_or_zero(text: str) -> int:
    """0, 1, 2, ..."""
    return number(text, int, lambda x: x >= 0, "a whole number, zero or more")


def workers(text: str) -> int:
    """0, 1, 2, ... processes."""
    return number(text, int, lambda x: 0 <= x <= MOST_WORKERS, f"a whole number from 0 to {MOST_WORKERS}")


def seed(text: str) -> int:
    """0, 1, ..., as far as every random generator takes it, with room for a number per process."""
    return number(text, int, lambda x: 0 <= x <= MOST, f"a whole number from 0 to {MOST}")


def truth(text: str) -> bool:
    """True or false, or 1 or 0, in any letter case."""
    value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r:.100}")
    return value


def positive(text: str) -> float:
    """A finite number above zero."""
    return number(text, float, lambda x: 0 < x < float("inf"), "a number above zero")


def frame_rate(text: str) -> float:
    """Frames a second, from 0.001 to 1000."""
    return number(text, float, lambda x: 0.001 <= x <= 1000, "a number from 0.001 to 1000")


def not_negative(text: str) -> float:
    """A finite number, zero or more."""
    return number(text, float, lambda x: 0 <= x < float("inf"), "a number, zero or more")


def decibels(text: str) -> float:
    """A ratio of powers in dB, from -100 to 100."""
    return number(text, float, lambda value: -100 <= value <= 100, "a number from -100 to 100")


def fraction(text: str) -> float:
    """A number in [0, 1)."""
    return number(text, float, lambda x: 0 <= x < 1, "a number from 0 up to but not including 1")


def path_text(text: str) -> str:
    """The path of a file or folder, as text that files can hold and terminals can print; ~ is the home folder.

    A shell leaves the ~ of --output=~/runs as it is.
    """
    try:
        parts = text.encode("utf-8").split(b"/")
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(
            f"expected a path in UTF-8, found {text!a:.100}; rename the file or folder"
        ) from error
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise argparse.ArgumentTypeError(f"expected a path without control characters, found {text!a:.100}")
    if max(map(len, parts)) > 255 or len(text) > 4000:
        raise argparse.ArgumentTypeError(
            f"expected a path of parts of 255 bytes at most, 4000 in all, found {text!a:.100}..."
        )
    return os.path.expanduser(text)


def file_path(text: str) -> Path:
    """See `path_text`."""
    return Path(path_text(text))


def import_path(text: str) -> str:
    """package.module:Class."""
    if not all(text.partition(":")):
        raise argparse.ArgumentTypeError(f"expected package.module:Class, found {text!r:.100}")
    return text


def assignment_text(text: str) -> tuple[str, str]:
    """NAME=VALUE as (name, value)."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r:.100}")
    return key, value


def assigned_fraction(text: str) -> tuple[str, float]:
    """NAME=NUMBER as (name, number in [0, 1))."""
    key, value = assignment_text(text)
    return key, fraction(value)


def option_text(text: str) -> tuple[str, str]:
    """MODALITY.KEY=VALUE as ("MODALITY.KEY", value)."""
    name, _, value = text.partition("=")
    modality, _, key = name.partition(".")
    if not (modality and key and value):
        raise argparse.ArgumentTypeError(f"expected MODALITY.KEY=VALUE, found {text!r:.100}")
    return name, value


def assignment(text: str) -> tuple[str, Any]:
    """NAME=VALUE with a value that may be a number, true, false or none; account=007 is text."""
    key, value = assignment_text(text)
    return key, value if re.match(r"[+-]?0\d|.*_", value) else literal(value)


def literal(text: str) -> Any:
    """A number, true, false or none where the text is one; else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """What reads one of some names in any letter case."""

    def read(text: str) -> str:
        for name in names:
            if text.lower() == name.lower():
                return name
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)}, found {text!r:.100}")

    return read


def converter(hint: Any) -> Callable[[str], Any]:
    """What turns text into an option of the type `hint`, so that 1 and 1.0 are one setting of a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # an optional option
        return converter(next(a for a in arguments if a is not type(None)))
    if origin is typing.Literal:
        return one_of(arguments)
    if origin in (tuple, list):
        inner = converter(arguments[0])
        return lambda text: tuple(inner(part) for part in text.split(",")) if text else ()
    if hint is bool:
        return truth
    if hint is int:
        return lambda text: number(text, int, lambda x: True, "a whole number")
    if hint is float:
        return lambda text: number(text, float, math.isfinite, "a number")
    return str if hint is str else literal


def shown(default: Any) -> str:
    """A default as a person would type it."""
    return ",".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
