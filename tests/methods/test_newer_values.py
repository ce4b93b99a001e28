"""Formulas of the newer methods on values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import sklearn.cluster
import torch
import torch.nn.functional as F
from methods.small import batch, close, make, t
from sklearn.cluster import KMeans
from torch import nn

from mmpareto.methods import (
    METHODS,
    Losses,
    Piece,
    build_method,
    competition,
    cross_entropies,
    inforeg,
    lfm,
    mlb,
    opm,
    relearning,
    synib,
)
from mmpareto.methods.shared import divergence
from mmpareto.models import ConcatFusion, EnsembleFusion, Output


def test_mlb_s_factors() -> None:
    close(mlb.coefficients(t([0.6, 0.3]), 0.5, 2), [0.755081, 1.462117])
    close(mlb.coefficients(t([0.6, 0.3]), 0.5, 10), [0.755081, 5.159054])
    close(mlb.coefficients(t([0.6, 0.3]), 2, 0.5), [0.238406, 0.517986])
    close(mlb.coefficients(t([0.6, 0.3, 0.2]), 1, 2), [0.474916, 1.321513, 1.848284])
    close(t([0.2, -0.4]) * mlb.coefficients(t([0.6, 0.3]), 0.5, 2)[0], [0.151016, -0.302032])
    close(mlb.coefficients(t([0.4, 0.4, 0.4]), 3, 7), [1, 1, 1])


@pytest.mark.parametrize(
    ("weight", "bias", "features", "label", "alpha", "losses", "gradients"),
    [
        (
            [[1.0, 0.5], [-1.0, 0.2]], [0.1, 0], {"x": [[1.0]], "y": [[2.0]]}, [0], 4.0,
            [0.065044, 0.115520, 0.403186], {"x": [[-0.872775]], "y": [[-0.398175]]},
        ),
        (
            [[1.0, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0.5, 0.5]], [0, 0, 0],
            {"x": [[1.0, -1], [0, 2]], "y": [[0.5, 0.5], [1, 0]]}, [0, 2], 2.0,
            [1.515739, 1.323575, 1.139441],
            {"x": [[-0.334759, 0.090031], [0.106507, 0.786986]], "y": [[0.5, -0.5], [0.160078, -0.160078]]},
        ),
    ],
)  # fmt: skip
def test_dgl_s_losses_and_gradients(
    weight: object, bias: object, features: dict[str, Any], label: list[int], alpha: float,
    losses: object, gradients: dict[str, Any],
) -> None:  # fmt: skip
    method, model = make("dgl", alpha=alpha)
    inputs = {name: t(value).requires_grad_() for name, value in features.items()}
    widths = {name: value.shape[1] for name, value in inputs.items()}
    classes, target = len(t(weight)), torch.tensor(label)
    model.fusion = ConcatFusion(widths, classes).double()
    model.fusion.head.weight, model.fusion.head.bias = nn.Parameter(t(weight)), nn.Parameter(t(bias))
    model.heads = nn.ModuleDict({name: nn.Linear(width, classes).double() for name, width in widths.items()})
    output = Output(inputs, {name: head(inputs[name]) for name, head in model.heads.items()}, model.fusion(inputs))
    minimised = method.losses(Piece(output, target, cross_entropies(output, target), 1.0))
    heads = [F.cross_entropy(head(inputs[name].detach()), target) for name, head in model.heads.items()]
    masked = [(loss - head) / alpha for loss, head in zip(minimised.unimodal.values(), heads, strict=True)]
    close(torch.stack([minimised.joint, *masked]).detach(), losses)
    total = torch.stack([*minimised.unimodal.values()]).sum()
    for name, gradient in gradients.items():
        close(torch.autograd.grad(total, inputs[name], retain_graph=True)[0], gradient)
    head = model.fusion.head.weight
    assert torch.autograd.grad(total, head, allow_unused=True, retain_graph=True) == (None,)
    if classes == 2:
        close(torch.autograd.grad(minimised.joint, head)[0], [[-0.062973, -0.125947], [0.062973, 0.125947]])


def test_lfm_s_schedule_loss_and_gradients() -> None:
    close(t([lfm.schedule(epoch) for epoch in (0, 100, 199, 300)]), [0.204624, 0.539155, 0.915989, 0.915989])
    logits = {"a": t([[2.0, 0]]).requires_grad_(), "v": t([[0.0, 0.5]]).requires_grad_()}
    gap = torch.stack([*lfm.differences(logits).values()]).sum()
    heads = torch.nn.ModuleDict({name: torch.nn.Identity() for name in logits})
    joint = F.cross_entropy(EnsembleFusion(heads, "logits")(logits), torch.tensor([0]))
    close(torch.stack((gap, joint)).detach(), [0.169229, 0.386871])
    losses = [2 * (lfm.schedule(e) * joint + (1 - lfm.schedule(e)) * gap) for e in (0, 100)]
    close(torch.stack(losses).detach(), [0.427528, 0.573144])
    first, second = torch.autograd.grad(losses[0], [*logits.values()])
    close(first, [[0.116007, -0.116007]])
    close(second, [[-0.307160, 0.307160]])


def test_lfm_s_gradients_are_numbers_where_probabilities_underflow() -> None:
    logits = {"a": torch.tensor([[150.0, 0, 0]]).requires_grad_(), "v": torch.tensor([[140.0, 0, -5]]).requires_grad_()}
    gap = torch.stack([*lfm.differences(logits).values()]).sum()
    assert all(torch.equal(g, torch.zeros(1, 3)) for g in torch.autograd.grad(gap, [*logits.values()]))


def test_inforeg_s_pulls_and_traces() -> None:
    close(inforeg.pull(t([0.4, 0.2]), 0.9, False), [1.194393, 0])
    close(inforeg.pull(t([0.25, 0.2]), 0.9, False), [1.045989, 0])
    close(inforeg.pull(t([0.5, 0.3, 0.1]), 0.9, False)[:1], [np.exp(0.9 * np.tanh(0.3))])  # the mean of 0.2 and 0.4
    close(inforeg.pull(t([0.3, 0.0]), 0.9, True), [1.271274, 0])
    close(inforeg.pull(t([0.0, 0.3]), 0.9, True), [0, 0.133818])
    close(inforeg.pull(t([12.8, 0.0]), 0.9, True), [2.582368, 0])
    close(inforeg.pull(t([0.0, 12.8]), 0.9, True), [0, 0.271828])
    close(t([0.5, -0.5]) + inforeg.pull(t([0.4, 0.2]), 0.9, False)[0] * t([0.2, -0.2]), [0.738879, -0.738879])
    close(torch.stack([inforeg.squares([t(g)], mean=True) for g in ([1, 2], [3, 0])]).sum(), 7)


def test_opm_drops_features_of_one_modality_at_most() -> None:
    scores = torch.rand(4, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dropped = [opm.drop_rates(drawn**8, 0.9, 1.0) > 0 for drawn in scores.unbind(1)]
    assert {int(rates.sum()) for rates in dropped} == {0, 1}


def test_opm_s_rates() -> None:
    rates = opm.drop_rates(t([1.363103, 0.785196]), 0.5, 0.5)
    close(rates, [0.656681, 0])
    share = opm.share_dropped(rates, [512.0, 512.0])
    close(torch.stack((share, 1 / (1 - share), (1 - rates[0]) / (1 - share))), [0.328341, 1.488850, 0.511150])
    rates = opm.drop_rates(t([3, 1]), 0.5, 0.5)
    share = opm.share_dropped(rates, [64.0, 512.0])
    close(torch.stack((rates[0], share, 1 / (1 - share))), [0.741007, 0.082334, 1.089721])
    rates = opm.drop_rates(t([3, 1, 1]), 0.5, 0.5)
    share = opm.share_dropped(rates, [8.0, 8.0, 8.0])
    close(torch.stack((rates[0], share, 1 / (1 - share))), [0.615529, 0.205176, 1.258141])
    close(opm.drop_rates(t([3, 1]), 0.8, 0.9), [1, 0])


def test_synib_s_penalty() -> None:
    close(divergence(t([[2.0, 0, 0]]), t([[0.0, 0, 0]])), 0.433040)  # from uniform
    close(divergence(t([[5.0, 5.0, 5.0]]), t([[0.0, 0, 0]])), 0)
    close(divergence(t([[1.0, 0]]), t([[0.0, 0]])), 0.110944)
    close(synib.spread(t([[2.0, -1.0]]), t([[0.0, 0.5]])), 2.574361)
    close(synib.spread(t([[0.0, 0.0]]), t([[0.0, 0.0]])), 0)
    close(synib.evidence(torch.expm1(t([[1.0, 1e-20]])).log()), math.log(2) - 0.5)  # concentrations 2 and 1
    close(synib.evidence(t([[-40.0, -40.0, -40.0]])), 0)


def test_relearning_s_purity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six samples in three clusters (0, 0, 0, 1, 1, 2), two of each class: 4 of 6."""
    features = np.array([[0.0], [0.1], [0.2], [10.0], [10.1], [30.0]])
    assert relearning.purity(features, np.array([0, 0, 1, 1, 2, 2]), 3) == pytest.approx(0.666667, abs=1e-6)
    scaled: list[np.ndarray] = []

    class Clusters(KMeans):
        def fit_predict(self, features: np.ndarray) -> np.ndarray:
            scaled.append(features)
            return super().fit_predict(features)

    monkeypatch.setattr(sklearn.cluster, "KMeans", Clusters)
    relearning.purity(np.array([[0.0, 10.0], [5.0, 20.0], [10.0, 15.0]]), np.array([0, 1, 2]), 3)
    close(torch.from_numpy(scaled[0]), [[-1, -1], [0, 1], [1, 0]])


