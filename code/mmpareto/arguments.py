"""Command lines and configuration files of train.py -> `Config`.

The flags come from the fields of `mmpareto.config`, the options of dataset, method, fusion and architecture from their
registry entries. A file of --config is read as flags that stand before those of the command line.
"""

import argparse
import difflib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

from mmpareto.command_line import Parser, add_allow, listing
from mmpareto.config import DEFAULT_DATASET, SECTIONS, Config
from mmpareto.config_files import flattened, read_sections
from mmpareto.data_folders import is_embedded
from mmpareto.errors import DatasetError, ModelError, UsageError
from mmpareto.escape import counted
from mmpareto.flag_values import converter, positive, shown
from mmpareto.registries import ARCHITECTURES, DATASETS, ENCODERS, FUSIONS, LISTED, METHODS, architecture_of
from mmpareto.registry import REQUIRED, Entry, Registry, require_allowed
from mmpareto.runs import CONFIG, LAST, PREVIOUS, RESOLVED, RunDirectory, RunError
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
OFF = "none"  # what a flag says that switches off what a file of settings switched on
SWITCHED_OFF = ("n_classes", "early_stopping", "amp", "checkpoint_minutes")
# what is chosen by one flag and has options in another one, --<name>_options; with the default
WITH_OPTIONS: dict[str, tuple[Registry[Any], str]] = {
    "method": (METHODS, "mmpareto"),
    "fusion": (FUSIONS, "concat"),
    "architecture": (ARCHITECTURES, "late_fusion"),
}


class _Entries:
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


def parse(argv: Sequence[str], root: Path, beside: Mapping[str, Any] | None = None) -> Config:
    """The settings that a command line asks for, with the dataset's recipe for what it leaves open.

    Args:
        argv: flags of train.py.
        root: folder under which data/ and runs/ are looked for where the command line names no other.
        beside: settings that a program gives as those of a file, which flags override.

    Raises:
        UsageError: for an unknown flag or value (naming the known ones).
        SystemExit: after --help and --list-...
    """
    first = Parser(add_help=False)
    for name in ("config", "dataset", *WITH_OPTIONS, "optimizer", "lr_schedule", "lr_decay_step"):
        first.add_argument(f"--{name}")
    first.add_argument("--method_options", nargs="+", action="extend")
    add_allow(first)
    early = {name: value for name, value in vars(first.parse_known_args(argv)[0]).items() if value is not None}
    path, allowed = early.pop("config", None), early.pop("allow")
    options = {text.partition("=")[0] for text in early.pop("method_options", [])}
    in_file, empty = _merged(path, allowed, beside)
    if in_file:
        _drop_overridden(in_file, early, options)
    entries = _Entries(in_file | early)

    parser = _parser(entries)
    from_file = _explicit(entries, in_file, path or "config") if in_file else {}
    # an empty setting of a file, as a run's without clipping is saved, is no recipe's value
    optional = {item.name for kind in SECTIONS.values() for item in fields(kind) if "None" in str(item.type)}
    parser.set_defaults(**dict.fromkeys(empty & optional), **from_file)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse_unknown(unknown, parser, entries.dataset.name)
    values: dict[str, Any] = {
        key: None if key in SWITCHED_OFF and value == OFF else value for key, value in vars(given).items()
    }
    del values["config"], values["allow"]
    values["dataset_options"] = {key: values.pop(key) for key in entries.dataset.options}
    short = {key: value for key in SHORT if (value := values.pop(key)) is not None}
    for group, entry in entries.chosen.items():
        name = f"{group}_options"
        before = from_file.get(name, [])
        values[name] = _options(group, entry, before, values[name][len(before) :], short if group == "method" else {})
    values["encoder"], values["encoder_options"] = dict(values["encoder"]), dict(values["encoder_options"])
    values["missing"] = dict(values["missing"])
    values |= {kind: entries.named(kind) for kind in ("dataset", *WITH_OPTIONS)}
    _resolve(values, entries, root)
    return Config(
        **{
            section: kind(**{item.name: values[item.name] for item in fields(kind)})
            for section, kind in SECTIONS.items()
        }
    )


def parse_settings(
    settings: Mapping[str, Any],
    root: Path,
    file: Path | Mapping[str, Any] | None = None,
    allowed: Collection[str] = (),
) -> Config:
    """The settings of a program or notebook, with the dataset's recipe for what they leave open.

    Args:
        settings: by the names of the flags; None leaves one open.
        root: see `parse`.
        file: settings of --config, or a mapping of such, by section or without; `settings` override them.
        allowed: import paths that the file may name.

    Raises:
        UsageError: see `parse`.
    """
    beside: dict[str, Any] | None = None
    if isinstance(file, Mapping):
        parts = [
            value if key in SECTIONS and isinstance(value, Mapping) else {key: value} for key, value in file.items()
        ]
        beside = {name: value for part in parts for name, value in part.items()}
    flags = [] if file is None or beside is not None else [f"--config={file}"]
    flags += [f"--allow={path}" for path in allowed]
    return parse([*flags, *_as_flags(settings, _parser(_Entries({})))], root, beside)


