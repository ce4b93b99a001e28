"""Reads a pickled dict of plain arrays without unpickling: nothing that the file names is imported or called.

An unpickler that admits NumPy's own functions is not safe: a dtype's state can turn raw bytes into pointers, and a
length in the file is allocated before it is read. Here the few opcodes that NumPy writes act on stand-ins.
"""

from __future__ import annotations

import math
import mmap
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmpareto.datasets.files import read_npy_header, refuse_special_file

_MOST_BYTES = 2**30  # the published files have 165 MB
_MOST_OPCODES = 2000  # they have about 200
_CODES = {"u1": "u1", "i4": "<i4", "i8": "<i8"}
_OBJECT = "O8"
_NAMES = {
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "numpy.core.multiarray._reconstruct": "reconstruct",
    "numpy._core.multiarray._reconstruct": "reconstruct",
    "_codecs.encode": "encode",  # how Python 3 writes bytes for Python 2
}
_VALUES = frozenset(
    (
        *("BININT", "BININT1", "BININT2"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("BINSTRING", "SHORT_BINSTRING"),  # of Python 2
    )
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}


class _Name:
    """Stands for something that the pickle imports; `role` says what it would be."""

    def __init__(self, name: str) -> None:
        if name not in _NAMES:
            raise ValueError(f"{name[:100]} is no part of an array")
        self.role = _NAMES[name]


class _DType:
    """Stands for a dtype, known by its code."""

    def __init__(self, code: str) -> None:
        if code not in _CODES and code != _OBJECT:
            raise ValueError("an array of a type other than uint8, int32 and int64")
        self.code = code

    def build(self, state: Any) -> None:
        """Admits the state that NumPy writes for a plain little-endian dtype, and no other."""
        orders = "<" if self.code in ("i4", "i8") else "|"
        flags = 63 if self.code == _OBJECT else 0
        if state != (3, orders, None, None, None, -1, -1, flags):
            raise ValueError("a dtype with a state of its own")


class _Array:
    """Stands for an array until its state is there."""

    content: Any = None

    def build(self, state: Any) -> None:
        """Makes the array, or takes the one Python object out of an array of objects without dimensions."""
        _, shape, dtype, fortran, data = state
        if type(shape) is not tuple or any(type(size) is not int or size < 0 for size in shape):
            raise ValueError("an array whose shape is not made of whole numbers")
        if type(dtype) is not _DType:
            raise ValueError("an array without a dtype")
        if dtype.code == _OBJECT:
            if shape != () or type(data) is not list or len(data) != 1:
                raise ValueError("an array of Python objects")
            self.content = data[0]
            return
        data = data.encode("latin-1") if type(data) is str else data  # a string of Python 2
        plain = np.dtype(_CODES[dtype.code])
        if type(data) is not bytes or len(data) != math.prod(shape) * plain.itemsize:
            raise ValueError("an array whose bytes do not fit its shape")
        self.content = np.frombuffer(data, plain).reshape(shape, order="F" if fortran else "C")


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
        start = file.tell()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if len(content) > _MOST_BYTES:
                raise ValueError(f"{len(content)} bytes, more than any coloured MNIST has")
            content.seek(start)
            try:
                result = _interpret(content)
            except (IndexError, KeyError, TypeError, AttributeError) as error:  # not in the order that NumPy writes
                raise ValueError(f"a damaged pickle ({type(error).__name__})") from error
    arrays: dict[str, np.ndarray] = {}
    for key, value in result.items() if type(result) is dict else ():
        filled = value.content if type(value) is _Array else None
        if not isinstance(filled, np.ndarray):
            raise ValueError("expected a pickled dict of arrays")
        arrays[key] = filled
    if not arrays:
        raise ValueError("expected a pickled dict of arrays")
    return arrays


def _interpret(content: Any) -> Any:
    """What a pickle describes, of stand-ins, plain values, tuples, lists and dicts."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        name = opcode.name
        if number > _MOST_OPCODES:
            raise ValueError("a longer pickle than any dict of four arrays")
        if name in ("PROTO", "FRAME"):
            continue
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_Name(str(argument).replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Name(f"{module}.{attribute}" if type(module) is type(attribute) is str else ""))
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif name in ("SETITEM", "SETITEMS"):
            pairs = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            if type(stack[-1]) is not dict or any(type(key) is not str for key in pairs[::2]):
                raise ValueError("expected a pickled dict whose keys are names")
            stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].build(state)
        elif name == "STOP":
            break
        else:
            raise ValueError(f"the pickle's opcode {name} is no part of an array")
    result = stack.pop()
    return result.content if type(result) is _Array else result


def _call(function: Any, arguments: Any) -> Any:
    """The stand-in for what a call of NumPy's would give."""
    role = function.role
    if role == "reconstruct" and arguments[0].role == "ndarray" and arguments[1] == (0,):
        return _Array()
    if role == "dtype" and type(arguments[0]) is str:
        return _DType(arguments[0])
    if role == "encode" and arguments[1] in ("latin1", "latin-1"):
        return arguments[0].encode("latin-1")
    raise ValueError(f"the pickle calls {role} in a way that is no part of an array")