def test_mcr_s_influences_and_games() -> None:
    audio, visual = t([[2, 0], [0, 1]]).requires_grad_(), t([[0.5, 0], [0, 0.5]]).requires_grad_()
    parts = {"a": audio, "v": visual}
    influences = competition.influences(parts, audio + visual, 32)
    close(torch.stack([influences[frozenset(name)] for name in "av"]).detach(), [0.199664, 0.018473])
    value = competition.regularizer(parts, -1.0, 32)
    assert value.item() == 0
    first, second = torch.autograd.grad(0.1 * value, (audio, visual))
    close(first, [[-0.007116, 0.007116], [0.009208, -0.009208]])
    close(second, [[-0.009208, 0.009208], [0.007116, -0.007116]])
    first, second = torch.autograd.grad(0.1 * competition.regularizer(parts, 0.0, 32), (audio, visual))
    close(first, [[-0.009920, 0.009920], [0.014260, -0.014260]])
    close(second, [[-0.006938, 0.006938], [0.009188, -0.009188]])

    audio, visual = torch.eye(3).double().requires_grad_(), t([[0, 0, 0], [0.5, 0, 0], [0, 1, 0]]).requires_grad_()
    parts = {"a": audio, "v": visual}
    influences = competition.influences(parts, audio + visual, 1)  # each row gets the next one's features
    close(torch.stack([influences[frozenset(name)] for name in "av"]).detach(), [0.076128, 0.026444])
    first, second = torch.autograd.grad(0.1 * competition.regularizer(parts, -1.0, 1), (audio, visual))
    close(first[0], [-0.001304, -0.000008, 0.001312])
    close(second[1], [-0.001312, -0.001705, 0.003017])


