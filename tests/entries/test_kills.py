"""Commands that are killed while they write: what was there is whole, and the same command then succeeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets.make_manifest import write_manifest, write_rows
from entries.command import ROOT
from reporting.synthetic import make_run

from mmpareto.cli import evaluate, report, study, train

CPU = ("--gpu_ids", "cpu")
SMALL = (*CPU, "--batches", "2", "--samples", "5", "--directions", "1", "--points", "3", "--hessian_products", "2")
STATUS = {"SIGKILL": -9, "SIGTERM": -15, "SIGINT": 130}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, on a manifest."""
    root = tmp_path_factory.mktemp("trained")
    rows = [row | {"twin": row["sensor"]} for row in write_manifest(root / "data", 24, val=True)]
    write_rows(root / "data", rows, ["id", "split", "label", "sensor", "twin"])
    data = ("--dataset", "manifest", "--data_root", str(root / "data"), "--batch_size", "4", "--num_workers", "0")
    assert train.main([*data, *CPU, "--epochs", "1", "--ckpt_path", str(root / "run")]) == 0
    return root / "run"


def contents(folder: Path) -> dict[str, object]:
    """Files by name; without the time and the command that stand in study.json, and without unfinished files."""
    files: dict[str, object] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.startswith(".new-files-"):
            files[name] = path.read_bytes()
            if path.name == "study.json":
                files[name] = json.loads(path.read_text()) | {"environment": None}
    return files


@pytest.mark.faults
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("command", ["report", "study", "evaluate"])
def test_a_signal_at_a_write_leaves_whole_files_and_the_same_command_succeeds(
    command: str, trained: Path, tmp_path: Path
) -> None:
    """SIGKILL between two files may leave some old and some new ones; other signals wait until all are replaced."""
    old, killed = tmp_path / "old", tmp_path / "killed"
    if command == "report":
        runs = str(tmp_path / "runs")
        for seed in range(2):
            make_run(tmp_path / "runs" / f"u{seed}", "uniform", seed, 40.0 + seed)
            make_run(tmp_path / "runs" / f"m{seed}", "mmpareto", seed, 45.0 + 2 * seed)
        assert report.main([runs, "--output", str(old), "--baseline", "mmpareto"]) == 0
        flags = [runs, "--output", "{}"]
    elif command == "study":
        assert study.main([str(trained), *SMALL, "--seed", "1", "--output", str(old)]) == 0
        flags = [str(trained), *SMALL, "--output", "{}"]
    else:
        old.symlink_to(trained)
        assert evaluate.main([str(old), *CPU, "--no-probe", "--missing", "mean"]) == 0
        flags = ["{}", *CPU, "--no-probe"]
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tests" / "entries" / "killed_commands.py"),
            command,
            str(old),
            str(killed),
            *flags,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "code")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    statuses = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines() if line.startswith(("new: ", "SIG")))
    before, after = contents(old), contents(killed / "new")
    assert len(before) > 3
    assert before != after
    assert statuses.pop("new") == "0"
    assert len(statuses) == 2 * 8
    for name, status in statuses.items():
        files = contents(killed / name)
        if name.endswith("-again"):
            assert status == "0"
            assert files == after
            assert not list((killed / name).glob(".new-files-*"))
            continue
        order = name.partition("-")[0]
        assert int(status) == STATUS[order], name
        assert files.keys() <= before.keys() | after.keys()
        assert all(data in (before.get(file), after.get(file)) for file, data in files.items())
        if order != "SIGKILL":
            assert files in (before, after), name
