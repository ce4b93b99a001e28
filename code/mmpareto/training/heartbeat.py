"""Name the process of a run that stands still: each writes a beat into the job's store, all watch those of the others.

A process that is stopped (SIGSTOP), or on a machine that is gone, is silent: its thread beats no more. One whose loader
hangs still beats, but has begun fewer steps than the others, which wait for it. A hang within a step that all processes
have begun cannot be assigned to one of them; the timeout of the collectives ends it, as it ends the other two.
"""

import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from torch.distributed import Store


@dataclass
class _Watched:
    """Another process: its last message, when that changed, when its step changed, whether it was named."""

    message: dict[str, Any]
    beaten: float
    stepped: float
    silent: bool = False
    behind: bool = False


class Heartbeat:
    """A thread that beats for this process and names others that stand still, on standard error.

    store     shared by the processes, used by this thread alone.
    rank      of this process, 0 .. size - 1. The lowest rank that is heard of speaks.
    interval  seconds between beats.
    silence   seconds without a beat after which a process is named.
    delay     seconds without a new step after which one that is behind the others is named.
    timeout   minutes after which the collectives end the run, for the message.

    The main thread calls `begin` with each step; that costs an assignment.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        timeout: float,
        interval: float = 5,
        silence: float = 20,
        delay: float = 45,
    ) -> None:
        self.store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self.interval, self.silence, self.delay = interval, silence, delay
        self._position = (0, 0)  # epoch, step
        self._beats = 0
        self._others: dict[int, _Watched] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat and to watch."""
        self._thread.start()

    def begin(self, epoch: int, step: int) -> None:
        """Note that the main thread has the data of a step and begins it."""
        self._position = (epoch, step)

    def stop(self) -> None:
        """End the thread; the others are told, so that they do not miss this process."""
        self._end.set()
        self._thread.join(timeout=1)

    def _run(self) -> None:
        try:
            last = time.monotonic()
            while not self._end.wait(self.interval if self._beats else 0):
                self._beat()
                now = time.monotonic()
                if now - last > 2 * self.interval + 1:  # this process stood still itself: all begin anew
                    self._others.clear()
                last = now
                self._watch(now)
            self._beat(ended=True)
        except Exception:  # the store is gone, and the job with it
            return

    def _beat(self, ended: bool = False) -> None:
        self._beats += 1
        epoch, step = self._position
        message: dict[str, Any] = {"beat": self._beats, "epoch": epoch, "step": step, "ended": ended}
        message |= {"pid": os.getpid(), "host": socket.gethostname()}
        self.store.set(f"beat_{self.rank}", json.dumps(message))

    def _watch(self, now: float) -> None:
        for rank in range(self.size):
            key = f"beat_{rank}"
            if rank == self.rank or not self.store.check([key]):
                continue
            message = json.loads(self.store.get(key))
            other = self._others.setdefault(rank, _Watched(message, now, now))
            if message["beat"] != other.message["beat"]:
                other.beaten = now
            if (message["epoch"], message["step"]) != (other.message["epoch"], other.message["step"]):
                other.stepped, other.behind = now, False
            other.message = message
        self._name_silent(now)
        self._name_behind(now)

    def _name_silent(self, now: float) -> None:
        for rank, other in self._others.items():
            was_silent, quiet = other.silent, now - other.beaten
            other.silent = quiet > self.silence and not other.message["ended"]
            if other.silent and not was_silent:
                self._say(
                    f"{_name(rank, other.message)} has not been heard of for {quiet:.0f} s, since "
                    f"{_place(other.message)}: it is stopped (kill -CONT wakes it), or its machine is. The others wait "
                    f"for it; without it the run ends {self.timeout:g} minutes after that step"
                )
            if was_silent and not other.silent:
                self._say(f"{_name(rank, other.message)} is heard of again")

    def _name_behind(self, now: float) -> None:
        steps = {rank: (other.message["epoch"], other.message["step"]) for rank, other in self._others.items()}
        first = max([self._position, *steps.values()])
        for rank, other in self._others.items():
            delay = now - other.stepped
            waited_for = delay > self.delay and steps[rank] < first
            if waited_for and not (other.behind or other.silent or other.message["ended"]):
                other.behind = True
                self._say(
                    f"{_name(rank, other.message)} has been at {_place(other.message)} for {delay:.0f} s, while others "
                    f"are at step {first[1]}: its loader or device hangs, or is slow. The others wait for it, "
                    f"{self.timeout:g} minutes at most"
                )

    def _say(self, text: str) -> None:
        """Print, unless a lower rank that is heard of does."""
        if all(rank in self._others and self._others[rank].silent for rank in range(self.rank)):
            print(f"train.py: {text}", file=sys.stderr, flush=True)


def _name(rank: int, message: dict[str, Any]) -> str:
    return f"rank {rank} (pid {message['pid']} on {message['host']})"


def _place(message: dict[str, Any]) -> str:
    return f"epoch {message['epoch']}, step {message['step']}" if message["epoch"] else "before its first step"