def test_mcr_s_contrastive_term() -> None:
    features = [torch.eye(2).double(), t([[0.6, 0.8], [0.8, -0.6]])]
    close(competition.contrast(features, torch.tensor([0, 1]), 0.5), 2.030190)
    alike = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss = competition.contrast([alike], torch.zeros(4, dtype=torch.int64), 0.5)  # nothing to keep apart
    assert loss.item() == pytest.approx(0)
    assert torch.autograd.grad(loss, alike)[0].isfinite().all()


def test_g2d_s_distance_of_predictions() -> None:
    method, _ = make("g2d")
    same = {"x": t([[1.0, 2.0]]), "y": t([[3.0]])}
    lesson = Output(same, {"x": t([[1.0, 0.0]]), "y": t([[0.0, 1.0]])}, t(0.0))
    method.lesson = lambda piece: lesson  # type: ignore[attr-defined]
    output = Output(same, {}, t([[0.0, 1.0]]))
    losses = method.losses(Piece(output, torch.tensor([0]), Losses(t(0.0), {}), 1.0))
    close(torch.stack([losses.unimodal["x"], losses.unimodal["y"]]), [0.462117, 0])
    far = output._replace(features={"x": t([[1.0, 4.0]]), "y": t([[3.0]])})
    losses = method.losses(Piece(far, torch.tensor([0]), Losses(t(0.0), {}), 1.0))
    close(losses.unimodal["x"], 2.462117)


