"""Encoder by encoder or through all encoders at once: the same gradients; which losses can be taken apart."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from integration.problems import LateFusion
from torch import Tensor, nn

from mmpareto.integration import MMPareto, graph, integrator
from mmpareto.integration.partition import Branch, separate

Losses = tuple[Tensor, dict[str, Tensor]]


def branches(model: LateFusion, losses: Losses) -> dict[str, Branch] | None:
    return walked(model, losses)[0]


def walked(model: LateFusion, losses: Losses) -> tuple[dict[str, Branch] | None, set[graph.Node]]:
    """The branches, and the nodes that the joint loss alone reaches."""
    routine = MMPareto()
    given = routine._given(*losses, **model.arguments(), model=None, features=None)
    part, joint_only, walks = routine._prepare([given.joint], given.unimodal, given)
    return separate(part, given.unimodal, walks), joint_only


def shared_head(model: LateFusion) -> Losses:
    inputs, label = model.batch(0)
    features = {name: encoder(inputs[name]) for name, encoder in model.encoders.items()}
    return model.losses(inputs, label)[0], {
        m: F.cross_entropy(model.heads["m0"](f), label) for m, f in features.items()
    }


def one_node_for_all(model: LateFusion) -> Losses:
    joint, unimodal = model.losses(*model.batch(0))
    scales = torch.stack([p.sum() for p in model.heads["m0"].parameters()]).exp()
    return joint, {name: loss * scales[0] for name, loss in unimodal.items()}


def dense(model: LateFusion) -> Losses:
    inputs, label = model.batch(0)
    joint, unimodal = model.losses(inputs, label)
    both = model.encoders["m0"](inputs["m0"]) + model.encoders["m1"](inputs["m1"])
    return joint, unimodal | {"m0": F.cross_entropy(model.heads["m0"](both), label)}


@pytest.mark.parametrize("opposed", [False, True])
def test_branch_by_branch_is_the_whole_to_the_bit(opposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LateFusion(3, seed=0, opposed=opposed)
    model.encoders["m1"].requires_grad_(False)
    model.encoders["m2"].register_parameter("idle", nn.Parameter(torch.ones(3)))
    losses = model.losses(*model.batch(0))
    parts = branches(model, losses)
    assert parts is not None
    assert list(parts) == ["m0", "m2"]
    assert [len(branch.losses) for branch in parts.values()] == [2, 1]  # that of the frozen encoder's head comes first
    diagnostics = MMPareto().backward(*losses, **model.arguments())
    apart = model.gradients()
    monkeypatch.setattr(integrator, "separate", lambda *_: None)
    whole_diagnostics = MMPareto().backward(*model.losses(*model.batch(0)), **model.arguments())
    whole = model.gradients()
    assert apart.keys() == whole.keys()
    assert all(torch.equal(apart[name], whole[name]) for name in whole)
    assert all(torch.equal(a, b) for m in parts for a, b in zip(diagnostics[m], whole_diagnostics[m], strict=True))


@pytest.mark.parametrize("losses", [shared_head, one_node_for_all, dense])
def test_losses_with_something_in_common_go_through_all_encoders_at_once(
    losses: Callable[[LateFusion], Losses],
) -> None:
    model = LateFusion(2, seed=0)
    assert branches(model, losses(model)) is None
    MMPareto(gamma=1.0).backward(*losses(model), **model.arguments())
    assert model.gradients().keys() >= {"encoders.m0.0.weight", "encoders.m1.0.weight", "heads.m0.weight"}


def test_nothing_is_left_behind_where_the_second_encoder_fails() -> None:
    class Failing(MMPareto):
        def encoder_coefficients(self, encoder: str, gramians: Tensor) -> Tensor:
            if encoder == "m1":
                raise ArithmeticError("no coefficients")
            return super().encoder_coefficients(encoder, gramians)

    model = LateFusion(2, seed=0)
    with pytest.raises(ArithmeticError):
        Failing().backward(*model.losses(*model.batch(0)), **model.arguments())
    assert not model.gradients()


def test_frozen_encoders_alone_have_no_branches() -> None:
    model = LateFusion(2, seed=0)
    model.encoders.requires_grad_(False)
    assert branches(model, model.losses(*model.batch(0))) is None


class Residual(nn.Module):
    """Nine residual blocks on vectors; two neighbours have a layer in common where `shared`."""

    def __init__(self, width: int, shared: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(width, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(layer for _ in range(2) for layer in (nn.Linear(4, 4), nn.Tanh()))) for _ in range(9)
        )
        if shared:
            self.blocks[4][0] = self.blocks[3][0]  # where a cut would be
        self.hook: Callable[[Tensor], Tensor] | None = None  # of the gradient of each block's output

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
            if self.hook is not None:
                x.register_hook(self.hook)
        return x


def number_of_segments(model: LateFusion, losses: Losses) -> list[int]:
    """Of each encoder's graph."""
    parts, joint_only = walked(model, losses)
    assert parts is not None
    return [len(graph.segments([losses[0], *branch.losses], branch.nodes, joint_only)) for branch in parts.values()]


