"""Classify new samples with a trained run; the run directory alone is read, not the data that it was trained on.

    python code/predict.py runs/cremad/mmpareto/seed0 --input audio=a.wav visual=frames/
    python code/predict.py runs/cremad/mmpareto/seed0 --manifest new.csv --output predictions.csv

A modality that is left out, or whose cell in the manifest is empty, is missing. The manifest has the column id and one
for each modality, with paths relative to the file; labels are not needed. Of a modality of text, the text itself is
given, or the path of a .txt file.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmpareto.arguments import saved_config
from mmpareto.cli.common import check_output, run_command
from mmpareto.command_line import Parser, add_allow
from mmpareto.errors import UsageError
from mmpareto.escape import counted, write_csv_rows
from mmpareto.flag_values import assignment_text, count, file_path
from mmpareto.reporting.tables import text_table
from mmpareto.runs import RunDirectory
from mmpareto.startup import program
from mmpareto.writing import write_text

if TYPE_CHECKING:
    from mmpareto.api.prediction import Prediction

_SHOWN = 10  # classes of a sample, samples of a manifest


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = Parser(prog=program("predict"), description=__doc__)
    add = flags.add_argument
    add("run", type=file_path, metavar="RUN", help="a run directory of train.py")
    source = flags.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        type=assignment_text,
        nargs="+",
        action="extend",
        metavar="MODALITY=PATH",
        help="the files or folders of one sample",
    )
    source.add_argument("--manifest", type=file_path, metavar="FILE", help="a CSV file that lists samples")
    add("--output", type=file_path, metavar="FILE", help="write all probabilities to this CSV file (default: none)")
    add("--gpu_ids", metavar="ID", help="GPU to use, or cpu, or mps (default: the first one, where there is one)")
    add("--batch_size", type=count, metavar="N", help="(default: the run's)")
    add_allow(flags)
    return flags


def predict(arguments: argparse.Namespace) -> None:
    """Classify samples from the flags to the printed tables."""
    inputs = dict(arguments.input or ())
    if len(inputs) < len(arguments.input or ()):
        raise UsageError("--input: a modality is given twice")
    output: Path | None = arguments.output
    if output is not None:
        check_output(output)
        if arguments.manifest is not None and output.resolve() == arguments.manifest.resolve():
            raise UsageError(f"--output {output} is the manifest; name another file")
    saved_config(RunDirectory(arguments.run), arguments.allow)  # refuses a folder that holds no run
    from mmpareto.api.prediction import load, prediction_table  # PyTorch takes seconds to import

    model = load(arguments.run, device=arguments.gpu_ids, batch_size=arguments.batch_size, allow=arguments.allow)
    if arguments.manifest is None:
        predictions = model.predict_named({"the sample": inputs})
        print(sample_text(predictions[0]))
    else:
        predictions = model.predict_named(model.read_manifest(arguments.manifest))
        print(samples_text(predictions))
    if output is not None:
        table = prediction_table(predictions, model.modalities, model.classes)
        text = io.StringIO()
        cells = table.astype(object).where(table.notna(), "")
        write_csv_rows(text, [table.columns.tolist(), *cells.values.tolist()])
        write_text(output, text.getvalue())
        print(f"\nwritten: {output}")


def sample_text(prediction: Prediction) -> str:
    """The classes of a sample with the greatest probabilities, and what each head says of them."""
    table = prediction.table.sort_values("joint", ascending=False, kind="stable")
    header = ["probability in percent", "joint", *(f"{name} alone" for name in table.columns[1:])]
    rows = [[name, *(f"{100 * value:.1f}" for value in values)] for name, *values in table.head(_SHOWN).itertuples()]
    more = f"\nand {counted(len(table) - _SHOWN, 'more class')}" if len(table) > _SHOWN else ""
    return f"prediction: {prediction.label}\n\n{text_table(header, rows)}{more}"


def samples_text(predictions: Sequence[Prediction]) -> str:
    """The predicted class of the first samples."""
    rows = [
        [prediction.id, prediction.label, f"{100 * prediction.probability:.1f}"] for prediction in predictions[:_SHOWN]
    ]
    more = f"\nand {counted(len(predictions) - _SHOWN, 'more sample')}" if len(predictions) > _SHOWN else ""
    return text_table(["sample", "prediction", "probability in percent"], rows) + more


def main(argv: Sequence[str]) -> int:
    """Run a command line; the result is the exit status."""
    return run_command(
        program("predict"), lambda: predict(parser().parse_args(argv)), memory=lambda: "a smaller --batch_size"
    )
