"""What every entry does first and last: the environment, standard streams that are closed or full, Ctrl-C."""

from __future__ import annotations

import ast
import atexit
import contextlib
import getpass
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import pytest
from entries.command import ROOT, run
from reporting.synthetic import make_run

from mmpareto import startup
from mmpareto.__main__ import COMMANDS

CODE = ROOT / "code"
ENTRIES = sorted(path.name for path in CODE.glob("*.py"))


@pytest.mark.parametrize("name", ENTRIES)
def test_without_the_environment_an_entry_says_how_to_set_up(name: str) -> None:
    done = run(sys.executable, "-S", CODE / name)  # -S: without the installed packages
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: this Python ({sys.executable}, ")
    assert "lacks torch" in done.stderr
    assert f"sh {ROOT / 'script' / 'setup.sh'}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_older_python_is_refused_before_it_meets_what_it_cannot_read() -> None:
    for path in (*(CODE / name for name in ENTRIES), CODE / "mmpareto/startup.py", CODE / "mmpareto/__init__.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 7))
    pretend = (
        "import runpy, sys; sys.version_info = (3, 8, 10, 'final', 0); sys.argv = ['train.py']; "
        f"runpy.run_path({str(CODE / 'train.py')!r}, run_name='__main__')"
    )
    done = run(sys.executable, "-S", "-c", pretend, PYTHONPATH=str(CODE))
    assert done.returncode == 2
    assert "is older than 3.11. Set up with sh" in done.stderr
    assert "Traceback" not in done.stderr


FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


@needs_full
@pytest.mark.slow
def test_a_report_whose_output_is_closed_or_full_ends_without_a_traceback(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "one")
    report = f"'{sys.executable}' '{CODE / 'report.py'}' '{tmp_path / 'runs'}'"
    closed, full = (run("sh", "-c", f"{report} {to}; exit $?") for to in (">&-", f">{FULL}"))
    assert (closed.returncode, closed.stderr) == (0, "")
    assert full.returncode == 2  # the table was all that was asked for
    assert "standard output could not be written (No space left on device)" in full.stderr
    assert len(full.stderr.splitlines()) == 1


def test_control_characters_do_not_reach_the_terminal() -> None:
    done = run(sys.executable, str(CODE / "report.py"), "runs", "--\x1b[2J\x9bü\tx\x7f")
    assert done.returncode == 2
    assert "unrecognized arguments: --\\x1b[2J\\x9bü\tx\\x7f\n" in done.stderr


def on_a_terminal(*command: str | Path) -> str:
    """What a command writes to a terminal."""
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    written = b""
    with contextlib.suppress(OSError), os.fdopen(ours, "rb", buffering=0) as reader:  # EIO: the other end is closed
        while part := reader.read(4096):
            written += part
    assert process.wait() == 0, written
    return written.decode()


def test_a_terminal_has_colours_of_its_own(tmp_path: Path) -> None:
    flags = ("--epochs", "1", "--pairs", "1", "--no-figures", "--gpu_ids", "cpu", "--ckpt_path", tmp_path / "run")
    written = on_a_terminal(CODE / "train.py", *flags)
    assert re.search(r"\x1b\[32m +1/1 \|[^\x1b]*\*\x1b\[0m", written)
    assert "\\x1b" not in written


@pytest.mark.slow
def test_a_terminal_has_a_line_for_each_running_run(tmp_path: Path) -> None:
    flags = ("--epochs", "6", "--pairs", "1", "--no-figures", "--gpu_ids", "cpu", "--jobs", "2", "--output", tmp_path)
    written = on_a_terminal(CODE / "experiment.py", "--methods", "uniform", "one_joint", *flags)
    assert "twoview/one_joint/seed0: epoch " in written
    assert "\x1b[A" in written  # the lines below the bar are written in their places
    for line in (r"\[1/2\] twoview/", r"\[2/2\] twoview/"):
        assert re.search(rf" \r(?:\x1b\[A)*{line}[^\r\n]*\r\n", written)  # behind a bar that was cleared
    assert "\\x1b" not in written


def test_a_reader_that_leaves_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, str(CODE / "train.py"), "--help"], stdout=pipe, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (0, "")


FOLDERS = ["avmnist", "cremad", "kinetics-sounds", "manifest", "modelnet40", "utd-mhad"]


def test_command_lines_are_helped_and_refused_without_pytorch() -> None:
    program = f"""
import contextlib, importlib, io, sys
from mmpareto.registries import METHODS
train = [["--epoch", "3"], ["--epochs", "x"], ["--method", "mmparto"], ["--dataset", "cremadd"], ["--fusion", "x"],
         ["--method", "ogm", "--method_options", "alpah=1"], ["--model", "resnet"], ["--config", "no.yaml"],
         ["--data_root", "data"], *(["--method", name, "--method_options", "nope=1"] for name in METHODS),
         *(["--dataset", name, "--data_root", "/no/data"] for name in {FOLDERS})]
runs = {{"predict": [["/no/run", "--manifest", "new.csv"]], **dict.fromkeys(["evaluate", "export", "study", "report"],
        [["/no/run"]])}}
grid = ["--methods", "uniform", "--datasets", "cremad", "--seeds", "1", "--data_root", "/no/data"]
runs["experiment"] = [grid, [*grid, "--search", "random"]]
for name in {[name for name in COMMANDS if name != "list"]}:
    command = importlib.import_module(f"mmpareto.cli.{{name}}")
    for argv in [["--help"], ["--no_such_flag"], *(train if name == "train" else runs.get(name, []))]:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                status = command.main(argv)
            except SystemExit as ending:  # after --help
                status = ending.code
        assert status == (0 if argv == ["--help"] else 2), (name, argv, status)
        assert "torch" not in sys.modules, (name, argv)
        assert "/no/" not in str(argv) or "/no/" in said.getvalue().splitlines()[-1], (name, argv)
"""
    done = run(sys.executable, "-c", program, cwd=CODE)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_while_packages_are_imported_ends_in_a_line() -> None:
    process = subprocess.Popen([sys.executable, "-X", "importtime", str(CODE / "train.py")], stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if b"mmpareto.startup" in line:  # printed when its import is over; torch comes next
            break
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130
    assert b"interrupted before it began" in said or b"stopped by SIGINT; " in said
    assert b"Traceback" not in said


def test_a_pipe_that_matplotlib_would_wait_for_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "matplotlibrc")
    done = run(sys.executable, CODE / "report.py", "--help", cwd=tmp_path)
    assert done.returncode == 2
    assert f"report.py: {tmp_path / 'matplotlibrc'} is not a regular file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_user_without_a_name_and_a_writable_home_gets_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torch.compile asks for the name, matplotlib for a folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    monkeypatch.setattr(atexit, "register", lambda *_, **__: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    startup._settle_without_home()
    assert getpass.getuser() == "uid2147483641"
    assert "MPLCONFIGDIR" not in os.environ
    for home, names in (("/absent", 1), ("absent", 2)):
        monkeypatch.setenv("HOME", home)
        startup._settle_without_home()
        folders = [os.environ.pop(name, "") for name in ("MPLCONFIGDIR", "XDG_CACHE_HOME")]
        assert [Path(folder).parent == tmp_path for folder in folders] == [number < names for number in range(2)]
        assert all(os.access(folder, os.W_OK) for folder in folders[:names])
