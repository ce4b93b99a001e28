"""What all commands share: user errors print one line."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from mmpareto.errors import UsageError, UserError
from mmpareto.explanations import explained
from mmpareto.special_files import file_kind
from mmpareto.training.signals import Interrupted


def run_command(
    name: str,
    work: Callable[[], int | None],
    *,
    interrupted: str = "interrupted; nothing half-written is left behind",
    memory: Callable[[], str] = lambda: "a machine with more of it",
    then: Callable[[], str] = lambda: "run the same command again",
    stopped: Callable[[Interrupted], str] | None = None,
) -> int:
    """Run a command; user errors print one line, and all others raise.

    Args:
        name: of the command, such as "evaluate.py".
        work: the command.
        interrupted: what to print after Ctrl-C.
        memory: says what to try where memory is short.
        then: says what to do after an error of the system.
        stopped: what to print after a signal; None: `interrupted`.

    Returns:
        The exit status: what `work` returned, 2 after an error, 128 and its number after a signal: 130 after Ctrl-C.
    """
    try:
        return _status(name, work, interrupted, memory, then)
    except Interrupted as order:  # also while an error is told
        print(f"\n{interrupted if stopped is None else stopped(order)}", file=sys.stderr)
        return 128 + order.number


def _status(
    name: str, work: Callable[[], int | None], interrupted: str, memory: Callable[[], str], then: Callable[[], str]
) -> int:
    try:
        return work() or 0
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    except (RuntimeError, MemoryError, ValueError, OSError) as error:
        explanation = explained(error, memory(), then())
        if explanation is None and not isinstance(error, OSError):
            raise
        message = explanation or str(error)
    print(f"{name}: {message}", file=sys.stderr)
    return 2


def check_output(output: Path) -> None:
    """Raise UsageError where a file cannot be written, before the work that it is to hold."""
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.parent}; make it, or name another one")
    kind = file_kind(output)
    if kind not in (None, "file"):
        raise UsageError(f"--output {output}: is {kind}; give the name of a file{' in it' * (kind == 'a folder')}")
    try:
        tempfile.NamedTemporaryFile(prefix=f".{output.name}.", suffix=".part", dir=output.parent).close()
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written ({error.strerror}); name another file") from error
