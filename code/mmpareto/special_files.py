"""What kind of file a path is. Only regular files are read: reading a pipe or a device could wait for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def file_kind(path: Path) -> str | None:
    """ "file" for a regular file, "a folder", "a named pipe", "a socket" or "a device"; None where nothing is there.

    Symbolic links are followed.
    """
    try:
        return _KINDS[stat.S_IFMT(os.stat(path).st_mode)]
    except (OSError, ValueError):  # missing, or a name that no file can have: whoever opens it says so
        return None


def special_file(path: Path) -> str | None:
    """The kind of a path that is no regular file, such as "a named pipe"; None for a regular or missing file."""
    kind = file_kind(path)
    return None if kind == "file" else kind
