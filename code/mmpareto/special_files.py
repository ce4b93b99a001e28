"""What is at a path. Only regular files are read: reading a pipe or a device could wait for ever."""

import os
import stat
import unicodedata
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


def hint(path: Path) -> str:
    """The end of a sentence where a missing path is on disk with names that differ in Unicode form or case; else "".

    Programs and disks write é as one character (NFC) or as e and an accent (NFD): both look alike.
    """
    place, difference = Path(path.anchor), ""
    for part in path.parts[1 if path.anchor else 0 :]:
        if os.path.lexists(place / part):
            place /= part
            continue
        try:
            names = {name: unicodedata.normalize("NFC", name) for name in os.listdir(place)}
        except OSError:
            return ""
        composed = unicodedata.normalize("NFC", part)
        same_form = [name for name, form in names.items() if form == composed]
        same_but_case = [name for name, form in names.items() if form.casefold() == composed.casefold()]
        if not same_but_case:
            return ""
        difference = "Unicode form (NFC or NFD)" if same_form and "case" not in difference else "upper or lower case"
        place /= (same_form or same_but_case)[0]
    if not difference:
        return ""
    return f" (on disk it is {str(place)!a}: the names differ in {difference} alone; rename one of the two)"
