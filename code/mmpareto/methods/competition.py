"""The terms of MCR: how far modalities move a prediction, the game between them, and features of one class together.

Shapes: B batch, C classes, D feature width, M modalities.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpareto.evaluation.missing import Subset, subsets
from mmpareto.inputs import wide


def influences(parts: Mapping[str, Tensor], whole: Tensor, shifts: int) -> dict[Subset, Tensor]:
    """J_S of every subset S but none and all, from contributions and joint logits [B, C]; rows exchanged by shifts."""
    rows = len(next(iter(parts.values())))
    count = min(shifts, max(1, rows - 1))
    plain = F.log_softmax(whole, -1).expand(count, -1, -1)  # [shifts, B, C]
    result = {}
    for exchanged in subsets(list(parts))[1:-1]:
        # each modality of S has another shift, where there are rows enough; no row stays in place
        offsets = {name: k * max(1, rows // len(parts)) for k, name in enumerate(sorted(exchanged))}
        moved = []
        for name, part in parts.items():
            steps = [1 + (step + offsets.get(name, 0)) % max(1, rows - 1) for step in range(count)]
            moved.append(torch.stack([part.roll(-step, 0) if name in exchanged else part for step in steps]))
        other = F.log_softmax(torch.stack(moved).sum(0), -1)
        middle = torch.logaddexp(other, plain) - math.log(2)
        halves = [F.kl_div(middle, logs, reduction="none", log_target=True).sum(-1).mean() for logs in (other, plain)]
        result[exchanged] = torch.stack(halves).mean()
    return result


def regularizer(parts: Mapping[str, Tensor], shared: float, shifts: int) -> Tensor:
    """R from the contributions [B, C]; see MCR. `shared` is k."""
    whole = torch.stack([*parts.values()]).sum(0)
    if shared == 1:
        return -torch.stack([*influences(parts, whole, shifts).values()]).sum()
    terms = []
    for player in parts:
        played = {name: part if name == player else part.detach() for name, part in parts.items()}
        for exchanged, influence in influences(played, whole, shifts).items():
            terms.append(influence * (-1.0 if player in exchanged else -shared))
    return torch.stack(terms).sum()


def contrast(features: Sequence[Tensor], label: Tensor, temperature: float) -> Tensor:
    """NTX of M features [B, D] and labels [B]: the mean of -log(e^s / (e^s + the sum of e^s to other classes)).

    Over all pairs of rows of one class; s = cosine / temperature.
    """
    rows = torch.cat([F.normalize(wide(feature), dim=1) for feature in features])
    similarity = rows @ rows.T / temperature
    labels = label.repeat(len(features))
    same = labels[:, None] == labels[None]
    others = similarity.masked_fill(same, -1e4).logsumexp(1, keepdim=True)  # finite also where there is one class
    pairs = same & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    loss = torch.logaddexp(similarity, others) - similarity
    return (loss * pairs).sum() / pairs.sum()
