"""CUDA streams: encoders that know nothing of one another, at work at the same time.

A small encoder leaves most of a GPU idle. While a CUDA graph is captured with `side_by_side`, what each encoder
launches goes on a stream of its own, and the graph holds the encoders' work as branches beside one another. Everywhere
else the functions here do nothing: an eager step waits for the host, not for the GPU.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

_streams: dict[str, torch.cuda.Stream] | None = None  # a global, which torch.compile can read


@contextmanager
def side_by_side() -> Iterator[None]:
    """Put work under different names on streams of their own meanwhile.

    For captures alone, whose memory no other stream reuses: elsewhere a tensor that a second stream reads would have to
    be recorded there.
    """
    global _streams
    _streams = {}
    try:
        yield
    finally:
        _streams = None


@contextmanager
def beside(name: str) -> Iterator[None]:
    """Put the work of `name` on its stream, after all that was launched on the current one."""
    if _streams is None:
        yield
        return
    stream = _streams.setdefault(name, torch.cuda.Stream())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield


def join() -> None:
    """Let the current stream wait for all work under names."""
    if _streams is not None:
        for stream in _streams.values():
            torch.cuda.current_stream().wait_stream(stream)


def run(work: Mapping[str, Iterator[object]]) -> None:
    """Exhaust iterators that launch work, one after the other; side by side in turns, each on its stream."""
    if _streams is None:
        for steps in work.values():
            deque(steps, maxlen=0)
        return
    left = dict(work)
    while left:
        for name, steps in list(left.items()):
            with beside(name):
                if next(steps, left) is left:  # exhausted
                    del left[name]
    join()
