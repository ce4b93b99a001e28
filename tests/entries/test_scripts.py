"""The shell scripts: set-up and launchers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from entries.command import ROOT, run


def test_setup_says_one_line_when_there_is_nothing_to_do() -> None:
    for _ in range(2):
        done = run("sh", ROOT / "script" / "setup.sh")
        assert done.returncode == 0
        assert "nothing to do" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A copy of what setup.sh needs, in a folder with a space in its name."""
    root = tmp_path / "a clone"
    (root / "script").mkdir(parents=True)
    for name in ("setup.sh", "check_requirements.py"):
        shutil.copy(ROOT / "script" / name, root / "script")
    return root


def test_setup_refuses_an_old_python(elsewhere: Path) -> None:
    (elsewhere / "requirements.txt").write_text("")
    old = elsewhere / "bin"
    old.mkdir()
    for name in ("python", "python3", "python3.11", "python3.12", "python3.13"):
        (old / name).write_text('#!/bin/sh\ncase "$1" in --version) echo "Python 3.8.10";; *) exit 1;; esac\n')
        (old / name).chmod(0o755)
    done = run("sh", elsewhere / "script" / "setup.sh", PATH=f"{old}:/usr/bin:/bin", PYTHON="")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed; found Python 3.8.10" in done.stderr


def test_setup_refuses_a_named_python_that_is_none(elsewhere: Path) -> None:
    (elsewhere / "requirements.txt").write_text("")
    done = run("sh", elsewhere / "script" / "setup.sh", PYTHON="/no/such/python")
    assert done.returncode == 1
    assert done.stderr == (
        "setup: PYTHON=/no/such/python is no Python 3.11 or newer; name another one, or leave the variable out\n"
    )


@pytest.mark.parametrize("flags", [["--quick", "--jobs", "2"], ["--jobs", "2", "--quick"], ["--jobs", "2"]])
def test_quick_is_taken_wherever_it_stands(elsewhere: Path, flags: list[str]) -> None:
    (elsewhere / "requirements.txt").write_text("")
    shutil.copy(ROOT / "script" / "leaderboard.sh", elsewhere / "script")
    (elsewhere / "code").mkdir()
    (elsewhere / "code" / "experiment.py").write_text("import sys\nprint(*sys.argv[1:])\n")
    done = run("sh", elsewhere / "script" / "leaderboard.sh", *flags, PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert ("--trials 2" in done.stdout) == ("--quick" in flags)
    assert "--quick" not in done.stdout
    assert done.stdout.endswith("--jobs 2\n")


def test_scripts_may_change_the_folder_under_a_python_named_from_there(elsewhere: Path) -> None:
    """And the environment's own ROOT means nothing to set-up."""
    (elsewhere / "requirements.txt").write_text("")
    (elsewhere / "bin").mkdir()
    (elsewhere / "bin" / "python").symlink_to(sys.executable)
    done = run("sh", "script/setup.sh", cwd=elsewhere, PYTHON="bin/python", ROOT="/no/such/folder")
    assert done.stderr == f"setup: nothing to do ({elsewhere}/bin/python satisfies requirements.txt)\n"


@pytest.mark.slow
def test_setup_fails_plainly_when_the_install_fails(elsewhere: Path) -> None:
    """Of pip, not of a .venv whose Python an upgrade of the system has taken away: that one is made anew."""
    (elsewhere / ".venv" / "bin").mkdir(parents=True)
    (elsewhere / ".venv" / "bin" / "python").symlink_to("/no/such/python")
    (elsewhere / "requirements.txt").write_text("a-package-that-nobody-made==9.9\n")
    done = run("sh", elsewhere / "script" / "setup.sh", PIP_NO_INDEX="1")
    assert done.returncode == 1
    assert "No matching distribution found for a-package-that-nobody-made" in done.stderr
    assert "pip could not install requirements.txt" in done.stderr


def test_setup_installs_what_is_missing_and_then_has_nothing_to_do(elsewhere: Path, tmp_path: Path) -> None:
    """Over a .venv without pip, which is what a first attempt leaves where python3-venv is missing."""
    assert run(sys.executable, "-m", "venv", "--without-pip", elsewhere / ".venv").returncode == 0
    wheel = make_wheel(tmp_path)
    (elsewhere / "requirements.txt").write_text("demo-requirement==1.0\n")
    environment = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent)}
    first = run("sh", elsewhere / "script" / "setup.sh", **environment)
    assert first.returncode == 0, first.stderr
    assert "installing requirements.txt" in first.stderr
    second = run("sh", elsewhere / "script" / "setup.sh", **environment)
    assert second.stderr.strip() == "setup: nothing to do (.venv satisfies requirements.txt)"


def make_wheel(folder: Path) -> Path:
    """A wheel with nothing in it, written by hand: demo-requirement 1.0."""
    import zipfile

    path = folder / "demo_requirement-1.0-py3-none-any.whl"
    info = "demo_requirement-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: demo-requirement\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


@pytest.mark.parametrize(
    ("requirement", "satisfied"),
    [
        ("pytest>=1", True),
        ("pytest<1", False),
        ("a-package-that-nobody-made", False),
        ("torchjd[full]", True),
        ("# a comment\n\npytest  # another", True),
    ],
)
def test_check_requirements_agrees_with_what_is_installed(tmp_path: Path, requirement: str, satisfied: bool) -> None:
    (tmp_path / "requirements.txt").write_text(requirement + "\n")
    done = run(sys.executable, ROOT / "script" / "check_requirements.py", tmp_path / "requirements.txt")
    assert (done.returncode == 0) == satisfied
    assert bool(done.stdout.strip()) != satisfied


