"""code/train.py as a person runs it, on the embedded two views of digits."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from entries.command import inside, train
from PIL import Image
from settings import change_settings, read_settings
from tables import rows, without_times

from mmpareto import datasets
from mmpareto.cli import train as entry
from mmpareto.models import build_model

SHORT = ("--epochs", "2", "--batch_size", "64", "--pairs", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two epochs, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "once"
    done = train(*SHORT, "--ckpt_path", folder, figures=True, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_prints_settings_an_epoch_line_each_and_a_table(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    assert "mmpareto, gamma 1.5, rescale tensor" in printed
    assert "1197 train, 200 val, 400 test, 10 classes" in printed
    number = r"\d+\.\d+"
    line = re.compile(rf"^  [12]/2 \|( +{number}){{3}} \|( +{number}){{3}} \|( +\d+){{2}} \| +{number}( \*)?$", re.M)
    assert "epoch |  joint rotated  noisy | joint rotated noisy | rotated noisy | seconds\n" in printed
    assert len(line.findall(printed)) == 2
    table = printed[printed.index("accuracy in percent") :].split("\n\n")[0].splitlines()
    assert re.fullmatch(r"accuracy in percent +val +test +conflict, % of measured steps", table[0])
    rows_of_table = ["joint", f"rotated alone(?= .* {number}$)", f"noisy alone(?= .* {number}$)", "joint - best single"]
    for line_of_table, name in zip(table[2:], [*rows_of_table, "all heads, logs", "all heads, mean"], strict=True):
        assert re.match(rf"{name}( +[+-]?{number}){{2,3}} *$", line_of_table)
    assert max(map(len, table)) <= 80
    assert "\x1b" not in printed
    assert printed.rstrip().endswith(f"run directory: {folder}")


def test_leaves_a_whole_run_directory(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    config = read_settings(folder)
    assert config["dataset"] == "twoview"
    assert {"gamma": 1.5, "rescale": "tensor"}.items() <= config["method_options"].items()
    assert config["dataset_options"] == {"source": "digits", "rotation": 180.0, "noise": 1.0, "pairs": 1}
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    metrics = rows(folder / "metrics.csv")
    assert [row["epoch"] for row in metrics] == ["1", "2"]
    gradients = rows(folder / "gradients.csv")
    steps = 2 * -(-1197 // 64)
    assert [(row["step"], row["encoder"]) for row in gradients] == [
        (str(step), encoder) for step in range(steps) for encoder in ("rotated", "noisy")
    ]
    conflict = [float(row["conflict"]) for row in gradients if row["encoder"] == "rotated"]
    assert all((float(row["cosine"]) < 0) == (float(row["conflict"]) == 1) for row in gradients)
    layers = rows(folder / "layers.csv")
    weights = torch.load(folder / "best.pt", weights_only=True)["model"]
    for encoder in ("rotated", "noisy"):
        start = f"encoders.{encoder}."
        tensors = [
            name.removeprefix(start) for name in weights if name.startswith(start) and name.endswith(("weight", "bias"))
        ]
        assert [(row["epoch"], row["layer"]) for row in layers if row["encoder"] == encoder] == [
            (epoch, tensor) for epoch in "12" for tensor in tensors
        ]
    assert {row["steps"] for row in layers} == {str(steps // 2)}
    results = json.loads((folder / "results.json").read_text())
    assert results["integration"]["rotated"]["conflict_rate"] == pytest.approx(np.mean(conflict))
    assert {"dataset", "method", "seed", "selected_on", "selected_epoch", "epochs", "seconds", "val", "test"} <= set(
        results
    )
    assert 100 < results["peak_memory_mib"] < 100_000  # of this process, or one with the same libraries
    for name in ("learning_curves.png", "gradients.png"):
        pixels = np.asarray(Image.open(folder / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert list(folder.glob("events.out.tfevents.*"))
    assert not list(folder.glob(".*"))  # nothing half-written


def test_results_are_those_of_the_selected_checkpoint(finished: tuple[Path, str]) -> None:
    """Accuracies counted by hand over the whole split, from the checkpoint and the plain images."""
    folder, _ = finished
    results = json.loads((folder / "results.json").read_text())
    metrics = rows(folder / "metrics.csv")
    accuracies = [float(row["val_accuracy_joint"]) for row in metrics]
    assert results["selected_epoch"] == 1 + accuracies.index(max(accuracies))

    for split in ("val", "test"):
        data = datasets.build("twoview", None, split, pairs=1)
        assert isinstance(data, datasets.MultimodalDataset)
        about = {name: (modality.kind, modality.shape) for name, modality in data.modalities.items()}
        model = build_model(about, 10, {"rotated": "cnn", "noisy": "cnn"})
        model.load_state_dict(torch.load(folder / "best.pt", weights_only=True)["model"])
        model.eval()
        samples = [data[index] for index in range(len(data))]
        with torch.no_grad():
            output = model({name: torch.stack([s["inputs"][name] for s in samples]) / 255 for name in about})
        label = torch.tensor([s["label"] for s in samples])

        def percent(logits: torch.Tensor, label: torch.Tensor = label) -> float:
            return 100 * (logits.argmax(1) == label).double().mean().item()

        assert results[split]["joint"]["accuracy"] == pytest.approx(percent(output.joint), abs=1e-4)
        for name in about:
            assert results[split]["unimodal"][name]["accuracy"] == pytest.approx(
                percent(output.unimodal[name]), abs=1e-4
            )


def test_repeats_and_resumes_exactly(finished: tuple[Path, str], one_thread: None, tmp_path: Path) -> None:
    """In this process, what another one has made."""
    folder, _ = finished
    again, parted = tmp_path / "again", tmp_path / "parted"
    flags = (*SHORT[2:], "--no-figures", "--ckpt_path")
    assert inside(entry.main, *SHORT[:2], *flags, again).returncode == 0
    assert inside(entry.main, "--epochs", "1", *flags, parted).returncode == 0
    resumed = inside(entry.main, *SHORT[:2], *flags, parted, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "1/2 |" not in resumed.stdout
    for other in (again, parted):
        assert without_times(other / "metrics.csv") == without_times(folder / "metrics.csv")
        for name in ("gradients.csv", "layers.csv"):
            assert (other / name).read_text() == (folder / name).read_text()
        mine, theirs = (torch.load(path / "last.pt", weights_only=True)["model"] for path in (folder, other))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert not list(other.glob("*.png"))  # --no-figures


def test_a_finished_run_is_not_touched_unasked(finished: tuple[Path, str], tmp_path: Path) -> None:
    before = (finished[0] / "results.json").read_bytes()
    plain = inside(entry.main, *SHORT, "--ckpt_path", finished[0])
    assert plain.returncode == 2
    assert "holds a finished run" in plain.stderr
    assert "--resume" in plain.stderr
    assert "--overwrite" in plain.stderr
    results = json.loads(before)
    for flags, status, message in (
        (["--resume"], 0, "is finished"),
        (["--resume", "--learning_rate", "0.5"], 2, "--learning_rate 0.1 (now 0.5)"),
        (["--no-train"], 0, f"{results['test']['joint']['accuracy']:.2f}"),
    ):
        folder = tmp_path / flags[-1]  # a run directory stays locked until its process ends
        shutil.copytree(finished[0], folder)
        change_settings(folder, without="augment")  # as a version without this flag wrote them
        done = inside(entry.main, *SHORT, "--ckpt_path", folder, *flags)
        assert done.returncode == status, done.stderr
        assert message in done.stdout + done.stderr
        assert (folder / "results.json").read_bytes() == before
    assert (finished[0] / "results.json").read_bytes() == before


@pytest.mark.slow
def test_methods_of_launchers_libraries_and_users_train(tmp_path: Path) -> None:
    methods = ["one_joint", "uniform", "uniform_gamma", "pareto", "pcgrad", "integration.test_interface:Plain"]
    with ThreadPoolExecutor(2) as pool:
        done = list(
            pool.map(
                lambda method: train(
                    *("--method", method, "--epochs", "1", "--ckpt_path", tmp_path / method),
                    OMP_NUM_THREADS="1",
                    PYTHONPATH=str(Path(__file__).resolve().parents[1]),
                ),
                methods,
            )
        )
    for method, process in zip(methods, done, strict=True):
        assert process.returncode == 0, process.stderr
        results = json.loads((tmp_path / method / "results.json").read_text())
        assert results["method"] == method
        assert 0 <= results["integration"]["rotated"]["conflict_rate"] <= 1


BAD = {
    "unknown dataset": (["--dataset", "cifar"], "known: avmnist, cgmnist, cremad"),
    "unknown method": (["--method", "magic"], "mmcosine, mmpareto, mslr"),
    "unknown flag": (["--learningrate", "1"], "did you mean --learning_rate?"),
    "unknown optimizer": (["--optimizer", "LBFGS"], "expected one of SGD, Adam, AdamW"),
    "zero epochs": (["--epochs", "0"], "--epochs: expected a whole number above zero, found '0'"),
    "negative rate": (["--learning_rate", "-1"], "--learning_rate: expected a number above zero"),
    "text for a number": (["--batch_size", "many"], "expected a whole number above zero, found 'many'"),
    "gamma without use": (["--method", "uniform", "--gamma", "2"], "--gamma means nothing to the method uniform"),
    "wrong class count": (["--n_classes", "6"], "has 10 classes"),
    "no GPU": (["--gpu_ids", "99"], "--gpu_ids 99"),
    "not a GPU": (["--gpu_ids", "first"], "expected numbers of GPUs"),
    "several GPUs": (["--gpu_ids", "0,1"], "PROCESSES=2 sh script/distributed.sh --gpu_ids 0,1"),
    "step without interval": (["--lr_schedule", "step"], "needs --lr_decay_step"),
    "decay of a cosine": (["--lr_schedule", "cosine", "--lr_decay_step", "3"], "belongs to --lr_schedule step"),
    "warm-up without end": (["--epochs", "3", "--warmup_epochs", "3"], "leaves nothing of 3 epochs"),
    "foreign checkpoint": (["--resume", "other.pt"], "expected last.pt, previous.pt, auto or nothing"),
    "TF32 of a CPU": (["--tf32", "--gpu_ids", "cpu"], "a mode of NVIDIA GPUs"),
    "unknown encoder": (["--model", "vit"], "known: cnn"),
    "encoder of nothing": (["--encoder", "sound=resnet18"], "no modality"),
    "nothing to resume": (["--resume"], "no run to resume"),
    "both ways": (["--resume", "--overwrite"], "give one of the two"),
    "bad variance": (["--dataset", "digits", "--variance", "-1"], "variance must lie between 0 and 1"),
    "bad option value": (["--method", "gradvac", "--method_options", "beta=7"], "beta"),
    "folder of an embedded set": (["--data_root", "data"], "is embedded and reads no folder"),
    "seed beyond NumPy's": (["--random_seed", "4294967296"], "a whole number from 0 to 2147483647"),
    "text for gamma": (["--method_options", "gamma=abc"], "gamma: expected a number, found 'abc'"),
    "gamma twice": (["--gamma", "3", "--method_options", "gamma=2"], "give one of the two"),
    "option twice": (["--method_options", "gamma=1", "--method_options", "gamma=2"], "gamma is given twice"),
    "option of another kind": (
        ["--method", "mslr", "--method_options", "window=2.5"],
        "window: expected a whole number",
    ),
    "epochs that are no number": (["--method", "ogm", "--method_options", "modulation_epochs=nan"], "a whole number"),
    "truth for a number": (["--method", "pmr", "--method_options", "alpha=true"], "alpha: expected a number"),
    "number for text": (["--method", "mslr", "--method_options", "factors=1.5"], "expected NAME:VALUE"),
    "text for a share": (
        ["--method", "metabalance", "--method_options", "relax=x"],
        "relax: expected a number, found 'x'",
    ),
    "encoder with other arguments": (["--encoder", "noisy=torch.nn:Linear"], "cannot be made for image of shape"),
    "method of no module": (["--method", ".foo:Bar"], "cannot be imported"),
    "one GPU twice": (["--gpu_ids", "0,0"], "a GPU is named twice"),
    "momentum of Adam": (["--optimizer", "adam", "--momentum", "0.5"], "--momentum is SGD's"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_before_training_with_a_message(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process, which saves the imports of each case; the next test runs one as a person does."""
    flags, message = BAD[case]
    assert entry.main([*flags, "--ckpt_path", str(tmp_path / "run")]) == 2
    said = capfd.readouterr().err
    assert message in said
    assert len(said.splitlines()) <= 2
    assert not (tmp_path / "run" / "results.json").exists()
    if case == "nothing to resume":  # a mistyped folder is not made
        assert not (tmp_path / "run").exists()


def test_an_unwritable_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = inside(entry.main, "--ckpt_path", tmp_path / "file" / "run")
    assert done.returncode == 2
    assert "cannot write to" in done.stderr
    assert "Traceback" not in done.stderr