@pytest.mark.parametrize("opposed", [False, True])
@pytest.mark.parametrize(
    ("change", "segments"),
    [
        ("none", [3, 3]),
        ("shared", [3, 3]),
        ("frozen", [3, 3]),
        ("hooks", [3, 3]),
        ("no unimodal loss", [1, 2]),
        ("no joint loss", [3, 3]),
    ],
)
def test_segment_by_segment_is_the_whole_to_the_bit(
    change: str, segments: list[int], opposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    encoders: list[nn.Module] = [Residual(5 + i, change == "shared") for i in range(2)]
    model = LateFusion(2, seed=0, opposed=opposed, encoders=encoders)
    first, second = model.encoders.values()
    calls: list[Tensor] = []
    if change == "frozen":
        first.blocks[2].requires_grad_(False)
        second.first.requires_grad_(False)
        second.blocks[0].requires_grad_(False)
    if change == "hooks":
        first.hook = lambda gradient: calls.append(gradient) or 0.9 * gradient

    def losses() -> Losses:
        calls.clear()
        inputs, label = model.batch(0)
        joint, unimodal = model.losses(inputs, label)
        if change == "no unimodal loss":  # reaches the first encoder
            unimodal["m0"] = F.cross_entropy(model.heads["m0"](first(inputs["m0"]).detach()), label)
        if change == "no joint loss":
            features = torch.cat([encoder(inputs[name]).detach() for name, encoder in model.encoders.items()], 1)
            joint = F.cross_entropy(model.fusion(features), label)
        return joint, unimodal

    assert number_of_segments(model, losses()) == segments
    diagnostics = MMPareto().backward(*losses(), **model.arguments())
    in_segments, calls_in_segments = model.gradients(), len(calls)
    monkeypatch.setattr(graph, "SMALLEST_SEGMENT", 10**6)
    assert number_of_segments(model, losses()) == [1, 1]
    whole_diagnostics = MMPareto().backward(*losses(), **model.arguments())
    whole = model.gradients()
    assert calls_in_segments == len(calls) == (18 if change == "hooks" else 0)
    assert in_segments.keys() == whole.keys()
    assert all(torch.equal(in_segments[name], whole[name]) for name in whole)
    assert all(
        torch.equal(a, b) for m in diagnostics for a, b in zip(diagnostics[m], whole_diagnostics[m], strict=True)
    )


class Watched(torch.autograd.Function):
    """The identity, which counts its backward passes and the tensors of later layers that are alive in them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, saved: list[weakref.ref[Tensor]], alive: list[int]) -> Tensor:
        ctx.saved, ctx.alive = saved, alive
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        ctx.alive.append(sum(kept() is not None for kept in ctx.saved))
        return gradients[0], None, None


def test_a_segment_is_freed_before_the_next_one_begins() -> None:
    """In both passes through the first layer nothing is alive that later blocks kept for theirs."""
    saved: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Kept:
        """What autograd holds instead of a tensor."""

        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def pack(tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        saved.append(weakref.ref(kept))
        return kept

    class Saving(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = Watched.apply(self.first(x), saved, alive)
            x = x + self.blocks[0](x)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
                for block in self.blocks[1:]:
                    x = x + block(x)
            return x

    model = LateFusion(2, seed=0, encoders=[Saving(5), Residual(6)])
    MMPareto().backward(*model.losses(*model.batch(0)), **model.arguments())
    assert len(saved) > 30
    assert alive == [0, 0]
