"""experiment.py --search: each method's values searched, those that validation chose run, the leaderboard written."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmpareto.cli.running import make_launcher, perform, tell
from mmpareto.config import FAST
from mmpareto.errors import UsageError, UserError
from mmpareto.escape import counted
from mmpareto.experiments.grid import Run
from mmpareto.experiments.search import TUNED, Candidate, Search, Trial, is_finished
from mmpareto.experiments.search_results import write_leaderboard
from mmpareto.flag_values import count, seed
from mmpareto.reporting.evaluation_tables import evaluation_json
from mmpareto.reporting.finished import find
from mmpareto.runs import EVALUATION, RunDirectory
from mmpareto.selection import RULES
from mmpareto.startup import root
from mmpareto.writing import atomically

OF_SEARCH = ("trials", "trial_seeds", "budget", "select", "recipe")  # flags that need --search


def add_search_arguments(flags: argparse.ArgumentParser) -> None:
    """Add --search and what belongs to it."""
    add = flags.add_argument
    add("--search", choices=("random", "tpe"), help="draw trials at random, or let Optuna propose them")
    add("--trials", type=count, default=10, metavar="N", help="with --search, of each method (default: 10)")
    add("--trial_seeds", nargs="+", type=seed, default=[0], metavar="N", help="whose mean chooses (default: 0)")
    add("--budget", type=count, metavar="EPOCHS", help="of a trial (default: as many as of a run)")
    add(
        "--select",
        choices=tuple(RULES),
        default="joint",
        help="what chooses: " + "; ".join(f"{name}: {text}" for name, text in RULES.items()) + " (default: joint)",
    )
    add("--recipe", action="store_true", help="with --search: run the recipe's values too, for the effect of tuning")


def search(arguments: argparse.Namespace, passed: Sequence[str]) -> int:
    """Search each method's values, run those that validation chose, write the leaderboard.

    Returns:
        The exit status.
    """
    if arguments.vary:
        raise UsageError("--vary and --search both say which values are tried: give one of them")
    output = arguments.output.absolute()
    plan = Search(
        sampler=arguments.search,
        trials=arguments.trials,
        trial_seeds=list(dict.fromkeys(arguments.trial_seeds)),
        seeds=list(dict.fromkeys(arguments.seeds)),
        rule=arguments.select,
        budget=arguments.budget,
        passed=passed,
        output=output,
        root=Path(root()),
    )
    candidates = plan.candidates(arguments.datasets, arguments.methods)
    for candidate in candidates:
        plan.trial(candidate, 0)  # refuses missing data; counting GPUs would import PyTorch first
    launcher, where = make_launcher(arguments, len(candidates) * arguments.trials, output)

    trials: list[Trial] = []
    failures: dict[Run, str] = {}
    for numbers in plan.rounds():  # those of one round do not depend on one another
        of_round = [plan.trial(candidate, number) for number in numbers for candidate in candidates]
        runs = [run for trial in of_round for run in trial.runs]
        failures |= perform(runs, launcher, where, arguments.output, trials=True)
        for trial in of_round:
            plan.score(trial)
        trials += of_round

    best_trials = best_of(plan, candidates, trials)
    finals = plan.finals(best_trials, recipe=False)
    finals += plan.finals(best_trials, recipe=True) if arguments.recipe else []
    failures |= perform(finals, launcher, where, arguments.output)
    finished = [run for run in finals if run not in failures]
    reported = [run for run in finished if run.name.startswith(TUNED)]
    if reported:
        print(f"measuring balance here, one run after the other: {counted(len(reported), 'run')}", flush=True)
    for run in reported:
        try:
            measure_balance(run, arguments.gpu_ids)
        except (UserError, RuntimeError, MemoryError, OSError) as error:  # the scores are worth keeping
            print(f"warning: {run.name}: no measures of balance: {str(error) or type(error).__name__}", file=sys.stderr)
    status = tell(failures, len(finals) + sum(len(trial.runs) for trial in trials))
    if not write_leaderboard(plan, trials, best_trials, finished):
        print("no leaderboard: no run with chosen values is finished", file=sys.stderr)
        return 1
    from mmpareto.api import comparison  # pandas takes a second to import

    known = {(run.config.data.dataset, run.config.method.method) for run in reported}
    shown = [trial for trial in best_trials if (trial.candidate.dataset, trial.candidate.method) in known]
    flags = dict.fromkeys(name for trial in shown for name in trial.values)
    page = comparison.compare([run.folder for run in reported], tune=list(flags)).report(output / "report")
    print(f"\nreport: {page}")
    return status


def best_of(plan: Search, candidates: Sequence[Candidate], trials: Sequence[Trial]) -> list[Trial]:
    """The best trial of each candidate that has one; prints which trials none is chosen of, and why."""
    for what, ended in (("diverged", "diverged"), ("idle", "ended before the method acted")):
        names = (f"{trial.candidate.method} on {trial.candidate.dataset}" for trial in trials if getattr(trial, what))
        by_name = Counter(names)
        if by_name:
            listed = ", ".join(f"{name} {number}" for name, number in by_name.items())
            print(f"{by_name.total()} of {counted(len(trials), 'trial')} {ended}, of which none is chosen: {listed}")
    best_trials = []
    for candidate in candidates:
        its_trials = [trial for trial in trials if trial.candidate == candidate]
        best = plan.best(its_trials)
        if best is not None:
            best_trials.append(best)
        else:
            print(f"{candidate.method} on {candidate.dataset}: {why_none(plan, its_trials)}", file=sys.stderr)
    return best_trials


def why_none(plan: Search, trials: Sequence[Trial]) -> str:
    """Why the rule chooses none of a method's trials."""
    failed = [trial for trial in trials if plan.score(trial) is None and not trial.diverged]
    if failed:
        runs = [run for trial in failed for run in trial.runs]
        others = any(RunDirectory(run.folder).finished and not is_finished(run) for run in runs)
        again = "the same command runs them again"
        remedy = "some have other settings: name another --output" if others else again
        listed = ", ".join(str(trial.number) for trial in failed)
        return f"no values are chosen, because trials failed: {listed}; {remedy}"
    idle = next((trial.idle for trial in trials if trial.idle), "")
    return f"no values are chosen; {idle}" if idle else "no values are chosen, because all trials diverged"


def measure_balance(run: Run, gpu_ids: str | None) -> None:
    """Leave evaluation_test.json in a finished run, where it has none of the selected model.

    Raises:
        UserError: where the run cannot be evaluated.
    """
    from mmpareto.reporting.histories import current_evaluation  # pandas takes a second to import

    (finished,), _ = find([run.folder])
    if current_evaluation(finished) is not None:
        return
    from mmpareto.api.evaluation import evaluation_of  # PyTorch takes seconds to import
    from mmpareto.training.setup import choose_device

    directory, device = RunDirectory(run.folder), choose_device(gpu_ids and gpu_ids.split(",")[0])
    config = run.config.changed(**{key: finished.config[key] for key in FAST})  # what --fast switched on
    content, _ = evaluation_of(directory, config, "test", device, probe=False, missing="zero", rates=())
    with atomically(run.folder / EVALUATION.format("test")) as stream:
        stream.write(evaluation_json(content))
