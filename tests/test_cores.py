"""How many cores a process may use: affinity, control groups, Slurm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmpareto import cores as counting
from mmpareto.cores import cores, cpu_quotas


@pytest.mark.parametrize(
    ("affinity", "quotas", "slurm", "expected"),
    [
        (6, [], {}, 6),
        (6, [2, 4], {}, 2),
        (6, [], {"SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "4"}, 3),
        (6, [], {"SLURM_CPUS_ON_NODE": "1"}, 1),
        (6, [5], {"SLURM_CPUS_PER_TASK": "64"}, 5),
        (6, [], {"SLURM_CPUS_PER_TASK": "many"}, 6),
    ],
)
def test_the_smallest_limit_counts(
    affinity: int, quotas: list[int], slurm: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    monkeypatch.setattr(counting, "cpu_quotas", lambda: quotas)
    assert cores() == expected


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        # version 2: a service below a slice, both limited
        ("0::/a.slice/b.service", {"a.slice/cpu.max": "400000 100000", "a.slice/b.service/cpu.max": "max 100000"}, [4]),
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "50000 100000", "c/cpu.max": "1 1"}, [1, 2]),
        # a container that sees its own group as the top, and one that sees the path outside
        ("0::/", {"cpu.max": "250000 100000"}, [3]),
        ("0::/docker/1234", {"cpu.max": "200000 100000"}, [2]),
        # version 1
        (
            "3:memory:/a\n2:cpu,cpuacct:/a\n1:cpuset:/a",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            [3],
        ),
        ("2:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, []),
        ("2:cpu:/", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, [1]),
        ("0::/a", {"a/cpu.max": "nonsense"}, []),
        ("", {}, []),
    ],
)
def test_quotas_of_control_groups(groups: str, files: dict[str, str], expected: list[int], tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(groups + "\n" if groups else "")
    for name, text in files.items():
        (tmp_path / "mounted" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mounted" / name).write_text(text + "\n")
    assert cpu_quotas(tmp_path / "cgroup", tmp_path / "mounted") == expected


def test_a_system_without_control_groups_sets_no_limit(tmp_path: Path) -> None:
    assert cpu_quotas(tmp_path / "none", tmp_path) == []
