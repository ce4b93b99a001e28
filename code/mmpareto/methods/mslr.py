"""MSLR: a learning rate of its own for each modality (Yao & Mihalcea, Findings of ACL 2022)."""

import torch

from mmpareto.escape import counted
from mmpareto.integration import OneJoint
from mmpareto.methods.base import METHODS, Boundary, Method
from mmpareto.methods.shared import by_name, check_names, named_values, whole
from mmpareto.models import MultimodalModel


@METHODS.register("mslr")
class MSLR(Method):
    """MSLR (Yao & Mihalcea, 2022): a learning rate for each modality.

    Modality-specific learning rates (Yao & Mihalcea, "Modality-specific Learning Rates for Effective Multimodal
    Additive Late-fusion", Findings of ACL 2022, the dynamic policy): one joint loss; in each epoch encoder m learns at

        c_m acc_m / mean of its last accuracies   times the learning rate,

    acc_m the validation accuracy of its unimodal head, which learns beside it on detached features.

    These are learning rates of optimiser groups. Scaling gradients, as public code does, is undone by Adam, and leaves
    weight decay as it was.

    Args:
        factors: c_m as MODALITY:VALUE,MODALITY:VALUE (a re-implementation takes audio:0.9,visual:1.1); 1 for all
            others.
        window: accuracies in the mean, 5 there; until as many are there before the newest the factor is c_m alone.
    """

    changes = "size of an encoder's gradient or rate"

    def __init__(self, factors: str = "", window: int = 5) -> None:
        super().__init__(OneJoint())
        self.window = whole("window", window, 1)
        self.factors = named_values("factors", factors)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Raise MethodError for a factor of no modality."""
        super().setup(model, seed, epochs)
        check_names("factors", self.factors, self.names)
        self.state["rates"] = torch.ones(len(self.names), dtype=torch.float64)  # factors of this epoch
        # the last accuracies, oldest first; NaN where there is none yet; on the CPU, read once an epoch
        self.state["accuracies"] = torch.full((len(self.names), self.window), torch.nan, dtype=torch.float64)

    def idle(self, epochs: int) -> str:
        """Where no factor is given, and the run ends before the window is full."""
        if any(factor != 1 for factor in self.factors.values()) or epochs > self.window + 1:
            return ""
        return (
            f"it never changes a rate: without factors it does from epoch {self.window + 2} on, and the run has "
            f"{counted(epochs, 'epoch')}; give factors, or a smaller window"
        )

    def boundary(self, now: Boundary) -> dict[str, float]:
        """The factors of the epoch."""
        rates = torch.tensor([self.factors.get(name, 1.0) for name in self.names], dtype=torch.float64)
        if now.validation:
            accuracies = self.state["accuracies"]
            newest = torch.tensor([now.validation[name] for name in self.names], dtype=torch.float64)
            rates *= ratios(accuracies, newest)
            accuracies.copy_(torch.cat((accuracies[:, 1:], newest[:, None]), 1))
        self.state["rates"].copy_(rates)
        return dict(zip(self.names, rates.tolist(), strict=True))

    def figures(self) -> dict[str, float]:
        """The factors of the encoders' learning rates."""
        return by_name("rate", self.names, self.state["rates"])


def ratios(before: torch.Tensor, newest: torch.Tensor) -> torch.Tensor:
    """newest [M] over the mean of before [M, window]; 1 where that is not full or zero."""
    mean = before.mean(1)
    return torch.where(mean > 0, newest / mean, 1.0)
