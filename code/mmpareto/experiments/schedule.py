"""Run a grid's runs, a few at a time, and say how far they are; one that fails does not stop the rest."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from mmpareto import runs
from mmpareto.escape import RED, coloured, counted, on_one_line
from mmpareto.experiments.grid import Run
from mmpareto.experiments.launchers import POLL, Launched, Launcher, stop
from mmpareto.experiments.process import Busy, Outcome, epochs_done
from mmpareto.runs import RunDirectory, RunError
from mmpareto.selection import SELECTED_ON_TEST
from mmpareto.startup import unescaped_stderr
from mmpareto.training.signals import Interrupted
from mmpareto.writing import signals_noted

MOST_LINES = 8  # of running runs below the bar
BUSY_INTERVAL = 2.0  # seconds between two tries to start runs that another process trains


def run_all(todo: Sequence[Run], launcher: Launcher) -> dict[Run, Outcome]:
    """Run `todo` in order, `launcher.slots` at a time, and return how each of them ended.

    A run that another process trains is tried again until it is free; then it is finished, or it is resumed. One that
    ends for want of memory beside others is started again when there are fewer.

    Raises Interrupted after SIGINT, SIGTERM or SIGHUP, when all that was started has ended; a second signal hurries.
    """
    waiting = deque(todo)
    elsewhere: list[Run] = []  # runs that another process trains
    try_again = 0.0
    announced: set[Run] = set()
    busy: dict[int, tuple[Run, Launched]] = {}
    outcomes: dict[Run, Outcome] = {}
    with signals_noted() as received, _Progress(todo) as progress:

        def end(run: Run, outcome: Outcome) -> None:
            outcomes[run] = outcome
            progress.ended(run, outcome)

        try:
            while (waiting or elsewhere or busy) and not received:
                if elsewhere and time.monotonic() >= try_again:
                    waiting.extend(elsewhere)
                    elsewhere.clear()
                    try_again = time.monotonic() + BUSY_INTERVAL
                while waiting and not received and (slot := launcher.free_slot(busy)) is not None:
                    run = waiting.popleft()
                    try:
                        busy[slot] = run, launcher.start(run, slot)
                    except Busy as error:
                        elsewhere.append(run)
                        if run not in announced:
                            announced.add(run)
                            progress.say(f"{run.name}: {error}; this command waits for it")
                    except (RunError, OSError) as error:
                        end(run, Outcome(str(error)))
                for slot, (run, launched) in list(busy.items()):
                    outcome = launched.poll()
                    if outcome is None:
                        continue
                    if outcome.out_of_memory and launcher.lower(slot, busy):
                        waiting.appendleft(run)
                    else:
                        end(run, outcome)
                    del busy[slot]
                progress.show(run for run, _ in busy.values())
                _pause(launcher.interval, received)
        finally:
            if busy:
                progress.say(f"ending {counted(len(busy), 'run')} ...")
            stop([launched for _, launched in busy.values()], hurry=received)
        if received:
            raise Interrupted(received[0])
    return outcomes


def _pause(seconds: float, received: Sequence[int]) -> None:
    until = time.monotonic() + seconds
    while not received and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, POLL))


class _Progress:
    """A bar of epochs with an estimate, a line below it for each running run, and a line when a run ends."""

    def __init__(self, todo: Sequence[Run]) -> None:
        self._counted = {run: epochs_done(run) for run in todo}
        self._last, self._ended, self._number = 0.0, 0, len(todo)
        self._total = sum(run.config.optim.epochs for run in todo)
        self._bar = tqdm(
            total=self._total,
            initial=sum(self._counted.values()),
            unit="epoch",
            desc=f"0/{len(todo)} runs",
            disable=None,
            dynamic_ncols=True,
            file=unescaped_stderr(),
        )
        self._lines: list[tqdm] = []

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        for line in self._lines:
            line.close()
        self._bar.close()

    def show(self, busy: Iterable[Run]) -> None:
        """Move the bar and the lines of running runs, at most once a second."""
        if self._bar.disable or time.monotonic() < self._last + 1:
            return
        self._last = time.monotonic()
        texts = []
        for run in busy:
            self._counted[run] = epochs_done(run)
            epochs = run.config.optim.epochs
            texts.append(f"  {on_one_line(run.name)}: epoch {min(self._counted[run] + 1, epochs)}/{epochs}")
        if len(texts) > MOST_LINES:
            texts = [*texts[: MOST_LINES - 1], f"  and {len(texts) - MOST_LINES + 1} others"]
        while len(self._lines) < len(texts):
            place = len(self._lines) + 1
            self._lines.append(
                tqdm(bar_format="{desc}", position=place, leave=False, dynamic_ncols=True, file=unescaped_stderr())
            )
        for place, line in enumerate(self._lines):
            line.set_description_str(texts[place] if place < len(texts) else "")
        self._bar.n = sum(self._counted.values())
        self._bar.refresh()

    def ended(self, run: Run, outcome: Outcome) -> None:
        """Say how a run ended."""
        self._ended += 1
        self._counted[run] = epochs_done(run)
        self._total -= run.config.optim.epochs - self._counted[run]  # of a failed one no more is to come
        self._bar.total = self._total
        self._bar.set_description(f"{self._ended}/{self._number} runs", refresh=False)
        failed = ""
        if outcome.failure is not None:
            text = outcome.failure.splitlines()[0]
            failed = text.partition(";")[0] if outcome.diverged else coloured(f"FAILED: {text}", RED)
        self.say(f"[{self._ended}/{self._number}] {run.name}: {failed or accuracy(run)}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        with tqdm.external_write_mode(file=unescaped_stderr()):  # where the bars are
            print(text, flush=True)


def accuracy(run: Run) -> str:
    """The joint accuracy of a finished run."""
    results: Mapping[str, Any] = RunDirectory(run.folder).read_json(runs.RESULTS)
    mark = f", {SELECTED_ON_TEST}" if results["selected_on"] == "test" else ""
    joint = {split: results[split]["joint"]["accuracy"] for split in ("val", "test")}
    return f"joint accuracy val {joint['val']:.2f}, test {joint['test']:.2f}; {results['seconds']:.0f} s{mark}"
