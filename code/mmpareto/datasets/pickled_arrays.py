"""Read a pickled dict of plain arrays safely: nothing that the file names is imported or called.

An unpickler that admits NumPy's own functions is not safe: a dtype's state can turn raw bytes into pointers. Here the
few names that NumPy writes act on stand-ins. Python's own unpickler, in Python, allocates no more than the file holds.
"""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from mmpareto.datasets.files import read_npy_header, refuse_special_file

_MOST_BYTES = 2**30  # the published files have 165 MB
_MOST_OPCODES = 2000  # they have about 200
_TYPES = {"u1": "u1", "i4": "<i4", "i8": "<i8", "O8": "O"}
# fmt: off
_OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "EMPTY_TUPLE", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "EMPTY_DICT", "SETITEM", "SETITEMS", "REDUCE", "BUILD",
}
# fmt: on


class _DType:
    """Stands for a dtype, known by its code."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if code not in _TYPES:
            raise ValueError("an array of a type other than uint8, int32 and int64")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Admit the state that NumPy writes for a plain little-endian dtype, and no other."""
        order, flags = "<" if self.code in ("i4", "i8") else "|", 63 if self.code == "O8" else 0
        if state != (3, order, None, None, None, -1, -1, flags):
            raise ValueError("a dtype with a state of its own")


class _Array:
    """Stands for an array until its state is read; also for `_reconstruct`, which makes it."""

    content: Any = None

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        if kind is not _Array or shape != (0,):
            raise ValueError("a call that is no part of an array")

    def __setstate__(self, state: Any) -> None:
        """Make the array, or take the one Python object out of an array of objects without dimensions."""
        _, shape, dtype, fortran, data = state
        if type(shape) is not tuple or any(type(size) is not int or size < 0 for size in shape):
            raise ValueError("an array whose shape is not made of whole numbers")
        if type(dtype) is not _DType:
            raise ValueError("an array without a dtype")
        if dtype.code == "O8":
            if shape != () or type(data) is not list or len(data) != 1:
                raise ValueError("an array of Python objects")
            self.content = data[0]
            return
        plain = np.dtype(_TYPES[dtype.code])
        data = data.encode("latin-1") if type(data) is str else data  # a string of Python 2
        if type(data) is not bytes or len(data) != math.prod(shape) * plain.itemsize:
            raise ValueError("an array whose bytes do not fit its shape")
        self.content = np.frombuffer(data, plain).reshape(shape, order="F" if fortran else "C")


def _encode(text: Any, encoding: Any) -> Any:
    """Stands for `_codecs.encode`: how Python 3 writes bytes for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("a call that is no part of an array")
    return text.encode("latin-1")


class _Names(dict[str, Any]):
    """A dict by names: to hash other keys could take for ever."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is not str:
            raise ValueError("expected a pickled dict whose keys are names")
        super().__setitem__(key, value)


_STAND_INS = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "_codecs.encode": _encode,
}


_PythonUnpickler: Any = pickle._Unpickler  # its type hints lack what subclasses change


class _Unpickler(_PythonUnpickler):
    """Python's unpickler with stand-ins for all that a pickle may name."""

    def _set_state(self) -> None:
        """Set the state of a stand-in; nothing else has one."""
        state = self.stack.pop()
        self.stack[-1].__setstate__(state)

    dispatch = {
        **_PythonUnpickler.dispatch,
        pickle.EMPTY_DICT[0]: lambda self: self.append(_Names()),
        pickle.BUILD[0]: _set_state,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name."""
        if f"{module}.{name}" not in _STAND_INS:
            raise ValueError(f"{module}.{name:.100} is no part of an array")
        return _STAND_INS[f"{module}.{name}"]


def read_pickled_arrays(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a .npy file that holds a pickled dict of uint8, int32 and int64 arrays.

    Raises ValueError where it holds anything else, OSError where it cannot be read, DatasetError where it is no regular
    file.
    """
    refuse_special_file(path)
    with open(path, "rb") as file:
        shape, _, dtype = read_npy_header(file)
        if dtype != np.dtype(object) or shape != ():
            raise ValueError(f"expected a pickled dict, found an array of {dtype} {shape}")
        pickled = file.read(_MOST_BYTES)
    for number, (opcode, _, _) in enumerate(pickletools.genops(pickled)):
        if number > _MOST_OPCODES:
            raise ValueError("a longer pickle than any dict of four arrays")
        if opcode.name not in _OPCODES:
            raise ValueError(f"the pickle's opcode {opcode.name} is no part of an array")
    try:
        result = _Unpickler(io.BytesIO(pickled), encoding="latin-1").load()
    except (LookupError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"a damaged pickle ({type(error).__name__})") from error
    result = result.content if type(result) is _Array else result
    arrays: dict[str, Any] = {}
    if type(result) is _Names:
        arrays = {name: getattr(value, "content", None) for name, value in result.items()}
    if not arrays or not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError("expected a pickled dict of arrays")
    return arrays