def saved_config(run: RunDirectory, allowed: Collection[str] = (), **changed: Any) -> Config:
    """The settings that a run was trained with, its encoders by name.

    Args:
        run: the run.
        allowed: import paths that the command line allows; any other that the run names is refused, not imported.
        changed: settings that take the place of the run's, where they are not None.

    Raises:
        RunError: where the folder holds no run, one of another version of the program, or one that imports code.
        UsageError: for a `data_root` of a dataset that reads no folder.
    """
    if not run.path.is_dir():
        raise RunError(f"{run.path} is no folder; give a run directory of train.py")
    settings = run.read_config()
    encoders = saved_encoders(run)
    names = [name for name in (str(settings.get("model")), *encoders.values()) if ENCODERS.is_path(name)]
    names += [str(settings.get(name)) for name in ("dataset", *WITH_OPTIONS)]
    try:
        require_allowed(names, allowed)
    except ValueError as error:
        raise RunError(f"{run.path} {error}") from error
    try:
        flags = ["--config", str(run / CONFIG), "--ckpt_path", str(run.path)]
        config = parse([*flags, *(f"--allow={path}" for path in allowed)], run.path)
    except UsageError as error:
        raise RunError(f"{run / CONFIG} holds values that train.py does not write: {error}") from error
    if changed.get("data_root") is not None and is_embedded(config.data.dataset, config.data.dataset_options):
        raise UsageError(f"--data_root: the dataset {config.data.dataset} is embedded and reads no folder")
    size = changed.get("batch_size")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise UsageError(f"batch_size must be a whole number, 1 or more, found {size!r:.100}")
    return config.changed(encoder=encoders, **{key: value for key, value in changed.items() if value is not None})


def saved_encoders(run: RunDirectory) -> dict[str, str]:
    """The name of each modality's encoder.

    Raises:
        RunError: where the run has none.
    """
    encoders = run.read_json(RESOLVED).get("encoders")
    if not isinstance(encoders, dict) or not all(isinstance(name, str) for name in encoders.values()):
        raise RunError(f"{run / RESOLVED} holds encoders {encoders!r:.100}, which train.py does not write")
    return encoders


def flags_of(dataset: str) -> set[str]:
    """The names of train.py's flags, those that the dataset adds included."""
    names = {item.name for kind in SECTIONS.values() for item in fields(kind)}
    return names | set(SHORT) | set(DATASETS[dataset].options)


def _text(names: Mapping[str, Any], name: str, default: str) -> str:
    value = names.get(name, default)
    if not isinstance(value, str):
        raise UsageError(f"{name} is {value!r:.100}, expected text")
    return value


def _merged(
    path: str | None, allowed: Collection[str], beside: Mapping[str, Any] | None
) -> tuple[dict[str, Any], set[str]]:
    """The settings in a file and beside it, by flag, and the flags that these leave empty."""
    in_file, empty = ({}, set[str]()) if path is None else _read(path, allowed)
    more = {name: value for name, value in (beside or {}).items() if value not in (None, "")}
    return in_file | more, {*empty, *(name for name, value in (beside or {}).items() if value is None)} - more.keys()


def _drop_overridden(in_file: dict[str, Any], early: dict[str, Any], options: Collection[str]) -> None:
    """Take out of a file's settings what belongs to something that the command line replaces.

    A run saves every setting: momentum and the ratio of decay too, where its optimiser or schedule has none.

    Args:
        in_file: the file's settings, which are changed.
        early: what the command line says of dataset, method, fusion, architecture, optimiser and schedule.
        options: names of the method's options that it gives.
    """
    _drop_of_optimizer(in_file, early)
    if "method" in early and "architecture" in in_file and "architecture" not in early:
        before, now = (architecture_of(_Entries(names).named("method")) for names in (in_file, in_file | early))
        usual = WITH_OPTIONS["architecture"][1]
        if (before or usual) != (now or usual) and in_file["architecture"] == (before or usual):
            del in_file["architecture"]  # the other method brings its own
            in_file.pop("architecture_options", None)
    for name in ("dataset", *WITH_OPTIONS):  # another one has other options
        if name in early and _Entries(in_file).named(name) != _Entries(in_file | early).named(name):
            in_file.pop(f"{name}_options", None)
            for key in ("data_root",) if name == "dataset" else SHORT if name == "method" else ():
                in_file.pop(key, None)
    for key in options & in_file.keys() & SHORT.keys():
        del in_file[key]


