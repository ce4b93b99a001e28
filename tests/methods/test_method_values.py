"""Each method's formula on values worked out by hand, from the papers' equations."""

from __future__ import annotations

import math

import pytest
import torch
from methods.small import batch, gradients, make
from torch import nn

from mmpareto.evaluation.shapley import shapley
from mmpareto.integration import MetaBalance
from mmpareto.methods import Piece, agm, cross_entropies, gblending, gradnorm, mslr, ogm, pmr
from mmpareto.models import ConcatFusion, CosineFusion, EnsembleFusion


def test_ogm_s_scores_and_coefficients() -> None:
    audio = torch.tensor([[2.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    visual = torch.tensor([[0.5, 0, 0], [0, 0, 0]], dtype=torch.float64)
    scores = torch.stack([u.softmax(1)[[0, 1], [0, 1]].sum() for u in (audio, visual)])
    assert scores.tolist() == pytest.approx([1.363103, 0.785196], abs=1e-6)
    assert ogm.coefficients(scores, 0.8).tolist() == pytest.approx([0.117093, 1], abs=1e-6)
    assert ogm.coefficients(scores, 0.1).tolist() == pytest.approx([0.828123, 1], abs=1e-6)
    three = torch.tensor([0.6, 0.3, 0.2], dtype=torch.float64)  # mean ratios 2.5, 1, 0.5
    assert ogm.coefficients(three, 0.3).tolist() == pytest.approx([0.364851, 1, 1], abs=1e-6)


def test_g_blending_s_weights() -> None:
    before, after = [(2.0, 2.0)] * 3, [(0.5, 1.2), (1.0, 1.4), (0.2, 1.1)]  # audio, visual, joint
    assert gblending.blend(before, after) == pytest.approx([0.251419, 0.577477, 0.171104], abs=1e-6)
    assert gblending.blend([(1.0, 1.0)] * 2, [(0.5, 2.0), (0.1, 1.5)]) == [0.5, 0.5]  # nothing generalises
    steady = gblending.blend([(1.0, 1.0)] * 2, [(0.5, 0.5), (0.5, 0.9)])  # no overfitting at all: bounded
    assert steady == pytest.approx([1 / 1.05, 0.05 / 1.05], abs=1e-6)  # a tenth of the equal weight
    # a joint loss that rises: its head learns all the same
    assert gblending.blend([(1.0, 1.0)] * 2, [(0.5, 2.0), (0.5, 0.9)]) == pytest.approx([0.05 / 1.05, 1 / 1.05])


def test_pmr_s_distances_and_coefficients() -> None:
    features, prototypes = torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[0.0, 0], [0, 1]])
    distance = pmr.distances(features, prototypes)
    assert distance.flatten().tolist() == pytest.approx([1, 1.414214, 2, 1], abs=1e-6)
    right = (-distance).softmax(1)[[0, 1], [0, 1]]
    assert right.tolist() == pytest.approx([0.602098, 0.731059], abs=1e-6)
    slow, fast = pmr.coefficients(torch.tensor([0.6, 0.4]))
    assert slow.tolist() == pytest.approx([0, 0.5])
    assert fast.tolist() == pytest.approx([0.5, 0])
    slow, fast = pmr.coefficients(torch.tensor([0.5, 0.4, 0.2]))
    assert slow.tolist() == pytest.approx([0, 0.25, 1])
    assert fast.tolist() == pytest.approx([1, 1, 0])


def test_pmr_s_distances_far_from_the_origin() -> None:
    """Features of a norm of 1,600 that are a few units apart, a whole batch of them."""
    generator = torch.Generator().manual_seed(0)
    features = 100 + torch.randn(64, 256, generator=generator) / 8
    prototypes = 100 + torch.randn(30, 256, generator=generator) / 8
    plain = (features.double()[:, None] - prototypes.double()).square().sum(-1).sqrt()
    assert torch.allclose(pmr.distances(features, prototypes).double(), plain, rtol=1e-5)


def test_pmr_s_losses_by_hand() -> None:
    """One class far, one near; cross-entropy 0.410299 of the prototypes on the features of the case above."""
    method, model = make("pmr", alpha=2.0, mu=0.5)
    method.state["weights"].copy_(torch.tensor((2.0, 0.5)))
    for name in ("x", "y"):
        method.state[f"prototypes_{name}"] = torch.tensor([[0.0, 0], [0, 1]], dtype=torch.float64)
    slow, fast = torch.tensor([[1.0, 0], [0, 2]]).double(), torch.tensor([[0.0, 0], [0, 1]]).double()
    output = model(batch(model, 2)[0])._replace(features={"x": slow, "y": fast})
    label = torch.tensor([0, 1])
    plain = cross_entropies(output, label)
    losses = method.losses(Piece(output, label, plain, 1.0))
    q = [(-torch.cdist(f, torch.tensor([[0.0, 0], [0, 1]]).double())).softmax(1) for f in (slow, fast)]
    s = [p[[0, 1], [0, 1]].mean().item() for p in q]
    assert s[0] == pytest.approx(1.333156 / 2, abs=1e-6)
    entropy = -(q[1] * q[1].log()).sum(1).mean().item()
    expected = 2.0 * min(1, s[1] / s[0] - 1) * 0.410299 - 0.5 * min(1, s[1] / s[0] - 1) * entropy
    assert (losses.joint - plain.joint).item() == pytest.approx(expected, abs=1e-6)
    assert losses.unimodal == plain.unimodal


def test_agm_s_kappa() -> None:
    two = agm.kappa(torch.tensor([0.5, 1.0]).double(), torch.tensor([0.7, 0.9]).double(), 1.5)
    assert two.tolist() == pytest.approx([0.526777, 1.374789], abs=1e-6)
    three = agm.kappa(torch.tensor([0.3, 0.6, 0.9]).double(), torch.tensor([0.6] * 3).double(), 1.0)
    assert three.tolist() == pytest.approx([0.566481, 1, 1.436733], abs=1e-6)
    # far ahead before, level now: exp(8) - 1 is more than 10, and than 7
    most = agm.kappa(torch.tensor([4.0, 4.0]).double(), torch.tensor([0.0, 8.0]).double(), 1.0)
    assert most[0].item() == pytest.approx(math.exp(10))
    most = agm.kappa(torch.tensor([4.0] * 3).double(), torch.tensor([0.0, 6.0, 6.0]).double(), 1.0)
    assert most[0].item() == pytest.approx(math.exp(7))


def test_agm_s_shapley_parts() -> None:
    logits = {(): [[0.0, 0]], ("x",): [[2.0, 0]], ("y",): [[0.0, 2]], ("x", "y"): [[3.0, 1]]}
    parts = shapley(["x", "y"], {frozenset(present): torch.tensor(values) for present, values in logits.items()})
    assert parts["x"].tolist() == [[2.5, -0.5]]
    assert parts["y"].tolist() == [[0.5, 1.5]]


def test_mmcosine_s_logits() -> None:
    fusion = CosineFusion({"a": 2, "v": 2}, 2, 10.0)
    with torch.no_grad():
        fusion.head.weight.copy_(torch.tensor([[1.0, 0, 1, 1], [0, 2, 0, 3]]))
    logits = fusion({"a": torch.tensor([[3.0, 4]]), "v": torch.tensor([[0.0, 5]])})
    assert logits[0].tolist() == pytest.approx([13.071068, 18], abs=1e-5)
    assert nn.functional.cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(0.0072082, abs=1e-6)
    alone = fusion({"a": torch.tensor([[3.0, 4]]), "v": torch.tensor([[0.0, 5]])}, present=("a",))
    assert alone[0].tolist() == pytest.approx([6, 8], abs=1e-5)


def test_mslr_s_ratios() -> None:
    before = torch.tensor([[0.40, 0.42, 0.44, 0.46, 0.48], [0.5, 0.5, 0.5, 0.5, torch.nan]]).double()
    ratios = mslr.ratios(before, torch.tensor([0.55, 0.9]).double())
    assert ratios[0].item() == pytest.approx(1.25)
    assert 0.9 * ratios[0].item() == pytest.approx(1.125)
    assert ratios[1].item() == 1  # not five yet


def test_gradnorm_s_weights() -> None:
    norms, progress = torch.tensor([2, 1, 0.5]).double(), torch.tensor([0.5, 0.8, 1.1]).double()
    moved = gradnorm.moved_weights(torch.ones(3).double(), norms, progress, 1.5, 0.025)
    assert moved.tolist() == pytest.approx([0.953975, 1.029289, 1.016736], abs=1e-6)
    assert moved.sum().item() == pytest.approx(3)


def test_metabalance_s_first_step() -> None:
    def gram(joint: list[float], unimodal: list[float]) -> torch.Tensor:
        both = torch.tensor([joint, unimodal], dtype=torch.float64)
        return both @ both.T

    coefficients = MetaBalance().coefficients(torch.stack([gram([3, 4], [0.6, 0.8]), gram([3, 4], [30, 40])]))
    assert coefficients.flatten().tolist() == pytest.approx([1, 3.8, 1, 0.37])
    balanced = MetaBalance(beta=0.5)
    balanced.coefficients(gram([3, 4], [0.6, 0.8])[None])
    second = balanced.coefficients(gram([0, 1], [0, 2])[None])  # norms 0.5 * (2.5, 0.5) + 0.5 * (1, 2)
    assert second[0].tolist() == pytest.approx([1, 0.7 * (1.75 / 1.25) + 0.3])


def test_a_step_that_overflows_leaves_metabalance_s_averages_alone() -> None:
    """Here only the unimodal gradient of one tensor does: the averages of the others would be one step ahead."""
    overflowed = torch.tensor([[[4.0, 0.0], [0.0, torch.inf]], [[1.0, 0.0], [0.0, 1.0]]])
    step = torch.tensor([[[4.0, 0.0], [0.0, 1.0]], [[9.0, 0.0], [0.0, 1.0]]])
    balanced = MetaBalance(relax=1.0)
    balanced.coefficients(overflowed)
    assert balanced.coefficients(step).flatten().tolist() == pytest.approx([1, 2, 1, 3])  # the norms' ratios


def test_ensembles_of_probabilities_and_of_logarithms() -> None:
    heads = nn.ModuleDict({name: nn.Identity() for name in ("a", "v")})
    given = {"a": torch.tensor([[0.7, 0.3]]).log(), "v": torch.tensor([[0.2, 0.8]]).log()}
    mean = EnsembleFusion(heads, "probabilities")(given)
    assert mean.exp()[0].tolist() == pytest.approx([0.45, 0.55], abs=1e-6)
    product = EnsembleFusion(heads, "logarithms")(given)
    assert product.exp()[0].tolist() == pytest.approx([0.43303, 0.56697], abs=1e-5)
    assert EnsembleFusion(heads, "probabilities")(given, present=("v",)).exp()[0].tolist() == pytest.approx([0.2, 0.8])
    with pytest.raises(ValueError, match="no modality"):
        EnsembleFusion(heads, "probabilities")(given, present=())


def test_contributions_sum_up_to_the_joint_logits() -> None:
    torch.manual_seed(0)
    features = {"a": torch.randn(4, 3), "v": torch.randn(4, 2)}
    for fusion in (ConcatFusion({"a": 3, "v": 2}, 5), CosineFusion({"a": 3, "v": 2}, 5, 4.0)):
        parts = fusion.contributions(features)
        torch.testing.assert_close(parts["a"] + parts["v"], fusion(features))


def test_spread_of_ogm_ge_s_noise_is_that_of_the_gradient() -> None:
    """Over many draws: mean k g, deviation std(g), for every tensor of two dimensions; vectors are left alone."""
    draws = []
    method, model = make("ogm_ge")
    inputs, label = batch(model)
    plain = gradients(*make("ogm"), inputs, label)
    for seed in range(20):
        method._generator.manual_seed(seed)  # type: ignore[attr-defined]
        noisy = gradients(method, model, inputs, label)
        draws.append(noisy["encoders.x.2.weight"] - plain["encoders.x.2.weight"])
        assert torch.equal(noisy["encoders.x.2.bias"], plain["encoders.x.2.bias"])
        assert torch.equal(noisy["fusion.head.weight"], plain["fusion.head.weight"])
    joint = gradients(*make("one_joint"), *batch(make("one_joint")[1]))["encoders.x.2.weight"]
    noise = torch.stack(draws)
    assert noise.std().item() == pytest.approx(joint.std().item(), rel=0.01)
    assert abs(noise.mean().item()) < 0.01 * joint.std().item()
