"""Two gloo processes with half the batch each, against one process with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from integration.problems import ROUTINES, LateFusion
from integration.test_interface import SOLVED, same
from torch import Tensor
from two_processes import run_in_two

from mmpareto.integration import Integrator, MMPareto, OnFeatures
from mmpareto.methods import METHODS

STEPS = 2
MICRO = 2  # micro-batches a process and step, in the accumulated case
DIAGNOSED: dict[str, Integrator] = {"mmpareto": MMPareto(), "features": OnFeatures(MMPareto())}


def half(inputs: dict[str, Tensor], label: Tensor, part: int, parts: int) -> tuple[dict[str, Tensor], Tensor]:
    size = len(label) // parts
    rows = slice(part * size, (part + 1) * size)
    return {name: x[rows] for name, x in inputs.items()}, label[rows]


def diagnosed(inputs: dict[str, Tensor], label: Tensor, integrator: Integrator) -> dict[str, Tensor]:
    """What a routine measures of each encoder."""
    model = LateFusion(2, seed=2, opposed=True)
    features = {name: encoder(inputs[name]) for name, encoder in model.encoders.items()}
    joint = F.cross_entropy(model.fusion(torch.cat(list(features.values()), 1)), (label + 1) % 3)
    unimodal = {name: F.cross_entropy(model.heads[name](feature), label) for name, feature in features.items()}
    found = integrator.backward(joint, unimodal, **model.arguments(), features=features)
    return {name: torch.stack([d.joint_norm, d.unimodal_norm, d.cosine]) for name, d in found.items()}


def work(rank: int, folder: Path) -> None:
    """One of two processes: every method, plainly and accumulated; the gradients go to a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(100 + rank)  # processes that differ in their random numbers
    reductions: list[int] = []
    real = dist.all_reduce

    def counted(*arguments: Any, **named: Any) -> Any:
        reductions.append(1)
        return real(*arguments, **named)

    dist.all_reduce = counted
    results: dict[str, Any] = {}
    for method in ROUTINES:
        for micro in (1, MICRO):
            model, integrator = LateFusion(3, seed=2, opposed=True), METHODS.build(method)
            torch.manual_seed(100 + rank)
            for step in range(STEPS):
                mine = half(*model.batch(step, size=16), rank, 2)
                reductions.clear()
                for k in range(micro):
                    joint, unimodal = model.losses(*half(*mine, k, micro))
                    call = integrator.backward if k == micro - 1 else integrator.accumulate
                    call(joint / micro, {n: loss / micro for n, loss in unimodal.items()}, **model.arguments())
                assert len(reductions) == integrator.passes, method
            results[f"{method} {micro}"] = model.gradients()

    # a parameter that one process's batch does not reach
    model, integrator = LateFusion(2, seed=2), MMPareto()
    inputs, label = model.batch(0)
    joint, unimodal = model.losses(inputs, label)
    if rank == 1:
        features = model.encoders["m0"](inputs["m0"])
        joint = F.cross_entropy(model.heads["m0"](features), label)
    integrator.backward(joint, unimodal if rank == 0 else {"m0": unimodal["m0"]}, **model.arguments())
    results["uneven"] = model.gradients()

    # left alone when asked to
    model, integrator = LateFusion(2, seed=2), MMPareto()
    integrator.synchronise = False
    reductions.clear()
    integrator.backward(*model.losses(*half(*model.batch(0, size=16), rank, 2)), **model.arguments())
    assert not reductions
    results["alone"] = model.gradients()

    for name, routine in DIAGNOSED.items():
        results[f"{name} diagnosed"] = diagnosed(*half(*LateFusion(2, 2).batch(0, size=16), rank, 2), routine)
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_in_two(work, folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("micro", [1, MICRO])
@pytest.mark.parametrize("method", ROUTINES)
def test_two_processes_are_one_with_the_whole_batch(ranks: list[Any], method: str, micro: int) -> None:
    same(ranks[1][f"{method} {micro}"], ranks[0][f"{method} {micro}"], 1e-13)
    if method == "random":  # its weights are drawn; that all processes draw the same ones is all that can be asked
        return
    model, integrator = LateFusion(3, seed=2, opposed=True), METHODS.build(method)
    for step in range(STEPS):
        integrator.backward(*model.losses(*model.batch(step, size=16)), **model.arguments())
    same(ranks[0][f"{method} {micro}"], model.gradients(), 1e-4 if method in SOLVED else 1e-10)


@pytest.mark.parametrize("name", DIAGNOSED)
def test_processes_measure_the_norms_of_the_whole_batch(ranks: list[Any], name: str) -> None:
    expected = diagnosed(*LateFusion(2, 2).batch(0, size=16), DIAGNOSED[name])
    for rank in ranks:
        same(rank[f"{name} diagnosed"], expected, 1e-10)


def test_processes_that_reach_different_parameters_agree(ranks: list[Any]) -> None:
    same(ranks[0]["uneven"], ranks[1]["uneven"], 1e-13)
    assert all(bool(gradient.isfinite().all()) for gradient in ranks[0]["uneven"].values())


def test_averaging_integrated_gradients_is_another_algorithm(ranks: list[Any]) -> None:
    """The naive way: each process integrates its own two gradients, and the results are averaged."""
    naive = {n: (ranks[0]["alone"][n] + ranks[1]["alone"][n]) / 2 for n in ranks[0]["alone"]}
    model = LateFusion(2, seed=2)
    MMPareto().backward(*model.losses(*model.batch(0, size=16)), **model.arguments())
    right = model.gradients()
    wrong = torch.cat([(naive[n] - right[n]).flatten() for n in right]).norm()
    assert wrong > 0.01 * torch.cat([g.flatten() for g in right.values()]).norm()
