"""Check what the pickled part of a file of `torch.save` asks for, before it is loaded.

`torch.load(weights_only=True)` runs no code, but it makes what it is asked for: `bytearray(8 * 2**30)` takes 8 GiB.
"""

import pickletools
from collections.abc import Callable
from typing import Any

import torch

_DENSE = ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
_LEGACY_PICKLES = 5  # magic number, protocol, system, object, keys of storages: then the storages


def is_dense(module: str, name: str) -> bool:
    """Whether a global is part of dense tensors, or types of tensors, in plain containers."""
    return (
        (module == "torch" and (name == "Size" or name.endswith("Storage")))
        or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype))
        or (module == "torch._utils" and name in _DENSE)
        or (module, name) == ("collections", "OrderedDict")
    )


def is_tensor(module: str, name: str) -> bool:
    """Whether a global is part of a tensor of any kind."""
    return (
        is_dense(module, name)
        or (module == "torch" and isinstance(getattr(torch, name, None), torch.layout | torch.qscheme))
        or (module.startswith("torch.") and name.startswith("_rebuild_"))
        or (module, name) in (("torch.storage", "UntypedStorage"), ("torch.serialization", "_get_layout"))
    )


def require_only(allowed: Callable[[str, str], bool], pickled: Any) -> None:
    """Raise ValueError where a pickle asks for a global that is not allowed.

    allowed  of a module and a name.
    pickled  bytes, or a file that is read up to the end of its pickle.
    """
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"it asks for objects by {opcode.name}, which torch.save does not")
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            if not allowed(module, name):
                raise ValueError(f"it asks for {module}.{name}, which is no part of a tensor or a plain container")


def require_legacy(allowed: Callable[[str, str], bool], file: Any) -> None:
    """Check a file in the format before PyTorch 1.6: several pickles in a row, then the bytes of the storages."""
    for _ in range(_LEGACY_PICKLES):
        require_only(allowed, file)
