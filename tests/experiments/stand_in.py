"""Stands in for train.py: what it does depends on its seed. Run as a script.

0       finishes after a moment
1       prints two lines and fails
2       ignores SIGTERM, and has a child that does as well
3       leaves a checkpoint and never ends; started again, it finishes; SIGTERM ends it as it ends train.py
4       ends well, without results
5       trains an epoch, and finishes as soon as another run of its method has begun
6       fails for want of memory when it is started for the first time, else finishes
7       finishes a second after the run of seed 6 has failed
8       diverges
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> int:
    folder, seed = (Path(argv[argv.index(flag) + 1]) for flag in ("--ckpt_path", "--random_seed"))
    record: dict[str, Any] = {"argv": argv, "pids": [os.getpid()], "parent": os.getppid(), "begin": time.time()}
    record["threads"] = os.environ.get("OMP_NUM_THREADS")
    record["cpus_of_srun"] = os.environ.get("SRUN_CPUS_PER_TASK")
    kind = int(str(seed)) % 10
    if kind == 1:
        print("loading\nstand_in.py: no such data", flush=True)
        return 3
    if kind == 2:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        record["pids"].append(subprocess.Popen(["sleep", "60"]).pid)
    if kind == 3:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f".last.pt.{os.getpid()}.part").touch()
    (folder / "seen.json").write_text(json.dumps(record))
    if kind == 2 or (kind == 3 and not (folder / "last.pt").exists()):
        (folder / "last.pt").touch()
        time.sleep(240)
    if kind == 5:
        (folder / "metrics.csv").write_text("epoch\n1\n")
    failed = folder.with_name("seed6") / "failed"
    if kind == 6 and not failed.exists():
        failed.touch()
        print("train.py: out of memory: try --accumulate 2", flush=True)
        return 2
    if kind == 8:
        (folder / "diverged.json").write_text('{"epoch": 1, "step": 12, "reason": "not finite"}')
        return 2
    while kind == 7 and not failed.exists():
        time.sleep(0.05)
    time.sleep(kind == 7)
    while kind == 5 and len(list(folder.parent.glob("*/seen.json"))) < 2:
        time.sleep(0.05)
    time.sleep(0.4)
    if kind == 4:
        return 0
    scores = {"joint": {"accuracy": 12.5}, "unimodal": {}}
    results = {"selected_on": "val", "val": scores, "test": scores, "seconds": 1.0}
    (folder / "seen.json").write_text(json.dumps(record | {"end": time.time()}))
    (folder / "results.json").write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