def _drop_of_optimizer(in_file: dict[str, Any], early: dict[str, Any]) -> None:
    """`_drop_overridden` for the optimiser and the schedule."""
    saved, now = (str(names.get("optimizer", "SGD")).lower() for names in (in_file, in_file | early))
    if now != "sgd" and (saved == "sgd" or in_file.get("momentum") == MOMENTUM):
        in_file.pop("momentum", None)
    if "lr_decay_step" in early and "lr_schedule" not in early:
        in_file.pop("lr_schedule", None)
    schedules = []
    for names in (in_file, in_file | early):
        usual = "constant" if names.get("lr_decay_step") is None else "step"
        schedules.append(str(names.get("lr_schedule", usual)).lower())
    saved, now = schedules
    if now != "step":
        if saved == "step":
            in_file.pop("lr_decay_step", None)
        if saved == "step" or in_file.get("lr_decay_ratio") == DECAY_RATIO:
            in_file.pop("lr_decay_ratio", None)


def _read(path: str, allowed: Collection[str]) -> tuple[dict[str, Any], set[str]]:
    """The settings in a file of --config, by flag, and the flags that it leaves empty.

    Raises:
        UsageError: for a file that cannot be read, one that imports code which is not allowed, and settings that only
            a person may give: they decide what happens to the files of a run.
    """
    try:
        flat = flattened(read_sections(Path(path)))
        settings = {name: value for name, value in flat.items() if value not in (None, "")}
        encoders = settings.get("encoder")
        names = [settings.get("model"), *(encoders.values() if isinstance(encoders, dict) else [encoders])]
        names = [name for name in map(str, names) if ENCODERS.is_path(name)]
        names += [str(settings.get(name)) for name in ("dataset", *WITH_OPTIONS)]
        require_allowed(names, allowed)
    except (OSError, ValueError) as error:
        raise UsageError(f"--config {path}: {getattr(error, 'strerror', None) or error}") from error
    for name in ("resume", "overwrite", "train"):
        if name in settings:
            raise UsageError(f"--config {path}: {name} cannot be set in a file; give --{name} on the command line")
    return settings, {name for name, value in flat.items() if value is None}


