"""What the joint head gets right that no single modality does, and the reverse.

Shapes: N samples, C classes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def synergy(
    joint: Tensor, unimodal: Mapping[str, Tensor], label: Tensor, present: Mapping[str, Tensor]
) -> dict[str, float]:
    """Shares of the samples, in percent, that the joint head and the unimodal heads decide differently.

    Args:
        joint: logits [N, C].
        unimodal: {modality: logits [N, C]}.
        label: int64 [N].
        present: {modality: bool [N]}; the head of an absent modality is right about nothing.

    Returns:
        "joint_only": the joint head is right and no unimodal head is; "single_only": a unimodal head is right and the
        joint one is wrong.
    """
    single = torch.stack([(logits.argmax(1) == label) & present[name] for name, logits in unimodal.items()]).any(0)
    together = joint.argmax(1) == label
    shares = {"joint_only": together & ~single, "single_only": single & ~together}
    return {name: 100.0 * float(mask.double().mean()) for name, mask in shares.items()}
