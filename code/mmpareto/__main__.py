"""The command `mmpareto`: every entry of code/ as a subcommand, with the same flags."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn, Sequence  # noqa: UP035  # Python 3.7, see startup

from mmpareto import __version__, startup  # first: it checks the environment

COMMANDS = {
    "train": "train a classifier",
    "evaluate": "score a trained run: every head, probes, missing modalities, contributions",
    "predict": "classify new files with a trained run",
    "export": "export the model of a trained run to ONNX or torch.export",
    "experiment": "train a grid of methods, datasets and seeds, and compare them",
    "report": "compare finished runs: tables, figures, a page",
    "study": "study gradient noise and the loss around trained runs",
    "prepare": "turn a raw download into a dataset",
    "benchmark": "measure what a training step and the loader cost",
    "list": "list datasets, methods, encoders, fusions and architectures",
}


def dispatch(argv: Sequence[str]) -> int:
    """Run a command line; the result is the exit status."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print("usage: mmpareto COMMAND [flags]\n\ncommands:")
        for command, summary in COMMANDS.items():
            print(f"  {command:12}{summary}")
        print("\nmmpareto COMMAND --help shows the flags; mmpareto --version the version")
        return 0 if argv else 2
    if name == "--version":
        print(f"mmpareto {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"mmpareto: unknown command {name!r:.100}; known: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"mmpareto.cli.{name}")
    status: int = module.main(argv[1:])
    return status


def main() -> NoReturn:
    """Run the command line of this process."""
    startup.run(dispatch)


if __name__ == "__main__":
    main()
