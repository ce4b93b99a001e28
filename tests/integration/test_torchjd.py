"""TorchJD's weightings, against TorchJD's own aggregators on the gradients themselves."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchjd.aggregation as aggregation
from integration.problems import LateFusion
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mmpareto.integration import TorchJDWeighting
from mmpareto.integration.torchjd_weighting import WEIGHTINGS
from mmpareto.methods import METHODS

NAMES = [name for name in WEIGHTINGS if name != "random"]


def gramian(first: Tensor, second: Tensor) -> Tensor:
    rows = torch.stack((first, second))
    return (rows @ rows.T).unsqueeze(0)


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_two_equal_gradients_give_their_sum(name: str, size: float) -> None:
    gradient = size * torch.tensor([3.0, 4.0], dtype=torch.float64)
    chosen = TorchJDWeighting(name).coefficients(gramian(gradient, gradient))
    assert chosen.shape == (1, 2)
    assert chosen.sum().item() == pytest.approx(2.0, rel=1e-3)


AGGREGATORS = {
    "aligned_mtl": aggregation.AlignedMTL(),
    "cagrad": aggregation.CAGrad(c=0.4),
    "dualproj": aggregation.DualProj(),
    "fairgrad": aggregation.FairGrad(alpha=1.0),
    "gradvac": aggregation.GradVac(),
    "imtl_g": aggregation.IMTLG(),
    "mgda": aggregation.MGDA(),
    "nash_mtl": aggregation.NashMTL(n_tasks=2),
    "pcd": aggregation.PCD(),
    "pcgrad": aggregation.PCGrad(),
    "upgrad": aggregation.UPGrad(),
}


def test_every_aggregator_with_a_gramian_is_compared() -> None:
    assert set(AGGREGATORS) | {"cr_mogm", "random"} == set(WEIGHTINGS)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_same_direction_as_torchjds_own_aggregator(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for case in range(12):
        rows = torch.randn(2, 6, generator=generator, dtype=torch.float64)
        if case % 2:
            rows[1] -= rows[0]
        rows /= rows.square().sum(1).mean().sqrt()  # the scale at which TorchJD's absolute constants are ours
        aggregator = AGGREGATORS[name]
        if hasattr(aggregator, "reset"):
            aggregator.reset()
        theirs = aggregator(rows)
        routine = TorchJDWeighting(name)
        chosen = routine.coefficients(gramian(rows[0], rows[1]))[0]
        assert torch.allclose(chosen @ rows, routine.scale * theirs, rtol=1e-3, atol=1e-4), case


def test_mgda_is_our_pareto() -> None:
    for seed in range(20):
        rows = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ours, theirs = (METHODS.build(n).coefficients(gramian(rows[0], rows[1])) for n in ("pareto", "mgda"))
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_zero_gradients_are_no_surprise(name: str) -> None:
    some, none = torch.tensor([3.0, 4.0]), torch.zeros(2)
    for first, second in ((none, none), (some, none), (none, some)):
        chosen = TorchJDWeighting(name).coefficients(gramian(first, second))
        assert (chosen[0, 0] * first + chosen[0, 1] * second).isfinite().all(), (first, second)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_saved_state_goes_on_identically(name: str, tmp_path: Path) -> None:
    model = LateFusion(2, seed=2, opposed=True)
    whole, parted = METHODS.build(name), METHODS.build(name)
    for step in range(4):
        if step == 2:
            torch.save(parted.state_dict(), tmp_path / "state.pt")
            parted = METHODS.build(name)
            parted.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        results = []
        for integrator in (whole, parted):
            torch.manual_seed(step)
            integrator.backward(*model.losses(*model.batch(step)), **model.arguments())
            results.append(model.gradients())
        assert all(torch.equal(results[0][n], results[1][n]) for n in results[0]), step


@pytest.mark.parametrize(("name", "state"), [("gradvac", "_phi_t"), ("pcd", "_sq_norm_ema")])
def test_a_state_that_was_loaded_to_a_gpu_goes_back_to_the_cpu_where_torchjd_computes(name: str, state: str) -> None:
    routine = METHODS.build(name)
    routine.coefficients(torch.eye(2, dtype=torch.float64)[None])
    saved = routine.state_dict()
    with FakeTensorMode():  # knows tensors of a GPU where there is none
        saved[""][f"|{state}"] = torch.ones(2, 2, device="cuda")
        routine.load_state_dict(saved)
    assert routine.state_dict()[""][f"|{state}"].device.type == "cpu"


def test_states_of_other_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the TorchJD weighting gradvac"):
        METHODS.build("gradvac").load_state_dict({"m0": {"|_lambda": torch.ones(2)}})
    with pytest.raises(ValueError, match="MMPareto carries no state"):
        METHODS.build("mmpareto").load_state_dict({"m0": {}})


def test_each_encoder_has_a_state_of_its_own() -> None:
    model = LateFusion(2, seed=2, opposed=True)
    routine = METHODS.build("gradvac")
    routine.backward(*model.losses(*model.batch(0)), **model.arguments())
    state = routine.state_dict()
    assert set(state) == {"m0", "m1"}
    assert not torch.equal(state["m0"]["|_phi_t"], state["m1"]["|_phi_t"])


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_method_has_the_options_of_torchjd_that_text_can_give(name: str) -> None:
    module, _, attribute = WEIGHTINGS[name].weighting.partition(":")
    theirs = {
        key: parameter.default
        for key, parameter in inspect.signature(getattr(importlib.import_module(module), attribute)).parameters.items()
        if key not in ("n_tasks", "weighting", "pref_vector", "projector", "initial_weights")
    }
    expected = theirs | {key: value for key, value in WEIGHTINGS[name].defaults.items() if key in theirs}
    if name == "fairgrad":
        assert expected.pop("max_iters") is None
        expected["max_iters"] = 200  # what None is with two gradients
    options = METHODS[name].options
    assert {key: option.default for key, option in options.items()} == expected
    assert all(option.help for option in options.values())


def test_options_reach_the_weighting_and_wrong_ones_are_named() -> None:
    weak, strong = (
        METHODS.build("cagrad", c=c).coefficients(torch.tensor([[[1.0, -0.5], [-0.5, 4.0]]])) for c in (0.1, 0.9)
    )
    assert not torch.allclose(weak, strong)
    with pytest.raises(ValueError, match="cagrad has no option 'd'; its options: c, norm_eps"):
        METHODS.build("cagrad", d=1)
    wrong: list[tuple[str, dict[str, float]]] = [
        *(
            ("cagrad", {"c": -1.0}),
            ("cr_mogm", {"alpha": 2.0}),
            ("fairgrad", {"alpha": -1.0}),
            ("mgda", {"epsilon": 0.0}),
        ),
        *(("gradvac", {"beta": 3.0}), ("nash_mtl", {"max_norm": float("nan")}), ("pcd", {"tau": 2.0})),
        *(("mgda", {"max_iters": 0}), ("nash_mtl", {"optim_niter": 0}), ("gradvac", {"eps": -1.0})),
    ]
    for name, values in wrong:
        with pytest.raises(ValueError, match=f"{next(iter(values))} must be"):
            METHODS.build(name, **values)
    with pytest.raises(ValueError, match="unknown TorchJD weighting 'magic'"):
        TorchJDWeighting("magic")


def test_a_missing_library_is_named_with_what_to_install() -> None:
    """And what needs PyTorch alone gets by without NumPy and TorchJD."""
    program = (
        "import sys\n"
        "for missing in ('quadprog', 'qpsolvers', 'cvxpy', 'numpy', 'torchjd'): sys.modules[missing] = None\n"
        "from mmpareto.integration import MMPareto, TorchJDWeighting\nMMPareto()\n"
        "for found in ('numpy', 'torchjd'): del sys.modules[found]\n"
        "for name in ('upgrad', 'cagrad'):\n"
        "    try: TorchJDWeighting(name)\n"
        "    except ImportError as error: print(error)\n"
    )
    code = Path(__file__).resolve().parents[2] / "code"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=code, capture_output=True, text=True, check=False, timeout=100
    )
    needed = 'needs more than is installed: pip install "torchjd[full]"'
    expected = [f"the method {name} {needed}" for name in ("upgrad", "cagrad")]
    assert [line[: len(text)] for line, text in zip(done.stdout.splitlines(), expected, strict=True)] == expected


def test_all_are_methods() -> None:
    assert set(WEIGHTINGS) <= set(METHODS)


LEFT_OUT = {"Mean", "Sum", "Constant", "Krum", "MoDo", "SDMGrad", "ExcessMTL", "GradDrop", "ConFIG", "TrimmedMean"}


def test_nothing_that_torchjd_offers_is_forgotten() -> None:
    """Every aggregator and weighting is a method, or left out with a reason that docs/methods.md gives."""
    bases = {"Aggregator", "Weighting", "WeightedAggregator", "GramianWeightedAggregator"}
    offered = {name.removesuffix("Weighting") for name in dir(aggregation) if name[0].isupper()} - bases - {""}
    ours = {entry.weighting.partition(":")[2].strip("_").removesuffix("Weighting") for entry in WEIGHTINGS.values()}
    assert offered == ours | LEFT_OUT
    reasons = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text().partition("Left out")[2]
    assert all(name in reasons for name in LEFT_OUT)
