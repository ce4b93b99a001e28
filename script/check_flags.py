"""Checks flags of code/train.py and the data that they name, without training. Exit status 2 where something is wrong.

python script/check_flags.py --dataset cremad --epochs 10

The launchers of several processes call it first: they restart a job after a failure, and a wrong flag would fail again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "code"))

from mmpareto.arguments import parse  # noqa: E402
from mmpareto.cli.common import run_command  # noqa: E402
from mmpareto.data_folders import require_data  # noqa: E402
from mmpareto.selection import SPLITS  # noqa: E402


def main(argv: Sequence[str]) -> int:
    """Print what train.py would print of a wrong flag, or of data that are missing or unusable."""

    def check() -> None:
        config = parse(argv, ROOT)
        require_data(config.data.dataset, config.data.data_root)
        from mmpareto.training.setup import build_split, make_method  # PyTorch takes seconds to import

        make_method(config.method)
        for split in SPLITS:
            build_split(config.data, config.run.random_seed, split)

    return run_command("train.py", check, interrupted="interrupted")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
