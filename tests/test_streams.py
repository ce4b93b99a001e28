"""Encoders side by side: what of it a CPU can show. Streams themselves are tested on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mmpareto import streams
from mmpareto.models import build_model


def work(name: str, steps: int, log: list[str]) -> Iterator[None]:
    for step in range(steps):
        log.append(f"{name}{step}")
        yield
    log.append(f"{name} ends")


class Stream:
    """Stands in for a CUDA stream; notes what it waits for."""

    def __init__(self) -> None:
        self.waited: list[object] = []

    def wait_stream(self, other: object) -> None:
        self.waited.append(other)


def test_one_after_the_other_elsewhere() -> None:
    log: list[str] = []
    streams.run({"a": work("a", 2, log), "b": work("b", 1, log)})
    assert log == ["a0", "a1", "a ends", "b0", "b ends"]


def test_side_by_side_in_turns_until_all_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    main, created = Stream(), []

    def new() -> Stream:
        created.append(Stream())
        return created[-1]

    @streams.contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        assert stream.waited == [main] * len(stream.waited)
        yield

    monkeypatch.setattr(streams, "_streams", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "Stream", new)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    with streams.side_by_side():
        for name in "ab":
            with streams.beside(name):
                log.append(f"{name} forward")
        streams.join()
        streams.run({"a": work("a", 2, log), "b": work("b", 1, log)})
    assert log == ["a forward", "b forward", "a0", "b0", "a1", "b ends", "a ends"]
    assert main.waited == 2 * created
    log.clear()
    with streams.side_by_side():  # whose forward passes had no streams
        streams.run({"a": work("a", 2, log), "b": work("b", 1, log)})
    assert log == ["a0", "a1", "a ends", "b0", "b ends"]
    assert len(created) == 2
    with pytest.raises(ZeroDivisionError), streams.side_by_side():
        raise ZeroDivisionError
    streams.join()
    assert len(main.waited) == 4


def test_a_model_is_compiled_as_one_graph() -> None:
    about = {"left": ("vector", (4,)), "right": ("vector", (3,))}
    model = build_model(about, 5, {"left": "mlp", "right": "mlp"}).eval()
    inputs = {name: torch.randn(2, *shape) for name, (_, shape) in about.items()}
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(inputs).joint, model(inputs).joint)