def test_mimo_s_shares() -> None:
    method, _ = make("mimo", mu=0.5)
    losses = Losses(t(3.0), {"x": t(1.0), "y": t(2.0)})
    weighted = method.losses(Piece(Output({}, {}, t(0.0)), torch.zeros(1), losses, 1.0))
    assert weighted.joint == 3
    close(torch.stack((weighted.unimodal["x"], weighted.unimodal["y"] / 2)), [0.119203, 0.880797])


def test_mimo_gives_no_share_to_a_modality_that_no_sample_has() -> None:
    method, _ = make("mimo", mu=0.5)
    close(method.weights(t([3.0, 1.0, 2.0, 0.0])), [1, 0.119203, 0.880797, 0])  # type: ignore[attr-defined]
    close(method.weights(t([3.0, 0.0, 0.0])), [1, 0, 0])  # type: ignore[attr-defined]


def test_synib_of_one_sample_is_the_joint_loss() -> None:
    """There is no other sample to take values from."""
    method, model = make("synib", rate=1.0)
    inputs, label = batch(model, size=1)
    output = model(inputs)
    losses = cross_entropies(output, label)
    assert torch.equal(method.losses(Piece(output, label, losses, 1.0)).joint, losses.joint)


@pytest.mark.parametrize("options", [{"beta": 0.1}, {"threshold": 0.9}, {"unimodal": True}])
def test_inforeg_s_published_rule_takes_no_other_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has no effect without published=false; leave it out"):
        build_method("inforeg", published=True, **options)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("ogm", "modulation_epochs"),
        ("ogm_ge", "modulation_epochs"),
        ("agm", "modulation_epochs"),
        ("pmr", "modulation_epochs"),
        ("pmr", "entropy_epochs"),
        ("opm", "warm_up_epochs"),
        ("greedy", "warm_up_epochs"),
    ],
)
def test_numbers_of_epochs_are_not_negative(name: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be 0 or more"):
        build_method(name, **{option: -1})


def test_g_blending_refuses_an_option_that_would_do_nothing() -> None:
    with pytest.raises(ValueError, match="super_epoch=3 has no effect without online=true"):
        build_method("gblending", super_epoch=3)
    build_method("gblending", super_epoch=3, online=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_knows_the_model_that_it_was_set_up_for(name: str) -> None:
    method, model = make(name)
    assert method.model is model


@pytest.mark.parametrize(
    ("method", "options", "needs"),
    [
        ("lfm", {"rate": 0.1}, "learned=true"),
        ("mla", {"normalise": True, "project": False}, "project=true"),
        ("pmr", {"entropy_epochs": 3}, "mu"),
        ("mcr", {"temperature": 0.1, "contrastive": 0.0}, "contrastive"),
    ],
)
def test_options_that_others_leave_without_effect_are_refused(method: str, options: dict[str, Any], needs: str) -> None:
    with pytest.raises(ValueError, match=f"has no effect without {needs}; leave it out"):
        build_method(method, **options)


def test_a_probability_and_a_share_are_no_more_than_all() -> None:
    with pytest.raises(ValueError, match="base must be a finite number, between 0 and 1, found 5"):
        build_method("opm", base=5)
    fraction = build_method("pmr", fraction=1).fraction  # type: ignore[attr-defined]
    assert (fraction, type(fraction)) == (1.0, float)
