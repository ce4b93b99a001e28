"""The same search for every method: as many trials, drawn from declared spaces, chosen on validation.

Every method's learning rate and weight decay are drawn from the same ranges, and its own options from those that it
declares beside its class (`search` of its registration). A value depends on the trial's number and the option's name
alone: trial k has the same learning rate for all methods, and is the same again on another machine. With `tpe`, the
trials after the first STARTUP are proposed by Optuna's sampler from what the method's earlier trials reached.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmpareto import runs
from mmpareto.arguments import flags_of
from mmpareto.config import Config
from mmpareto.errors import UsageError
from mmpareto.experiments.grid import Run, check_runs, flags_in, folder_name, make_run, refuse_owned
from mmpareto.experiments.process import State, diverged, state
from mmpareto.json_files import json_text, read_object
from mmpareto.registries import METHODS
from mmpareto.registry import Range, Space
from mmpareto.reporting.finished import TRIALS
from mmpareto.runs import RunDirectory, RunError
from mmpareto.selection import SEARCHED_FROM, measured, rank
from mmpareto.train_flags import SHORT
from mmpareto.writing import write_text

TIMES_RECIPE = Range(0.1, 10.0)  # the learning rate, times that of the dataset's recipe
WEIGHT_DECAY = Range(1e-6, 1e-2)
SEARCHED = ("learning_rate", "weight_decay")  # of every method
STARTUP = 5  # trials of tpe that are drawn as those of random are
DIGITS = 3  # of a value: what the command line of a run shows is what was tried
TUNED, RECIPE = "tuned", "recipe"  # folders below the output folder, as TRIALS is
PROPOSED = "proposed.json"  # beside a trial's runs: the values that tpe gave it


@dataclass(frozen=True, eq=False)
class Candidate:
    """A method on a dataset, and the space that it is searched in.

    Attributes:
        fixed: {learning_rate, weight_decay or an option of the method: its value}, where it is not searched; and the
            range of the learning rate, which is searched around the recipe's.
    """

    dataset: str
    method: str
    space: Space
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """Values that were tried, and a run for each of the seeds that choose."""

    candidate: Candidate
    number: int
    values: Mapping[str, str]
    runs: tuple[Run, ...]

    @property
    def diverged(self) -> str:
        """Where the first of its runs that diverged did so; "" where none did."""
        return next(filter(None, map(diverged, self.runs)), "")

    @property
    def idle(self) -> str:
        """What the method never did in its finished runs, see `Method.idle`; "" where it did all."""
        finished = (RunDirectory(run.folder) for run in self.runs if is_finished(run))
        return next(filter(None, (run.read_results().get("idle", "") for run in finished)), "")


@dataclass
class Search:
    """What is asked for.

    Attributes:
        sampler: random, or tpe.
        trials: of each method.
        trial_seeds: random seeds of a trial's runs, whose mean chooses.
        seeds: random seeds of the chosen values' runs; none is in trial_seeds.
        rule: of `selection.RULES`.
        budget: epochs of a trial; None: as many as all runs have.
        passed: flags of train.py for every run.
        output: folder of all runs.
        root: folder under which train.py looks for data/.
    """

    sampler: str
    trials: int
    trial_seeds: Sequence[int]
    seeds: Sequence[int]
    rule: str
    budget: int | None
    passed: Sequence[str]
    output: Path
    root: Path
    scores: dict[tuple[Candidate, int], tuple[float, float | None]] = field(default_factory=dict)
    _values: dict[tuple[Candidate, int], dict[str, Any]] = field(default_factory=dict)

    def candidates(self, datasets: Sequence[str], methods: Sequence[str]) -> list[Candidate]:
        """Every method on every dataset; what the command line sets is not searched.

        Raises:
            UsageError: where train.py would refuse the command line, or seeds are in both lists.
        """
        both = sorted(set(self.trial_seeds) & set(self.seeds))
        if both:
            raise UsageError(
                f"--seeds {both[0]} is one of --trial_seeds as well: what chose the values must not be reported; give "
                "other --seeds"
            )
        refuse_owned(flags_in(self.passed))
        flags = {flag.removeprefix("--") for flag in flags_in(self.passed)}
        options = {*self._method_options(), *(flags & SHORT.keys())}
        listed: dict[tuple[str, str], Candidate] = {}  # a name may be written in several ways
        for dataset, method in itertools.product(datasets, methods):
            place = (RECIPE, dataset, method)
            config = make_run(dataset, method, self.passed, {}, 0, place, self.output, self.root).config
            names = config.data.dataset, config.method.method
            listed.setdefault(names, _candidate(config, flags, options))
        return list(listed.values())

    def _method_options(self) -> list[str]:
        """Options of methods that the command line sets."""
        flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        flags.add_argument("--method_options", nargs="+", action="extend", default=[])
        return [text.partition("=")[0] for text in flags.parse_known_args(list(self.passed))[0].method_options]

    def trial(self, candidate: Candidate, number: int) -> Trial:
        """The trial of a number, from 0; those before it must have been scored for tpe.

        Raises:
            UsageError: where train.py would refuse its command line, or Optuna is missing.
        """
        texts = {key: str(value) for key, value in self.values(candidate, number).items()}
        name, method = candidate.dataset, candidate.method
        passed = [
            *self.passed,
            *(() if self.budget is None else ("--epochs", str(self.budget))),
            "--no-probe",
            "--no-figures",
        ]
        planned = tuple(
            make_run(
                *(name, method, passed, texts, seed),
                (TRIALS, name, method, f"trial{number}", f"seed{seed}"),
                *(self.output, self.root),
            )
            for seed in self.trial_seeds
        )
        check_runs(planned)
        return Trial(candidate, number, texts, planned)

    def values(self, candidate: Candidate, number: int) -> dict[str, Any]:
        """The values of a trial.

        Those that tpe proposes are written down: a trial that failed before, and is scored by now, changes none.

        Raises:
            RunError: where the file is damaged, or was written for another search.
        """
        if (candidate, number) in self._values:
            return self._values[candidate, number]
        if self.sampler == "random" or number < STARTUP:
            values = {key: drawn(space, key, number) for key, space in candidate.space.items()}
        else:
            parts = (TRIALS, candidate.dataset, candidate.method, f"trial{number}")
            file = self.output.joinpath(*map(folder_name, parts)) / PROPOSED
            if file.exists():
                values = _read_proposed(file, candidate.space, self._chosen_by)
            else:
                values = self._proposed(candidate, number)
                file.parent.mkdir(parents=True, exist_ok=True)
                write_text(file, json_text({"values": values, **self._chosen_by}, indent=None))
        self._values[candidate, number] = values
        return values

    @property
    def _chosen_by(self) -> dict[str, Any]:
        """What the proposals of a sampler that learns depend on, beside the space."""
        return {"rule": self.rule, "trial_seeds": list(self.trial_seeds), "budget": self.budget}

    def _proposed(self, candidate: Candidate, number: int) -> dict[str, Any]:
        """What Optuna proposes after the trials before."""
        try:
            import optuna
        except ImportError as error:
            raise UsageError("--search tpe needs Optuna: pip install optuna, or --search random") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        distributions = {key: _distribution(space) for key, space in candidate.space.items()}
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=number, n_startup_trials=0)
        )
        for before in range(number):
            place = candidate, before
            if place not in self.scores and not self.trial(*place).diverged:
                continue  # the method never acted, or it failed, which says nothing of its values
            accuracy, _ = self.scores.get((candidate, before), (0.0, None))
            params = self.values(candidate, before)
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=accuracy))
        proposed = study.ask(distributions).params
        return {
            key: _rounded(value, space) if isinstance(space := candidate.space[key], Range) else value
            for key, value in proposed.items()
        }

    def score(self, trial: Trial) -> tuple[float, float | None] | None:
        """Mean accuracy and loss of a trial by the rule; None where one of its runs is not finished with its settings.

        Raises:
            RunError: where the results of a run are damaged, or lack what the rule looks at.
        """
        if not all(is_finished(run) for run in trial.runs):
            return None
        values = []
        for run in trial.runs:
            try:
                values.append(measured(RunDirectory(run.folder).read_results(), self.rule))
            except KeyError as error:
                raise RunError(
                    f"{run.folder / runs.RESULTS} has no {error} on which --select {self.rule} looks: an older version "
                    "wrote it; remove the folder, and the trial is made again"
                ) from error
        losses = [loss for _, loss in values if loss is not None]
        loss = statistics.mean(losses) if len(losses) == len(values) else None
        result = statistics.mean(accuracy for accuracy, _ in values), loss
        if not trial.idle:  # such a score says nothing of the method: tpe does not learn from it
            self.scores[trial.candidate, trial.number] = result
        return result

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The trial that the rule chooses, of those in which the method acts; None where one failed, or none is left.

        The budgets of methods are equal only where every trial is scored, or diverged.
        """
        scored = [(trial, score) for trial in trials if (score := self.score(trial)) is not None]
        if len(scored) + sum(bool(trial.diverged) for trial in trials) < len(trials):
            return None
        acting = [(trial, score) for trial, score in scored if not trial.idle]
        return max(acting, key=lambda pair: rank(*pair[1]))[0] if acting else None

    def rounds(self) -> list[list[int]]:
        """Numbers of trials that may run at the same time."""
        first = self.trials if self.sampler == "random" else min(STARTUP, self.trials)
        return [list(range(first)), *([number] for number in range(first, self.trials))]

    def finals(self, chosen: Sequence[Trial], *, recipe: bool) -> list[Run]:
        """Runs of the chosen values, or of the recipe's, with the reported seeds; seed by seed.

        A folder names the trial: with more trials another one may be chosen, and what was run before stays.
        """
        planned = []
        for seed in self.seeds:
            for trial in chosen:
                dataset, method = trial.candidate.dataset, trial.candidate.method
                folder = (RECIPE, dataset, method) if recipe else (TUNED, dataset, method, f"trial{trial.number}")
                values, parts = {} if recipe else trial.values, (*folder, f"seed{seed}")
                planned.append(make_run(dataset, method, self.passed, values, seed, parts, self.output, self.root))
        return planned

    @property
    def protocol(self) -> dict[str, Any]:
        """What makes results of others comparable, but for the settings of the runs."""
        return {
            "sampler": self.sampler,
            "trials": self.trials,
            "trial_seeds": list(self.trial_seeds),
            "budget": self.budget,
            "rule": self.rule,
            "learning_rate": list(TIMES_RECIPE),
            "weight_decay": list(WEIGHT_DECAY),
        }


