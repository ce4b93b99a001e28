"""Checks flags of code/train.py and the data that they name, without training. Exit status 2 where something is wrong.

python script/check_flags.py --dataset cremad --epochs 10

The launchers of several processes call it first: they start a job anew after a failure, which mends no wrong flag.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "code"))

from mmpareto import datasets  # noqa: E402
from mmpareto.datasets import DatasetError  # noqa: E402
from mmpareto.options import UsageError, parse  # noqa: E402
from mmpareto.training.setup import build_split, make_method  # noqa: E402


def main(argv: Sequence[str]) -> int:
    """Prints what train.py would say of a wrong flag, or of data that are missing or unusable."""
    try:
        options = parse(argv, ROOT)
        make_method(options)
        for split in datasets.SPLITS:
            build_split(options, split)
    except (UsageError, DatasetError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