def test_a_launcher_trains(tmp_path: Path) -> None:
    flags = ("--epochs", "1", "--pairs", "1", "--no-figures")
    done = run("sh", "script/mmpareto.sh", *flags, "--ckpt_path", tmp_path / "run", cwd=ROOT / "code")
    assert done.returncode == 0, done.stderr
    assert "method    mmpareto" in done.stdout
    assert (tmp_path / "run" / "results.json").exists()


def test_each_launcher_runs_its_command_from_any_folder(tmp_path: Path) -> None:
    """With a Python that prints its arguments in the place of a run: what each launcher would start."""
    expected = {
        "one_joint_loss": "train.py --method one_joint",
        "uniform_baseline": "train.py --method uniform",
        "mmpareto": "train.py --method mmpareto",
        "pareto": "train.py --method pareto",
        "uniform_gamma": "train.py --method uniform_gamma",
        "experiment": "experiment.py",
        "report": "report.py",
    }
    (tmp_path / "python3").write_text(
        f'#!/bin/sh\ncase "$1" in */code/*) echo "$@";; *) exec {sys.executable} "$@";; esac\n'
    )
    (tmp_path / "python3").chmod(0o755)
    for script, command in expected.items():
        command_line = ("sh", ROOT / "script" / f"{script}.sh", "--flag", "two words")
        done = run(*command_line, cwd=tmp_path, PYTHON=str(tmp_path / "python3"))
        assert done.stdout.strip() == f"{ROOT}/code/{command} --flag two words"


PREEMPTED, RUNNING = "PreemptTime=2026-01-01T00:00:00", "PreemptTime=None"


@pytest.mark.parametrize(
    ("ends", "state", "queued"),
    [
        ("told", f"JobState=RUNNING {RUNNING}", True),  # the shell gets the signal, before the time limit
        ("failed", f"JobState=RUNNING {PREEMPTED}", True),  # the step alone gets it
        ("told", f"JobState=CANCELLED {RUNNING}", False),
        ("failed", f"JobState=PENDING {PREEMPTED}", False),  # Slurm has queued it again
        ("finished", f"JobState=RUNNING {PREEMPTED}", False),
        ("failed", f"JobState=RUNNING {RUNNING}", False),
    ],
)
def test_a_job_that_is_cut_short_is_queued_again(ends: str, state: str, queued: bool, tmp_path: Path) -> None:
    """With stand-ins for Slurm's commands; torchrun's status is 1 whether a signal stopped it or it failed."""
    status = {"told": "trap 'exit 1' TERM; kill -TERM $PPID; for i in 1 2 3 4 5 6 7 8 9; do sleep 1; done"}
    job = sbatch(
        tmp_path,
        srun=f'echo $$ > "{tmp_path}/step"; ' + status.get(ends, f"exit {int(ends == 'failed')}"),
        scancel=f'[ "$*" = "--signal=TERM 7" ] && kill -TERM $(cat "{tmp_path}/step")',
        scontrol=f'echo "$@" >> "{tmp_path}/said"; [ "$1" = show ] && echo "JobId=7 {state} Restarts=0"',
    )
    assert job.returncode == (ends != "finished"), job.stderr
    assert ("requeue 7" in (tmp_path / "said").read_text()) == queued


@pytest.mark.parametrize(
    ("environment", "processes", "cpus"),
    [
        ({"SLURM_GPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "6"}, "2", "6"),
        ({"SLURM_GPUS_ON_NODE": "2", "PROCESSES": "3"}, "3", ""),
        ({}, "1", ""),
    ],
)
def test_a_job_uses_what_slurm_gave_it(environment: dict[str, str], processes: str, cpus: str, tmp_path: Path) -> None:
    srun = f'echo "$@" "cpus=${{SRUN_CPUS_PER_TASK:-}}" > "{tmp_path}/step"'
    job = sbatch(tmp_path, srun=srun, scancel="", scontrol="echo a", **environment)
    assert job.returncode == 0, job.stderr
    step = (tmp_path / "step").read_text()
    assert f" --nproc_per_node {processes} " in step
    assert step.endswith(f"train.py --resume auto cpus={cpus}\n")


@pytest.mark.parametrize("script", ["slurm.sbatch", "distributed.sh"])
def test_what_is_wrong_with_flags_or_data_starts_no_processes(script: str, tmp_path: Path) -> None:
    """torchrun would start them four times. One of the scripts gets a stand-in for the check, which saves seconds."""
    started = tmp_path / "started"
    check = f'exec {sys.executable} "$@"' if script == "slurm.sbatch" else "echo train.py: /none >&2; exit 2"
    python = f'case "$*" in *distributed.run*) touch "{started}";; */check_flags.py*) {check};; esac'
    flags = ("--dataset", "manifest", "--data_root", "/none")
    job = sbatch(tmp_path, *flags, script=script, srun=f'touch "{started}"', scontrol="", python3=python)
    assert job.returncode == 2
    assert job.stderr.count("train.py: ") == 1
    assert "/none" in job.stderr
    assert not started.exists()


def sbatch(
    folder: Path, *flags: str, script: str = "slurm.sbatch", **commands_and_environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script with stand-ins for commands (named in lower case) and a Python that checks no flags."""
    commands = {"python3": f'case "$1" in */check_flags.py) ;; *) exec {sys.executable} "$@";; esac'}
    commands |= {name: text for name, text in commands_and_environment.items() if name.islower()}
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return run(
        *("sh", ROOT / "script" / script, *flags),
        cwd=ROOT,
        PATH=f"{folder}:{os.environ['PATH']}",
        PYTHON=str(folder / "python3"),
        SLURM_JOB_ID="7",
        SLURM_NNODES="1",
        SLURM_JOB_NODELIST="a",
        **{name: text for name, text in commands_and_environment.items() if name.isupper()},
    )
