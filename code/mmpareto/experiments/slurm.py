"""submitit's Slurm classes; they ask squeue for the states of jobs, because sacct needs accounting."""

from __future__ import annotations

import os

from submitit.slurm.slurm import SlurmExecutor, SlurmInfoWatcher, SlurmJob

FORGOTTEN = (
    "FORGOTTEN"  # our word for a job that is not in the queue: Slurm forgets it minutes after its end (MinJobAge)
)
ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
        *("REVOKED", "TIMEOUT", FORGOTTEN),
    )
)


class QueueWatcher(SlurmInfoWatcher):
    """A watcher that asks for the states of all jobs of the user by one call of squeue."""

    def _make_command(self) -> list[str] | None:
        if not self._registered - self._finished:
            return None
        return ["squeue", f"--user={os.getuid()}", "--noheader", "--states=all", "--format=%i|%T|%r"]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """{job: {"State", "Reason"}} for every registered job."""
        text = string if isinstance(string, str) else string.decode()
        queue = {}
        for line in text.splitlines():
            job, state, reason = line.split("|", 2)
            queue[job] = {"State": state, "Reason": reason}
        return {job: queue.get(job, {"State": FORGOTTEN}) for job in self._registered}

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether the job has ended for good; one that is suspended, requeued or held has not."""
        return self.get_state(job_id, mode=mode).upper() in ENDED


class Job(SlurmJob):
    """A Slurm job that is watched through squeue."""

    watcher = QueueWatcher(delay_s=30)


class Executor(SlurmExecutor):
    """An executor that submits such jobs."""

    job_class = Job
