"""Two gloo processes against one with the whole batch: gradients, weights, scores; what the naive way does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from methods.small import Row
from torch import Tensor, nn
from training.test_training import ABOUT
from two_processes import run_in_two

from mmpareto.arguments import parse
from mmpareto.datasets import Modality, MultimodalDataset
from mmpareto.errors import UsageError
from mmpareto.integration import MMPareto, OnFeatures
from mmpareto.methods import METHODS as REGISTERED
from mmpareto.methods import Boundary, Method, build_method
from mmpareto.models import LateFusion, MakeFusion, MultimodalModel
from mmpareto.models.mmtm import MMTM
from mmpareto.models.transformer import Transformer
from mmpareto.training.boundary_engine import BoundaryEngine
from mmpareto.training.data import Loader
from mmpareto.training.epochs import EpochRecord, RecordedStep, train_epoch
from mmpareto.training.optimizer import make_optimizer, set_rates
from mmpareto.training.processes import Processes, Requests
from mmpareto.training.run import Run
from mmpareto.training.scoring import Scorer
from mmpareto.training.step import TrainingStep
from mmpareto.training.watch import FiniteWatch

CPU = torch.device("cpu")
SAMPLES, BATCH = 21, 8  # the last batch holds 5: three on one process and two on the other
# TorchJD's weightings have a test of their own; every other method is here
REFUSING = ("mcr",)
# what they draw for a sample is another thing on each process: see `test_processes_that_draw_apart_stay_together`
RANDOM = ("opm", "synib")
SCALARIZATIONS = ("stch", "uw", "dwa", "famo", "constant")
METHODS = [name for name in (*REGISTERED.names(group=""), *SCALARIZATIONS) if name not in (*REFUSING, *RANDOM)]
OPTIONS: dict[str, dict[str, Any]] = {
    "finetune": {"pretrain_epochs": 1},
    "pmr": {"mu": 0.1, "fraction": 0.5},
    "gblending": {"estimate_epochs": 1, "held_out": 0.3},
    "mslr": {"factors": "x:0.5", "window": 1},
    "relearning": {"interval": 1},
    "umt": {"teacher_epochs": 1},
    "g2d": {"teacher_epochs": 1},
    "opm": {"warm_up_epochs": 0, "rate": 0.5, "base": 0.9},
    "reconboost": {"alone_epochs": 1, "together_epochs": 1},
    "greedy": {"window": 2},
    "synib": {"target": "gaussian"},
    "lfm": {"learned": True, "rate": 100.0},
    "constant": {"weights": "joint:0.5,x:2"},
}
CASES: dict[str, tuple[Any, ...]] = {
    **{method: (method, SAMPLES, 1) for method in METHODS},
    "accumulated": ("mmpareto", SAMPLES, 2),
    # the last batch holds one sample: the other process counts nothing
    "uneven": ("mmpareto", 2 * BATCH + 1, 1),
    **{
        f"{method}, accumulated, uneven": (method, 2 * BATCH + 1, 2)
        for method in ("ogm", "gradnorm", "metabalance", "gblending", "constant", "uw", "dwa")
    },
    **{
        f"{method}, uneven": (method, 2 * BATCH + 1, 1)
        for method in ("agm", "pmr", "mlb", "inforeg", "stch", "mla", "greedy")
    },
    "missing": ("mmpareto", 2 * BATCH + 1, 1, {"x": 0.4, "y": 0.3}),
    "missing, accumulated": ("uniform", SAMPLES, 2, {"x": 0.4}),
    "mla, missing": ("mla", 2 * BATCH + 1, 1, {"x": 0.4, "y": 0.3}),
    **{f"{method}, on features": (method, 2 * BATCH + 1, 1, None, True) for method in ("mmpareto", "metabalance")},
}


class Points(MultimodalDataset):
    """Random vectors."""

    def __init__(self, samples: int = SAMPLES) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.name, self.classes = "points", ["a", "b", "c"]
        self.modalities = {name: Modality("vector", shape) for name, (_, shape) in ABOUT.items()}
        self.x = {
            name: torch.randn(samples, *shape, generator=generator).double() for name, (_, shape) in ABOUT.items()
        }
        self.labels = torch.randint(3, (samples,), generator=generator).numpy()

    def __getitem__(self, index: int) -> Any:
        return {
            "inputs": {name: x[index] for name, x in self.x.items()},
            "label": int(self.labels[index]),
            "id": str(index),
        }


class Encoder(nn.Sequential):
    """As the encoder mlp, with a width at which a step costs nothing."""

    width = 16

    def __init__(self, inputs: int) -> None:
        super().__init__(nn.Linear(inputs, 16), nn.ReLU(inplace=True), nn.Linear(16, 16))


class AsRow(nn.Module):
    """Vectors as images of one row."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()[:, None, None]


