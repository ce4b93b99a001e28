"""List what can be chosen by name: datasets, methods, encoders, fusions, architectures.

mmpareto list
mmpareto list methods
"""

import argparse
from collections.abc import Sequence

from mmpareto.cli.common import run_command
from mmpareto.command_line import Parser, listing
from mmpareto.registries import LISTED
from mmpareto.startup import program


def _kind(text: str) -> str:
    if text not in LISTED:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(LISTED)}; found {text!r:.100}")
    return text


def main(argv: Sequence[str]) -> int:
    """Run a command line; the result is the exit status."""

    def show() -> None:
        flags = Parser(prog=program("list"), description=__doc__)
        flags.add_argument("kind", nargs="*", type=_kind, metavar="KIND", help=", ".join(LISTED))
        kinds = flags.parse_args(argv).kind or list(LISTED)
        print("\n\n".join(f"{kind}:\n{listing(LISTED[kind])}" for kind in kinds))

    return run_command(program("list"), show, interrupted="interrupted")
