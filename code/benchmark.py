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

from __future__ import annotations

import argparse
import functools
import io
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from mmpareto import datasets
from mmpareto.datasets import DatasetError, to_device
from mmpareto.datasets.clips import IMAGENET_MEAN, IMAGENET_STD
from mmpareto.datasets.cremad import CLASSES as CREMAD_CLASSES
from mmpareto.datasets.cremad import CREMAD
from mmpareto.datasets.features import FBANK_FRAMES, FBANK_MEAN, FBANK_STD, MEL_BINS
from mmpareto.datasets.media import JPEG_QUALITY
from mmpareto.flag_values import count_or_zero
from mmpareto.methods import METHODS, Method, Piece, build_method, cross_entropies
from mmpareto.models import MultimodalClassifier, build_model
from mmpareto.reporting.tables import text_table
from mmpareto.runs import RunDirectory
from mmpareto.training.board import Board
from mmpareto.training.data import Loader
from mmpareto.training.epochs import train_epoch
from mmpareto.training.processes import Processes
from mmpareto.training.records import epoch_row, step_scalars
from mmpareto.training.session import Session
from mmpareto.training.step import Step, TrainingStep
from mmpareto.training.watch import FiniteWatch

CLASSES = 6
LAUNCHED = ("one_joint", "uniform", "uniform_gamma", "pareto", "mmpareto")


@dataclass(frozen=True)
class Setting:
    """One machine setting: what is switched on, and the shapes."""

    name: str
    shapes: Mapping[str, tuple[str, tuple[int, ...]]]  # modality: kind, shape of a sample
    batch: int
    channels_last: bool = False
    bf16: bool = False
    tf32: bool = False
    compiled: bool = False
    captured: bool = False


class Calls(TorchDispatchMode):
    """Counts the operators that run inside, and those among them that bring a value or a tensor to the host."""

    WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_assert_async")

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator and counts it."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self.operators[name] += 1
        self.waits += name in self.WAITS or (name == "_to_copy" and _to_host(args[0], kwargs.get("device")))
        return func(*args, **kwargs)


def _to_host(source: Tensor, target: torch.device | str | None) -> bool:
    return target is not None and torch.device(target).type == "cpu" and source.device.type != "cpu"


def published_backward(
    model: MultimodalClassifier, joint_loss: Tensor, unimodal_losses: Mapping[str, Tensor], gamma: float = 1.5
) -> None:
    """Fills `.grad` as the published code goes about it: one backward pass per loss, then one of their sum.

    Written from its description, with its copies of all encoder gradients and its waits: one per parameter tensor and
    one per encoder without conflict, three more per tensor with conflict.
    """
    kept: dict[str, dict[str, list[Tensor]]] = {"joint": {}, "unimodal": {}}
    for owner, loss in {"joint": joint_loss, **unimodal_losses}.items():
        model.zero_grad()
        loss.backward(retain_graph=True)
        for name, encoder in model.encoders.items():
            if owner in ("joint", name):
                kept["joint" if owner == "joint" else "unimodal"][name] = [_copy(p) for p in encoder.parameters()]
    model.zero_grad()
    (joint_loss + torch.stack(list(unimodal_losses.values())).sum()).backward()
    for name, encoder in model.encoders.items():
        joint, unimodal = kept["joint"][name], kept["unimodal"][name]
        flat_joint, flat_unimodal = (torch.cat([g.reshape(-1) for g in part]) for part in (joint, unimodal))
        first = second = 0.5
        if torch.cosine_similarity(flat_joint, flat_unimodal, dim=0) < 0:
            jj = sum((a * a).sum().item() for a in joint)
            ju = sum((a * b).sum().item() for a, b in zip(joint, unimodal, strict=True))
            uu = sum((b * b).sum().item() for b in unimodal)
            first = (uu - ju) / (jj + uu - 2 * ju)
            second = 1 - first
        for parameter, a, b in zip(encoder.parameters(), joint, unimodal, strict=True):
            integrated = 2 * first * a + 2 * second * b
            plain = a + b
            if integrated.norm() < plain.norm():
                integrated = integrated * (plain.norm() / integrated.norm())
            parameter.grad = gamma * integrated