def exchanging(seed: int, fusion: MakeFusion | None = None) -> MultimodalModel:
    """For methods that need gates."""
    torch.manual_seed(seed)
    encoders = {name: Row() for name in ABOUT}
    for encoder in encoders.values():
        encoder.first.insert(0, AsRow())
    return MMTM(encoders, 3, fusion).double()


def model(seed: int, fusion: MakeFusion | None = None) -> MultimodalModel:
    torch.manual_seed(seed)
    return in_float64(LateFusion({name: Encoder(*shape) for name, (_, shape) in ABOUT.items()}, 3, fusion))


def attending(seed: int, fusion: MakeFusion | None = None) -> MultimodalModel:
    """For the control transformer."""
    torch.manual_seed(seed)
    encoders = {name: Encoder(*shape) for name, (_, shape) in ABOUT.items()}
    return in_float64(Transformer(encoders, 3, fusion, token_width=8, layers=1, heads=2))


def in_float64(model: MultimodalModel) -> MultimodalModel:
    """A model that takes the loaders' float32."""
    for encoder in model.double().encoders.values():
        encoder.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    return model


def trained(
    processes: Processes,
    method: str,
    samples: int = SAMPLES,
    accumulate: int = 1,
    missing: Mapping[str, float] | None = None,
    at_features: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Gradients of the last step, weights and the method's state, training scores and scores of a split, after two
    epochs."""
    chosen = build_method(method, **OPTIONS.get(method, {}))
    if at_features:
        chosen.integrator = OnFeatures(chosen.integrator)
    make = {None: model, "mmtm": exchanging, "transformer": attending}[chosen.architecture]
    shared = make(processes.rank, chosen.fusion)  # the processes begin apart
    processes.start_alike(shared)
    data = Points(samples)
    data.drop_modalities(missing or {}, 0, "train")
    loaders = [
        Loader(
            data,
            BATCH,
            shuffle=shuffle,
            seed=3,
            workers=0,
            pin=False,
            rank=processes.rank,
            size=processes.size,
            training=shuffle,
        )
        for shuffle in (True, False)
    ]
    options = parse(
        ["--gpu_ids", "cpu", "--batch_size", str(BATCH), "--learning_rate", "0.1", "--num_workers", "0"], Path()
    )
    chosen.setup(shared, options.run.random_seed, 2)
    optimizer, schedule = make_optimizer(shared, options.optim)
    step = TrainingStep(shared, chosen, optimizer, accumulate=accumulate)
    engine = BoundaryEngine(shared, {"train": data, "val": Points(samples // 2)}, options, CPU, processes, lambda: None)
    validation: dict[str, float] = {}
    for epoch in (1, 2):
        engine.epoch = epoch
        now = Boundary(epoch, 2, validation, torch.from_numpy(data.labels), shared, optimizer, engine)
        set_rates(optimizer, schedule, chosen.boundary(now))
        record, watch = EpochRecord(list(ABOUT), CPU), FiniteWatch(list(ABOUT), CPU)
        assert train_epoch(RecordedStep(step, record, watch, data.modalities), loaders[0], epoch)
        watch.check(epoch)
        validation = {
            head: values["accuracy"] for head, values in Scorer(shared, CPU)(loaders[1], processes=processes).items()
        }
    gradients = {name: p.grad.clone() for name, p in shared.named_parameters() if p.grad is not None}
    training = record.scores.compute(processes.total)
    scored = Scorer(shared, CPU)(loaders[1], processes=processes)
    state = {f"state of {name}": value.double() for name, value in chosen.state_dict()["own"].items()}
    return gradients, shared.state_dict() | state, training, scored


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    processes = Processes()
    processes.rank, processes.size = rank, 2
    torch.save(everything(processes), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def everything(processes: Processes) -> dict[str, Any]:
    return {
        **{case: trained(processes, *flags) for case, flags in CASES.items()},
        **{method: trained(processes, method) for method in RANDOM},
        **{function.__name__: function(processes) for function in (naive, agree, saves, buffers, stopped, unequal)},
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes finds, {case or function: result}; one start for all tests, which takes seconds."""
    folder = tmp_path_factory.mktemp("two")
    run_in_two(work, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case: str, two: list[dict[str, Any]]) -> None:
    gradients, weights, training, scored = trained(Processes(), *CASES[case])
    for result in two:
        assert result[case][0].keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert torch.allclose(result[case][0][name], gradient, rtol=1e-10, atol=1e-13), name
        for name, weight in weights.items():
            assert torch.allclose(result[case][1][name], weight, rtol=1e-9, atol=1e-12, equal_nan=True), name
        for head, values in training.items():
            assert result[case][2][head]["accuracy"] == pytest.approx(values["accuracy"], abs=1e-9)
            assert result[case][2][head]["loss"] == pytest.approx(values["loss"], rel=1e-9)
        for head, values in scored.items():
            assert result[case][3][head]["accuracy"] == pytest.approx(values["accuracy"], abs=1e-9)
            assert result[case][3][head]["loss"] == pytest.approx(values["loss"], rel=1e-9)


@pytest.mark.parametrize("method", RANDOM)
def test_processes_that_draw_apart_stay_together(method: str, two: list[dict[str, Any]]) -> None:
    first, second = (result[method] for result in two)
    for name, weight in first[1].items():
        assert torch.equal(second[1][name], weight), name
    assert first[2] == second[2]


def test_methods_that_compare_the_samples_of_a_batch_are_not_here() -> None:
    assert [name for name in REGISTERED.names(group="") if "processes" in build_method(name).refuses] == [*REFUSING]


def naive(processes: Processes) -> dict[str, Tensor]:
    """What must not be done: each process integrates its own gradients, then they are averaged."""
    shared = model(seed=0)
    data = Points()
    integrator = MMPareto()
    integrator.synchronise = False
    step = TrainingStep(shared, Method(integrator), torch.optim.SGD(shared.parameters(), lr=0.0))
    rows = torch.arange(processes.rank, BATCH, processes.size)
    step({name: x[rows] for name, x in data.x.items()}, torch.from_numpy(data.labels)[rows])
    gradients = {}
    for name, p in shared.named_parameters():
        assert p.grad is not None
        gradients[name] = processes.total(p.grad) / processes.size
    return gradients


def test_integrated_gradients_must_not_be_averaged(two: list[dict[str, Any]]) -> None:
    """Why the gradient sets are averaged first: integration is not linear."""
    whole = naive(Processes())
    averaged = two[0]["naive"]
    heads = [name for name in whole if not name.startswith("encoders.")]
    encoders = [name for name in whole if name.startswith("encoders.")]
    assert all(torch.allclose(averaged[name], whole[name], rtol=1e-9, atol=1e-12) for name in heads)

    def flat(gradients: dict[str, Tensor]) -> Tensor:
        return torch.cat([gradients[name].flatten() for name in encoders])

    assert (flat(averaged) - flat(whole)).norm() / flat(whole).norm() > 0.01


def agree(processes: Processes) -> list[Requests]:
    answers = [processes.exchange(Requests(processes.rank == 1 and k == 1)) for k in range(4)]
    return [*answers, processes.settle()]


def test_a_flag_of_one_process_reaches_both_at_the_same_step(two: list[dict[str, Any]]) -> None:
    first, second = (result["agree"] for result in two)
    assert first == second == [Requests(save=k == 2) for k in range(5)]
    assert Processes().exchange(Requests(save=True)) == Requests(save=True)


def saves(processes: Processes) -> list[int]:
    """The steps at which a run saves, of which one process finds once that it is time."""
    steps: list[int] = []
    state = SimpleNamespace(epoch=1, saved_at=time.monotonic() if processes.rank else -1e6)

    def save(directory: object) -> None:
        del directory
        state.saved_at = time.monotonic()
        steps.append(number)

    state.save = save
    config = SimpleNamespace(run=SimpleNamespace(log_interval=1000, checkpoint_minutes=1.0))
    stopping, watch = SimpleNamespace(requested=False), SimpleNamespace(check=lambda epoch: None)
    part: Any = SimpleNamespace(
        config=config, state=state, processes=processes, stopping=stopping, watch=watch, directory=None
    )
    for number in range(1, 6):
        assert not Run.after_batch(part, number, None)  # type: ignore[arg-type]
    processes.settle()
    return steps


def test_a_checkpoint_that_is_due_is_saved_once(two: list[dict[str, Any]]) -> None:
    assert [result["saves"] for result in two] == [[2], [2]]


def buffers(processes: Processes) -> Tensor:
    norm = nn.BatchNorm1d(2)
    norm.running_mean = torch.tensor([1.0, 4.0]) * (processes.rank + 1)
    processes.average_buffers(norm)
    assert norm.running_mean is not None
    return norm.running_mean


def test_running_statistics_are_averaged(two: list[dict[str, Any]]) -> None:
    for result in two:
        assert result["buffers"].tolist() == [1.5, 6.0]


def stopped(processes: Processes) -> tuple[int, int]:
    """Batches that this process has scored, and times that it was asked, when the other one asked to stop."""
    loader = Loader(
        Points(2 * BATCH + 1), BATCH, shuffle=False, seed=0, workers=0, pin=False, rank=processes.rank,
        size=processes.size, training=False,
    )  # fmt: skip
    calls = 0

    def between() -> None:
        nonlocal calls
        calls += 1
        if processes.exchange(Requests(processes.rank == 1 and calls == 2)).save:
            raise KeyError

    with pytest.raises(KeyError):
        Scorer(model(0), CPU)(loader, processes=processes, between=between)
    return calls, len(list(loader.epoch(0)))


def test_a_request_to_stop_reaches_all_processes_while_they_score(two: list[dict[str, Any]]) -> None:
    """At the same place, although the other process has no sample of the last batch."""
    assert [result["stopped"] for result in two] == [(3, 3), (3, 2)]


def unequal(processes: Processes) -> list[str]:
    processes.refuse_differences({"--epochs": 3, "classes": ["a", "b"]})
    messages = []
    for values in ({"--epochs": 3 + processes.rank}, {"--epochs": 3, "samples of val": 20 - processes.rank}):
        with pytest.raises(UsageError) as refused:
            processes.refuse_differences(values)
        messages.append(str(refused.value))
    return messages


def test_processes_with_other_flags_or_data_are_refused_by_name_on_all(two: list[dict[str, Any]]) -> None:
    assert two[0]["unequal"] == two[1]["unequal"]
    flags, data = two[0]["unequal"]
    assert flags.startswith("rank 1 has --epochs 4, rank 0 has 3; all processes of a run need the same flags")
    assert data.startswith("rank 1 has samples of val 19, rank 0 has 20;")
