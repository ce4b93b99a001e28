"""Export the model of a trained run to ONNX or torch.export, and check the file against the model on random inputs.

    python code/export.py runs/cremad/mmpareto/seed0 --format onnx
    python code/export.py runs/cremad/mmpareto/seed0 --format torch_export --batch_size 1 --output model.pt2

The exported model takes float32 inputs [B, ...] of all modalities (bytes scaled to 0 to 1), normalises them, and gives
the logits of the joint head and of each modality's own; <output>.json lists inputs, outputs and classes.
"""

import argparse
from collections.abc import Sequence

from mmpareto.arguments import saved_config
from mmpareto.cli.common import check_output, run_command
from mmpareto.command_line import Parser, add_allow
from mmpareto.flag_values import count, file_path
from mmpareto.runs import EXPORTS, RunDirectory
from mmpareto.startup import program


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = Parser(prog=program("export"), description=__doc__)
    add = flags.add_argument
    add("run", type=file_path, metavar="RUN", help="a run directory of train.py")
    add("--format", choices=tuple(EXPORTS), default="onnx", help="(default: onnx, which needs the extra onnx)")
    add("--output", type=file_path, metavar="FILE", help="(default: model.onnx or model.pt2 in the run directory)")
    add("--batch_size", type=count, metavar="N", help="fixed number of samples a batch (default: any number)")
    add_allow(flags)
    return flags


def run_export(arguments: argparse.Namespace) -> None:
    """Export a model from the flags to the printed line."""
    output = arguments.output or arguments.run / f"model{EXPORTS[arguments.format]}"
    saved_config(RunDirectory(arguments.run), arguments.allow)  # refuses a folder that holds no run
    check_output(output)
    from mmpareto.api.export import export  # PyTorch takes seconds to import
    from mmpareto.api.prediction import load

    model = load(arguments.run, device="cpu", allow=arguments.allow)
    exported = export(model, output, arguments.format, batch_size=arguments.batch_size)
    print(f"inputs   {', '.join(exported.inputs)}\noutputs  {', '.join(exported.outputs)}")
    if exported.difference is None:
        print("checked  not yet: pip install '.[onnx]' in the repository's folder, and run the command again")
    else:
        print(f"checked  logits differ from the model's by {exported.difference:.1e} of the greatest one")
    print(f"written  {exported.path} and {exported.path.name}.json")


def main(argv: Sequence[str]) -> int:
    """Run a command line; the result is the exit status."""
    return run_command(program("export"), lambda: run_export(parser().parse_args(argv)))
