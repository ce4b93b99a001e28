"""Runs a command again and again on copies of an older output, sends it a signal at some writes; see test_kills.py.

python killed_commands.py COMMAND OLD FOLDER FLAG ...

{} in a flag is the copy. FOLDER/new is the output of a command that nothing disturbed. FOLDER/<signal>-<write> is what
a signal left, FOLDER/<signal>-<write>-again what the same command then made of it. Prints the exit status of each.
"""

from __future__ import annotations

import importlib
import shutil
import signal
import sys
from pathlib import Path

from killed_writes import MODULES, status, writes

if __name__ == "__main__":
    command, old, root = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    for module in MODULES:
        importlib.import_module(module)  # once, not in each process

    def run(folder: Path, kill_at: int, number: int = signal.SIGKILL) -> None:
        flags = [flag.replace("{}", str(folder)) for flag in sys.argv[4:]]
        print(f"{folder.name}: {status(command, flags, kill_at, number)}", flush=True)

    run(Path(shutil.copytree(old, root / "new")), 0)
    last = writes[0]
    first = last // 2 + 1  # replacement: files are written first, then each takes the place of an older one
    moments = [(signal.SIGKILL, write) for write in (1, first, first + 1, last)]
    moments += [(order, write) for order in (signal.SIGTERM, signal.SIGINT) for write in (first - 1, first + 1)]
    for order, write in moments:
        folder = Path(shutil.copytree(old, root / f"{order.name}-{write}"))
        run(folder, write, order)
        run(Path(shutil.copytree(folder, f"{folder}-again")), 0)
