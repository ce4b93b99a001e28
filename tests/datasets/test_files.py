"""Files as they lie on disk: what is no regular file, arrays that announce too much, names in another spelling."""

from __future__ import annotations

import os
import resource
import socket
import struct
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmpareto.datasets import DatasetError
from mmpareto.datasets.files import load_npy, refuse_special_file, write_array, write_image
from mmpareto.special_files import hint, special_file


def test_only_regular_files_and_links_to_them_pass(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link", "missing"):
        refuse_special_file(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to pipe").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path, kind in (
            (tmp_path / "pipe", "a named pipe"),
            (tmp_path / "link to pipe", "a named pipe"),
            (tmp_path / "socket", "a socket"),
            (Path("/dev/zero"), "a device"),
            (tmp_path, "a folder"),
        ):
            assert special_file(path) == kind
            with pytest.raises(DatasetError, match=f"is {kind}; expected a regular file"):
                refuse_special_file(path)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
        np.zeros((0, 4), np.float16),
        np.array(3),
        np.arange(4, dtype=">i2"),
        np.array([True, False]),
        np.array([1 + 2j]),
    ],
)
def test_arrays_come_back_as_numpy_wrote_them(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    loaded = load_npy(tmp_path / "a.npy")
    np.testing.assert_array_equal(loaded, array)
    assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes((version, 0)) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (17592186044416,)}", b"1234"), "the file is cut off"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296)}"), "the file is cut off"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", b"1234567", 2), "7 bytes of data"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -2)}", b"1234"), "the file is cut off"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", b"x" * 99), "expected numbers"),
        (npy("{'descr': '<U9', 'fortran_order': False, 'shape': (2,)}", b"x" * 99), "expected numbers"),
        (npy("{'descr': '|V0', 'fortran_order': False, 'shape': (2,)}", b"x" * 99), "expected numbers"),
        (npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2,)}", b"x" * 99), "expected numbers"),
        (npy("__import__('os')"), "a damaged header"),
        (npy("-" * 9000 + "1"), "a damaged header"),
        (npy("(" * 9000), "a damaged header"),
        (b"\x93NUMPY\x09\x00" + b"x" * 200, r"version 9\.0"),
        (b"PK\x03\x04" + b"x" * 200, "magic"),
        (b"", "magic"),
    ],
)
def test_arrays_that_announce_too_much_or_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_npy(tmp_path / "a.npy")


def test_a_name_in_another_spelling_is_named(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    (tmp_path / decomposed).mkdir()
    (tmp_path / decomposed / "Noël.wav").write_bytes(b"")
    text = hint(tmp_path / composed / "Noël.wav")
    assert "differ in Unicode form (NFC or NFD) alone" in text
    assert "cafe\\u0301" in text
    assert "differ in upper or lower case alone" in hint(tmp_path / decomposed / "noël.WAV")
    assert "differ in upper or lower case alone" in hint(tmp_path / composed / "noël.WAV")
    assert hint(tmp_path / decomposed / "other.wav") == ""
    assert hint(tmp_path / decomposed / "Noël.wav") == ""


def test_a_disk_that_fills_up_with_the_last_bytes_is_noticed(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3)).astype(np.uint8))
    array = np.arange(700.0)
    picture.save(tmp_path / "expected.jpg", quality=95)
    picture.save(tmp_path / "expected.png")
    np.save(tmp_path / "expected.npy", array)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writes: list[tuple[str, Callable[[Path], None]]] = [
        (".jpg", lambda path: write_image(path, picture, quality=95)),
        (".png", lambda path: write_image(path, picture)),
        (".npy", lambda path: write_array(path, array)),
    ]
    for suffix, write in writes:
        size = (tmp_path / f"expected{suffix}").stat().st_size
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 48, before[1]))
            with pytest.raises(OSError):
                write(tmp_path / f"a{suffix}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        write(tmp_path / f"a{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"expected{suffix}").read_bytes()
