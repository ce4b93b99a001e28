"""TorchJD's scalarizations as methods, over several steps, against TorchJD in a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods.small import batch, gradients, make
from methods.test_method_gradients import assert_same
from methods.test_newer_gradients import begin
from torch import Tensor
from torchjd import scalarization as theirs

from mmpareto.methods import METHODS, Losses, MethodError, Piece, cross_entropies
from mmpareto.methods.scalarizations import GROUP
from mmpareto.models import MultimodalModel
from mmpareto.training.step import TrainingStep

RATE, STEPS = 0.2, 4
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 1.0], dtype=torch.float64)
TEXT = "joint:0.5,x:2"
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gls": (lambda count: theirs.GeometricMean(), {}),
    "stch": (lambda count: theirs.STCH(0.3), {"mu": 0.3}),
    "cosmos": (lambda count: theirs.COSMOS(2.0, WEIGHTS[:count] / count), {"penalty": 2.0, "weights": "all"}),
    "pbi": (lambda count: theirs.PBI(5.0, WEIGHTS[:count]), {"weights": TEXT}),
    "constant": (lambda count: theirs.Constant(WEIGHTS[:count]), {"weights": TEXT}),
    "uw": (theirs.UW, {"rate": RATE}),
    "imtl_l": (theirs.IMTLL, {"rate": RATE}),
    "dwa": (lambda count: theirs.DWA(0.01), {"temperature": 0.01}),
    "famo": (theirs.FAMO, {}),
}


def losses_of(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor) -> Tensor:
    output = model(inputs)
    return torch.stack([F.cross_entropy(u, label) for u in (output.joint, *output.unimodal.values())])


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_weights_follow_torchjd(name: str, modalities: int) -> None:
    scalarization, options = CASES[name]
    count = modalities + 1
    if options.get("weights") == "all":
        values = (WEIGHTS[:count] / count).tolist()
        options = options | {"weights": ",".join(f"{n}:{v!r}" for n, v in zip(["joint", *"xyz"], values, strict=False))}
    method, model = make(name, modalities, **options)
    twin = make(name, modalities, **options)[1]
    function = scalarization(count).double()
    step = TrainingStep(model, method, torch.optim.SGD(model.parameters(), lr=RATE))
    optimizer = torch.optim.SGD([*twin.parameters(), *(function.parameters() if name != "famo" else ())], lr=RATE)
    for seed in range(STEPS):
        if seed % 2 == 0:  # an epoch is two batches
            begin(method, model, seed // 2 + 1)
        inputs, label = batch(model, seed=seed)
        step(inputs, label)
        losses = losses_of(twin, inputs, label)
        if name == "famo" and seed:
            function.update(losses)
        optimizer.zero_grad()
        function(losses).backward()
        optimizer.step()
        if name == "dwa" and seed % 2:
            function.step()
    expected = dict(twin.named_parameters())
    assert_same(dict(model.named_parameters()), expected, rtol=1e-6, atol=1e-9)
    if name == "dwa":  # in the third epoch for the first time
        begin(method, model, 3)
        inputs, label = batch(model, seed=9)
        values = losses_of(twin, inputs, label)
        scalar = function(values)
        (weights,) = torch.autograd.grad(scalar, values)
        assert (weights - 1).abs().max() > 0.01
        torch.testing.assert_close(method.state["weights"], weights)
    assert all(key.split("_", 1)[1] in ("joint", "x", "y", "z") for key in method.figures())


def test_all_of_torchjd_s_scalarizations_are_here() -> None:
    ours = {"GeometricMean": "gls", "Random": "rlw", "IMTLL": "imtl_l"}
    names = {ours.get(name, name.lower()) for name in theirs.__all__} - {"mean", "sum", "scalarizer"}
    assert names == set(METHODS.names(group=GROUP))  # the two left out are `uniform`, times a number


def test_equal_constants_are_the_uniform_sum_and_wrong_names_are_refused() -> None:
    inputs, label = batch(make("uniform")[1])
    expected = gradients(*make("uniform"), inputs, label)
    assert_same(gradients(*make("constant"), inputs, label), expected)
    assert_same(gradients(*make("dwa"), inputs, label), expected)
    assert_same(gradients(*make("imtl_l"), inputs, label), expected)
    with pytest.raises(MethodError, match="'sound'; the names are joint, x, y"):
        make("constant", weights="sound:2")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # of the losses 1 and 2 alone
        ("gls", [2**0.5 / 2, 2**0.5 / 4]),
        ("famo", [2 / 3, 1 / 3]),
        # of 1, 2 and 1.5, their mean
        ("stch", [0.009711, 0.272209]),
        ("cosmos", [0.252001, 0.385090]),
        ("pbi", [-2.958184, 4.112884]),
        ("uw", [0.5, 0.5]),
        ("imtl_l", [1.0, 1.0]),
    ],
)
def test_a_loss_of_a_modality_that_no_sample_has_says_nothing(name: str, expected: list[float]) -> None:
    """It is 0, of which the logarithm is not a number."""
    method, _ = make(name)
    weights = method.weights(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    assert weights[:2].tolist() == pytest.approx(expected, abs=1e-6)
    assert method.weights(torch.zeros(3, dtype=torch.float64)).abs().max() <= 1  # nothing is left to learn


@pytest.mark.parametrize("name", ["uw", "imtl_l"])
def test_the_scale_of_a_loss_that_no_sample_has_stays(name: str) -> None:
    method, model = make(name)
    inputs, label = batch(model)
    output = model(inputs)
    losses = cross_entropies(output, label)
    losses = losses._replace(unimodal=losses.unimodal | {"y": losses.unimodal["y"] * 0})
    method.losses(Piece(output, label, losses, 1.0))
    method.gradients(model)
    (scales,) = method.state.values()
    assert (scales != 0).tolist() == [True, True, False]


def test_dwa_s_means_are_over_the_steps_that_have_the_modality() -> None:
    method, model = make("dwa")
    inputs, label = batch(model)
    output = model(inputs)
    for x, y in ((1.0, 2.0), (3.0, 0.0)):
        losses = Losses(torch.tensor(1.0), {"x": torch.tensor(x), "y": torch.tensor(y)})
        method.losses(Piece(output, label, losses, 1.0))
        method.gradients(model)
    begin(method, model, 2)
    assert method.state["means"][1].tolist() == [1, 2, 2]


@pytest.mark.parametrize("name", ["constant", "stch", "cosmos", "pbi"])
def test_weights_that_are_all_zero_are_refused(name: str) -> None:
    with pytest.raises(MethodError, match="all weights are 0"):
        make(name, weights="joint:0,x:0,y:0")


def test_famo_follows_the_losses_that_are_there() -> None:
    """w moves as it does for these losses alone; the loss that was absent is compared with when it was last there."""
    (parted, _), (whole, _) = make("famo", decay=0.0), make("famo", decay=0.0)
    rows = torch.tensor([[1.0, 2.0, 3.0], [0.5, 1.5, 0.0], [0.4, 1.4, 2.0]], dtype=torch.float64)
    parted.weights(rows[0])
    start = parted.state["w"].clone()
    parted.weights(rows[1])
    moved = parted.state["w"] - start
    assert moved[2] == 0
    assert parted.state["before"].tolist() == [0.5, 1.5, 3.0]
    assert moved[0] < 0 < moved[1]  # the first fell faster than the mean of both
    parted.weights(rows[2])
    assert torch.equal(parted.state["before"], rows[2])
    for row in (rows[0], rows[2]):
        whole.weights(row)
    assert whole.state["w"][2] < whole.state["w"][1]
    assert parted.state["w"].isfinite().all()


def test_random_weights_sum_up_to_one_change_and_are_the_same_for_one_seed() -> None:
    drawn = []
    for _ in range(2):
        method, model = make("rlw")
        inputs, label = batch(model)
        for _ in range(2):
            drawn.append(torch.softmax(method.state["drawn"], 0))
            gradients(method, model, inputs, label)
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
    assert not torch.allclose(drawn[0], drawn[1])
