"""CUDA streams: encoders that know nothing of one another, at work at the same time.

A small encoder leaves most of a GPU idle. While a CUDA graph is captured with `side_by_side`, what each encoder
launches goes on a stream of its own, and the graph holds the encoders' work as branches beside one another. Everywhere
else the functions here do nothing: an eager step waits for the host, not for the GPU.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

# globals, which torch.compile can read
_streams: dict[tuple[int, str], torch.cuda.Stream] = {}  # of all captures, by device: a stream keeps libraries' memory
_used: set[str] | None = None  # names in this capture; None: nothing is put on streams


@contextmanager
def side_by_side() -> Iterator[None]:
    """Put work under different names on streams of their own meanwhile.

    For captures alone, and for work whose tensors outlive it or are made and read under one name: elsewhere a tensor
    that a second stream reads would have to be recorded there, or its memory could be given away before.
    """
    global _used
    _used = set()
    try:
        yield
    finally:
        _used = None


@contextmanager
def beside(name: str) -> Iterator[None]:
    """Put the work of `name` on its stream, after all that was launched on the current one."""
    if _used is None:
        yield
        return
    _used.add(name)
    stream = _stream(name)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield


def join() -> None:
    """Let the current stream wait for all work under names."""
    if _used is not None:
        for name in sorted(_used):
            torch.cuda.current_stream().wait_stream(_stream(name))


def _stream(name: str) -> torch.cuda.Stream:
    key = torch.cuda.current_device(), name
    if key not in _streams:
        _streams[key] = torch.cuda.Stream()
    return _streams[key]


def run(work: Mapping[str, Iterator[object]]) -> None:
    """Exhaust iterators that launch work, one after the other; side by side in turns, each on its stream.

    A backward pass runs on the stream of its forward pass. So only names that have had a stream in this capture get one
    here: others would read gradients that are made, and whose memory is given away, on another stream.
    """
    if _used is None or not work.keys() <= _used:
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
