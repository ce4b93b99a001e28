"""What the integrator refuses, what a refused call leaves behind, and what stays in memory after a call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from integration.problems import LateFusion
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.reductions import StorageWeakRef

from mmpareto.integration import (
    Integrator,
    MetaBalance,
    MMPareto,
    OneJoint,
    OneUnimodal,
    Pareto,
    PartitionError,
    Uniform,
)

ROUTINES = [OneJoint, OneUnimodal, Uniform, Pareto, MMPareto, MetaBalance]


@pytest.mark.parametrize("routine", ROUTINES)
@pytest.mark.parametrize("step", [1, 2, 7])
def test_a_parameter_that_a_later_step_reaches_is_named(routine: type[Integrator], step: int) -> None:
    model, integrator = LateFusion(2, seed=1), routine()
    late = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    for number in range(step + 1):
        joint, unimodal = model.losses(*model.batch(number))
        if number < step:
            integrator.backward(joint, unimodal, **model.arguments())
            continue
        losses = {name: loss * late for name, loss in unimodal.items()}
        with pytest.raises(PartitionError, match=r"a leaf tensor of shape \[\].*listed neither"):
            integrator.backward(joint, losses, **model.arguments())
        assert late.grad is None
    integrator.backward(*model.losses(*model.batch(9)), **model.arguments())  # and it goes on


@pytest.mark.parametrize("routine", ROUTINES)
def test_post_accumulate_hooks_are_refused(routine: type[Integrator]) -> None:
    model, calls = LateFusion(2, seed=1), []
    handle = model.encoders["m1"][2].bias.register_post_accumulate_grad_hook(calls.append)
    with pytest.raises(PartitionError, match=r"2\.bias in encoders\['m1'\] has a post-accumulate-grad hook"):
        routine().backward(*model.losses(*model.batch(0)), **model.arguments())
    assert not calls
    handle.remove()
    routine().backward(*model.losses(*model.batch(0)), **model.arguments())


def refused_calls(model: LateFusion) -> dict[str, dict[str, Any]]:
    """Arguments of `backward` that are refused, each for another reason."""
    joint, unimodal = model.losses(*model.batch(1))
    good = {"joint_loss": joint, "unimodal_losses": unimodal, **model.arguments()}
    return {
        "no scalar": good | {"joint_loss": joint.expand(3)},
        "no tensor": good | {"joint_loss": 1.0},
        "no gradient": good | {"unimodal_losses": {"m0": unimodal["m0"].detach()}},
        "no losses": good | {"unimodal_losses": {}},
        "unlisted": good | {"heads": []},
        "twice": good | {"heads": [*model.others, *model.encoders["m0"].parameters()]},
        "other parameters": good
        | {
            "encoders": {"m0": model.encoders["m0"]},
            "heads": [*model.others, *model.encoders["m1"].named_parameters()],
        },
    }


@pytest.mark.parametrize("routine", ROUTINES)
@pytest.mark.parametrize("diagnose", [False, True])
@pytest.mark.parametrize(
    "reason", ["no scalar", "no tensor", "no gradient", "no losses", "unlisted", "twice", "other parameters"]
)
@pytest.mark.parametrize("call", ["backward", "accumulate"])
def test_a_refused_call_leaves_no_micro_batch_behind(
    routine: type[Integrator], reason: str, call: str, diagnose: bool
) -> None:
    model, integrator = LateFusion(2, seed=1), routine()
    integrator.backward(*model.losses(*model.batch(5)), **model.arguments())
    clean = model.gradients()
    model.zero_grad()
    integrator.accumulate(*model.losses(*model.batch(0)), **model.arguments(), diagnose=diagnose)
    with pytest.raises((ValueError, TypeError)):
        getattr(integrator, call)(**refused_calls(model)[reason], diagnose=diagnose)
    assert not model.gradients()
    if routine is MetaBalance:
        integrator = routine()  # the first call counts in its averages
    integrator.backward(*model.losses(*model.batch(5)), **model.arguments())
    assert all(torch.equal(gradient, clean[name]) for name, gradient in model.gradients().items())


def test_a_refused_call_leaves_gradients_alone_that_are_not_its_own() -> None:
    model, integrator = LateFusion(2, seed=1), MMPareto()
    integrator.backward(*model.losses(*model.batch(0)), **model.arguments())
    before = model.gradients()
    with pytest.raises(PartitionError):
        integrator.backward(**refused_calls(model)["unlisted"])
    assert all(torch.equal(gradient, before[name]) for name, gradient in model.gradients().items())


class WrongInTheSecondEncoder(MMPareto):
    def encoder_coefficients(self, encoder: str, gramians: Tensor) -> Tensor:
        chosen = self.coefficients(gramians)
        return chosen if encoder == "m0" else chosen[:1]


def test_a_routine_that_fails_leaves_no_gradient() -> None:
    model = LateFusion(2, seed=1)
    with pytest.raises(ValueError, match=r"expected a tensor \[T, 2\]"):
        WrongInTheSecondEncoder().backward(*model.losses(*model.batch(0)), **model.arguments())
    assert not model.gradients()


@pytest.mark.parametrize("routine", ROUTINES)
def test_zeroing_gradients_between_micro_batches_changes_nothing(routine: type[Integrator]) -> None:
    gradients = []
    for zero in (False, True):
        model, integrator = LateFusion(2, seed=1), routine()
        integrator.accumulate(*model.losses(*model.batch(0)), **model.arguments())
        if zero:
            model.zero_grad()
        integrator.backward(*model.losses(*model.batch(1)), **model.arguments())
        gradients.append(model.gradients())
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


class Squash(torch.autograd.Function):
    """A function of the user's own that saves tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)


