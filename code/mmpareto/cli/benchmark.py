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
import json
import multiprocessing
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from mmpareto import startup
from mmpareto.cli.common import run_command
from mmpareto.command_line import Parser
from mmpareto.errors import UsageError
from mmpareto.flag_values import file_path, workers
from mmpareto.registries import METHODS
from mmpareto.startup import program
from mmpareto.writing import naming


def parser() -> Parser:
    """The flags."""
    flags = Parser(prog=program("benchmark"), description=__doc__)
    add = flags.add_argument
    add("--quick", action="store_true", help="one setting, within a minute on a CPU")
    add("--methods", nargs="+", choices=[*METHODS], metavar="NAME", default=[], help="measure these methods alone")
    add("--loader", action="store_true", help="the loader, against a plain one, on CREMA-D's shapes")
    add("--engine", action="store_true", help="what an epoch costs beyond its loading and steps")
    add(
        "--mnist",
        type=file_path,
        metavar="FOLDER",
        help="with --engine: epochs on CG-MNIST, from MNIST in FOLDER (minutes)",
    )
    add(
        "--train_flags",
        nargs=argparse.REMAINDER,
        default=[],
        help="with --engine, at the end: flags of train.py, such as --fast or --data_on device",
    )
    add("--whole", action="store_true", help="with --engine --mnist: whole epochs, not 100 batches")
    add("--num_workers", type=workers, default=2, metavar="N", help="with --loader (default: 2)")
    add("--output", type=file_path, metavar="FILE", help="also write the figures there, as JSON")
    add("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    return flags


def main(argv: Sequence[str]) -> int:
    """Run a command line; the result is the exit status."""
    return run_command(program("benchmark"), lambda: benchmark(parser().parse_args(argv)), interrupted="interrupted")


def benchmark(arguments: argparse.Namespace) -> int:
    """Measure and print; the result is the exit status."""
    if arguments.mnist is not None and not arguments.engine:
        raise UsageError("--mnist FOLDER belongs to --engine")
    import torch  # takes seconds to import

    from mmpareto.benchmarks import engine, loader, steps

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no GPU here; leave the flag out")
    if arguments.output:
        try:
            open(arguments.output, "a", encoding="utf-8").close()
        except OSError as error:
            raise UsageError(f"cannot write {arguments.output}: {error.strerror}") from error
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    for variable, value in {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}.items():
        os.environ.setdefault(variable, value)  # the profiler's remarks on machines without a GPU
    rows: list[dict[str, Any]] = []
    if arguments.engine:
        repetitions = 5 if arguments.quick else 15
        rows += engine.measure(arguments.mnist, repetitions, device, arguments.train_flags, arguments.whole)
        print("\n" + engine.table(rows), flush=True)
    if arguments.loader:
        rows += loader.measure(256 if arguments.quick else 512, arguments.num_workers, 5, device)
        print("\n" + loader.table(rows), flush=True)
    for setting, ways, repetitions in (
        [] if arguments.loader or arguments.engine else steps.plan(device, arguments.quick, arguments.methods)
    ):
        # in a process of its own: the memory that one setting leaves to the allocator would speed up the next
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            rows += process.submit(steps.measure, setting, ways, repetitions, device).result()
        print("\n" + steps.table(rows[-len(ways) :]), flush=True)
    if arguments.output:
        about = {"machine": machine, "threads": torch.get_num_threads(), "torch": torch.__version__}
        with naming(arguments.output), open(arguments.output, "w", encoding="utf-8") as file:
            json.dump({**about, "rows": rows}, file, indent=2)
    return 2 if arguments.output is None and startup.lost_output() else 0
