"""Train a multimodal classifier on a joint and unimodal losses by the chosen method.

python code/train.py                                            # MMPareto on two views of digits
python code/train.py --method uniform --random_seed 1
python code/train.py --dataset cremad --data_root data/cremad --batch_size 64
python code/train.py --config run.yaml                          # settings from a file
torchrun --nproc_per_node 4 code/train.py --dataset cremad      # a process per GPU; see script/distributed.sh
"""

from collections.abc import Sequence
from pathlib import Path

from mmpareto import runs
from mmpareto.arguments import parse
from mmpareto.cli.common import run_command
from mmpareto.config import Config
from mmpareto.data_folders import require_data
from mmpareto.startup import program, root
from mmpareto.training.signals import Interrupted, Signals


def main(argv: Sequence[str]) -> int:
    """Run a command line; the result is the exit status."""
    config: Config | None = None

    def train() -> None:
        nonlocal config
        config = parse(argv, Path(root()))
        require_data(config.data.dataset, config.data.data_root)
        from mmpareto.training.run import run_training  # PyTorch takes seconds to import

        try:
            run_training(config, signals)
        except (RuntimeError, OSError) as error:
            if signals.number is not None:  # the signal ended a process that the run needs, such as a compiler
                raise Interrupted(signals.number) from error
            raise

    def stopped(order: Interrupted) -> str:
        return f"stopped {'at once by a second ' if order.again else 'by '}{order}; {how_to_continue(config)}"

    with Signals() as signals:
        return run_command(
            program("train"),
            train,
            interrupted="interrupted",
            memory=lambda: memory_advice(config),
            then=lambda: how_to_continue(config),
            stopped=stopped,
        )


def memory_advice(config: Config | None) -> str:
    """What to try where memory is short."""
    if config is None:
        return "another machine"
    return (
        f"--accumulate {2 * config.engine.accumulate} (the same batch in smaller pieces), --amp bf16, or a "
        f"--batch_size below {config.data.batch_size}"
    )


def how_to_continue(config: Config | None) -> str:
    """What can be resumed, and how."""
    if config is None:
        return "it had not begun"
    path = config.run.ckpt_path
    if (Path(path) / runs.LAST).exists():
        return f"the last checkpoint in {path} is whole, the same command with --resume continues from it"
    return "no checkpoint was written yet, begin again with the same command"