def _candidate(config: Config, flags: Collection[str], options: Collection[str]) -> Candidate:
    """A method on a dataset, and what is searched for it.

    Args:
        config: without a trial's values.
        flags: of train.py that the command line gives.
        options: of methods that it gives.
    """
    dataset, method, rate = config.data.dataset, config.method.method, config.optim.learning_rate
    rates = Range(TIMES_RECIPE.low * rate, TIMES_RECIPE.high * rate)
    space: dict[str, Any] = {"learning_rate": rates, "weight_decay": WEIGHT_DECAY}
    fixed: dict[str, Any] = {key: getattr(config.optim, key) for key in SEARCHED if key in flags}
    fixed.setdefault("learning_rate", f"{SEARCHED_FROM} {rates.low:g} to {rates.high:g}")
    space = {key: values for key, values in space.items() if key not in flags}
    for key, values in METHODS[method].search.items():
        if key in options:
            fixed[key] = config.method.method_options[key]
        else:  # the option, where a flag has its name
            space[f"method_{key}" if key in flags_of(dataset) - SHORT.keys() else key] = values
    return Candidate(dataset, method, space, fixed)


def is_finished(run: Run) -> bool:
    """Whether a run has its results, with the settings that are asked for."""
    try:
        return state(run) is State.FINISHED
    except RunError:
        return False


