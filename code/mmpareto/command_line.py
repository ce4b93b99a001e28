"""What all command lines have in common: their parser, --allow, tables of what can be chosen."""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import TYPE_CHECKING, Any, NoReturn

from mmpareto.errors import UsageError
from mmpareto.flag_values import import_path
from mmpareto.startup import shell_command

if TYPE_CHECKING:
    from mmpareto.registry import Registry


_EXAMPLE = re.compile(r"python code/(\w+)\.py")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError, prints descriptions as they are and accepts no abbreviations."""

    def __init__(self, **arguments: Any) -> None:
        def formatter(prog: str) -> argparse.HelpFormatter:
            return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=110)

        if "description" in arguments:  # its examples, as they are typed here
            arguments["description"] = _EXAMPLE.sub(lambda match: shell_command(match[1]), arguments["description"])
        super().__init__(formatter_class=formatter, allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError; long words, which the user knows, are cut."""
        raise UsageError(re.sub(r"\S{200,}", lambda word: word[0][:100] + "...", message))


def add_allow(parser: argparse.ArgumentParser) -> None:
    """Add --allow, for commands that read the settings of a run."""
    parser.add_argument(
        "--allow",
        type=import_path,
        action="append",
        default=[],
        metavar="PACKAGE.MODULE:CLASS",
        help="import this class where a file names it as dataset, method, encoder, fusion or architecture, which runs "
        "its code; repeat the flag for several (default: none)",
    )


def listing(registry: Registry[Any]) -> str:
    """A table of a registry for the terminal."""
    rows = registry.table()
    foreign = ["or package.module:Class for one of your own"] if registry.bases else []
    width = max(len(name) for name, _, _ in rows) + 2
    lines = []
    for name, options, summary in rows:
        text = summary.rstrip(".") + "." + (f" Options: {options}." if options else "")
        wrapped = textwrap.wrap(text, 118 - width)
        lines += [f"{name:<{width}}{wrapped[0]}", *(" " * width + line for line in wrapped[1:])]
    return "\n".join([*lines, *(" " * width + line for line in foreign)])
