"""Array files: the tensors of .npy and .pt files."""

import mmap
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from mmpareto.datasets.files import load_npy, refusing_damage
from mmpareto.pickles import is_tensor, require_legacy, require_only

ARRAY_SUFFIXES = (".npy", ".pt")
_LARGEST_VIEW = 2**28  # bytes
_KEPT_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_array(path: Path) -> Tensor:
    """The tensor of a .npy or .pt file, on the CPU; unpickles nothing but tensors.

    Bytes and floating-point types of 16, 32 and 64 bits stay as they are; all others become float32.

    Raises DatasetError where the file is damaged, holds something else, or announces more than it holds.
    """
    with refusing_damage(path, "an array"):
        if path.suffix.lower() == ".pt":
            array = _load_tensor(path)
        else:
            numbers = load_npy(path)
            array = torch.from_numpy(numbers.astype(numbers.dtype.newbyteorder("="), copy=False))
        if array.is_complex():
            raise TypeError("expected real numbers, found complex ones; store magnitude and phase, for example")
        return array if array.dtype in _KEPT_TYPES else array.float()


def _load_tensor(path: Path) -> Tensor:
    """The dense tensor of a .pt file.

    Raises TypeError or ValueError for another kind of tensor, and where it is larger than the file.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as records:
            announced = sum(record.file_size for record in records.infolist())
            if announced > size:  # torch.save compresses nothing
                raise ValueError(f"its records announce {announced} bytes, the file has {size}")
            for record in records.infolist():
                if record.filename.endswith(".pkl"):
                    require_only(is_tensor, records.read(record))
    else:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            require_legacy(is_tensor, content)
    array = torch.load(path, weights_only=True, map_location="cpu")
    if not isinstance(array, Tensor):
        raise TypeError(f"expected a tensor, found {type(array).__name__}")
    for is_other_kind, kind, remedy in (
        (array.is_nested, "a nested tensor", "save one dense tensor a clip"),
        (array.is_meta, "a tensor without values (device meta)", "save it from the CPU"),
        (array.is_quantized, "a quantised tensor", "save tensor.dequantize()"),
        (array.layout != torch.strided, f"a tensor of layout {array.layout}", "save tensor.to_dense()"),
    ):
        if is_other_kind:
            raise TypeError(f"found {kind}, expected a dense one; {remedy}")
    values = array.numel() * array.element_size()  # more than those stored, where a view repeats them
    if array.untyped_storage().nbytes() > size or values > max(size, _LARGEST_VIEW):
        raise ValueError(f"a tensor of {list(array.shape)} in a file of {size} bytes; save tensor.clone()")
    return array.detach()  # workers cannot send a tensor that requires a gradient
