"""What all commands share: user errors print one line."""

import sys
from collections.abc import Callable

from mmpareto.errors import UserError
from mmpareto.explanations import explained


def run_command(
    name: str,
    work: Callable[[], int | None],
    *,
    interrupted: str = "interrupted; nothing half-written is left behind",
    memory: Callable[[], str] = lambda: "a smaller --batch_size",
    then: Callable[[], str] = lambda: "run the same command again",
) -> int:
    """Run a command; user errors print one line, and all others raise.

    Args:
        name: of the command, such as "evaluate.py".
        work: the command.
        interrupted: what to print after Ctrl-C.
        memory: says what to try where memory is short.
        then: says what to do after an error of the system.

    Returns:
        The exit status: what `work` returned, 2 after an error, 130 after Ctrl-C.
    """
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
