"""How many runs share a GPU: one at first, then as many as its memory, its utilisation and the CPU cores allow."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tqdm import tqdm

from mmpareto.escape import counted
from mmpareto.experiments.grid import Run
from mmpareto.experiments.process import epochs_done

FULL = 0.9  # utilisation from which another run would only slow down the others
RESERVE = 0.25  # of the memory, which stays free
MARGIN = 1.3  # what a run may need, over the most that was measured of one
BEGUN = 64 * 2**20  # bytes; a process that has less on a GPU has not begun to use it
WARM_UP = 60.0  # seconds after which a run counts as training, if its first epoch takes longer
SAMPLES, INTERVAL = 3, 1.0  # readings of a decision, and the seconds between two of them
LONGEST_INTERVAL = 30.0  # seconds between two decisions, if the last ones changed nothing
QUERY = "memory.total,memory.free,utilization.gpu,compute_mode"


class Reading(NamedTuple):
    """Memory of a GPU in bytes; the part of the time in which it computes, 0 to 1, or None where unknown."""

    total: float
    free: float
    utilisation: float | None


def runs_that_fit(reading: Reading, peak: float, training: int, cores: int) -> int:
    """The number of runs that may share a GPU; at most twice as many as are measured.

    Args:
        reading: of the GPU while `training` runs train on it.
        peak: the most memory that one run takes, in bytes.
        training: runs that train, at least one.
        cores: CPU cores for the runs of this GPU; each needs one.
    """
    further = max(0, int((reading.free - RESERVE * reading.total) / (MARGIN * peak)))
    most = 2 * training
    if reading.utilisation is not None and reading.utilisation >= FULL:
        most = training
    elif reading.utilisation:
        most = min(most, max(training + 1, int(training * FULL / reading.utilisation)))
    return max(1, min(training + further, most, cores))


def read_gpu(number: str) -> Reading | None:
    """Read the GPU that PyTorch numbers so; None where that is not possible, or where only one process may use it.

    nvidia-smi leaves nothing on the GPU. PyTorch, which is asked where nvidia-smi is missing, keeps a CUDA context.
    """

    import torch  # takes seconds to import

    gpu = int(number)
    try:
        identity = f"GPU-{torch.cuda.get_device_properties(gpu).uuid}"  # CUDA_VISIBLE_DEVICES numbers GPUs anew
        command = ["nvidia-smi", "-i", identity, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
        printed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        total, free, utilisation, mode = printed.strip().split(", ")
        known = utilisation.isdecimal()
        reading = Reading(float(total) * 2**20, float(free) * 2**20, float(utilisation) / 100 if known else None)
        return reading if mode == "Default" else None
    except (OSError, ValueError, RuntimeError, AssertionError, subprocess.SubprocessError):
        pass
    try:
        free_bytes, total_bytes = torch.cuda.mem_get_info(gpu)
    except (RuntimeError, AssertionError):
        return None
    return Reading(total_bytes, free_bytes, None)


class SharedGpu:
    """The runs on one GPU, and how many there may be.

    Attributes:
        allowed: runs at a time.

    Args:
        name: its number, as text.
        most: runs at a time that are never exceeded.
        cores: CPU cores for the runs of this GPU.
        read: reads the GPU; None: `most` runs share it, and nothing is measured.
    """

    def __init__(self, name: str, most: int, cores: int, read: Callable[[str], Reading | None] | None) -> None:
        self.allowed = most if read is None else 1
        self._name, self._most, self._cores, self._read = name, most, cores, read
        self._begun: dict[Run, tuple[float, int]] = {}  # time, epochs done before
        self._unused: float | None = None  # free memory before the first run
        self._peak, self._utilisation = 0.0, list[float | None]()  # each of one run
        self._interval, self._next, self._told = INTERVAL, 0.0, False

    def begin(self, run: Run) -> None:
        """Note that a run starts."""
        self._begun[run] = time.monotonic(), epochs_done(run)
        if self._read is not None and self._unused is None:
            reading = self._read(self._name)
            if reading is None:
                self._read = None
                self._say("cannot be measured or shared; --runs_per_gpu sets another number")
            else:
                self._unused = reading.free

    def has_room(self, running: Sequence[Run]) -> bool:
        """Whether another run may start beside those that run on it; measures where that may allow one."""
        limit = min(self._most, self._cores)
        if self._read and len(running) >= self.allowed and self.allowed < limit and time.monotonic() >= self._next:
            self._measure(running, limit)
        return len(running) < self.allowed

    def lost(self, running: int) -> bool:
        """Lower the number because one of `running` runs ended for want of memory; the result is whether it can be."""
        if running < 2:
            return False
        self.allowed, self._read = max(1, min(self.allowed, running) - 1), None
        self._say(f"out of memory with {running}; the run that failed is started again later")
        return True

    def _measure(self, running: Sequence[Run], limit: int) -> None:
        self._next = time.monotonic() + INTERVAL
        training = sum(self._trains(run) for run in running)
        reading = self._read(self._name) if self._read and training else None
        if reading is None or self._unused is None or self._unused - reading.free < BEGUN:
            return
        self._peak = max(self._peak, (self._unused - reading.free) / training)
        self._utilisation.append(None if reading.utilisation is None else reading.utilisation / training)
        if len(self._utilisation) < SAMPLES:
            return
        known = [value for value in self._utilisation if value is not None]
        mean = training * sum(known) / len(known) if known else None
        self._utilisation.clear()
        number = min(limit, runs_that_fit(reading._replace(utilisation=mean), self._peak, training, self._cores))
        grows = number > self.allowed
        self._interval = INTERVAL if grows else min(2 * self._interval, LONGEST_INTERVAL)
        self._next = time.monotonic() + self._interval
        if grows or not self._told:
            self._told, self.allowed = True, max(number, self.allowed)
            use = "unknown" if mean is None else f"{100 * mean:.0f} %"
            self._say(
                f"{counted(training, 'run')} measured: {self._peak / 2**30:.1f} GiB each, {reading.free / 2**30:.1f} "
                f"of {reading.total / 2**30:.1f} GiB free, utilisation {use}"
            )

    def _trains(self, run: Run) -> bool:
        """Whether a run has shown what it needs: an epoch is done, or a minute is over."""
        begun, epochs = self._begun[run]
        return epochs_done(run) > epochs or time.monotonic() > begun + WARM_UP

    def _say(self, reason: str) -> None:
        tqdm.write(f"GPU {self._name}: {counted(self.allowed, 'run')} at a time ({reason})")
