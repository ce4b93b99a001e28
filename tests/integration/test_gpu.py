"""On a GPU: no wait in a step, CUDA-graph capture, mixed precision; skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from integration.test_cost import ROUTINES, Convolutional
from torch import Tensor
from torch.utils import _pytree as pytree

from mmpareto.integration import Integrator, MMPareto
from mmpareto.methods import METHODS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none"),
]


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def losses(model: Convolutional, inputs: dict[str, Tensor], label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    features = {name: encoder(inputs[name]) for name, encoder in model.encoders.items()}
    joint = F.cross_entropy(model.fusion(torch.cat(list(features.values()), 1)), label)
    return joint, {name: F.cross_entropy(model.heads[name](f), label) for name, f in features.items()}


@pytest.fixture
def problem() -> tuple[Convolutional, dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    model = Convolutional(2).cuda()
    inputs = {name: torch.randn(5, 2, 8, 8, device="cuda") for name in model.encoders}
    return model, inputs, torch.tensor([0, 1, 2, 0, 1], device="cuda")


@pytest.mark.parametrize("routine", ROUTINES, ids=lambda r: f"{type(r).__name__}-{getattr(r, 'rescale', '')}")
@pytest.mark.parametrize("amp", [False, True])
def test_a_whole_step_never_waits(routine: Integrator, amp: bool, problem, waiting_is_an_error: None) -> None:  # type: ignore[no-untyped-def]
    model, inputs, label = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16, enabled=amp):
            both = losses(model, inputs, label)
        routine.backward(*both, **model.arguments(), diagnose=True)
        optimizer.step()


@pytest.mark.parametrize("routine", ROUTINES, ids=lambda r: f"{type(r).__name__}-{getattr(r, 'rescale', '')}")
def test_a_captured_step_equals_an_eager_one(routine: Integrator, problem) -> None:  # type: ignore[no-untyped-def]
    model, inputs, label = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        routine.backward(*losses(model, inputs, label), **model.arguments())
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    weights = [p.detach().clone() for p in model.parameters()]
    momenta = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    graph.replay()
    captured = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p, weight, momentum in zip(model.parameters(), weights, momenta, strict=True):
            p.copy_(weight)
            optimizer.state[p]["momentum_buffer"].copy_(momentum)
    step()
    step()
    for p, other in zip(model.parameters(), captured, strict=True):
        assert torch.allclose(p, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["gradvac", "pcd", "cr_mogm", "nash_mtl"])
def test_a_state_that_was_loaded_to_the_gpu_goes_on_alike(name: str) -> None:
    whole, parted = METHODS.build(name), METHODS.build(name)
    gramians = torch.tensor([[[2.0, -1.0], [-1.0, 1.0]]], dtype=torch.float64, device="cuda")
    for routine in (whole, parted):
        routine.coefficients(gramians)
    state = pytree.tree_map_only(Tensor, Tensor.cuda, parted.state_dict())
    parted = METHODS.build(name)
    parted.load_state_dict(state)
    assert torch.equal(parted.coefficients(3 * gramians), whole.coefficients(3 * gramians))


def test_gpu_and_cpu_agree(problem) -> None:  # type: ignore[no-untyped-def]
    model, inputs, label = problem
    model.double()
    MMPareto().backward(*losses(model, {n: x.double() for n, x in inputs.items()}, label), **model.arguments())
    on_gpu = {name: p.grad.cpu() for name, p in model.named_parameters()}
    model.cpu()
    inputs = {name: x.double().cpu() for name, x in inputs.items()}
    MMPareto().backward(*losses(model, inputs, label.cpu()), **model.arguments())
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, on_gpu[name], rtol=1e-9, atol=1e-12)
