"""Prepare a dataset: a raw download -> the folder that train.py reads.

    python code/prepare.py cremad --source CREMA-D --output data/cremad --split speaker
    python code/prepare.py modelnet40 --source ModelNet40 --output data/modelnet40
    python code/prepare.py --help                 # the datasets
    python code/prepare.py cremad --help          # a dataset's flags

The same command continues where it was cut short. Exit status: 0 done; 1 done, but more clips than --max_unusable
percent are unusable; 2 cannot be done; 130 interrupted.
"""

import sys
from collections.abc import Sequence

from mmpareto.cli.common import run_command
from mmpareto.command_line import Parser, listing
from mmpareto.cores import cores
from mmpareto.errors import DatasetError
from mmpareto.flag_values import count, file_path, not_negative
from mmpareto.registries import DATASETS, PREPARATIONS
from mmpareto.startup import program


def _parser(name: str) -> Parser:
    make = PREPARATIONS[name].make
    module = sys.modules[make.__module__]
    parser = Parser(prog=f"{program('prepare')} {name}", description=module.__doc__)
    for source, text in _sources(name).items():
        parser.add_argument(f"--{source}", type=file_path, required=True, metavar="FOLDER", help=text)
    parser.add_argument("--output", type=file_path, required=True, metavar="FOLDER", help="the prepared dataset")
    parser.add_argument(
        "--workers",
        type=count,
        default=cores(),
        metavar="N",
        help="processes (default: the number of cores, %(default)s)",
    )
    parser.add_argument(
        "--max_unusable",
        type=not_negative,
        default=5.0,
        metavar="PERCENT",
        help="unusable clips, in percent of those that are there, up to which the exit status is 0 (default: 5)",
    )
    module.add_arguments(parser)
    parser.set_defaults(prepare=make)
    return parser


def _sources(name: str) -> dict[str, str]:
    """The flags that name raw downloads, with their help."""
    module = sys.modules[PREPARATIONS[name].make.__module__]
    return getattr(module, "SOURCES", {"source": "the raw download"})


def main(argv: Sequence[str]) -> int:
    """Run a command line; the result is the exit status."""
    ended = "interrupted; the same command continues from here"
    return run_command(program("prepare"), lambda: prepare(argv), interrupted=ended)


def prepare(argv: Sequence[str]) -> int:
    """Prepare a dataset; the result is the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\ndatasets:\n{listing(PREPARATIONS)}")
        return 0 if argv else 2
    name = DATASETS.canonical(argv[0])
    if name not in PREPARATIONS:
        raise DatasetError(f"the dataset {name} needs no preparation; those that do: {', '.join(PREPARATIONS)}")
    args = _parser(name).parse_args(argv[1:])
    for source in _sources(name):
        if not getattr(args, source).is_dir():
            raise DatasetError(f"--{source} {getattr(args, source)}: there is no such folder")
    outcome = args.prepare(args)
    print(outcome.text)
    if outcome.unusable_percent > args.max_unusable:
        print(
            f"{program('prepare')}: {outcome.unusable_percent:.1f} % of the clips are unusable, more than "
            f"--max_unusable {args.max_unusable:g}; the reasons are in {args.output / 'dataset.json'}",
            file=sys.stderr,
        )
        return 1
    print(f"prepared: {args.output}")
    return 0
