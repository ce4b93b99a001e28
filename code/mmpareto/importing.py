"""Classes by import path, `package.module:Class`: the one place that imports what a name asks for.

Importing a module runs its code. A path that a person typed on the command line may be imported; one that a file names
(config.json of a run) only after `require_allowed`.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable
from typing import Any


def attribute(path: str) -> Any:
    """What `package.module:name` names.

    Raises ImportError where there is none.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (AttributeError, TypeError, ValueError) as error:  # the last two: `.module` and `:name`
        raise ImportError(str(error)) from error


def class_at(path: str, *expected: type) -> type:
    """The class at `package.module:Class`, a subclass of one of `expected`; it is not called.

    Raises ValueError where it cannot be imported or is something else, with what to do.
    """
    try:
        value = attribute(path)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path!r} cannot be imported: {error}; name the folder that holds it in the environment variable "
            "PYTHONPATH, as in PYTHONPATH=FOLDER python ..."
        ) from error
    except Exception as error:  # whatever the module's own code raises
        raise ValueError(f"{path!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(value, type) and issubclass(value, expected)):
        names = " or ".join(f"{kind.__module__.removesuffix('.base')}.{kind.__name__}" for kind in expected)
        raise ValueError(f"{path!r} is no subclass of {names}")
    return value


def require_allowed(paths: Iterable[str], allowed: Collection[str]) -> None:
    """Raises ValueError for import paths that a file names and the command line does not allow."""
    refused = sorted({path for path in paths if ":" in path} - set(allowed))
    if refused:
        flags = " ".join(f"--allow {path}" for path in refused)
        raise ValueError(
            f"imports its own code, {', '.join(refused)}: this runs it; where you trust it, add {flags} and name its "
            "folder in PYTHONPATH"
        )
