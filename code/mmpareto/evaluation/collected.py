"""One pass of the model over a split: features and logits, kept in memory, so that encoders run once.

Shapes: N samples of the split, D feature width of a modality, C classes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mmpareto.datasets import Batch, Modality
from mmpareto.escape import counted
from mmpareto.evaluation import EvaluationError
from mmpareto.evaluation.passes import outputs
from mmpareto.inputs import map_tensors
from mmpareto.models import MultimodalModel


@dataclass(frozen=True)
class Collected:
    """What the model says of a split, on the CPU, in the order of the split."""

    features: dict[str, Tensor]  # {modality: float32 [N, D]}
    unimodal: dict[str, Tensor]  # {modality: float32 [N, C]}
    joint: Tensor  # float32 [N, C]
    label: Tensor  # int64 [N]
    present: dict[str, Tensor]  # {modality: bool [N]}
    types: dict[str, torch.dtype] = field(default_factory=dict)  # of the features on the device, where they are known

    def logits(self) -> dict[str, Tensor]:
        """{"joint" or a modality: logits [N, C]}."""
        return {"joint": self.joint, **self.unimodal}

    def having(self, names: Iterable[str]) -> Tensor:
        """bool [N]: the samples that have all these modalities; "joint" counts as one that all have."""
        masks = [self.present[name] for name in names if name != "joint"]
        return torch.stack([torch.ones_like(self.label, dtype=torch.bool), *masks]).all(0)


@torch.inference_mode()
def collect(
    model: MultimodalModel,
    batches: Iterable[Batch],
    modalities: Mapping[str, Modality],
    device: torch.device,
    amp: torch.dtype | None = None,
) -> Collected:
    """Run the model, in evaluation mode, over the batches of a split.

    amp  type of automatic mixed precision, as in training.

    Raises EvaluationError where the split is empty, or features or logits are not finite, naming the first such clip.
    """
    parts, ids, types = [], list[str](), dict[str, torch.dtype]()
    for batch, _, output in outputs(model, batches, modalities, device, amp):
        computed = map_tensors(lambda value: value.float().cpu(), (output.features, output.unimodal, output.joint))
        everywhere = dict.fromkeys(modalities, torch.ones(len(batch["label"]), dtype=torch.bool))
        types = {name: value.dtype for name, value in output.features.items()}
        parts.append((*computed, batch["label"], batch.get("present", everywhere)))
        ids += batch["id"]
    if not ids:
        raise EvaluationError("the split has no samples")
    done = replace(Collected(*pytree.tree_map(lambda *values: torch.cat(values), *parts)), types=types)
    values = {f"the features of {name}": value for name, value in done.features.items()}
    values |= {f"the logits of the {name} head": value for name, value in done.logits().items()}
    for what, value in values.items():
        broken = ~torch.isfinite(value).all(1)
        if broken.any():
            first = ids[int(broken.nonzero()[0])]
            raise EvaluationError(
                f"{what} are not finite for {int(broken.sum())} of {counted(len(ids), 'clip')}, such as {first}: the "
                "model diverged, or the clip holds values that are not finite"
            )
    return done