def _copy(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


class Contender:
    """One model with one way to compute its gradients, in one setting."""

    def __init__(self, setting: Setting, way: str, device: torch.device) -> None:
        self.setting, self.way, self.device = setting, way, device
        torch.manual_seed(0)
        self.method: Method | None = None if way in ("plain sum", "published") else build_method(way)
        fusion = None if self.method is None else self.method.fusion
        encoders = dict.fromkeys(setting.shapes, "resnet18")
        self.model = build_model(setting.shapes, CLASSES, encoders, fusion).to(device)
        if setting.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.inputs = {}
        for name, (_, shape) in setting.shapes.items():
            value = torch.randn(setting.batch, *shape, device=device)
            last = setting.channels_last and value.dim() == 4
            self.inputs[name] = value.to(memory_format=torch.channels_last) if last else value
        self.label = torch.randint(CLASSES, (setting.batch,), device=device)
        if self.method is not None:
            self.method.setup(self.model, 0, 2)
        self.forward: Callable[..., Any] = self.model
        if setting.compiled:
            # the retained graph of the first of two passes must not give its buffers away
            torch._functorch.config.donated_buffer = False
            self.forward = torch.compile(self.model)
        self.replay: Callable[[], None] | None = None

    def step(self) -> None:
        """One whole training step, without loading."""
        if self.replay is not None:
            self.replay()
            return
        amp: AbstractContextManager[Any] = nullcontext()
        if self.setting.bf16:
            amp = torch.autocast(self.device.type, torch.bfloat16)
        with amp:
            output = self.forward(self.inputs)
            loss = cross_entropies(output, self.label)
            if self.method is not None:
                loss = self.method.losses(Piece(output, self.label, loss, 1.0))
        if self.method is not None:
            encoders, heads = self.model.partition()
            self.method.integrator.backward(loss.joint, loss.unimodal, encoders=encoders, heads=heads)
            self.method.gradients(self.model)
        elif self.way == "plain sum":
            self.optimizer.zero_grad()
            (loss.joint + torch.stack(list(loss.unimodal.values())).sum()).backward()
        else:
            published_backward(self.model, loss.joint, loss.unimodal)
        self.optimizer.step()

    def prepare(self) -> None:
        """Warms up; captures the step in a CUDA graph where the setting says so."""
        if not self.setting.captured:
            for _ in range(2):
                self.step()
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        self.replay = graph.replay

    def seconds(self) -> float:
        """Time of one step."""
        self._finish()
        started = time.perf_counter()
        self.step()
        self._finish()
        return time.perf_counter() - started

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def counts(self) -> tuple[int, int]:
        """Convolution-backward calls, and waits for the device, of one eager step."""
        with Calls() as calls:
            self.step()
        return calls.operators["convolution_backward"], calls.waits

    def peak_bytes(self) -> int:
        """Most memory that one step holds beyond what it began with, in bytes."""
        if self.device.type == "cuda":
            self._finish()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.step()
            self._finish()
            return torch.cuda.max_memory_allocated(self.device) - before
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
            self.step()
        held = peak = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        return peak


def measure(setting: Setting, ways: Sequence[str], repetitions: int, device: torch.device) -> list[dict[str, Any]]:
    """A row per way: time, ratios to the plain sum and to the published procedure, passes, waits, peak memory."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = setting.tf32
    eager = replace(setting, compiled=False, captured=False)
    contenders = {}
    for way in ways:
        # the published procedure reads gradients on the host: it can be neither compiled nor captured, nor is it tuned
        own = setting if way != "published" else replace(eager, bf16=False, channels_last=False)
        contenders[way] = Contender(own, way, device)
    counted = {}
    for way in ways:
        counter = Contender(replace(eager, batch=2), way, device)
        counter.step()
        counted[way] = counter.counts()
    for contender in contenders.values():
        contender.prepare()
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repetitions):
        for way, contender in contenders.items():
            taken[way].append(contender.seconds())
    rows = []
    peaks = {way: contender.peak_bytes() for way, contender in contenders.items() if contender.replay is None}
    base = counted[ways[0]][0]
    for way in ways:
        ratios = [mine / plain for mine, plain in zip(taken[way], taken["plain sum"], strict=True)]
        gains = [theirs / mine for mine, theirs in zip(taken[way], taken.get("published", []), strict=False)]
        rows.append(
            {
                "setting": setting.name,
                "modalities": len(setting.shapes),
                "way": way,
                "milliseconds": 1000 * statistics.median(taken[way]),
                "over_plain_sum": quartiles(ratios),
                "published_over_this": quartiles(gains) if gains else None,
                "backward_passes": counted[way][0] / base,
                "waits": counted[way][1],
                "peak_megabytes": peaks[way] / 2**20 if way in peaks else None,
            }
        )
    return rows


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    if len(values) < 2:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def shapes(modalities: int, side: int | None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Audio, frames and further images: of CREMA-D's size, or `side` x `side` where that is given."""
    spectrogram = (1, 1024, 128) if side is None else (1, side, side)
    frames = (2, 3, 224, 224) if side is None else (1, 3, side, side)
    image = (3, 224, 224) if side is None else (3, side, side)
    every: dict[str, tuple[str, tuple[int, ...]]] = {
        "audio": ("spectrogram", spectrogram),
        "visual": ("frames", frames),
        "depth": ("image", image),
        "thermal": ("image", image),
    }
    return dict(list(every.items())[:modalities])


def plan(device: torch.device, quick: bool, methods: Sequence[str]) -> list[tuple[Setting, tuple[str, ...], int]]:
    """Settings, ways and repetitions; `methods` alone against the plain sum, where there are some."""
    if methods:
        ways = ("plain sum", *methods)
        if device.type == "cuda":
            return [(Setting("fp32", shapes(2, None), 64), ways, 20)]
        side, batch = (112, 8) if quick else (160, 16)
        return [(Setting(f"fp32, batch {batch}, {side} x {side}", shapes(2, side), batch), ways, 7 if quick else 9)]
    few, every = ("plain sum", "published", "mmpareto"), ("plain sum", "published", *LAUNCHED)
    if device.type == "cuda":
        cremad = Setting("fp32", shapes(2, None), 64)
        everything = replace(cremad, name="bf16, channels last", bf16=True, channels_last=True)
        chosen = [
            (cremad, every, 20),
            (replace(cremad, name="TF32", tf32=True), few, 20),
            (replace(cremad, name="bf16", bf16=True), few, 20),
            (everything, few, 20),
            (replace(everything, name="bf16, channels last, compiled", compiled=True), few, 20),
            (replace(everything, name="bf16, channels last, captured", captured=True), few, 20),
            *((replace(cremad, shapes=shapes(n, None), batch=32, name="fp32, batch 32"), few, 10) for n in (2, 3, 4)),
        ]
        return chosen[:2] if quick else chosen
    small = Setting("fp32, batch 8, 112 x 112", shapes(2, 112), 8)
    if quick:
        return [(small, few, 7)]
    large = Setting("fp32, batch 16, 160 x 160", shapes(2, 160), 16)
    return [
        (large, every, 6),
        (small, few, 9),
        *((replace(small, shapes=shapes(n, 112)), few, 5) for n in (3, 4)),
        (replace(large, name="bf16, channels last, batch 16, 160 x 160", bf16=True, channels_last=True), few, 7),
    ]


class PlainClips(Dataset[tuple[Tensor, Tensor, int]]):
    """Clips as the published loader reads them: each sample decoded, cropped, scaled and normalised on its own.

    Written from its description: Pillow, RandomResizedCrop, flip, ToTensor, Normalize; features padded and normalised
    in float32.
    """

    def __init__(self, root: Path, clips: Sequence[str]) -> None:
        self.root, self.clips = root, clips
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        features = torch.from_numpy(np.load(self.root / "audio" / f"{self.clips[index]}.npy")).float()
        features = torch.nn.functional.pad(features, (0, 0, 0, FBANK_FRAMES - len(features)))
        features = (features - FBANK_MEAN) / FBANK_STD
        folder = self.root / "visual" / self.clips[index]
        frames = [self.transform(Image.open(folder / name).convert("RGB")) for name in sorted(os.listdir(folder))[:2]]
        return features[None], torch.stack(frames), 0


def write_clips(root: Path, count: int) -> list[str]:
    """A dataset of CREMA-D's shapes: 2.5 s of features, two frames of 480 x 360; the names of its training clips."""
    random = np.random.default_rng(0)
    names = [f"{1001 + i // 6}_DFA_{CREMAD_CLASSES[i % 6]}_XX" for i in range(count + 2)]
    pictures = []
    for _ in range(32):
        # smooth shapes with grain: 25 kB as a JPEG
        coarse = Image.fromarray(random.integers(0, 255, (6, 8, 3)).astype(np.uint8))
        picture = np.asarray(coarse.resize((480, 360), Image.Resampling.BICUBIC), dtype=np.int16)
        picture = (picture + random.normal(0, 1.5, picture.shape)).clip(0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=JPEG_QUALITY)
        pictures.append(stream.getvalue())
    (root / "audio").mkdir()
    for i, name in enumerate(names):
        np.save(root / "audio" / f"{name}.npy", random.normal(-4, 4, (248, MEL_BINS)).astype(np.float16))
        (root / "visual" / name).mkdir(parents=True)
        for frame in (1, 2):
            (root / "visual" / name / f"frame_{frame:05d}.jpg").write_bytes(pictures[(2 * i + frame) % len(pictures)])
    for split, part in (("train", names[:count]), ("val", names[count:-1]), ("test", names[-1:])):
        (root / f"{split}.csv").write_text("".join(f"{name},{name.split('_')[2]}\n" for name in part))
    return names[:count]


def measure_loader(clips: int, workers: int, repetitions: int, device: torch.device) -> list[dict[str, Any]]:
    """Samples a second of our loader and of `PlainClips`, up to the batch on the device that the model sees.

    On a CPU that includes the normalisation, which a GPU takes off the processor: the row "ours, not normalised" ends
    with the batch of bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = write_clips(root, clips)
        small = root / "small"  # the same frames as `prepare.py --frame_size 256` stores them
        shutil.copytree(root, small, ignore=shutil.ignore_patterns("small"))
        for frame in small.glob("visual/*/*.jpg"):
            Image.open(frame).resize((341, 256), Image.Resampling.BICUBIC).save(frame, quality=JPEG_QUALITY)
        loaders = {
            name: Loader(CREMAD(place, "train"), 64, shuffle=True, seed=0, workers=workers, pin=device.type == "cuda")
            for name, place in (("ours", root), ("ours, frames stored at 256", small))
        }
        plain: DataLoader[Any] = DataLoader(
            PlainClips(root, names), 64, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )

        def ours_epoch(loader: Loader, epoch: int) -> None:
            for batch in loader.epoch(epoch):
                to_device(batch["inputs"], loader.dataset.modalities, device)

        def plain_epoch(epoch: int) -> None:
            del epoch
            for features, frames, _ in plain:
                features.to(device), frames.to(device)

        def bytes_epoch(epoch: int) -> None:
            for _ in loaders["ours"].epoch(epoch):
                pass

        ways: dict[str, Callable[[int], None]] = {"plain": plain_epoch}
        ways |= {name: functools.partial(ours_epoch, loader) for name, loader in loaders.items()}
        ways["ours, not normalised"] = bytes_epoch
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for epoch in range(repetitions + 1):  # the first starts the workers
            for way, run in ways.items():
                started = time.perf_counter()
                run(epoch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                taken[way].append(time.perf_counter() - started)
    return [
        {
            "way": way,
            "workers": workers,
            "samples_per_second": clips / statistics.median(seconds[1:]),
            "over_plain": quartiles([p / own for p, own in zip(taken["plain"][1:], seconds[1:], strict=True)]),
        }
        for way, seconds in taken.items()
    ]


def loader_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `measure_loader` for a person."""
    lines = [
        [row["way"], str(row["workers"]), f"{row['samples_per_second']:.0f}", _ratio(row["over_plain"])] for row in rows
    ]
    return text_table(["loader", "workers", "samples / s", "over plain"], lines)


def measure_engine(mnist: Path | None, repetitions: int, device: torch.device) -> list[dict[str, Any]]:
    """Epochs on digits, or on CG-MNIST where MNIST's folder is given, with their recipe's batch size and encoders.

    The engine's, with its scores, logs and checkpoint, and bare ones of loading and stepping. Of CG-MNIST's 938 batches
    an epoch has 100 here: what comes once an epoch weighs more than in a real one.
    """
    name, batch_size, encoder = ("digits", 32, "cnn") if mnist is None else ("cgmnist", 64, "pmr")
    data: Any = datasets.build(name, mnist, "train")
    if mnist is not None:
        whole, data = data, Subset(data, range(100 * batch_size))
        data.modalities, data.classes, data.set_epoch = whole.modalities, whole.classes, whole.set_epoch
    about = {name: (modality.kind, modality.shape) for name, modality in data.modalities.items()}
    loader = Loader(data, batch_size, shuffle=True, seed=0, workers=0, pin=device.type == "cuda")
    model = build_model(about, len(data.classes), dict.fromkeys(about, encoder)).to(device)
    method = build_method("mmpareto")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    step = TrainingStep(model, method, optimizer)
    session = Session(model, method, optimizer, schedule, step, list(about), device, Processes())
    watch = FiniteWatch(list(about), device)
    names = {name: [tensor for tensor, _ in encoder.named_parameters()] for name, encoder in model.encoders.items()}

    def bare_epoch(epoch: int) -> None:
        model.train()
        for batch in loader.epoch(epoch - 1):
            step(to_device(batch["inputs"], data.modalities, device), batch["label"].to(device, non_blocking=True))

    taken: dict[str, list[float]] = {"loading and steps": [], "engine": []}
    with tempfile.TemporaryDirectory() as folder, Board(Path(folder), 0, {}) as board:
        run = RunDirectory(Path(folder))

        def log(number: int, done: Step) -> bool:
            if number % 50 == 0:
                watch.check(1)
                board.scalars(step_scalars(done, 0.01, 0.0), number)
            return False

        def engine_epoch(epoch: int) -> None:
            train_epoch(step, model, loader, epoch, session.record, watch, device, after_batch=log)
            watch.check(epoch)
            training, gradients = session.record.scores.compute(), session.record.gradients.rows(epoch)
            layers = session.record.gradients.layer_rows(epoch, names)
            row = epoch_row(epoch, 0.01, training, training, gradients, list(about))
            session.history.append(row)
            board.scalars({key: value for key, value in row.items() if key != "epoch"}, epoch)
            session.next_epoch()
            run.append_csv("gradients.csv", gradients)
            run.append_csv("layers.csv", layers)
            run.write_csv("metrics.csv", session.history)
            session.save(run)

        ways = {"loading and steps": bare_epoch, "engine": engine_epoch}
        for epoch in range(1, repetitions + 2):  # the first warms up
            for way in sorted(ways, reverse=epoch % 2 == 0):
                started = time.perf_counter()
                ways[way](epoch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                taken[way].append(time.perf_counter() - started)
    bare = taken["loading and steps"][1:]
    return [
        {
            "dataset": name,
            "way": way,
            "milliseconds": 1000 * statistics.median(seconds[1:]),
            "over_bare": quartiles([own / b for own, b in zip(seconds[1:], bare, strict=True)]),
        }
        for way, seconds in taken.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows for a person."""

    lines = [
        [
            f"{row['setting']}, {row['modalities']} modalities",
            row["way"],
            f"{row['milliseconds']:.1f}",
            _ratio(row["over_plain_sum"]),
            _ratio(row["published_over_this"]),
            f"{row['backward_passes']:g}",
            str(row["waits"]),
            "-" if row["peak_megabytes"] is None else f"{row['peak_megabytes']:.0f}",
        ]
        for row in rows
    ]
    return text_table(
        ["setting", "way", "ms", "over plain sum", "published / this", "passes", "waits", "peak MiB"], lines
    )


def _ratio(value: Sequence[float] | None) -> str:
    return "-" if value is None else f"{value[1]:.2f} ({value[0]:.2f}-{value[2]:.2f})"


def entry(argv: Sequence[str]) -> int:
    """Runs a command line; the result is the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one setting, within a minute on a CPU")
    parser.add_argument(
        "--methods", nargs="+", choices=[*METHODS], metavar="NAME", default=[], help="measure these methods alone"
    )
    parser.add_argument("--loader", action="store_true", help="the loader, against a plain one, on CREMA-D's shapes")
    parser.add_argument("--engine", action="store_true", help="what an epoch costs beyond its loading and steps")
    parser.add_argument(
        "--mnist", type=Path, metavar="FOLDER", help="of --engine: epochs on CG-MNIST, from MNIST in FOLDER (minutes)"
    )
    parser.add_argument("--num_workers", type=count_or_zero, default=2, metavar="N", help="of --loader (default: 2)")
    parser.add_argument("--output", metavar="FILE", help="also write the figures there, as JSON")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    arguments = parser.parse_args(argv)
    if arguments.mnist is not None and not arguments.engine:
        parser.error("--mnist FOLDER is of --engine")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("benchmark.py: --device cuda: PyTorch sees no GPU here; leave the flag out", file=sys.stderr)
        return 2
    if arguments.output:
        try:
            open(arguments.output, "a", encoding="utf-8").close()
        except OSError as error:
            print(f"benchmark.py: cannot write {arguments.output}: {error.strerror}", file=sys.stderr)
            return 2
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    for variable, value in {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}.items():
        os.environ.setdefault(variable, value)  # the profiler's remarks on machines without a GPU
    rows: list[dict[str, Any]] = []
    if arguments.engine:
        try:
            rows += measure_engine(arguments.mnist, 5 if arguments.quick else 15, device)
        except DatasetError as error:
            print(f"benchmark.py: {error}", file=sys.stderr)
            return 2
        lines = [[row["way"], f"{row['milliseconds']:.0f}", _ratio(row["over_bare"])] for row in rows]
        print("\n" + text_table([f"epoch on {rows[0]['dataset']}", "ms", "over loading and steps"], lines), flush=True)
    if arguments.loader:
        rows += measure_loader(256 if arguments.quick else 512, arguments.num_workers, 5, device)
        print("\n" + loader_table(rows), flush=True)
    for setting, ways, repetitions in (
        [] if arguments.loader or arguments.engine else plan(device, arguments.quick, arguments.methods)
    ):
        # in a process of its own: the memory that one setting leaves to the allocator would speed up the next
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            rows += process.submit(measure, setting, ways, repetitions, device).result()
        print("\n" + table(rows[-len(ways) :]), flush=True)
    if arguments.output:
        about = {"machine": machine, "threads": torch.get_num_threads(), "torch": torch.__version__}
        with open(arguments.output, "w", encoding="utf-8") as file:
            json.dump({**about, "rows": rows}, file, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(entry(sys.argv[1:]))
