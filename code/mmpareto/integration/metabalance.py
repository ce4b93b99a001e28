"""MetaBalance: auxiliary gradients brought to the magnitude of the main one (He et al., WWW 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmpareto.integration.integrator import Integrator
from mmpareto.integration.moving_averages import MovingAverages


class MetaBalance(Integrator):
    """MetaBalance (He, Feng, Cheng, Ji, Guo & Caverlee, "MetaBalance: Improving Multi-Task Recommendations via Adapting
    Gradient Magnitudes of Auxiliary Tasks", WWW 2022, Algorithm 1, the variant that both shrinks and grows).

    The joint loss is the main task, a modality's unimodal loss the auxiliary one. With moving averages n of the norms
    of each parameter tensor's two gradients, n <- beta n + (1 - beta) |g|, the encoder gets

        h = g_j + (r n_j / n_u + 1 - r) g_u.

    The published code stops at the first tensor that one loss does not reach, and divides zero by zero; here such a
    tensor gets what gradient there is. With a gradient scaler give `loss_scale` to `backward`: otherwise a new scale
    would weigh new norms against old ones. A step that is not finite leaves the averages as they are. Two backward
    passes, an average of two norms per parameter tensor, no wait for the device.

    Args:
        relax: r, from 0 (the plain sum) to 1 (the unimodal gradient at the joint one's norm), 0.7 in the paper.
        beta: of the moving averages, 0.9 in the paper; they start at zero, which cancels in the ratio.

    Raises:
        ValueError: for r outside 0 .. 1 or beta outside 0 .. 1 (1 itself excluded).
    """

    def __init__(self, relax: float = 0.7, beta: float = 0.9) -> None:
        if not 0 <= relax <= 1:
            raise ValueError(f"relax must lie between 0 and 1, found {relax}")
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be from 0 up to but not including 1, found {beta}")
        self.relax = float(relax)
        self._norms = MovingAverages(float(beta))  # [T, 2]

    def coefficients(self, gramians: Tensor) -> Tensor:
        """[T, 2, 2] -> [T, 2]: (1, r n_j / n_u + 1 - r), with the averages of a nameless encoder."""
        return self.encoder_coefficients("", gramians)

    def encoder_coefficients(self, encoder: str, gramians: Tensor) -> Tensor:
        """See `coefficients`; with the averages of this encoder."""
        now = gramians.double().diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        joint, unimodal = self._norms.update(encoder, now).unbind(1)
        ratio = torch.where((joint > 0) & (unimodal > 0), joint / unimodal, 1.0)
        # an average that fades to nothing, since no unimodal gradient comes any more, is no reason for inf * 0
        ratio = ratio.clamp(max=torch.finfo(gramians.dtype).max ** 0.5)
        return torch.stack((torch.ones_like(ratio), self.relax * ratio + 1 - self.relax), dim=1).to(gramians.dtype)

    def state_dict(self) -> dict[str, Any]:
        """{encoder: moving averages of the norms, [T, 2]}."""
        return self._norms.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self._norms.load_state_dict(state, (2,), "MetaBalance keeps norms of shape [T, 2]")
