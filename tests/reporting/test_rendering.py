"""Figures of matplotlib, whatever a matplotlibrc in the working directory says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_settings_of_matplotlib_in_the_working_directory_run_no_code(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfigure.hooks: payload:run\n")
    (tmp_path / "payload.py").write_text("def run(figure):\n    print('ran')\n")
    code = "from mmpareto.reporting.rendering import plt; f = plt.figure(); f.text(0, 0, 'a_b'); f.canvas.draw()"
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
