"""Start an entry: check Python and its packages first, keep printing from ending it, end it without a traceback.

Entries are the scripts in code/ and the command `mmpareto`. Every entry imports this module before anything else and
calls `run`. It needs the standard library alone, and Python 3.7 can read it, so that an older Python gets a message
too. Imported by other programs (worker processes, tests) it does nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import getpass
import importlib.util
import io
import os
import re
import select
import shutil
import signal
import sys
import tempfile
from typing import Any, Callable, List, NoReturn, Optional, Sequence, TextIO  # noqa: UP035  # Python 3.7

PYTHON = (3, 11)
# what every entry may need; packages for media and for TorchJD's weightings are named where they are used
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "PIL",
    "scipy",
    "sklearn",
    "torchmetrics",
    "tqdm",
    "yaml",
    "docstring_parser",
    "tensorboard",
    "matplotlib",
    "jinja2",
    "tabulate",
    "vl_convert",
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CODE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# all control characters but tab, line feed, carriage return, and the sequences of our own colours
_CONTROL = re.compile("(?!\x1b\\[(?:0|31|32)m)[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_streams: List[Any] = []  # noqa: UP006  # of standard output and error


def run(entry: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run an entry on the command line of this process and end the process with the entry's exit status."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status: Any = 1  # of what raises: Python prints its traceback
    try:
        status = entry(sys.argv[1:])
    except SystemExit as ending:  # argparse
        status = ending.code
    except KeyboardInterrupt:
        print(f"\n{_name()}: interrupted", file=sys.stderr)
        status = 130
    finally:
        code = status if isinstance(status, int) else 0 if status is None else 1
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: os._exit(code))  # all is done: what ends now may be cut short
        error = lost_output()
        if error is not None:
            print(
                f"{_name()}: standard output could not be written ({error.strerror}), what was printed is incomplete; "
                "files are written all the same",
                file=sys.stderr,
            )
        sys.stderr.flush()
        gc.freeze()  # else Python looks for cycles in all of PyTorch before it ends, which takes seconds
    sys.exit(status)


def lost_output() -> Optional[OSError]:  # noqa: UP045
    """The error that kept standard output from being written; None where there was none, or the reader left."""
    if not _streams:
        return None
    sys.stdout.flush()
    error: Optional[OSError] = _streams[0].error  # noqa: UP045
    return None if error is not None and error.errno == errno.EPIPE else error


class _Stream(io.FileIO):
    """A standard stream that never fails: what is written after the first error is dropped."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.error: Optional[OSError] = None  # noqa: UP045

    def write(self, data: Any) -> int:
        """Write some bytes, all of them where the stream is broken."""
        try:
            while True:
                written = super().write(data)
                if written is not None:
                    return written
                select.select([], [self], [])  # another program made the descriptor non-blocking
        except OSError as error:
            self.error = error
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for what is still buffered, and for libraries that write by themselves
            os.close(null)
            return len(data)


class _Text(io.TextIOWrapper):
    """Text that shows control characters as \\x1b and the like: names in files of others must not steer a terminal."""

    def write(self, text: str) -> int:
        """Write text."""
        super().write(_CONTROL.sub(lambda match: ascii(match[0])[1:-1], text))
        return len(text)


def unescaped_stderr() -> TextIO:
    """Standard error for progress bars that move the cursor: names of others must be escaped before."""
    return sys.__stderr__ if isinstance(sys.stderr, _Text) and sys.__stderr__ is not None else sys.stderr


def _guard_streams() -> None:
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened would be written to by what is printed
            os.open(os.devnull, os.O_RDWR)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream, guarded = getattr(sys, name), _Stream(descriptor)
        _streams.append(guarded)
        text = _Text(
            io.BufferedWriter(guarded),
            encoding=getattr(stream, "encoding", None) or "utf-8",
            errors="backslashreplace",  # a name that the terminal cannot show must not end a run
            line_buffering=stream is None or stream.line_buffering or getattr(stream, "write_through", False),
        )
        setattr(sys, name, text)


