"""The runs of a grid: methods x datasets x seeds x varied flags, each command line checked before any is run."""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmpareto.arguments import flags_of, parse
from mmpareto.config import Config
from mmpareto.data_folders import require_data
from mmpareto.errors import UsageError, UserError
from mmpareto.registries import DATASETS, METHODS
from mmpareto.runs import RunDirectory
from mmpareto.train_flags import SHORT

# flags of train.py that the grid sets itself, and what to use instead
OWNED = {
    "--method": "--methods",
    "--dataset": "--datasets",
    "--random_seed": "--seeds",
    "--ckpt_path": "--output",
    "--gpu_ids": "--gpu_ids of experiment.py, which shares the GPUs among the runs",
    "--resume": "the same command again: it resumes what is unfinished",
    "--overwrite": "another --output, or remove the folder of the run that is to be made anew",
    "--no-train": "train.py --no-train, which scores one finished run again",
}
LONGEST_NAME = 255  # bytes of a folder's name, on most file systems


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a grid.

    name     its folder below the output folder, such as digits/mmpareto/seed0.
    folder   the run directory.
    argv     flags of train.py, without the device and --resume, which are added when it starts.
    config   the settings that train.py makes of them.
    """

    name: str
    folder: Path
    argv: tuple[str, ...]
    config: Config


@dataclass(frozen=True)
class Grid:
    """The runs in the order in which they start, and notes for the person who asked for them."""

    runs: list[Run]
    notes: list[str]


def variation(text: str) -> tuple[str, list[str]]:
    """FLAG=VALUE,VALUE as (flag, values); where there is a semicolon it separates, and values may hold commas."""
    flag, equals, listed = text.partition("=")
    values = [value.strip() for value in listed.split(";" if ";" in listed else ",")]
    if not (equals and re.fullmatch(r"\w+", flag) and all(values)):
        raise argparse.ArgumentTypeError(f"expected FLAG=VALUE,VALUE such as gamma=1,1.5, found {text!r}")
    return flag, list(dict.fromkeys(values))


def expand(
    methods: Sequence[str],
    names: Sequence[str],
    seeds: Sequence[int],
    varied: Sequence[tuple[str, Sequence[str]]],
    passed: Sequence[str],
    output: Path,
    root: Path,
) -> Grid:
    """The grid of `methods` x datasets `names` x `seeds` x `varied` flags; one seed of everything comes first.

    What is varied is a flag of train.py, or an option of a method by its name; method_<name> is always the option.
    Where it means nothing to a method (gamma to the plain sum) it is left out for that method, and a note says so;
    where it means nothing to any, that is an error.

    passed  flags of train.py for every run.
    output  runs are in <output>/<dataset>/<method>[/<flag>=<value>...]/seed<k>.
    root    folder under which train.py looks for data/.

    Raises UsageError where train.py would refuse a command line, with its message, or where flags contradict the grid.
    """
    flags = [f"--{flag}" for flag, _ in varied]
    given = flags_in(passed)
    refuse_owned((*given, *flags))
    for flag in flags:
        if flag in given or flags.count(flag) > 1:
            raise UsageError(f"{flag} is varied, and given a second time: give it once")
    values = dict(varied)
    try:
        names = list(dict.fromkeys(DATASETS.canonical(name) for name in names))
    except UserError as error:
        raise UsageError(str(error)) from error
    pairs = list(itertools.product(names, dict.fromkeys(methods)))

    taken = {pair: _taken(*pair, values, passed, root) for pair in pairs}
    notes = []
    for flag in values:
        refuse_unknown_variation(flag, pairs)
        without = [(name, method) for name, method in pairs if flag not in taken[name, method]]
        if len(without) == len(pairs):
            knowing = next((pair for pair in pairs if _knows(*pair, flag)), pairs[0])
            _check(*knowing, passed, {flag: values[flag][0]}, root)  # says why
            why = _refusal(*knowing, passed, values, (*taken[knowing], flag), root)
            raise UsageError(f"--vary {flag}: no run of the grid takes it together with the other flags ({why})")
        for name, method in without:
            why = f"means nothing to {method} on {name}"
            if _knows(name, method, flag):
                why = f"is left out ({_refusal(name, method, passed, values, (*taken[name, method], flag), root)})"
            notes.append(f"{flag} {why}: run once without it")

    runs: dict[Path, Run] = {}
    same: dict[str, str] = {}
    for seed in dict.fromkeys(seeds):
        for name, method in pairs:
            for chosen in _combinations({flag: values[flag] for flag in taken[name, method]}):
                parts = [name, method, *(f"{key}={value}" for key, value in chosen.items()), f"seed{seed}"]
                run = make_run(name, method, passed, chosen, seed, parts, output, root)
                if run.folder in runs:
                    raise UsageError(
                        f"two runs of the grid would share the folder {run.folder}; give them values apart"
                    )
                twin = same.setdefault(json.dumps(run.config.saved(), sort_keys=True), run.name)
                if twin != run.name:
                    raise UsageError(
                        f"{twin} and {run.name} are the same run, with every setting alike; give one of them"
                    )
                runs[run.folder] = run
    return Grid(list(runs.values()), notes)


def refuse_unknown_variation(flag: str, pairs: Iterable[tuple[str, str]]) -> None:
    """Raise UsageError for what is neither a flag of train.py nor an option of any method of the grid."""
    known: dict[str, None] = {}
    for name, method in pairs:
        flags = sorted(flag for flag in flags_of(name) if f"--{flag}" not in OWNED)
        known |= dict.fromkeys([*METHODS[method].options, *flags])
    if flag not in known and flag.removeprefix("method_") not in known:
        close = difflib.get_close_matches(flag, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"--vary {flag}: no method here has the option {flag}, and train.py has no such flag{hint}")


def flags_in(words: Sequence[str]) -> set[str]:
    """The flags of a command line."""
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def refuse_owned(flags: Iterable[str]) -> None:
    """Raise UsageError for a flag that the grid sets itself."""
    for flag in flags:
        if flag in OWNED:
            raise UsageError(f"{flag} is set by the grid; use {OWNED[flag]}")


def make_run(
    name: str,
    method: str,
    passed: Sequence[str],
    chosen: Mapping[str, str],
    seed: int,
    parts: Sequence[str],
    output: Path,
    root: Path,
) -> Run:
    """The run of a dataset, a method, chosen values and a seed.

    parts  of its folder below `output`.

    Raises UsageError where train.py would refuse its command line.
    """
    folder = "/".join(map(folder_name, parts))
    long = [part for part in folder.split("/") if len(os.fsencode(part)) > LONGEST_NAME]
    if long:
        raise UsageError(
            f"the value of {long[0][:40]}... is too long for the name of a folder ({LONGEST_NAME} bytes at most); use "
            "a shorter one"
        )
    argv = _argv(name, method, passed, chosen, "--random_seed", str(seed), "--ckpt_path", str(output / folder))
    return Run(folder, output / folder, argv, _parse(name, method, argv, root))


def _taken(name: str, method: str, values: Mapping[str, Sequence[str]], passed: Sequence[str], root: Path) -> list[str]:
    """The largest set of the varied flags that train.py accepts together for this dataset and method.

    Raises UsageError where it refuses the command line without any of them.
    """
    _check(name, method, passed, {}, root)
    for size in range(len(values), 0, -1):
        for subset in itertools.combinations(values, size):
            for chosen in _combinations({flag: values[flag] for flag in subset}):
                try:
                    _check(name, method, passed, chosen, root)
                except UsageError:
                    continue
                return list(subset)
    return []


def _combinations(values: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _argv(name: str, method: str, passed: Sequence[str], chosen: Mapping[str, str], *more: str) -> tuple[str, ...]:
    words: list[str] = []
    for flag, value in chosen.items():
        option = _option(name, method, flag)
        try:
            first, *rest = shlex.split(value)
        except ValueError as error:
            raise UsageError(f"--vary {flag}: {value} has a quote without its end") from error
        if option is not None:
            words += ["--method_options", f"{option}={' '.join((first, *rest))}"]
        else:
            words += [f"--{flag}={first}"] if not rest else [f"--{flag}", first, *rest]
    return ("--dataset", name, "--method", method, *passed, *words, *more)


def _option(name: str, method: str, varied: str) -> str | None:
    """The option of the method that is varied; None where it is a flag, or nothing that the method knows."""
    known = METHODS[method].options
    explicit = varied.removeprefix("method_")
    if varied != explicit and explicit in known:
        return explicit
    return varied if varied in known and varied not in flags_of(name) else None


def _check(name: str, method: str, passed: Sequence[str], chosen: Mapping[str, str], root: Path) -> None:
    _parse(name, method, _argv(name, method, passed, chosen), root)


def _refusal(
    name: str,
    method: str,
    passed: Sequence[str],
    values: Mapping[str, Sequence[str]],
    flags: Sequence[str],
    root: Path,
) -> str:
    """Why train.py refuses the first values of these flags together."""
    try:
        _check(name, method, passed, {flag: values[flag][0] for flag in flags}, root)
    except UsageError as error:
        return str(error)
    raise AssertionError("`_taken` would have taken these flags")


def _knows(name: str, method: str, varied: str) -> bool:
    """Whether it is an option of the method, or a flag of train.py for this dataset."""
    return _option(name, method, varied) is not None or varied in flags_of(name) - SHORT.keys()


def _parse(name: str, method: str, argv: Sequence[str], root: Path) -> Config:
    try:
        return parse(argv, root)
    except UsageError as error:
        raise UsageError(f"{error} [{method} on {name}]") from error


def check_runs(runs: Sequence[Run]) -> None:
    """Looks for what a run would refuse, before the first one is begun: its data's folder, its method's options."""
    for run in runs:
        if not RunDirectory(run.folder).finished:  # whose data may be gone
            require_data(run.config.data.dataset, run.config.data.data_root)
    from mmpareto.training.setup import make_method  # PyTorch takes seconds to import

    by_options = {
        json.dumps([run.argv[:4], run.config.method.method_options], sort_keys=True, default=str): run for run in runs
    }
    for run in by_options.values():
        try:
            make_method(run.config.method, run.config.engine)
        except UsageError as error:
            raise UsageError(f"{error} [{run.name}]") from error


def folder_name(text: str) -> str:
    """`text` as a folder's name; package.module:Class with '.' as in train.py."""
    return re.sub(r"[^\w.,=+-]", "_", text.replace(":", "."))
