"""Read JSON files, with small limits and one kind of error for whatever a file may hold; write them as strict JSON."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpareto.special_files import special_file

MOST_BYTES = 64 * 2**20
MOST_DEPTH = 32  # of objects and lists inside each other; the project's own files have 6 at most
MOST_DIGITS = 19  # of a whole number: those of 64 bits


def require_regular(path: Path) -> None:
    """Raise OSError where there is no file, ValueError where it is a pipe, a device or a folder: reading may hang."""
    path.stat()
    special = special_file(path)
    if special is not None:
        raise ValueError(f"it is {special}; expected a regular file")


def read_object(path: Path) -> dict[str, Any]:
    """The object {name: value} that a JSON file holds.

    Raises OSError where it cannot be opened, ValueError where it is no such file: text that is no JSON, another value
    than an object, a name given twice, more than MOST_BYTES, MOST_DEPTH or MOST_DIGITS, text that cannot be encoded.
    """
    require_regular(path)
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
    too_deep = f"it holds more than {MOST_DEPTH} objects and lists inside each other"
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer)
        if not isinstance(content, dict):
            raise ValueError("it holds no values by name")
        if _depth(content) > MOST_DEPTH:
            raise ValueError(too_deep)
        # half a surrogate pair is text that cannot be printed; a path may hold bytes that are no UTF-8
        json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except RecursionError as error:
        raise ValueError(too_deep) from error
    return content


def json_text(content: Any, *, indent: int | None = 2) -> str:
    """JSON of the content, with a line feed at its end; numbers that are not finite become null, as JSON has none."""
    separators = (",", ":") if indent is None else None
    return json.dumps(_finite(content), indent=indent, separators=separators, default=str, allow_nan=False) + "\n"


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it holds {max(names, key=names.count)[:100]!r} twice")
    return content


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > MOST_DIGITS:
        raise ValueError(f"it holds a whole number of {len(text)} digits")
    return int(text)


def _depth(content: Any) -> int:
    """How many objects and lists are inside each other."""
    if not isinstance(content, dict | list):
        return 0
    return 1 + max(map(_depth, content.values() if isinstance(content, dict) else content), default=0)
