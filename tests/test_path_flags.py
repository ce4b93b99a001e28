"""Flags that name files: what cannot be a path is refused in a line."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from entries.command import refused

import mmpareto
from mmpareto.cli import train
from mmpareto.errors import UserError
from mmpareto.flag_values import file_path, path_text


@pytest.mark.parametrize("bad", ["a\udcff", "\ud800/b", "a\0b", "a\nb", "a/" + "é" * 128, "a/" * 2500])
def test_what_cannot_be_a_path_is_refused(bad: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a path") as caught:
        file_path(bad)
    str(caught.value).encode()  # the message itself can be printed
    assert len(str(caught.value)) < 250


def test_other_paths_stay_as_they_are() -> None:
    for good in ("", "a b/é.csv", "/tmp/x", "../y", "x" * 255):
        assert path_text(good) == good
        assert file_path(good) == Path(good)


def test_a_path_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert path_text("~/runs/a") == "/home/someone/runs/a"
    assert file_path("~") == Path("/home/someone")
    assert path_text("runs/~a") == "runs/~a"


def test_a_path_of_the_api_may_begin_at_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for call in (mmpareto.load, mmpareto.evaluate, mmpareto.compare):
        with pytest.raises(UserError, match=re.escape(str(tmp_path / "nothing"))):
            call("~/nothing")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "nothing.yaml"))):
        mmpareto.train("~/nothing.yaml")
    assert refused(train.main, "--config=~/nothing.yaml").count(str(tmp_path / "nothing.yaml"))