def _require_environment() -> None:
    lacking = [] if sys.version_info < PYTHON else [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if sys.version_info >= PYTHON and not lacking:
        return
    problem = f"lacks {', '.join(lacking)}" if lacking else f"is older than {'.'.join(map(str, PYTHON))}"
    repository = os.path.dirname(CODE)
    setup, python = os.path.join(repository, "script", "setup.sh"), os.path.join(repository, ".venv", "bin", "python")
    advice = (
        f"Set up with sh {setup}, then start with {python}, or with the scripts in script/, which find the right Python"
        if os.path.exists(setup)
        else "Install the package again with pip, without --no-deps"
    )
    print(f"{_name()}: this Python ({sys.executable}, {sys.version.split()[0]}) {problem}. {advice}", file=sys.stderr)
    sys.exit(2)


def _settle_without_home() -> None:
    """Keep a user without a name or a writable home folder, usual in containers, from errors of packages.

    torch.compile names its cache after the user, matplotlib wants a folder for its settings.
    """
    try:
        getpass.getuser()
    except (ImportError, KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    home = os.path.expanduser("~")
    if os.path.isabs(home) and os.access(home, os.W_OK | os.X_OK):
        return
    with contextlib.suppress(OSError):
        folder = tempfile.mkdtemp(prefix="mmpareto-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ.setdefault("MPLCONFIGDIR", folder)
        if not os.path.isabs(home):
            os.environ.setdefault("XDG_CACHE_HOME", folder)


def _refuse_matplotlibrc() -> None:
    """End where matplotlib would wait for ever: its import reads a matplotlibrc in the working directory."""
    name = "matplotlibrc"
    if os.path.exists(name) and not os.path.isfile(name) and not os.path.isdir(name):  # it passes over folders
        print(
            f"{_name()}: {os.path.abspath(name)} is not a regular file, and matplotlib would read it: remove it, or "
            "start in another folder",
            file=sys.stderr,
        )
        sys.exit(2)


def _end_at_once(number: int, frame: object) -> None:
    del frame
    os.write(2, f"\n{_name()}: interrupted before it began\n".encode())
    os._exit(128 + number)


def _ignore_signals() -> None:
    for number in SIGNALS:  # Python is about to take its handlers away: the exit status stays the entry's
        signal.signal(number, signal.SIG_IGN)


def program(name: str) -> str:
    """How a command is called here, for messages: `train.py`, or `mmpareto train` where that is what was started."""
    return f"mmpareto {name}" if is_command() else f"{name}.py"


def shell_command(name: str) -> str:
    """What to type to start a command: `python code/train.py`, or `mmpareto train` where that is what was started."""
    return program(name) if is_command() else f"python code/{name}.py"


def root() -> str:
    """The folder of data/ and runs/: the repository of an entry in code/, else the working directory."""
    return os.path.dirname(CODE) if _is_script() else os.getcwd()


def _name() -> str:
    name = os.path.basename(sys.argv[0])
    return "mmpareto" if name == "__main__.py" else name


def _main_file() -> str:
    """The file of the program that runs; empty where there is none."""
    return os.path.realpath(getattr(sys.modules["__main__"], "__file__", None) or os.devnull)


def _is_script() -> bool:
    """Whether the program that runs is one of the entries in code/."""
    return os.path.dirname(_main_file()) == os.path.realpath(CODE)


def is_command() -> bool:
    """Whether it is the command `mmpareto`, or `python -m mmpareto`."""
    file = _main_file()
    return os.path.basename(file) in ("mmpareto", "mmpareto.exe") or file == os.path.join(
        os.path.realpath(os.path.dirname(os.path.abspath(__file__))), "__main__.py"
    )


def _is_entry() -> bool:
    """Whether the program that runs is one of the entries."""
    return _is_script() or is_command()


if _is_entry():
    _guard_streams()
    atexit.register(_ignore_signals)  # registered first, it runs last
    _require_environment()
    _refuse_matplotlibrc()
    _settle_without_home()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)  # while packages are imported
