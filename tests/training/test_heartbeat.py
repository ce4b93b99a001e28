"""Processes that stand still are named; two heartbeats in one process stand for two ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch.distributed as dist

from mmpareto.training.heartbeat import Heartbeat


@pytest.fixture
def store() -> dist.Store:
    return dist.HashStore()


def heartbeat(store: dist.Store, rank: int, **seconds: float) -> Heartbeat:
    store.set_timeout(timedelta(seconds=5))
    return Heartbeat(store, rank, 2, timeout=10, interval=0.02, **seconds)


def said(capfd: pytest.CaptureFixture[str], text: str, while_waiting: Callable[[], None] = lambda: None) -> str:
    """What was printed until `text` was."""
    printed, deadline = "", time.monotonic() + 60
    while text not in printed:
        assert time.monotonic() < deadline, printed
        while_waiting()
        time.sleep(0.01)
        printed += capfd.readouterr().err
    return printed


def test_a_silent_rank_is_named_once_and_so_is_its_return(store: dist.Store, capfd: pytest.CaptureFixture[str]) -> None:
    watching, stopped = heartbeat(store, 0, silence=0.2, delay=1e9), heartbeat(store, 1)
    stopped.begin(3, 57)
    stopped._beat()  # one sign of life
    watching.start()
    printed = said(capfd, "has not been heard of")
    assert "train.py: rank 1 (pid " in printed
    assert "since epoch 3, step 57" in printed
    assert "10 minutes after that step" in printed
    printed += said(capfd, "rank 1", stopped._beat)
    watching.stop()
    printed += capfd.readouterr().err
    assert "is heard of again" in printed


def test_a_rank_behind_the_others_is_named(store: dist.Store, capfd: pytest.CaptureFixture[str]) -> None:
    watching, hanging = heartbeat(store, 0, silence=1e9, delay=0.2), heartbeat(store, 1)
    watching.begin(1, 8)
    hanging.begin(1, 7)
    hanging.start()
    watching.start()
    printed = said(capfd, "while others are at step 8")
    assert "rank 1 (pid " in printed
    assert "has been at epoch 1, step 7 for" in printed
    watching.stop()
    hanging.stop()


def test_the_lowest_rank_that_is_heard_of_speaks(store: dist.Store, capfd: pytest.CaptureFixture[str]) -> None:
    stopped, speaking = heartbeat(store, 0), heartbeat(store, 1, silence=0.2, delay=1e9)
    stopped._beat()
    speaking.start()
    assert "train.py: rank 0 (pid " in said(capfd, "has not been heard of")
    speaking.stop()


def test_a_rank_that_has_ended_is_not_missed(store: dist.Store) -> None:
    ended, watching = heartbeat(store, 1), heartbeat(store, 0, silence=0.0, delay=1e9)
    ended._beat(ended=True)
    watching._watch(0.0)
    watching._watch(100.0)
    assert not watching._others[1].silent
