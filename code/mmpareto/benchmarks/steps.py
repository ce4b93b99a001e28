"""A training step: each method over the plain sum of the losses, and the published procedure over ours."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmpareto.benchmarks.counting import Calls
from mmpareto.benchmarks.quartiles import quartiles, ratio_text
from mmpareto.integration import OnFeatures
from mmpareto.methods import Method, build_method, cross_entropies
from mmpareto.models import MultimodalModel, build_model
from mmpareto.reporting.tables import text_table
from mmpareto.streams import side_by_side
from mmpareto.training.capture import recording
from mmpareto.training.step import TrainingStep
from mmpareto.training.switches import compiled

CLASSES = 6
ON_FEATURES = " on features"  # after a method's name: --integrate features
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
    encoder: str = "resnet18"
    architecture: str = "late_fusion"
    frozen: tuple[str, ...] = ()  # names in an encoder's tensors that mark those that do not learn


def published_backward(
    model: MultimodalModel, joint_loss: Tensor, unimodal_losses: Mapping[str, Tensor], gamma: float = 1.5
) -> None:
    """Fill `.grad` as the published code goes about it: one backward pass per loss, then one of their sum.

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
        name = way.removesuffix(ON_FEATURES)
        self.method: Method | None = None if way in ("plain sum", "published") else build_method(name)
        if self.method is not None and name != way:
            self.method.integrator = OnFeatures(self.method.integrator)
        fusion = None if self.method is None else self.method.fusion
        encoders = dict.fromkeys(setting.shapes, setting.encoder)
        random = {name: {"weights": "none"} for name in setting.shapes}
        needed = None if self.method is None else self.method.architecture
        architecture = needed or setting.architecture
        model = build_model(setting.shapes, CLASSES, encoders, fusion, architecture, encoder_options=random)
        self.model = model.to(device)
        for name, parameter in self.model.named_parameters():
            if name.startswith("encoders.") and any(part in name for part in setting.frozen):
                parameter.requires_grad_(False)
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
            self.forward = compiled(self.model, {name: kind for name, (kind, _) in setting.shapes.items()})
        if self.method is not None:
            amp = torch.bfloat16 if setting.bf16 else None
            self.training_step = TrainingStep(self.model, self.method, self.optimizer, amp=amp, forward=self.forward)
        self.replay: Callable[[], None] | None = None
        self.captured_peak = 0  # bytes, see `peak_bytes`

    def step(self) -> None:
        """One whole training step, without loading."""
        if self.replay is not None:
            self.replay()
            return
        if self.method is not None:
            self.training_step(self.inputs, self.label)
            return
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.setting.bf16):
            loss = cross_entropies(self.forward(self.inputs), self.label)
        if self.way == "plain sum":
            self.optimizer.zero_grad()
            (loss.joint + torch.stack(list(loss.unimodal.values())).sum()).backward()
        else:
            published_backward(self.model, loss.joint, loss.unimodal)
        # as the engine's step does
        torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
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
        self.captured_peak = self._peak_on_gpu(lambda: self._capture(graph))
        self.replay = graph.replay

    def _capture(self, graph: torch.cuda.CUDAGraph) -> None:
        with recording(graph), side_by_side():
            self.step()

    def _peak_on_gpu(self, run: Callable[[], None]) -> int:
        """Most bytes that `run` holds beyond what it began with."""
        self._finish()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        self._finish()
        return torch.cuda.max_memory_allocated(self.device) - before

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
        """Backward calls of convolutions, or of attention, and waits for the device, of one eager step."""
        with Calls() as calls:
            self.step()
        attention = sum(
            count
            for name, count in calls.operators.items()
            if name.startswith("_scaled_dot_product") and name.endswith("backward")
        )
        return calls.operators["convolution_backward"] or attention, calls.waits

    def peak_bytes(self) -> int:
        """Most memory that one step holds beyond what it began with, in bytes."""
        if self.replay is not None:
            return self.captured_peak
        if self.device.type == "cuda":
            return self._peak_on_gpu(self.step)
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
        adapted = setting if way != "published" else replace(eager, bf16=False, channels_last=False)
        contenders[way] = Contender(adapted, way, device)
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
    peaks = {way: contender.peak_bytes() for way, contender in contenders.items()}
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
                "peak_megabytes": peaks[way] / 2**20,
            }
        )
    return rows


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
    few = ("plain sum", "published", "mmpareto", f"mmpareto{ON_FEATURES}")
    every = ("plain sum", "published", *LAUNCHED, f"mmpareto{ON_FEATURES}")
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
            (
                replace(everything, name="bf16, channels last, compiled and captured", compiled=True, captured=True),
                few,
                20,
            ),
            *((replace(cremad, shapes=shapes(n, None), batch=32, name="fp32, batch 32"), few, 10) for n in (2, 3, 4)),
        ]
        chosen += [(setting, ("plain sum", "mmpareto"), 20) for setting in _other_models(cremad)]
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
        *((setting, ("plain sum", "mmpareto"), 9) for setting in _other_models(small)),
    ]


def _other_models(setting: Setting) -> list[Setting]:
    """A bottleneck transformer, and vision transformers whose patch embedding is frozen, as for fine-tuning."""
    size = dict.fromkeys(setting.shapes, ("image", (3, 224, 224)))
    return [
        replace(setting, name=f"mbt on resnet18, {setting.name}", architecture="mbt"),
        replace(
            setting,
            name=f"ViT-Tiny, stem frozen, fp32, batch {setting.batch}, 224 x 224",
            shapes=size,
            encoder="timm:vit_tiny_patch16_224",
            frozen=("patch_embed.", "cls_token", "pos_embed"),
        ),
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `measure` for a person."""
    lines = [
        [
            f"{row['setting']}, {row['modalities']} modalities",
            row["way"],
            f"{row['milliseconds']:.1f}",
            ratio_text(row["over_plain_sum"]),
            ratio_text(row["published_over_this"]),
            f"{row['backward_passes']:g}",
            str(row["waits"]),
            f"{row['peak_megabytes']:.0f}",
        ]
        for row in rows
    ]
    return text_table(
        ["setting", "way", "ms", "over plain sum", "published / this", "passes", "waits", "peak MiB"], lines
    )