class Wide(nn.Module):
    """Two encoders; fusion and heads that keep much for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4)})
        self.joint = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
        self.heads = nn.ModuleDict({name: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)) for name in self.encoders})

    def losses(self) -> tuple[Tensor, dict[str, Tensor], list[StorageWeakRef]]:
        """The losses, and the memory of what a backward pass needs."""
        label = torch.tensor([0, 1, 1])
        features = {name: encoder(torch.ones(3, 3)) for name, encoder in self.encoders.items()}
        hidden = Squash.apply(self.joint[0](torch.cat(list(features.values()), 1)))
        again = self.joint[1](hidden)
        inner = {name: torch.sigmoid(self.heads[name][0](feature)) for name, feature in features.items()}
        joint = F.cross_entropy(self.joint[2](again), label)
        unimodal = {name: F.cross_entropy(self.heads[name][1](values), label) for name, values in inner.items()}
        kept = [hidden, again, *inner.values(), *features.values()]
        return joint, unimodal, [StorageWeakRef(tensor.untyped_storage()) for tensor in kept]

    def arguments(self) -> dict[str, Any]:
        return {"encoders": dict(self.encoders.items()), "heads": [*self.joint.parameters(), *self.heads.parameters()]}


@pytest.mark.parametrize("diagnose", [False, True])
@pytest.mark.parametrize("routine", ROUTINES)
def test_no_graph_outlives_the_call(routine: type[Integrator], diagnose: bool) -> None:
    """The losses are still referenced; the memory behind them is gone, as after `loss.backward()`."""
    model = Wide()
    joint, unimodal, memory = model.losses()
    assert not any(reference.expired() for reference in memory)
    integrator = routine()
    integrator.accumulate(joint, unimodal, **model.arguments(), diagnose=diagnose)
    assert all(reference.expired() for reference in memory)
    last_joint, last_unimodal, memory = model.losses()
    integrator.backward(last_joint, last_unimodal, **model.arguments(), diagnose=diagnose)
    assert all(reference.expired() for reference in memory)
    for loss in (joint, last_joint, *unimodal.values(), *last_unimodal.values()):
        with pytest.raises(RuntimeError, match=r"second time|freed by Integrator"):
            loss.backward()


@pytest.fixture
def _one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Model(nn.Module):
    """Gives the losses by `forward`, as wrappers need it."""

    def __init__(self, inner: LateFusion) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: dict[str, Tensor], label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.inner.losses(inputs, label)


@pytest.mark.usefixtures("_one_process")
def test_submodules_of_a_distributed_model_are_refused() -> None:
    model = LateFusion(2, seed=1)
    wrapped = nn.parallel.DistributedDataParallel(Model(model))
    losses = wrapped(*model.batch(0))
    for encoders in (model.arguments()["encoders"], {n: list(e.parameters()) for n, e in model.encoders.items()}):
        with pytest.raises(PartitionError, match=r"wrapped in DistributedDataParallel.*train the bare module"):
            MMPareto().backward(*losses, encoders=encoders, heads=model.others)
    del wrapped, losses
    MMPareto().backward(*model.losses(*model.batch(0)), **model.arguments())


@pytest.mark.usefixtures("_one_process")
def test_a_model_that_is_wrapped_after_the_first_step_is_refused() -> None:
    model, integrator = LateFusion(2, seed=1), MMPareto()
    integrator.backward(*model.losses(*model.batch(0)), **model.arguments())
    wrapped = nn.parallel.DistributedDataParallel(Model(model))
    with pytest.raises(PartitionError, match="wrapped in DistributedDataParallel"):
        integrator.backward(*wrapped(*model.batch(0)), **model.arguments())


@pytest.mark.usefixtures("_one_process")
def test_sharded_parameters_are_refused() -> None:
    model = LateFusion(2, seed=1)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(PartitionError, match=r"0\.weight in encoders\['m0'\] is a DTensor"):
        MMPareto().backward(
            torch.zeros((), requires_grad=True), {"m0": torch.zeros((), requires_grad=True)}, **model.arguments()
        )


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("routine", ROUTINES)
@pytest.mark.parametrize("sharded", ["model", "encoders"])
def test_sharded_models_are_refused_whose_parameters_are_whole_after_the_forward_pass(
    routine: type[Integrator], sharded: str
) -> None:
    model = LateFusion(2, seed=1)
    whole = Model(model).double()
    for module in [whole] if sharded == "model" else list(model.encoders.values()):
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)), reshard_after_forward=False)
    losses = whole(*model.batch(0))
    with pytest.raises(PartitionError, match=r"FSDPModule by fully_shard.*DTensors.*train the bare module"):
        routine().backward(*losses, **model.arguments())
