"""How many CPU cores a process may use."""

import math
import os
from pathlib import Path


def cores() -> int:
    """CPU cores that this process may use: by its affinity, its control groups (containers), and Slurm."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slurm = [os.environ.get(name, "") for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")]
    return max(1, min([affinity, *(int(number) for number in slurm if number.isdecimal()), *cpu_quotas()]))


def cpu_quotas(proc: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Limits, in cores and rounded up, that the control groups of this process set by quota; versions 2 and 1.

    In a container `mounted` may be the group of the container itself, below which its path does not exist.
    """
    quotas = []
    try:
        groups = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:  # not Linux
        return []
    for _, controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mounted / controllers if controllers else mounted
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            try:
                if controllers:
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
                if int(quota) > 0:
                    quotas.append(math.ceil(int(quota) / int(period)))
            except (OSError, ValueError, ZeroDivisionError):  # the top has no limit; "max" is none
                continue
    return quotas
