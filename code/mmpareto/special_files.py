"""What is no regular file: folders, pipes, sockets and devices. Reading one could wait for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path

SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def special_file(path: Path) -> str | None:
    """What a path is where it is no regular file, such as "a named pipe"; None for a regular or missing file.

    Symbolic links are followed. Reading a pipe or a device could wait for ever.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # missing, or a name that no file can have: whoever opens it says so
        return None
    return next((name for holds, name in SPECIAL if holds(mode)), None)
