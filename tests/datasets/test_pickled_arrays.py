"""Published arrays from a stranger: the forms that NumPy writes are read, everything else is refused."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmpareto.datasets.files import npy_shape
from mmpareto.datasets.pickled_arrays import read_pickled_arrays

CONTENT = {"image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "label": np.array([5, 0, 2**40])}


def save(path: Path, pickled: bytes) -> Path:
    """Writes a .npy file whose header announces an object, as np.save does, and what is given after it."""
    buffer = io.BytesIO()
    np.save(buffer, np.array(None, dtype=object), allow_pickle=True)
    header = buffer.getvalue()[: buffer.getvalue().index(b"\n") + 1]
    path.write_bytes(header + pickled)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("wrapped", [True, False])
def test_what_numpy_writes_is_read(tmp_path: Path, protocol: int, wrapped: bool) -> None:
    content = {**CONTENT, "order": np.asfortranarray(CONTENT["image"]), "small": np.arange(3, dtype=np.int32)}
    pickled = pickle.dumps(np.array(content, dtype=object) if wrapped else content, protocol)
    arrays = read_pickled_arrays(save(tmp_path / "a.npy", pickled))
    assert arrays.keys() == content.keys()
    for name, array in content.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_strings_of_python_2_are_bytes(tmp_path: Path) -> None:
    pickled = pickle.dumps(CONTENT, 3)
    # protocol 2 of Python 2: str for the bytes (B, C become T, U), the module's older name
    pickled = pickled.replace(b"C\x18" + bytes(range(24)), b"U\x18" + bytes(range(24)))
    pickled = pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray").replace(b"C\x01b", b"U\x01b")
    np.testing.assert_array_equal(read_pickled_arrays(save(tmp_path / "a.npy", pickled))["image"], CONTENT["image"])


def array(code: str, state: tuple[Any, ...], shape: tuple[int, ...], data: object) -> bytes:
    """A dict of one array, whose dtype has the given state, pickled by hand."""
    head = b"\x80\x04}(\x8c\x05imagecnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"

    def value(item: object) -> bytes:
        return pickle.dumps(item, 3)[2:-1]  # without PROTO and STOP

    dtype = b"cnumpy\ndtype\n" + value((code, False, True)) + b"R" + value(state) + b"b"
    return head + b"(K\x01" + value(shape) + dtype + b"\x89" + value(data) + b"tbu."


PLAIN = (3, "|", None, None, None, -1, -1, 0)
OBJECT = (3, "|", None, None, None, -1, -1, 63)


def test_a_plain_array_by_hand_is_read(tmp_path: Path) -> None:
    arrays = read_pickled_arrays(save(tmp_path / "a.npy", array("u1", PLAIN, (2, 2), b"abcd")))
    np.testing.assert_array_equal(arrays["image"], [[97, 98], [99, 100]])


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        # bytes that would become pointers
        (array("O8", OBJECT, (1,), b"\x41" * 8), "an array of Python objects"),
        (array("O8", PLAIN, (1,), b"\x41" * 8), "a dtype with a state of its own"),
        (array("u1", OBJECT, (8,), b"\x41" * 8), "a dtype with a state of its own"),
        (array("V8", (3, "|", None, ("f",), {"f": 1}, 8, 1, 0), (1,), b"\x41" * 8), "a type other than"),
        (array("u1", (3, "|", ("O", (1,)), None, None, -1, -1, 0), (8,), b"\x41" * 8), "a state of its own"),
        (array("f8", PLAIN, (1,), b"\x41" * 8), "a type other than"),
        # sizes
        (array("u1", PLAIN, (2**44,), b"abcd"), "opcode LONG1"),
        (array("u1", PLAIN, (2**31 - 1,) * 3, b"abcd"), "do not fit its shape"),
        (array("u1", PLAIN, (-1, -4), b"abcd"), "not made of whole numbers"),
        (array("u1", PLAIN, (4,), "abc\u1234"), "encode"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**44) + b"abc.", "not enough|expected|bytes"),
        (b"\x80\x04]r" + struct.pack("<I", 2**32 - 2) + b".", "expected a pickled dict"),
        (b"\x80\x04" + b"]" * 10_000 + b".", "a longer pickle"),
        # what is no dict of arrays
        (b"\x80\x04}(K\x01K\x02u.", "keys are names"),
        (b"\x80\x04}(" + b"K\x01\x85" + b"2\x86" * 40 + b"K\x01u.", "opcode DUP"),
        (array("O8", OBJECT, (), [5]), "expected a pickled dict of arrays"),
        (array("O8", OBJECT, (), [{}]), "expected a pickled dict of arrays"),
        (
            array("u1", PLAIN, (1,), b"a").partition(b"(K\x01")[0] + b"u.",
            "expected a pickled dict of arrays",
        ),  # no state
        (pickle.dumps({"image": 3}), "expected a pickled dict of arrays"),
        (pickle.dumps([1]), "expected a pickled dict of arrays"),
        (pickle.dumps(np.arange(3)), "expected a pickled dict of arrays"),
        (pickle.dumps({"image": np.float64(3)}), r"multiarray\.scalar is no part of an array"),
        (b"cbuiltins\nlist\ncnumpy\nndarray\n\x85R.", r"builtins\.list is no part of an array"),
        (array("u1", PLAIN, (1,), b"a").replace(b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"), "no part of an array"),
        (b"\x80\x04" + b"ccollections\nOrderedDict\n)\x81.", "no part of an array"),
        # out of order
        (b"\x80\x04u.", "a damaged pickle"),
        (b"\x80\x04h\x07.", "a damaged pickle"),
        (b"\x80\x04K\x01b.", "a damaged pickle"),
        (b"\x80\x04}", "."),
        (b"", "."),
    ],
)
def test_what_numpy_does_not_write_is_refused(tmp_path: Path, pickled: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_pickled_arrays(save(tmp_path / "a.npy", pickled))


@pytest.mark.parametrize("header", ["(" * 9000, "-" * 9000 + "1", "{[]: 1}", "{'descr': 5}", "\0"])
def test_damaged_headers_are_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / "a.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n"
    )
    for read in (read_pickled_arrays, npy_shape):
        with pytest.raises(ValueError, match="a damaged header"):
            read(tmp_path / "a.npy")


def test_flipped_bytes_are_refused_or_harmless(tmp_path: Path) -> None:
    pickled = pickle.dumps(np.array(CONTENT, dtype=object), 4)
    random = np.random.default_rng(0)
    for place in range(len(pickled)):
        spoiled = bytearray(pickled)
        spoiled[place] ^= 1 << int(random.integers(8))
        try:
            arrays = read_pickled_arrays(save(tmp_path / "a.npy", bytes(spoiled)))
        except ValueError:
            continue
        assert all(isinstance(value, np.ndarray) and value.dtype.kind in "ui" for value in arrays.values())
