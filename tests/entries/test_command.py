"""The command `mmpareto`, in this process, as `python -m mmpareto`, and installed from a wheel."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from entries.command import ROOT, inside, run

import mmpareto
from mmpareto import startup
from mmpareto.__main__ import COMMANDS, dispatch

LINK = re.compile(r"\]\(([^)]+)\)")


def test_help_version_and_unknown_commands() -> None:
    assert inside(dispatch, "--version").stdout == f"mmpareto {mmpareto.__version__}\n"
    shown = inside(dispatch, "--help")
    assert shown.returncode == 0
    assert all(f"  {name}" in shown.stdout for name in COMMANDS)
    assert inside(dispatch).returncode == 2
    unknown = inside(dispatch, "trian")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("mmpareto: unknown command 'trian'; known: train, evaluate, ")


def test_every_entry_is_a_command() -> None:
    entries = {path.stem for path in (ROOT / "code").glob("*.py")}
    assert entries == set(COMMANDS) - {"list"}
    for name in COMMANDS:
        assert importlib.util.find_spec(f"mmpareto.cli.{name}") is not None


def test_lists() -> None:
    methods = inside(dispatch, "list", "methods").stdout
    assert methods.startswith("methods:\n")
    assert "mmpareto" in methods
    both = inside(dispatch, "list", "datasets", "fusions").stdout
    assert "digits" in both
    assert "concat" in both
    wrong = inside(dispatch, "list", "colours")
    assert wrong.returncode == 2
    assert wrong.stderr.endswith(
        "expected one of datasets, methods, encoders, fusions, architectures; found 'colours'\n"
    )


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"list", "prepare"}))
def test_help_shows_the_command_that_was_started(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "is_command", lambda: True)
    shown = inside(dispatch, name, "--help")
    assert shown.returncode == 0
    assert "code/" not in shown.stdout
    assert f"mmpareto {name}" in shown.stdout


@pytest.mark.slow
def test_as_a_module_messages_and_folders_are_those_of_the_command(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT / "code")}
    refused = run(sys.executable, "-m", "mmpareto", "train", "--epochs", "x", cwd=tmp_path, **environment)
    assert refused.returncode == 2
    assert refused.stderr.startswith("mmpareto train: argument --epochs")
    cgmnist = run(sys.executable, "-m", "mmpareto", "train", "--dataset", "cremad", cwd=tmp_path, **environment)
    assert cgmnist.stderr.startswith(f"mmpareto train: cremad: the folder {tmp_path / 'data' / 'cremad'} is missing")
    assert not list(tmp_path.iterdir())


def test_the_version_needs_no_torch() -> None:
    done = run(sys.executable, "-X", "importtime", "-m", "mmpareto", "--version", PYTHONPATH=str(ROOT / "code"))
    assert done.stdout == f"mmpareto {mmpareto.__version__}\n"
    assert " torch\n" not in done.stderr


def test_an_older_python_can_read_the_command() -> None:
    ast.parse(Path(startup.__file__).with_name("__main__.py").read_text(), feature_version=(3, 7))


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and a source distribution."""
    pytest.importorskip("build", reason="needs the library build")
    folder = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    if done.returncode and "Could not find a version" in done.stdout + done.stderr:
        pytest.skip("no network to fetch hatchling")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.mark.slow
def test_wheel_and_source_distribution_are_whole(distributions: Path) -> None:
    (wheel,), (source,) = distributions.glob("*.whl"), distributions.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "code" / "mmpareto").rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert str(path.relative_to(ROOT / "code")) in names
    assert not [name for name in names if name.startswith(("tests", "script"))]
    assert source.stat().st_size < 2**21
    metadata = next(name for name in names if name.endswith("/METADATA"))
    description = zipfile.ZipFile(wheel).read(metadata).decode().partition("\n\n")[2]
    links = LINK.findall(description)
    assert all(link.startswith("https://") for link in links), links
    linked = [link for link in LINK.findall((ROOT / "README.md").read_text()) if not link.endswith(".svg")]
    assert linked
    assert all(link in description for link in linked)
    if importlib.util.find_spec("twine") is None:
        pytest.skip("twine check needs twine")
    done = run(sys.executable, "-m", "twine", "check", "--strict", wheel, source)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_installed_command_works_where_one_stands(distributions: Path, tmp_path: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    installed = run(sys.executable, *pip)
    assert installed.returncode == 0, installed.stderr

    def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        done = run(sys.executable, site / "bin" / "mmpareto", *arguments, cwd=here, PYTHONPATH=str(site))
        assert done.returncode == 0, done.stderr
        return done

    assert command("--version").stdout == f"mmpareto {mmpareto.__version__}\n"
    assert command("list").stdout == inside(dispatch, "list").stdout  # all modules are found
    flags = ("--datasets", "digits", "--epochs", "1", "--gpu_ids", "cpu", "--jobs", "1")
    grid = command("experiment", "--methods", "uniform", "--seeds", "0", *flags)
    folder = here / "runs" / "digits" / "uniform" / "seed0"
    assert (folder / "results.json").exists(), grid.stdout
    np.save(here / "gray.npy", np.zeros((1, 28, 28), np.uint8))
    assert "prediction: " in command("predict", folder, "--input", "gray=gray.npy", "--gpu_ids", "cpu").stdout
    assert "uniform" in command("report", "runs").stdout
    assert {path.name for path in here.iterdir()} == {"runs", "gray.npy"}
