"""Scoring passes through the data: mean losses and accuracies of a whole split."""

from collections.abc import Callable
from typing import Any

import torch

from mmpareto.evaluation.all_heads import AllHeads
from mmpareto.evaluation.passes import output_of
from mmpareto.evaluation.scores import Scores
from mmpareto.models import MultimodalModel, cross_entropies
from mmpareto.training.capture import Captured
from mmpareto.training.data import Loader
from mmpareto.training.epochs import stored_part
from mmpareto.training.processes import Processes


class Scorer:
    """Mean loss and accuracy in percent of the joint head and of each modality's own, over whole splits.

    Args:
        model: what is scored.
        device: where it is.
        amp: type of automatic mixed precision, as in training.
        capture: replay a batch as a CUDA graph, see `Captured`.
    """

    def __init__(
        self, model: MultimodalModel, device: torch.device, *, amp: torch.dtype | None = None, capture: bool = False
    ) -> None:
        self.model, self.device, self.amp = model, device, amp
        self.scores, self.all_heads = Scores(list(model.encoders), device), AllHeads(device)
        self._run: Callable[[Any, Loader, bool], None] = self._on_device
        if capture:
            self._run = Captured(self._on_device)

    @torch.inference_mode()
    def __call__(
        self,
        loader: Loader,
        *,
        processes: Processes | None = None,
        between: Callable[[], None] = lambda: None,
        combine: bool = False,
    ) -> dict[str, dict[str, float]]:
        """Score a split.

        Args:
            loader: of its batches.
            processes: those that share the split; every sample counts once.
            between: see `Loader.epoch`.
            combine: gather the predictions of all heads together as well, in `all_heads`.
        """
        self.model.eval()
        self.scores.reset()
        self.all_heads.reset()
        for batch in loader.stream(0, between=between):
            self._run(stored_part(batch, loader.dataset.modalities, self.device), loader, combine)
        return self.scores.compute() if processes is None else self.scores.compute(processes.total)

    def _on_device(self, stored: Any, loader: Loader, combine: bool) -> None:
        """All that a batch launches."""
        (_, label, _), output = output_of(self.model, stored, loader.dataset.modalities, self.device, self.amp)
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            loss = cross_entropies(output, label)
        self.scores.update(loss.joint, loss.unimodal, output.joint, output.unimodal, label, output.present)
        if combine:
            self.all_heads.update(output.joint, output.unimodal, label, output.present)
