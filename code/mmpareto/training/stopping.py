"""How a run stops where a signal asks for it, or a batch cannot be read: on all processes together, and saved."""

from collections.abc import Callable
from typing import TypeVar

from mmpareto.datasets import DatasetError
from mmpareto.training.processes import Processes, Requests
from mmpareto.training.signals import Interrupted, Signals

T = TypeVar("T")


class Stopping:
    """One process's part of stopping a run.

    Args:
        processes: all processes of the run.
        signals: that ask the run to stop; another process may have received them.
        save: saves what was learned.
        check: raises TrainingError where that is not finite.
    """

    def __init__(
        self, processes: Processes, signals: Signals, save: Callable[[], None], check: Callable[[], None]
    ) -> None:
        self.processes, self.signals, self.save, self.check = processes, signals, save, check

    @property
    def requested(self) -> bool:
        """Whether a signal asked this process to stop."""
        return self.signals.number is not None

    def stop(self) -> None:
        """Raise Interrupted."""
        raise Interrupted(self.signals.number or 15)

    def stop_together(self) -> None:
        """Stop all processes where one of them was asked to stop."""
        if self.processes.exchange(Requests(stop=self.requested)).stop:
            self.stop()

    def stop_after_phase(self, *, save: bool) -> None:
        """Stop where a signal came in the last moment of a phase; `save` what was learned first."""
        if self.processes.settle().stop:
            if save:
                self.save()
            self.stop()

    def saving(self, work: Callable[[], T], interrupted: bool = True) -> T:
        """Do some work; where it ends by a batch that cannot be read, or an interruption, save what was learned.

        Args:
            work: the work.
            interrupted: whether an interruption saves, too; False where the work does so itself.
        """
        try:
            return work()
        except Interrupted as order:
            if interrupted and not order.again:
                self.save()
            raise
        except DatasetError:
            if self.processes.size == 1:
                if not interrupted:
                    self.check()
                self.save()
            raise
