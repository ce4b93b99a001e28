"""What a training step costs: each method over the plain sum of the losses, and the published procedure over ours.

    python code/benchmark.py --quick                    # within a minute on a CPU
    python code/benchmark.py --output benchmark.json    # within five
    python code/benchmark.py --methods ogm pmr agm      # methods of train.py against the plain sum
    python code/benchmark.py --loader                   # samples a second of the loader instead, within one
    python code/benchmark.py --engine                   # what an epoch costs beyond loading and steps, within one

Times are medians over repetitions that take turns, so that a machine that slows down slows all of them; a ratio is
formed within each repetition, and its quartiles are given. Each table is measured in a process of its own. Losses,
forward pass, backward passes and optimiser are in; loading is not. On a GPU the shapes are those of CREMA-D at a batch
of 64, on a CPU they are scaled down.
"""

import argparse
import multiprocessing
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from mmpareto import startup
from mmpareto.cli.common import check_output, run_command
from mmpareto.command_line import Parser
from mmpareto.errors import UsageError
from mmpareto.flag_values import file_path, workers
from mmpareto.json_files import json_text
from mmpareto.registries import METHODS
from mmpareto.startup import program
from mmpareto.training.signals import Signals
from mmpareto.writing import write_text

# flags that belong to one measurement, and what to give with them
BELONGS = {"mnist": "--engine", "whole": "--engine --mnist", "train_flags": "--engine", "num_workers": "--loader"}
WORKERS = 2  # of the loader that is measured


def parser() -> Parser:
    """The flags."""
    flags = Parser(prog=program("benchmark"), description=__doc__)
    add = flags.add_argument
    add("--quick", action="store_true", help="fewer settings and repetitions, within a minute on a CPU")
    modes = flags.add_mutually_exclusive_group()
    modes.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        default=[],
        help="measure these methods alone, by name (train.py --list-methods) or package.module:Class",
    )
    modes.add_argument("--loader", action="store_true", help="the loader, against a plain one, on CREMA-D's shapes")
    modes.add_argument("--engine", action="store_true", help="what an epoch costs beyond its loading and steps")
    add(
        "--mnist",
        type=file_path,
        metavar="FOLDER",
        help="with --engine: epochs on CG-MNIST, from MNIST in FOLDER (minutes)",
    )
    add(
        "--train_flags",
        nargs=argparse.REMAINDER,
        help="with --engine, at the end: flags of train.py, such as --fast or --data_on device",
    )
    add("--whole", action="store_true", help="with --engine --mnist: whole epochs, not 100 batches")
    add("--num_workers", type=workers, metavar="N", help=f"with --loader (default: {WORKERS})")
    add("--output", type=file_path, metavar="FILE", help="also write the figures there, as JSON")
    add("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    return flags


def main(argv: Sequence[str]) -> int:
    """Run a command line; the result is the exit status."""
    with Signals():
        return run_command(program("benchmark"), lambda: benchmark(parser().parse_args(argv)))


def check(arguments: argparse.Namespace) -> None:
    """Raise UsageError for flags of another measurement, unknown methods, and files that cannot be read or written."""
    unset = {name for name, value in vars(arguments).items() if value is None or value is False}
    for name, needed in BELONGS.items():
        lacking = [flag for flag in needed.split() if flag.removeprefix("--") in unset]
        if lacking and name not in unset:
            raise UsageError(f"--{name} belongs to {needed}; add {' '.join(lacking)}, or leave it out")
    try:
        arguments.methods = list(dict.fromkeys(METHODS[name].name for name in arguments.methods))
    except ValueError as error:
        raise UsageError(f"--methods: {error}") from error
    if arguments.mnist is not None and not arguments.mnist.is_dir():
        raise UsageError(f"--mnist {arguments.mnist}: expected a folder that holds MNIST")
    if arguments.output is not None:
        check_output(arguments.output)


def benchmark(arguments: argparse.Namespace) -> int:
    """Measure and print; the result is the exit status."""
    check(arguments)
    import torch  # takes seconds to import

    from mmpareto.benchmarks import engine, loader, steps

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no GPU here; leave the flag out")
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    for variable, value in {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}.items():
        os.environ.setdefault(variable, value)  # the profiler's remarks on machines without a GPU
    rows: list[dict[str, Any]] = []
    if arguments.engine:
        repetitions = 5 if arguments.quick else 15
        rows += engine.measure(arguments.mnist, repetitions, device, arguments.train_flags or (), arguments.whole)
        print("\n" + engine.table(rows), flush=True)
    elif arguments.loader:
        number = WORKERS if arguments.num_workers is None else arguments.num_workers
        rows += loader.measure(256 if arguments.quick else 512, number, 5, device)
        print("\n" + loader.table(rows), flush=True)
    else:
        for setting, ways, repetitions in steps.plan(device, arguments.quick, arguments.methods):
            rows += in_its_own_process(steps.measure, setting, ways, repetitions, device)
            print("\n" + steps.table(rows[-len(ways) :]), flush=True)
    if arguments.output:
        about = {"machine": machine, "threads": torch.get_num_threads(), "torch": torch.__version__}
        write_text(arguments.output, json_text({**about, "rows": rows}))
    return 2 if arguments.output is None and startup.lost_output() else 0


def in_its_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process: the memory that one setting leaves to the allocator would speed up the next."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(function, *arguments).result()
        except BaseException:
            for child in multiprocessing.active_children():  # leaving the block would wait for it
                child.kill()
            raise
