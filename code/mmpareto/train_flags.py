"""The flags of train.py: the fields of `mmpareto.config`, and the options of what the command line chooses."""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, NoReturn

from mmpareto.command_line import Parser, add_allow, listing
from mmpareto.config import DEFAULT_DATASET, SECTIONS
from mmpareto.errors import DatasetError, ModelError, UsageError
from mmpareto.flag_values import converter, path_text, positive, shown
from mmpareto.registries import ARCHITECTURES, DATASETS, FUSIONS, LISTED, METHODS, architecture_of
from mmpareto.registry import REQUIRED, Entry, Registry
from mmpareto.startup import program

# options of methods that have flags of their own
SHORT: dict[str, dict[str, Any]] = {
    "gamma": {
        "type": positive,
        "metavar": "X",
        "help": "factor of the encoders' gradients, for mmpareto and uniform_gamma (default: 1.5, as published)",
    },
    "rescale": {
        "choices": ("tensor", "encoder"),
        "help": "mmpareto: restore the magnitude of every parameter tensor, as the published code does, or of the "
        "encoder as a whole, as the paper's algorithm reads (default: tensor)",
    },
}
MOMENTUM, DECAY_RATIO = 0.9, 0.1  # of SGD, and of the step schedule, where nothing else is said
# what other programs call these flags
MEANT = {
    "--lr": "--learning_rate",
    "--wd": "--weight_decay",
    "--seed": "--random_seed",
    "--gpu": "--gpu_ids",
    "--device": "--gpu_ids",
    "--workers": "--num_workers",
    "--output": "--ckpt_path",
}
OFF = "none"  # what a flag says that switches off what a file of settings switched on
SWITCHED_OFF = ("n_classes", "early_stopping", "amp", "checkpoint_minutes")
# what is chosen by one flag and has options in another one, --<name>_options; with the default
WITH_OPTIONS: dict[str, tuple[Registry[Any], str]] = {
    "method": (METHODS, "mmpareto"),
    "fusion": (FUSIONS, "concat"),
    "architecture": (ARCHITECTURES, "late_fusion"),
}


class Entries:
    """The chosen dataset, and the chosen entry of each of WITH_OPTIONS."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        try:
            self.dataset: Entry[Any] = DATASETS[_text(names, "dataset", DEFAULT_DATASET)]
            self.chosen: dict[str, Entry[Any]] = {}
            for kind, (registry, default) in WITH_OPTIONS.items():
                if kind == "architecture":  # some methods need one
                    default = architecture_of(self.chosen["method"].name) or default
                self.chosen[kind] = registry[_text(names, kind, default)]
        except (DatasetError, ModelError, ValueError, ImportError) as error:
            raise UsageError(str(error)) from error

    def named(self, kind: str) -> str:
        """The registered name of the dataset, or of one of WITH_OPTIONS."""
        return self.dataset.name if kind == "dataset" else self.chosen[kind].name


def _text(names: Mapping[str, Any], name: str, default: str) -> str:
    value = names.get(name, default)
    if not isinstance(value, str):
        raise UsageError(f"{name} is {value!r:.100}, expected text")
    return value


def train_parser(entries: Entries, suppress: bool = False) -> Parser:
    """The parser of train.py's flags; with `suppress` its result holds only what is given."""
    dataset = entries.dataset
    parser = Parser(
        prog=program("train"),
        description="Train a multimodal classifier with a joint loss and one unimodal loss per modality; --method\n"
        "says how their gradients are integrated inside the encoders. Defaults below are those of the dataset\n"
        f"{dataset.name}; name another one with --dataset to see its own.",
        argument_default=argparse.SUPPRESS if suppress else None,
    )
    add = parser.add_argument
    add(
        "--config",
        type=path_text,
        metavar="FILE",
        help="settings in YAML, such as a run's config.yaml; flags override them, and "
        f"{OFF} switches off --{', --'.join(SWITCHED_OFF)}",
    )
    add_allow(parser)
    for name in LISTED:
        add(
            f"--list-{name}",
            action=_List,
            nargs=0,
            default=argparse.SUPPRESS,
            help=f"print the {name} and exit",
        )
    recipe = dataset.attributes.get("recipe", {})
    for section, kind in SECTIONS.items():
        group = parser.add_argument_group(*_title(kind))
        for item in fields(kind):
            if not item.metadata:
                continue
            default = [] if item.default is MISSING else recipe.get(item.name, item.default)
            group.add_argument(
                f"--{item.name}",
                default=argparse.SUPPRESS if suppress else default,
                help=_help(item, default) or _described(entries.chosen[item.name.removesuffix("_options")]),
                **_with_off(item.name, item.metadata["argument"]),
            )
        if section == "method":
            for name, arguments in SHORT.items():
                group.add_argument(f"--{name}", **arguments)
        if section == "data":
            group = parser.add_argument_group(f"the dataset {dataset.name}")
            for key, option in dataset.options.items():
                default_text = "" if option.default is None else f" (default: {shown(option.default) or OFF})"
                group.add_argument(
                    f"--{key}",
                    default=argparse.SUPPRESS if suppress else option.default,
                    metavar=key.upper(),
                    type=converter(option.type),
                    help=(option.help + default_text).replace("%", "%%").strip(),
                )
    return parser


class _List(argparse.Action):
    """A flag that prints a table of a registry and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(listing(LISTED[self.dest.removeprefix("list_")]))
        parser.exit()


def _with_off(name: str, argument: Mapping[str, Any]) -> dict[str, Any]:
    """How argparse takes a flag, with OFF for those of SWITCHED_OFF."""
    if name not in SWITCHED_OFF:
        return dict(argument)
    if "choices" in argument:
        return {**argument, "choices": (*argument["choices"], OFF)}
    return {**argument, "type": lambda text: text if text == OFF else argument["type"](text)}


def _title(kind: type) -> tuple[str, str | None]:
    """Heading and description of a section: the two parts of its docstring's first line around the colon."""
    heading, _, description = (kind.__doc__ or "").strip().rstrip(".").partition(": ")
    return heading.lower(), description or None


def _help(item: Field[Any], default: Any) -> str:
    """Help on a field, with the default that holds for the dataset in words."""
    words = item.metadata["unset"] if default in (None, []) else shown(default)
    if isinstance(default, bool):
        words = "on" if default else "off"
    return item.metadata["help"].replace("%(default)s", words.replace("%", "%%"))


def _described(entry: Entry[Any]) -> str:
    """Help on the options of an entry."""
    parts = []
    for key, option in entry.options.items():
        default = "no default" if option.default is REQUIRED else f"default: {shown(option.default) or OFF}"
        parts.append(f"{key} ({default})" + (f": {option.help.rstrip('.')}" if option.help else ""))
    text = f"options of {entry.name}: {'; '.join(parts) or 'none'}; name another one to see its own"
    return text.replace("%", "%%")


def refuse_unknown(unknown: Sequence[str], parser: Parser, dataset: str) -> NoReturn:
    """Raise UsageError for flags that the parser does not know, with the one that is most like the first."""
    if not unknown[0].startswith("-"):
        raise UsageError(
            f"{unknown[0]!r:.100} belongs to no flag; a list is written with commas and without spaces, as in a,b, and "
            "a value that holds spaces between quotation marks"
        )
    flag = unknown[0].partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    close = [MEANT[flag]] if flag in MEANT else difflib.get_close_matches(flag, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UsageError(f"unknown flag {flag:.100} for the dataset {dataset}; {hint}known: {', '.join(sorted(known))}")
