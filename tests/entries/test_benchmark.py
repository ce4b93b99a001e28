"""benchmark.py: what it compares is the same computation, its counts are right, and it runs as a user runs it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from entries.command import ROOT, refused, run

from mmpareto.benchmarks import steps
from mmpareto.benchmarks.counting import Calls
from mmpareto.cli import benchmark
from mmpareto.integration import MMPareto
from mmpareto.methods import METHODS, cross_entropies
from mmpareto.methods.scalarizations import GROUP
from mmpareto.models import build_model
from mmpareto.training.signals import Interrupted

BENCHMARK = ROOT / "code" / "benchmark.py"
TINY = steps.Setting("tiny", steps.shapes(2, 32), 2)


def test_the_published_procedure_and_ours_fill_the_same_gradients() -> None:
    shapes = {"gray": ("image", (1, 28, 28)), "colour": ("image", (3, 28, 28))}
    conflicts = []
    for seed in range(6):
        torch.manual_seed(seed)
        model = build_model(shapes, 3, dict.fromkeys(shapes, "cnn")).double()
        inputs = {name: torch.randn(4, *shape, dtype=torch.float64) for name, (_, shape) in shapes.items()}
        label = torch.tensor([0, 1, 2, 0])
        loss = cross_entropies(model(inputs), label)
        steps.published_backward(model, loss.joint, loss.unimodal)
        theirs = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        loss = cross_entropies(model(inputs), label)
        encoders, heads = model.partition()
        diagnostics = MMPareto().backward(loss.joint, loss.unimodal, encoders=encoders, heads=heads)
        conflicts += [bool(of_encoder.conflict) for of_encoder in diagnostics.values()]
        ours = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(theirs) == len(ours) == len(list(model.parameters()))
        for a, b in zip(theirs, ours, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)
    assert any(conflicts)
    assert not all(conflicts)


BRANCHES = [(first, second) for first in (False, True) for second in (False, True)]


def waits(tensors: int, conflict: bool) -> int:
    """Of the published procedure for an encoder: its cosine, a comparison per tensor, three sums each in conflict."""
    return 1 + tensors + 3 * tensors * conflict


@pytest.mark.parametrize("conflict", [False, True])
def test_waits_of_the_published_procedure(conflict: bool) -> None:
    """Losses that are each other's copy or opposite, so that no rounding decides the branch."""
    shapes = {"gray": ("image", (1, 28, 28)), "colour": ("image", (3, 28, 28))}
    torch.manual_seed(0)
    model = build_model(shapes, 3, dict.fromkeys(shapes, "cnn")).eval()
    joint = model({name: torch.randn(2, *shape) for name, (_, shape) in shapes.items()}).joint.sum()
    with Calls() as calls:
        steps.published_backward(model, joint, dict.fromkeys(shapes, (-1 if conflict else 1) * joint))
    tensors = [len(list(encoder.parameters())) for encoder in model.encoders.values()]
    assert calls.waits == sum(waits(count, conflict) for count in tensors)


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    """A process that measures, as in benchmark.py: the allocator keeps gigabytes of what the models took."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        yield executor


def measured(
    process: ProcessPoolExecutor, setting: steps.Setting, ways: Sequence[str], repetitions: int
) -> dict[str, dict[str, Any]]:
    """{way: row of `steps.measure`}."""
    rows = process.submit(steps.measure, setting, ways, repetitions, torch.device("cpu")).result()
    return {row["way"]: row for row in rows}


@pytest.mark.slow
def test_rows_hold_passes_waits_and_ratios(process: ProcessPoolExecutor) -> None:
    setting = replace(TINY, bf16=True, channels_last=True)
    by_way = measured(process, setting, ("plain sum", "published", "mmpareto"), 2)
    assert {way: row["backward_passes"] for way, row in by_way.items()} == {
        "plain sum": 1,
        "published": 3,  # joint, each modality's own, their sum
        "mmpareto": 2,
    }
    assert by_way["plain sum"]["waits"] == by_way["mmpareto"]["waits"] == 0
    # the data decide which encoders are in conflict, so rounding does
    assert by_way["published"]["waits"] in {waits(60, first) + waits(60, second) for first, second in BRANCHES}
    assert by_way["plain sum"]["over_plain_sum"] == [1, 1, 1]
    assert all(row["milliseconds"] > 0 and row["peak_megabytes"] > 0 for row in by_way.values())


@pytest.mark.parametrize(
    "methods",
    [
        pytest.param(
            ["metabalance", "agm", "gradnorm", "ensemble", "unimodal", "ogm", "ogm_ge", "pmr", "mmcosine", "mslr"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["mlb", "dgl", "mimo", "lfm", "inforeg", "opm", "synib", "mcr", "relearning", "umt", "g2d", "mla"],
            marks=pytest.mark.slow,
        ),
        pytest.param(METHODS.names(group=GROUP), marks=pytest.mark.slow),
    ],
)
def test_methods_beside_the_plain_sum(methods: list[str], process: ProcessPoolExecutor) -> None:
    rows = measured(process, TINY, ["plain sum", *methods], 1)
    assert {way: row["backward_passes"] for way, row in rows.items()} == {
        way: 2 if way == "metabalance" else 1 for way in ("plain sum", *methods)
    }
    assert not any(row["waits"] for row in rows.values())
    (setting, planned, _) = steps.plan(torch.device("cpu"), True, ["ogm", "agm"])[0]
    assert (len(setting.shapes), planned) == (2, ("plain sum", "ogm", "agm"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine", "--loader"], "not allowed with argument"),
        (["--methods", "ogm", "--engine"], "not allowed with argument"),
        (["--methods", "nope"], "known"),
        (["--methods", "entries.nope:Method"], "cannot be imported"),
        (["--num_workers", "2"], "--num_workers belongs to --loader"),
        (["--engine", "--num_workers", "0"], "--num_workers belongs to --loader"),
        (["--mnist", "."], "--mnist belongs to --engine"),
        (["--loader", "--train_flags", "--fast"], "--train_flags belongs to --engine"),
        (["--engine", "--whole"], "--whole belongs to --engine --mnist; add --mnist"),
        (["--engine", "--mnist", "nowhere"], "expected a folder that holds MNIST"),
        (["--output", "nowhere/figures.json"], "there is no folder"),
        (["--output", "/dev/null"], "is a device; give the name of a file"),
    ],
)
def test_what_is_refused(flags: list[str], message: str) -> None:
    assert message in refused(benchmark.main, *flags)


def test_a_folder_without_mnist_is_refused_and_nothing_is_downloaded(tmp_path: Path) -> None:
    file, empty = tmp_path / "figures.json", tmp_path / "mnist"
    empty.mkdir()
    assert "lacks train-images-idx3-ubyte" in refused(
        benchmark.main, "--engine", "--mnist", empty, "--device", "cpu", "--output", file
    )
    assert list(tmp_path.iterdir()) == [empty]
    assert not list(empty.iterdir())


def test_own_methods_are_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {"gray": ("image", (1, 28, 28)), "colour": ("image", (3, 28, 28))}
    own, setting = "mmpareto.integration:MMPareto", replace(TINY, shapes=shapes, encoder="cnn")
    monkeypatch.setattr(steps, "plan", lambda device, quick, methods: [(setting, ("plain sum", *methods), 1)])
    monkeypatch.setattr(benchmark, "in_its_own_process", lambda function, *arguments: function(*arguments))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the profiler's
        assert benchmark.main(["--methods", own, "--device", "cpu"]) == 0
    assert own in capsys.readouterr().out


def test_an_interruption_ends_the_process_that_measures() -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted(signal.SIGTERM)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with pytest.raises(Interrupted):
            benchmark.in_its_own_process(time.sleep, 60)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not [process for process in multiprocessing.active_children() if "SpawnProcess" in process.name]


@pytest.mark.slow
def test_a_gpu_that_is_not_there() -> None:
    done = run(sys.executable, BENCHMARK, "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "sees no GPU" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run(sys.executable, BENCHMARK, "--quick", "--device", "cpu", "--output", file)
    assert done.returncode == 0, done.stderr
    assert "published / this" in done.stdout
    figures = json.loads(file.read_text())
    assert [row["way"] for row in figures["rows"]] == ["plain sum", "published", "mmpareto", "mmpareto on features"]


@pytest.mark.slow
def test_the_loader_is_measured_without_pyav(tmp_path: Path) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('PyAV is missing')\n")
    code = "import torch; from mmpareto.benchmarks.loader import measure; print(measure(2, 0, 1, torch.device('cpu')))"
    done = run(sys.executable, "-c", code, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT / 'code'}")
    assert done.returncode == 0, done.stderr
    assert "packed at 256" in done.stdout