def _explicit(entries: _Entries, settings: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The values of a file's settings, converted as those of flags are.

    Raises:
        UsageError: for a value that no flag has.
    """
    parser = _parser(entries, suppress=True)
    try:
        given, unknown = parser.parse_known_args(list(_as_flags(settings, parser)))
        if unknown:
            _refuse_unknown(unknown, parser, entries.dataset.name)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return vars(given)


def _as_flags(settings: Mapping[str, Any], parser: Parser) -> Iterable[str]:
    """Settings as flags; the value stands after `=`, so that it is never read as a flag."""
    actions = {action.dest: action for action in parser._actions}
    for name, value in settings.items():
        if name == "dataset_options" and isinstance(value, dict):
            yield from _as_flags(value, parser)
        elif isinstance(value, dict):
            flat = {
                key if word is None else f"{key}.{word}": item
                for key, inner in value.items()
                for word, item in (inner.items() if isinstance(inner, dict) else [(None, inner)])
            }
            yield from (f"--{name}={key}={_shown(item)}" for key, item in flat.items() if item not in (None, ""))
        elif isinstance(value, bool) and isinstance(actions.get(name), argparse.BooleanOptionalAction):
            yield f"--{name}" if value else f"--no-{name}"
        elif isinstance(value, bool) and name in actions and actions[name].nargs == "?":
            yield from [f"--{name}"] * value  # a flag that may stand alone
        elif value is not None:
            yield f"--{name}={_shown(value)}"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else shown(value)


def _options(
    group: str,
    entry: Entry[Any],
    in_file: Iterable[tuple[str, str]],
    assigned: Sequence[tuple[str, str]],
    short: Mapping[str, Any],
) -> dict[str, Any]:
    """The options of an entry, with their defaults."""
    flag, known = f"--{group}_options", f"it takes {', '.join(entry.options) or 'none'}"
    names = [key for key, _ in assigned]
    if len(set(names)) < len(names):
        raise UsageError(f"{flag}: {Counter(names).most_common(1)[0][0]} is given twice")
    for key in short:
        if key not in entry.options:
            raise UsageError(f"--{key} means nothing to the {group} {entry.name}; {known}")
        if key in names:
            raise UsageError(f"--{key} and {flag} {key}=... say the same: give one of the two")
    given: dict[str, Any] = {}
    for key, text in (*in_file, *assigned):
        if key not in entry.options:
            raise UsageError(f"the {group} {entry.name} has no option {key!r:.100}; {known}")
        try:
            given[key] = converter(entry.options[key].type)(text)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{flag} {key}: {error}") from error
    defaults = {key: option.default for key, option in entry.options.items() if option.default is not REQUIRED}
    return defaults | given | dict(short)


def _resolve(values: dict[str, Any], entries: _Entries, root: Path) -> None:
    """Fill in what follows from other settings; refuse contradictions."""
    for encoder in filter(None, (values["model"], *values["encoder"].values())):
        try:
            ENCODERS.canonical(encoder)
        except ModelError as error:
            raise UsageError(str(error)) from error
    _resolve_schedule(values)
    values["clip_grad"] = values["clip_grad"] or None
    if values["momentum"] is not None and values["optimizer"] != "SGD":
        raise UsageError(f"--momentum is SGD's; {values['optimizer']} has none")
    if values["momentum"] is None:
        values["momentum"] = MOMENTUM
    if values["resume"] not in (None, "auto", LAST, PREVIOUS):
        raise UsageError(f"--resume {values['resume']}: expected {LAST}, {PREVIOUS}, auto or nothing")
    if values["resume"] and values["overwrite"]:
        raise UsageError("--resume continues a run, --overwrite deletes it: give one of the two")
    dataset = entries.dataset.name
    if values["data_root"] == "":
        raise UsageError("--data_root is empty; name a folder, or leave the flag out")
    if is_embedded(dataset, values["dataset_options"]):
        if values["data_root"] is not None:
            raise UsageError(f"--data_root: the dataset {dataset} is embedded and reads no folder; leave the flag out")
    else:
        values["data_root"] = os.path.abspath(values["data_root"] or root / "data" / dataset)
    if values["ckpt_path"] == "":
        raise UsageError("--ckpt_path is empty; name a folder, or leave the flag out")
    if values["ckpt_path"] is None:
        folder = Path(dataset.replace(":", "."), values["method"].replace(":", "."), f"seed{values['random_seed']}")
        values["ckpt_path"] = str(root / "runs" / folder)


def _resolve_schedule(values: dict[str, Any]) -> None:
    """--lr_decay_step alone asks for the step schedule, as in the published code; contradictions are refused."""
    if values["lr_schedule"] is None:
        values["lr_schedule"] = "constant" if values["lr_decay_step"] is None else "step"
    schedule = values["lr_schedule"]
    if schedule == "step" and values["lr_decay_step"] is None:
        raise UsageError("--lr_schedule step needs --lr_decay_step, the epochs between two decays")
    if schedule != "step" and values["lr_decay_step"] is not None:
        raise UsageError(f"--lr_decay_step belongs to --lr_schedule step; found {schedule}")
    if values["lr_decay_ratio"] is not None and schedule != "step":
        raise UsageError(f"--lr_decay_ratio needs --lr_decay_step: the schedule is {schedule}")
    if values["lr_decay_ratio"] is None:
        values["lr_decay_ratio"] = DECAY_RATIO
    if values["warmup_epochs"] >= values["epochs"] > 0 and values["warmup_epochs"] > 0:
        raise UsageError(
            f"--warmup_epochs {values['warmup_epochs']} leaves nothing of {counted(values['epochs'], 'epoch')}"
        )


class _List(argparse.Action):
    """Prints a table of a registry and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(listing(LISTED[self.dest.removeprefix("list_")]))
        parser.exit()


def _parser(entries: _Entries, suppress: bool = False) -> Parser:
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
                help=item.metadata["help"] or _described(entries.chosen[item.name.removesuffix("_options")]),
                **_with_off(item.name, item.metadata["argument"]),
            )
        if section == "method":
            for name, arguments in SHORT.items():
                group.add_argument(f"--{name}", **arguments)
        if section == "data":
            group = parser.add_argument_group(f"the dataset {dataset.name}")
            for key, option in dataset.options.items():
                default_text = "" if option.default is None else f" (default: {shown(option.default)})"
                group.add_argument(
                    f"--{key}",
                    default=argparse.SUPPRESS if suppress else option.default,
                    metavar=key.upper(),
                    type=converter(option.type),
                    help=(option.help + default_text).replace("%", "%%").strip(),
                )
    return parser


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


def _described(entry: Entry[Any]) -> str:
    """Help on the options of an entry."""
    parts = []
    for key, option in entry.options.items():
        default = "no default" if option.default is REQUIRED else f"default: {shown(option.default)}"
        parts.append(f"{key} ({default})" + (f": {option.help.rstrip('.')}" if option.help else ""))
    text = f"options of {entry.name}: {'; '.join(parts) or 'none'}; name another one to see its own"
    return text.replace("%", "%%")


def _refuse_unknown(unknown: Sequence[str], parser: Parser, dataset: str) -> NoReturn:
    flag = unknown[0].partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    close = difflib.get_close_matches(flag, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UsageError(f"unknown flag {flag:.100} for the dataset {dataset}; {hint}known: {', '.join(sorted(known))}")
