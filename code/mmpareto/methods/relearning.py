"""Diagnosing & Re-learning: encoders go back towards their beginning (Wei et al., ECCV 2024)."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mmpareto.integration import OneJoint
from mmpareto.methods.base import METHODS, Boundary, Method
from mmpareto.methods.shared import by_name, encoder_weights, finite, late, whole
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range


@METHODS.register("relearning", search={"strength": Range(1.0, 10.0), "interval": Range(2, 20)})
class Relearning(Method):
    """Diagnosing & Re-learning (Wei et al., ECCV 2024): encoders go back towards their beginning.

    Wei, Li, Feng & Hu, "Diagnosing and Re-learning for Balanced Multimodal Learning", ECCV 2024: one joint loss. After
    some epochs each modality's features, of the training samples and of the validation samples, are clustered on their
    own (k-means, as many clusters as classes, each column scaled to -1 .. 1), and

        theta_m <- w_m theta_m(0) + (1 - w_m) theta_m,   w_m = tanh(strength |P_train - P_val|),

    theta_m all parameters of encoder m, theta_m(0) as the run began, P the purity: the share of samples whose class is
    the most frequent one of their cluster. Batch norm's statistics, heads and the optimiser's momentum stay, as in the
    published code.

    The gap that is measured is a choice by the validation split, as the selection of the epoch is; the test split is
    not looked at. Features of both splits are computed on every process: two passes through the data each time.

    Args:
        strength: 3 in the published code.
        interval: epochs from one re-learning to the next, which comes after so many; in the code after 21, 41 and 61.
        times: how often; 3 there.
    """

    changes = "phases and resets"
    refuses: ClassVar[Mapping[str, str]] = {"missing": "it clusters the features of all samples"}

    def __init__(self, strength: float = 3.0, interval: int = 20, times: int = 3) -> None:
        super().__init__(OneJoint())
        self.strength = finite("strength", strength)
        self.interval, self.times = whole("interval", interval, 1), whole("times", times)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make room for the first weights."""
        super().setup(model, seed, epochs)
        self.classes = model.classes
        self.state |= {name: torch.zeros_like(p) for name, p in encoder_weights(model, "first").items()}
        self.state["pulls"] = torch.zeros(len(self.names), dtype=torch.float64)  # on the CPU, read once an epoch

    def idle(self, epochs: int) -> str:
        """Where no interval ends before the run does."""
        return late("re-learns", "interval", self.interval, epochs)

    @torch.no_grad()
    def boundary(self, now: Boundary) -> dict[str, float]:
        """Keep the first weights; move encoders back when it is time."""
        weights = encoder_weights(now.model, "first")
        if now.epoch == 1:
            for name, parameter in weights.items():
                self.state[name].copy_(parameter)
        times, rest = divmod(now.epoch - 1, self.interval)
        if rest or not 0 < times <= self.times:
            return {}
        train, val = (self._purities(now, split) for split in ("train", "val"))
        self.state["pulls"].copy_(torch.tanh(self.strength * (train - val).abs()))
        for pull, modality in zip(self.state["pulls"].tolist(), self.names, strict=True):
            for name, parameter in weights.items():
                if name.startswith(f"first.{modality}."):
                    parameter.lerp_(self.state[name], pull)
        now.engine.alike()  # rounding may differ among processes
        return {}

    def figures(self) -> dict[str, float]:
        """w_m of the last re-learning."""
        return by_name("pull", self.names, self.state["pulls"])

    def _purities(self, now: Boundary, split: str) -> Tensor:
        """The purity of each modality's clusters, [M]."""
        features: dict[str, list[Tensor]] = {name: [] for name in self.names}
        labels = []
        for output, label in now.engine.outputs(1.0, split=split, shared=False):
            labels.append(label.cpu())
            for name in self.names:
                features[name].append(output.features[name].float().cpu())
        truth = torch.cat(labels).numpy()
        values = [purity(torch.cat(features[name]).numpy(), truth, self.classes) for name in self.names]
        return torch.tensor(values, dtype=torch.float64)


def purity(features: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Purity of k-means clusters of features [N, D], against labels [N]; see Relearning."""
    from sklearn.cluster import KMeans  # takes a second to import
    from sklearn.metrics.cluster import contingency_matrix
    from sklearn.preprocessing import MinMaxScaler
    from threadpoolctl import threadpool_limits

    scaled = MinMaxScaler((-1, 1)).fit_transform(features)
    with threadpool_limits(1):  # one order of sums, so that a resumed run ends bit for bit as without an interruption
        clusters = KMeans(min(classes, len(scaled)), n_init=10, random_state=0).fit_predict(scaled)
    return float(contingency_matrix(labels, clusters).max(0).sum() / len(labels))
