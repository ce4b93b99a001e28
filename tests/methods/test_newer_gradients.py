"""The newer methods over several steps against plain references in float64, their invariants, and their terms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods.small import batch, gradients, make
from methods.test_method_gradients import assert_same, joint_and_detached_heads, parts, plain_gradients
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from mmpareto.methods import Boundary, Method, MethodError, Piece
from mmpareto.methods import opm as rules_of_opm
from mmpareto.methods.competition import influences, regularizer
from mmpareto.models import MultimodalModel, cross_entropies
from mmpareto.training.step import TrainingStep

Gradients = dict[str, Tensor]
Reference = Callable[[MultimodalModel, dict[str, Tensor], Tensor, Gradients], Gradients]
STEPS, RATE = 3, 0.3


def begin(method: Method, model: MultimodalModel, epoch: int = 1, epochs: int = 4) -> None:
    """The boundary before an epoch, for methods that request nothing of the engine."""
    method.boundary(Boundary(epoch, epochs, {}, torch.zeros(1), model, None, None))  # type: ignore[arg-type]


def features_of(model: MultimodalModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: encoder(inputs[name]) for name, encoder in model.encoders.items()}


def right(logits: Tensor, label: Tensor) -> float:
    """Mean probability of the right class, sample by sample."""
    return math.fsum(math.exp(u[y] - u.logsumexp(0)) for u, y in zip(logits.detach(), label, strict=True)) / len(label)


def block(model: MultimodalModel, position: int) -> slice:
    """Columns of the joint head that read a modality."""
    return slice(512 * position, 512 * (position + 1))


def mlb(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor, first: Gradients) -> Gradients:
    output = model(inputs)
    logits = [output.joint, *output.unimodal.values()]
    result = plain_gradients(model, torch.stack([F.cross_entropy(u, label) for u in logits]).sum())
    scores = [right(u, label) for u in logits[1:]]
    for k, name in enumerate(model.encoders):
        ratio = sum(s for j, s in enumerate(scores) if j != k) / (len(scores) - 1) / scores[k]
        size = math.tanh(3.0 * (ratio - 1))
        factor = 1 + size if ratio <= 1 else 1 + (5.0 - 1) * size
        for key in result:
            if key.startswith((f"encoders.{name}.", f"heads.{name}.")):
                result[key] = factor * result[key]
        result["fusion.head.weight"][:, block(model, k)] *= factor
    return result


def dgl(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor, first: Gradients) -> Gradients:
    features = features_of(model, inputs)
    fixed = {name: f.detach() for name, f in features.items()}
    masked = []
    for name in features:
        padded = [f if other == name else torch.zeros_like(f) for other, f in features.items()]
        masked.append(F.cross_entropy(model.fusion.head(torch.cat(padded, 1)), label))
    result = plain_gradients(model, 2.5 * torch.stack(masked).sum())
    heads = [F.cross_entropy(head(fixed[name]), label) for name, head in model.heads.items()]
    others = plain_gradients(model, F.cross_entropy(model.fusion(fixed), label) + sum(heads))
    return {key: g for key, g in result.items() if key.startswith("encoders.")} | others


def mimo(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor, first: Gradients) -> Gradients:
    output = model(inputs)
    losses = torch.stack([F.cross_entropy(u, label) for u in output.unimodal.values()])
    smooth = 0.2 * torch.log(torch.exp(losses / 0.2).sum())
    return plain_gradients(model, F.cross_entropy(output.joint, label) + 1.5 * smooth)


def lfm(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor, first: Gradients) -> Gradients:
    logits = [head(encoder(inputs[name])) for (name, encoder), head in
              zip(model.encoders.items(), model.heads.values(), strict=True)]  # fmt: skip
    p = [u.exp() / u.exp().sum(1, keepdim=True) for u in logits]
    pairs = [(a, b) for i, a in enumerate(p) for b in p[i + 1 :]]
    gap = sum(
        0.5 * (m * (m.log() - q.log())).sum(1).mean() for a, b in pairs for m in [(a + b) / 2] for q in (a, b)
    ) / len(pairs)  # fmt: skip
    alpha = 0.204623704
    return plain_gradients(model, 2 * alpha * F.cross_entropy(sum(logits) / len(logits), label) + 2 * (1 - alpha) * gap)


def inforeg(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor, first: Gradients) -> Gradients:
    result = plain_gradients(model, joint_and_detached_heads(model, inputs, label))
    scores = [right(u, label) for u in parts(model, inputs)]
    for k, name in enumerate(model.encoders):
        gaps = [scores[k] - s for s in scores if s < scores[k]]
        if gaps:
            factor = math.exp(0.9 * math.tanh(sum(gaps) / len(gaps)))
            for key, parameter in model.named_parameters():
                if key.startswith(f"encoders.{name}."):
                    result[key] = result[key] + factor * (parameter.detach() - first[key])
    return result


def inforeg_published(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor, first: Gradients) -> Gradients:
    slices = parts(model, inputs)
    loss = joint_and_detached_heads(model, inputs, label) + sum(F.cross_entropy(u, label) for u in slices)
    result = plain_gradients(model, loss)
    scores = [len(label) * right(u, label) for u in slices]
    for k, (name, constant) in enumerate(zip(model.encoders, (0.95, 0.1), strict=True)):
        gap = scores[k] - scores[1 - k]
        for key, parameter in model.named_parameters():
            if gap > 0 and key.startswith(f"encoders.{name}."):
                result[key] = result[key] + constant * math.exp(math.tanh(gap)) * (parameter.detach() - first[key])
    return result


def opm(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor, first: Gradients) -> Gradients:
    features = features_of(model, inputs)
    scores = [right(u, label) for u in parts(model, inputs)]
    ratios = [s / (sum(scores) - s) for s in scores]
    rates = [min(1.0, 0.9 * (1 + 0.5 * math.tanh(r - 1))) if r > 1 else 0.0 for r in ratios]
    if len(rates) == 3:  # none is ahead of both others together
        rates = FIXED
    kept = torch.rand(len(features), len(label)) >= torch.tensor(rates)[:, None]
    scale = 1 / (1 - sum(rates) / len(rates))
    fused = torch.cat([f * kept[k][:, None] * scale for k, f in enumerate(features.values())], 1)
    assert not kept.all()
    joint = F.cross_entropy(model.fusion.head(fused), label)
    heads = [F.cross_entropy(head(features[name].detach()), label) for name, head in model.heads.items()]
    return plain_gradients(model, joint + sum(heads))


FIXED = [0.6, 0.0, 0.0]


def synib(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor, first: Gradients) -> Gradients:
    features = features_of(model, inputs)
    loss = joint_and_detached_heads(model, inputs, label)
    for name, value in features.items():
        replaced = torch.rand_like(value) < 0.4
        other = value[[(i - 1) % len(value) for i in range(len(value))]]
        mixed = replaced * other + ~replaced * value
        q = model.fusion({**features, name: mixed}).softmax(1)
        loss = loss + 2.0 * (q * (q * q.shape[1]).log()).sum(1).mean()
    return plain_gradients(model, loss)


def synib_withheld(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor, first: Gradients) -> Gradients:
    features = features_of(model, inputs)
    loss = joint_and_detached_heads(model, inputs, label)
    for name, value in features.items():
        other = value[[(i - 1) % len(value) for i in range(len(value))]]
        mixed = torch.where(torch.rand_like(value) < 0.4, other, value)
        p = model.heads[name](value).softmax(1).detach()
        q = model.fusion({**features, name: mixed}).softmax(1)
        loss = loss + 2.0 * (p * (p.log() - q.log())).sum(1).mean()
    return plain_gradients(model, loss)


def corrupted(model: MultimodalModel, inputs: dict[str, Tensor], rate: float) -> list[tuple[Tensor, Tensor]]:
    """For each modality joint logits, and what the auxiliary map makes of the features, where it is corrupted."""
    features, results = features_of(model, inputs), []
    for name, value in features.items():
        others = value[[(i - 1) % len(value) for i in range(len(value))]]
        mixed = torch.where(torch.rand_like(value) < rate, others, value)
        side = torch.cat([mixed if other == name else f for other, f in features.items()], 1)
        auxiliary: Any = model.auxiliary
        results.append((model.fusion.head(side), side @ auxiliary.weight.T + auxiliary.bias))
    return results


def synib_gaussian(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor, first: Gradients) -> Gradients:
    loss = joint_and_detached_heads(model, inputs, label)
    for mean, logarithm in corrupted(model, inputs, 0.4):
        normal, standard = Normal(mean, (logarithm / 2).exp()), Normal(torch.zeros_like(mean), torch.ones_like(mean))
        loss = loss + 0.01 * kl_divergence(normal, standard).sum(1).mean()
    return plain_gradients(model, loss)


def synib_dirichlet(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor, first: Gradients) -> Gradients:
    loss = joint_and_detached_heads(model, inputs, label)
    for _, values in corrupted(model, inputs, 0.4):
        a = 1 + torch.log1p(values.exp())
        total = a.sum(1)
        constant = torch.lgamma(total) - torch.lgamma(a).sum(1) - math.lgamma(a.shape[1])
        slope = ((a - 1) * (torch.digamma(a) - torch.digamma(total)[:, None])).sum(1)
        loss = loss + 2.0 * (constant + slope).mean()
    return plain_gradients(model, loss)


def mcr_bottleneck(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor, first: Gradients) -> Gradients:
    """CEB alone beside the cross-entropies."""
    output, auxiliary = model(inputs), dict(model.auxiliary.named_parameters())
    hidden = (output.joint.detach() @ auxiliary["0.weight"].T).clamp(min=0)
    apart = torch.cat([*output.features.values()], 1) - hidden @ auxiliary["2.weight"].T
    losses = [F.cross_entropy(u, label) for u in output.unimodal.values()]
    return plain_gradients(model, F.cross_entropy(output.joint, label) + 0.3 * sum(losses) + 2.0 * (apart**2).mean())


def divergence(z: Tensor, other: Tensor) -> Tensor:
    p, q = z.softmax(1), other.softmax(1)
    middle = (p + q) / 2
    return 0.5 * ((p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)).mean()


def mcr(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor, first: Gradients) -> Gradients:
    """Two modalities, greedy, every exchange of rows but that of a row with itself: a game of explicit gradients."""
    output = model(inputs)
    weights, bias = model.fusion.head.weight.split(512, 1), model.fusion.head.bias
    names, rows, shares = list(model.encoders), len(label), {}
    logits = [features @ w.T for features, w in zip(output.features.values(), weights, strict=True)]
    shifted = [[(i + s) % rows for i in range(rows)] for s in range(1, rows)]
    z = (sum(logits) + bias).detach()
    for player in range(2):
        other = logits[1 - player].detach()
        mine = [divergence(z, logits[player][order] + other + bias) for order in shifted]
        theirs = [divergence(z, logits[player] + other[order] + bias) for order in shifted]
        shares[player] = (sum(theirs) - sum(mine)) / len(shifted)
    losses = [0.3 * F.cross_entropy(u, label) for u in output.unimodal.values()]
    loss = F.cross_entropy(output.joint, label) + sum(losses) + 2.0 * ntx(output.features, label)
    result = plain_gradients(model, loss)
    for player, name in enumerate(names):
        gradient = plain_gradients(model, 3.0 * shares[player])
        for key, g in gradient.items():
            if key.startswith(f"encoders.{name}."):
                result[key] = result[key] + g
        columns = block(model, player)
        result["fusion.head.weight"][:, columns] += gradient["fusion.head.weight"][:, columns]
        result["fusion.head.bias"] += gradient["fusion.head.bias"] * 0.5  # each player has a half of the bias
    return result


def ntx(features: dict[str, Tensor], label: Tensor) -> Tensor:
    rows = [(f / f.norm(), int(y)) for value in features.values() for f, y in zip(value, label, strict=True)]
    terms = []
    for i, (f, y) in enumerate(rows):
        apart = sum(torch.exp(f @ g / 0.5) for g, other in rows if other != y)
        terms += [
            -torch.log(torch.exp(f @ g / 0.5) / (torch.exp(f @ g / 0.5) + apart))
            for j, (g, other) in enumerate(rows)
            if i != j and other == y
        ]
    return torch.stack(terms).mean()


CASES: dict[str, tuple[Reference, dict[str, Any]]] = {
    "mlb": (mlb, {"alpha": 3.0, "beta": 5.0}),
    "dgl": (dgl, {"alpha": 2.5}),
    "mimo": (mimo, {"weight": 1.5, "mu": 0.2}),
    "lfm": (lfm, {}),
    "inforeg": (inforeg, {}),
    "opm": (opm, {"base": 0.9, "rate": 1.0, "warm_up_epochs": 0}),
    "synib": (synib, {"weight": 2.0, "rate": 0.4}),
    "mcr": (mcr, {"weight": 3.0, "unimodal": 0.3, "contrastive": 2.0}),
}
TWO: dict[str, tuple[Reference, dict[str, Any]]] = {
    "inforeg": (inforeg_published, {"published": True}),
    "synib": (synib_withheld, {"weight": 2.0, "rate": 0.4, "target": "withheld"}),
}
AUXILIARY: list[tuple[str, Reference, dict[str, Any]]] = [
    ("synib", synib_gaussian, {"weight": 0.01, "rate": 0.4, "target": "gaussian"}),
    ("synib", synib_dirichlet, {"weight": 2.0, "rate": 0.4, "target": "dirichlet"}),
    ("mcr", mcr_bottleneck, {"weight": 0.0, "unimodal": 0.3, "contrastive": 0.0, "bottleneck": 2.0}),
]


@pytest.mark.parametrize(
    ("name", "modalities", "reference", "options"),
    [
        *((name, count, *CASES[name]) for name in CASES for count in (2, 3) if (name, count) != ("mcr", 3)),
        *((name, 2, *TWO[name]) for name in TWO),
        *((name, count, reference, options) for name, reference, options in AUXILIARY for count in (2, 3)),
    ],
)
def test_weights_follow_a_plain_reference(
    name: str, modalities: int, reference: Reference, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if (name, modalities) == ("opm", 3):
        monkeypatch.setattr(rules_of_opm, "drop_rates", lambda *_: torch.tensor(FIXED, dtype=torch.float64))
    method, model = make(name, modalities, **options)
    twin = make(name, modalities, **options)[1]
    begin(method, model)
    first = {key: p.detach().clone() for key, p in twin.named_parameters()}
    step = TrainingStep(model, method, torch.optim.SGD(model.parameters(), lr=RATE))
    for seed in range(STEPS):
        inputs, label = batch(model, size=7, seed=seed)
        torch.manual_seed(seed)
        step(inputs, label)
        torch.manual_seed(seed)
        expected = reference(twin, inputs, label, first)
        with torch.no_grad():
            for key, p in twin.named_parameters():
                if key in expected:
                    p -= RATE * expected[key]
    after = dict(twin.named_parameters())
    assert any((after[key] - p).abs().max() > 1e-3 for key, p in first.items())
    assert_same(dict(model.named_parameters()), after, rtol=1e-6, atol=1e-9)


def test_mcr_of_three_modalities_exchanges_pairs_too() -> None:
    model = make("mcr", 3, contrastive=0.0)[1]
    inputs, _ = batch(model, size=4)
    logits = {name: value.detach().requires_grad_() for name, value in zip("xyz", parts(model, inputs), strict=True)}
    z, names = sum(logits.values()), list(logits)
    every = influences(logits, z, 3)
    assert {"".join(sorted(s)) for s in every} == {"x", "y", "z", "xy", "xz", "yz"}
    orders = [[(i + s) % 4 for i in range(4)] for s in (1, 2, 3)]
    single = sum(divergence(z, logits["x"][o] + logits["y"] + logits["z"]) for o in orders) / 3
    torch.testing.assert_close(every[frozenset("x")], single)
    pair = sum(
        divergence(z, logits["x"][o] + logits["y"][p] + logits["z"])
        for o, p in zip(orders, orders[1:] + orders[:1], strict=True)
    )
    torch.testing.assert_close(every[frozenset("xy")], pair / 3)
    value = regularizer(logits, -1.0, 3)
    singles = sum(every[frozenset(name)] for name in names)
    assert value.item() == pytest.approx((singles - sum(v for s, v in every.items() if len(s) == 2)).item())


def test_mcr_s_collaborative_game_makes_nothing_constant() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = {n: torch.randn(5, 3, generator=generator).double().requires_grad_() for n in "xyz"}
    plain = -torch.stack([*influences(logits, sum(logits.values()), 2).values()]).sum()
    computed = torch.autograd.grad(regularizer(logits, 1.0, 2), [*logits.values()])
    for g, expected in zip(computed, torch.autograd.grad(plain, [*logits.values()]), strict=True):
        torch.testing.assert_close(g, expected)


def alike(model: MultimodalModel) -> None:
    """Features and heads of all modalities become the same."""
    with torch.no_grad():
        for encoder, head in zip(model.encoders.values(), model.heads.values(), strict=True):
            encoder[2].weight.zero_()
            encoder[2].bias.fill_(0.3)
            for p, q in zip(head.parameters(), model.heads["x"].parameters(), strict=True):
                p.copy_(q)
        model.fusion.head.weight[:, 512:].copy_(model.fusion.head.weight[:, :512])


def test_mlb_with_equal_scores_is_the_uniform_sum() -> None:
    for even, alpha in ((True, 5.0), (False, 0.0)):
        method, model = make("mlb", alpha=alpha)
        other = make("uniform")[1]
        if even:
            alike(model)
        other.load_state_dict(model.state_dict())
        inputs, label = batch(model)
        expected = gradients(make("uniform")[0], other, inputs, label)
        assert_same(gradients(method, model, inputs, label), expected)


def test_opm_with_rate_zero_or_before_its_first_epoch_is_the_joint_loss() -> None:
    for options, epoch in (({"rate": 0.0}, 7), ({"rate": 1.0}, 6)):
        method, model = make("opm", 3, **options)
        begin(method, model, epoch)
        inputs, label = batch(model)
        expected = plain_gradients(model, joint_and_detached_heads(model, inputs, label))
        assert_same(gradients(method, model, inputs, label), expected)


def test_inforeg_s_window_follows_the_traces() -> None:
    method, model = make("inforeg", threshold=0.5)
    inputs, label = batch(model)
    opened = []
    for epoch, trace in ((1, (4.0, 4.0)), (2, (4.0, 9.0)), (3, (7.0, 1.0)), (4, (0.0, 0.0))):
        begin(method, model, epoch)
        assert bool((method.state["trace"] == 0).all())
        opened.append(method.state["open"].tolist())
        method.state["trace"].copy_(torch.tensor(trace))
    # (4 - 0) / 4; (4 - 4) / 4 and (9 - 4) / 9; (7 - 4) / 7 and (1 - 9) / 1
    assert opened == [[True, True], [True, True], [False, True], [False, False]]
    expected = plain_gradients(model, joint_and_detached_heads(model, inputs, label))
    with torch.no_grad():
        for p in model.encoders.parameters():
            p += 1.0
    expected = plain_gradients(model, joint_and_detached_heads(model, inputs, label))
    assert_same(gradients(method, model, inputs, label), expected)
    squares = [
        sum(g.square().sum().item() for key, g in expected.items() if key.startswith(f"encoders.{name}."))
        for name in model.encoders
    ]
    assert method.state["trace"].tolist() == pytest.approx(squares)


def test_inforeg_s_published_window_is_the_first_modality_s_over_ten_epochs() -> None:
    method, model = make("inforeg", published=True)
    for epoch in range(1, 14):
        begin(method, model, epoch)
        # traces of 1: the mean over the last ten grows by a tenth until they are all of them
        assert method.state["open"].tolist() == [epoch < 12] * 2
        method.state["trace"].copy_(torch.tensor((1.0, 100.0 * epoch)))
    with pytest.raises(MethodError, match="found 3"):
        make("inforeg", 3, published=True)


def test_inforeg_does_not_count_the_stand_in_of_a_process_without_samples() -> None:
    results = []
    for shares in ([1.0], [1.0, 0.0]):
        method, model = make("inforeg", published=True)
        begin(method, model)
        inputs, label = batch(model)
        with torch.no_grad():
            for p in model.encoders.parameters():
                p += 0.1  # away from the weights at the beginning of the epoch
        for share in shares:
            output = model(inputs)
            method.losses(Piece(output, label, cross_entropies(output, label), share, inputs))
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        method.gradients(model)
        results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert any(bool((g != 0).any()) for g in results[0].values())
    assert_same(*results)


def test_lfm_follows_the_schedule_over_its_epochs() -> None:
    method, model = make("lfm", schedule_epochs=4)
    begin(method, model, 3)
    assert method.figures()["alpha"] == pytest.approx(0.539155, abs=1e-6)  # half way
    begin(method, model, 40)
    assert method.figures()["alpha"] == pytest.approx(0.915989, abs=1e-6)


class Held:
    """An engine whose validation split are eight samples, in two batches."""

    def __init__(self, model: MultimodalModel, seed: int) -> None:
        self.model, (self.inputs, self.label) = model, batch(model, seed=seed)

    def outputs(self, part: float, **options: Any) -> Any:
        assert (part, options) == (8, {"split": "val", "shared": False, "gradients": True})
        for rows in (slice(5), slice(5, 8)):
            yield self.model({m: value[rows] for m, value in self.inputs.items()}), self.label[rows]


def lfm_losses(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor) -> tuple[Tensor, Tensor]:
    """CE and A."""
    output = model(inputs)
    p = [u.softmax(1) for u in output.unimodal.values()]
    pairs = [(a, b) for i, a in enumerate(p) for b in p[i + 1 :]]
    gaps = [0.5 * (m * (m.log() - q.log())).sum(1).mean() for a, b in pairs for m in [(a + b) / 2] for q in (a, b)]
    return F.cross_entropy(output.joint, label), sum(gaps) / len(pairs)


@pytest.mark.parametrize("modalities", [2, 3])
def test_lfm_s_learned_alpha_follows_differences_of_gradients(modalities: int) -> None:
    """H g by central differences of the whole gradient along g, in float64."""
    method, model = make("lfm", modalities, learned=True, rate=3000.0)
    step = TrainingStep(model, method, torch.optim.SGD(model.parameters(), lr=RATE))
    share, moved = 0.95, []
    for number, (epoch, rate) in enumerate(((1, 3000.0), (2, 3000.0), (21, 1500.0), (41, 750.0))):
        held, names = Held(model, 20 + number), [name for name, _ in model.named_parameters()]
        alpha, before = 1 - share, {name: p.detach().clone() for name, p in model.named_parameters()}
        direction = plain_gradients(model, lfm_losses(model, held.inputs, held.label)[0])
        slopes = []
        for size in (1e-4, -1e-4):
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(before[name] + size * direction[name])
            loss, gap = lfm_losses(model, held.inputs, held.label)
            slopes.append(plain_gradients(model, alpha * loss + (1 - alpha) * gap)[names[0]])
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(before[name])
        change = rate * ((slopes[0] - slopes[1]) / 2e-4).mean().item()
        share = min(max(share - change, 0.05), 0.95)
        moved.append(abs(change))
        model.zero_grad()
        method.boundary(Boundary(epoch, 50, {}, torch.zeros(1), model, None, held))  # type: ignore[arg-type]
        assert method.figures()["alpha"] == pytest.approx(1 - share, rel=1e-6)
        assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
        step(*batch(model, seed=number))
    assert max(moved) > 1e-3


def test_lfm_s_learned_alpha_stays_within_its_limits_and_is_saved() -> None:
    for rate, limits in ((0.0, (0.05,)), (1e12, (0.05, 0.95))):
        method, model = make("lfm", learned=True, rate=rate)
        for epoch in range(1, 4):
            method.boundary(Boundary(epoch, 4, {}, torch.zeros(1), model, None, Held(model, epoch)))  # type: ignore[arg-type]
            assert any(method.figures()["alpha"] == pytest.approx(limit) for limit in limits)
    method, model = make("lfm", learned=True, rate=3000.0)
    again, twin = make("lfm", learned=True, rate=3000.0, seed=4)
    method.boundary(Boundary(1, 4, {}, torch.zeros(1), model, None, Held(model, 1)))  # type: ignore[arg-type]
    again.load_state_dict(method.state_dict())
    twin.load_state_dict(model.state_dict())
    for chosen, network in ((method, model), (again, twin)):
        chosen.boundary(Boundary(2, 4, {}, torch.zeros(1), network, None, Held(network, 2)))  # type: ignore[arg-type]
    assert torch.equal(method.state["alpha"], again.state["alpha"])


def test_mcr_s_bottleneck_reaches_encoders_and_its_own_network_alone() -> None:
    options = {"weight": 0.0, "contrastive": 0.0}
    plain, other = make("mcr", **options)
    inputs, label = batch(other)
    without = gradients(plain, other, inputs, label)
    assert not hasattr(other, "auxiliary")
    method, model = make("mcr", bottleneck=1.0, **options)
    other.load_state_dict(model.state_dict())  # evaluation does without it
    computed = gradients(method, model, inputs, label)
    changed = {key for key, g in computed.items() if not torch.allclose(g, without.get(key, 0 * g), rtol=1e-6)}
    assert changed == {key for key in computed if key.startswith(("encoders.", "auxiliary."))}


@pytest.mark.parametrize(
    ("name", "options", "without"),
    [
        ("mlb", {}, {"alpha": 0.0}),
        ("dgl", {}, {"alpha": 0.0}),
        ("mimo", {}, {"weight": 0.0}),
        ("inforeg", {}, {"unimodal": True}),
        ("inforeg", {}, {"published": True}),
        ("opm", {"rate": 1.0, "warm_up_epochs": 0}, {"rate": 0.0}),
        ("synib", {}, {"weight": 0.0}),
        ("synib", {}, {"target": "withheld"}),
        ("synib", {"target": "gaussian"}, {"target": "uniform"}),
        ("synib", {"target": "dirichlet"}, {"weight": 0.0}),
        ("mcr", {"bottleneck": 1.0}, {"bottleneck": 0.0}),
        ("mcr", {}, {"weight": 0.0}),
        ("mcr", {}, {"unimodal": 0.0}),
        ("mcr", {}, {"contrastive": 0.0}),
        ("mcr", {}, {"game": "independent"}),
        ("mcr", {"game": "independent"}, {"game": "collaborative"}),
        ("g2d", {"held_back": 0.0}, {"held_back": 0.0, "temperature": 3.0}),
    ],
)
def test_every_term_reaches_an_encoder(name: str, options: dict[str, Any], without: dict[str, Any]) -> None:
    results = []
    for chosen in (options, options | without):
        method, model = make(name, **chosen)
        torch.manual_seed(0)
        results.append(gradients(method, model, *batch(model)))
    changed = {key.split(".")[1] for key, g in results[0].items() if key.startswith("encoders.")
               and not torch.allclose(g, results[1].get(key, torch.zeros(())), rtol=1e-4, atol=0)}  # fmt: skip
    assert changed


def test_options_out_of_range_are_refused() -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("mlb", {"alpha": -1.0}, "alpha"),
        ("dgl", {"alpha": float("nan")}, "alpha"),
        ("mimo", {"mu": 0.0}, "mu"),
        ("lfm", {"schedule_epochs": 0}, "schedule_epochs"),
        ("opm", {"rate": 1.5}, "rate"),
        ("synib", {"rate": -0.1}, "rate"),
        ("synib", {"target": "cauchy"}, "uniform, withheld, gaussian, dirichlet"),
        ("mcr", {"bottleneck": -1.0}, "bottleneck"),
        ("lfm", {"rate": -1.0}, "rate"),
        ("mcr", {"game": "chess"}, "greedy, independent, collaborative"),
        ("mcr", {"shifts": 0}, "shifts"),
        ("relearning", {"interval": 0}, "interval"),
        ("g2d", {"held_back": 1.5}, "held_back"),
    ]
    for name, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            make(name, **options)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("name", ["umt", "g2d"])
def test_pupils_follow_their_teachers(name: str, modalities: int) -> None:
    """Over several steps; g2d with one encoder that learns, by hand."""
    options: dict[str, Any] = {"weight": 2.0} if name == "umt" else {"temperature": 2.0}
    method, model = make(name, modalities, **options)
    begin(method, model, 2, epochs=12)  # still the first phase
    twin, teacher = (make(name, modalities, **options)[1] for _ in range(2))
    with torch.no_grad():
        for p in teacher.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).double()
        for key in method.state:
            if key.startswith("teacher."):
                method.state[key].copy_(teacher.state_dict()[key.removeprefix("teacher.")])
    kept = {key: value.clone() for key, value in method.state.items() if key.startswith("teacher.")}
    step = TrainingStep(model, method, torch.optim.SGD(model.parameters(), lr=RATE))
    for seed in range(STEPS):
        inputs, label = batch(model, seed=seed)
        step(inputs, label)
        features, output = features_of(twin, inputs), twin(inputs)
        with torch.no_grad():
            lesson = teacher(inputs)
        apart = sum((features[m] - lesson.features[m]).square().mean() for m in features)
        if name == "umt":
            expected = plain_gradients(twin, joint_and_detached_heads(twin, inputs, label) + 2.0 * apart)
        else:
            z = sum(output.unimodal.values()) / modalities
            taught = [(u / 2.0).softmax(1) for u in lesson.unimodal.values()]
            gap = sum(4.0 * (p * (p.log() - (z / 2.0).log_softmax(1))).sum(1).mean() for p in taught)
            expected = plain_gradients(twin, F.cross_entropy(z, label) + gap + apart)
            scores = {m: right(u, label) for m, u in lesson.unimodal.items()}
            for key in expected:
                if key.startswith("encoders.") and key.split(".")[1] != min(scores, key=scores.__getitem__):
                    expected[key] = torch.zeros_like(expected[key])
        with torch.no_grad():
            for key, p in twin.named_parameters():
                p -= RATE * expected.get(key, torch.zeros_like(p))
    assert_same(dict(model.named_parameters()), dict(twin.named_parameters()), rtol=1e-7, atol=1e-10)
    assert all(torch.equal(method.state[key], value) for key, value in kept.items())


def test_g2d_s_phases_end_with_all_encoders() -> None:
    method, model = make("g2d", 3)
    learning = []
    for epoch in range(2, 9):
        begin(method, model, epoch, epochs=12)
        learning.append(int(method.state["learning"]))
    assert learning == [1, 1, 2, 2, 2, 3, 3]
    plain, other = make("g2d", 3, held_back=0.0)
    begin(plain, other, 2)
    expected = gradients(plain, other, *batch(other))
    assert_same(gradients(method, model, *batch(model)), expected)


@pytest.mark.parametrize(
    ("name", "options", "epochs", "expected"),
    [
        (
            "relearning",
            {},
            20,
            "it never re-learns: interval is 20, and the run has 20 epochs; give",
        ),
        ("relearning", {}, 21, ""),
        (
            "opm",
            {},
            1,
            "it never modulates: warm_up_epochs is 6, and the run has 1 epoch; give",
        ),
        ("opm", {}, 7, ""),
        ("reconboost", {}, 8, "y never learns alone: the stages before take 8 epochs, and the run has 8 epochs; give"),
        ("reconboost", {}, 9, ""),
        ("reconboost", {"alone_epochs": 2, "together_epochs": 0}, 3, ""),
        ("g2d", {}, 1, ""),
        (
            "mslr",
            {},
            6,
            "it never changes a rate: without factors it does from epoch 7 on",
        ),
        ("mslr", {}, 7, ""),
        ("mslr", {"factors": "x:0.5"}, 1, ""),
        ("dwa", {}, 2, "its weights change from epoch 3 on, and the run has 2 epochs"),
        ("dwa", {}, 3, ""),
    ],
)
def test_a_run_that_is_too_short_for_a_method(name: str, options: dict[str, Any], epochs: int, expected: str) -> None:
    method = make(name, **options)[0]
    assert method.idle(epochs).startswith(expected)
    assert bool(method.idle(epochs)) == bool(expected)
