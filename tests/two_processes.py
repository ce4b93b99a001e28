"""Two processes of one job, forked from the server of `clean_context`, which has loaded PyTorch already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp

from mmpareto.datasets.workers import clean_context, settle_in


def run_in_two(work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(rank, *arguments)` in two processes of one thread each, and wait for both."""
    clean_context()
    mp.start_processes(_run, (work, arguments), nprocs=2, start_method="forkserver")


def _run(rank: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    settle_in()
    torch.set_num_threads(1)
    work(rank, *arguments)
