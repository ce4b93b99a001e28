"""LFM: mean logits, and predictions that are drawn together (Yang et al., NeurIPS 2024)."""

import itertools
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmpareto.inputs import wide
from mmpareto.integration import Uniform
from mmpareto.methods.base import METHODS, Boundary, Losses, Piece
from mmpareto.methods.shared import MeanLogits, finite, whole, without_effect
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range

# the published schedule, by powers of the epoch 0 .. 199
POLYNOMIAL = (0.204623704, 3.35472727e-3, 1.22989557e-4, -2.92947416e-6, 2.23835486e-8, -5.39717505e-11)


@METHODS.register("lfm", search={"schedule_epochs": Range(10, 200)})
class LFM(MeanLogits):
    """LFM (Yang et al., NeurIPS 2024): mean logits, and predictions that are drawn together.

    Learning to facilitate modality (Yang, Wan, Jiang & Xu, "Facilitating Multimodal Classification via Dynamically
    Learning Modality Gap", NeurIPS 2024). The joint logits are the mean of the own heads' logits u_m, and the loss is

        2 (alpha CE(mean u, label) + (1 - alpha) A),   A = mean over pairs of [KL(mid || p_a) + KL(mid || p_b)] / 2,

    p = softmax(u) and mid the mean of the two. A has its arguments the other way round than the Jensen-Shannon
    divergence, as in the published code. alpha follows the epoch by the published polynomial of degree five (0.20 at
    first, 0.54 in the middle, 0.92 in the end), a fit to what was learned. More than two modalities: pairs, as in
    BalanceBenchmark.

    With `learned`, alpha begins at 0.05, and before each epoch, at 8 samples that are held out,

        1 - alpha <- clip(1 - alpha - rate mean(h), 0.05, 0.95),   h the part of H g at the model's first weight tensor,

    H the Hessian of alpha CE + (1 - alpha) A and g the gradient of CE, over all parameters; the rate is halved every 20
    epochs. This is the rule of the public code, first tensor included; the paper's text was not at hand. There the
    samples are the same in all epochs and leave the training split; here they come from the validation split, others
    each time; BalanceBenchmark takes this split too. The model is in evaluation mode.

    Args:
        schedule_epochs: epochs over which alpha follows the polynomial; 200 in the published code, whose runs have as
            many. A shorter run sees its beginning alone.
        learned: learn alpha, in the place of the polynomial.
        rate: of alpha, 1e-4 there.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    refuses: ClassVar[Mapping[str, str]] = {"missing": "it compares the modalities' predictions sample by sample"}

    def __init__(self, schedule_epochs: int = 200, learned: bool = False, rate: float = 1e-4) -> None:
        super().__init__(Uniform())
        self.schedule_epochs = whole("schedule_epochs", schedule_epochs, 1)
        self.learned, self.rate = bool(learned), finite("rate", rate)
        without_effect(LFM, "rate", rate, not learned, "learned=true")

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """The first epoch's alpha."""
        super().setup(model, seed, epochs)
        self.state["alpha"] = self.like.new_tensor(0.05 if self.learned else POLYNOMIAL[0])

    def boundary(self, now: Boundary) -> dict[str, float]:
        """The epoch's alpha."""
        if self.learned:
            rate = self.rate * 0.5 ** ((now.epoch - 1) // 20)
            alpha = self.state["alpha"] + rate * self.average(slope(now, self.state["alpha"]))
            self.state["alpha"].copy_(alpha.clamp(0.05, 0.95))
        else:
            self.state["alpha"].fill_(schedule((now.epoch - 1) * 200 / self.schedule_epochs))
        return {}

    def losses(self, piece: Piece) -> Losses:
        """The joint loss, and for each modality its share of A."""
        alpha, logits = self.state["alpha"], piece.output.unimodal
        gaps = {name: 2 * (1 - alpha) * gap for name, gap in differences(logits).items()}
        return Losses(2 * alpha * piece.losses.joint, gaps)

    def figures(self) -> dict[str, float]:
        """The epoch's alpha."""
        return {"alpha": float(self.state["alpha"])}


def schedule(epoch: float) -> float:
    """alpha in epoch 0 .. 199; later ones have that of the last."""
    return sum(factor * min(epoch, 199.0) ** power for power, factor in enumerate(POLYNOMIAL))


def differences(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{modality: its part of A}: A is their sum; see LFM."""
    logs = {name: F.log_softmax(wide(value), 1) for name, value in logits.items()}
    pairs = list(itertools.combinations(logs, 2))
    terms: dict[str, list[Tensor]] = {name: [] for name in logs}
    for pair in pairs:
        # in logarithms: where probabilities underflow, the gradient of p log p is not a number
        middle = torch.logaddexp(*(logs[name] for name in pair)) - math.log(2)
        for name in pair:
            terms[name].append(F.kl_div(logs[name], middle, reduction="batchmean", log_target=True) / (2 * len(pairs)))
    return {name: torch.stack(parts).sum() for name, parts in terms.items()}


def slope(now: Boundary, alpha: Tensor) -> Tensor:
    """The mean of h; see LFM."""
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention cannot be differentiated twice
        outputs, labels = zip(*now.engine.outputs(8, split="val", shared=False, gradients=True), strict=True)
        logits = {name: torch.cat([output.unimodal[name] for output in outputs]) for name in outputs[0].unimodal}
        loss = F.cross_entropy(torch.cat([output.joint for output in outputs]), torch.cat(labels))
        gap = torch.stack([*differences(logits).values()]).sum()
        learning = [p for p in now.model.parameters() if p.requires_grad]
        vectors = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True)
        total = alpha * loss + (1 - alpha) * gap
        slopes = torch.autograd.grad(total, learning, create_graph=True, allow_unused=True)
        used = [(g, v) for g, v in zip(slopes, vectors, strict=True) if g is not None and v is not None]
        return torch.autograd.grad([g for g, _ in used], learning[:1], [v for _, v in used])[0].mean()