def _read_proposed(file: Path, space: Space, chosen_by: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a file of PROPOSED holds; those of earlier versions hold nothing else.

    Raises:
        RunError: where it does not fit the space, or another rule chose before.
    """
    try:
        content = read_object(file)
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read ({error}); remove the folder, and the trial is made again") from error
    values = content if content.keys() == space.keys() else content.pop("values", content)
    if values is not content and content != chosen_by:
        raise RunError(
            f"{file} was proposed by a search with {content}, not {dict(chosen_by)}; name another --output, or remove "
            "the folder"
        )
    if (
        not isinstance(values, dict)
        or values.keys() != space.keys()
        or not all(_within(values[key], space[key]) for key in space)
    ):
        raise RunError(
            f"{file} holds {values}, which the search for {', '.join(space)} would not propose; name another --output, "
            "or remove the folder"
        )
    return values


def _within(value: Any, space: Range | Sequence[Any]) -> bool:
    if not isinstance(space, Range):
        return value in list(space)
    return type(value) in (int, float) and space.low <= value <= space.high


def drawn(space: Range | Sequence[Any], name: str, number: int) -> Any:
    """The value of trial `number` for the option `name`: the same everywhere."""
    random = np.random.default_rng([number, zlib.crc32(name.encode())])
    if not isinstance(space, Range):
        return space[int(random.integers(len(space)))]
    low, high = (math.log(space.low), math.log(space.high)) if space.log else (space.low, space.high)
    value = low + (high - low) * float(random.random())
    return _rounded(math.exp(value) if space.log else value, space)


def _whole(space: Range) -> bool:
    return isinstance(space.low, int) and isinstance(space.high, int)


def _rounded(value: float, space: Range) -> float | int:
    """Few digits, and within the range."""
    rounded = round(value) if _whole(space) else float(f"{value:.{DIGITS}g}")
    return min(max(rounded, space.low), space.high)


def _distribution(space: Range | Sequence[Any]) -> Any:
    """Optuna's distribution of a space."""
    from optuna import distributions

    if not isinstance(space, Range):
        return distributions.CategoricalDistribution(list(space))
    if _whole(space):
        return distributions.IntDistribution(int(space.low), int(space.high), log=space.log)
    return distributions.FloatDistribution(space.low, space.high, log=space.log)
