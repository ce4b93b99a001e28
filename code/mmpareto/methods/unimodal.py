"""Unimodal models: as an ensemble, or as the beginning of a multimodal one."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from mmpareto.escape import counted
from mmpareto.integration import OneJoint, OneUnimodal
from mmpareto.methods.base import METHODS, Boundary, Method, MethodError
from mmpareto.methods.shared import one_of, whole
from mmpareto.models import EnsembleFusion, MultimodalModel


@METHODS.register("ensemble")
class Ensemble(Method):
    """Late-fusion ensemble: each encoder with its own head alone; the prediction is the mean of their probabilities.

    Args:
        combine: "probabilities": the mean of the heads' probabilities; "logarithms": the mean of their logarithms, a
            product of experts.
    """

    changes = "phases and resets"
    requires = frozenset({"features"})

    def __init__(self, combine: str = "probabilities") -> None:
        super().__init__(OneUnimodal())
        self.combine = one_of("combine", combine, EnsembleFusion.COMBINE)

    def fusion(self, widths: Mapping[str, int], classes: int, heads: nn.ModuleDict) -> nn.Module:
        """The mean of the unimodal heads' probabilities; no parameters of its own."""
        return EnsembleFusion(heads, self.combine)


@METHODS.register("finetune")
class FineTune(Method):
    """Unimodal pre-training, then fine-tuning: encoders learn alone, then together from one joint loss.

    At the turn the joint head begins again, by `reset_parameters` of the fusion and its layers, and the optimiser
    forgets its momentum. The checkpoint is selected among the epochs after it. The learning-rate schedule runs on.

    The published code of several methods loads unimodal encoders so that a name that does not match passes silently
    (`strict=False`); here the encoders never leave the model.

    Args:
        pretrain_epochs: before the turn; 0: half of the run's epochs.
        frozen: leave the encoders as pre-training made them, batch norm's statistics included; train the heads.
    """

    changes = "phases and resets"
    requires = frozenset({"features"})
    refuses: ClassVar[Mapping[str, str]] = {"cuda_graph": "at the turn other parameters begin to learn"}

    def __init__(self, pretrain_epochs: int = 0, frozen: bool = False) -> None:
        super().__init__(OneUnimodal())
        self.pretrain_epochs, self.frozen = whole("pretrain_epochs", pretrain_epochs), bool(frozen)
        # on the CPU: read once an epoch
        self.state["turned"] = torch.zeros((), dtype=torch.bool)
        self.state["before"] = torch.zeros((), dtype=torch.int64)  # epochs before the turn

    @property
    def selectable(self) -> bool:
        """After the turn."""
        return bool(self.state["turned"])

    @property
    def planned(self) -> bool:
        """Where the turn is in the middle."""
        return not self.pretrain_epochs

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Keep the model, whose encoders may be frozen when a checkpoint is restored.

        Raises:
            MethodError: where the turn leaves no epoch before or after it.
        """
        super().setup(model, seed, epochs)
        before = self.pretrain_epochs or epochs // 2
        if not 0 < before < epochs:
            raise MethodError(
                f"{before} of {counted(epochs, 'epoch')} of pre-training leave none before or after the turn; give "
                "more --epochs or another --method_options pretrain_epochs=N"
            )
        self.state["before"].fill_(before)

    def boundary(self, now: Boundary) -> dict[str, float]:
        """Make the turn when its epoch has come."""
        if now.epoch > self.state["before"] and not self.state["turned"]:
            now.model.fusion.apply(_draw_anew)
            now.engine.alike()
            now.optimizer.state.clear()
            self.state["turned"].fill_(True)
            self._turn()
        return {}

    def figures(self) -> dict[str, float]:
        """Whether the turn is over."""
        return {"turned": float(self.state["turned"])}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """See `Method.load_state_dict`; after the turn the encoders are frozen again where they were."""
        super().load_state_dict(state)
        if self.state["turned"]:
            self._turn()

    def _turn(self) -> None:
        self.integrator = OneJoint()
        if self.frozen:
            for parameter in self.model.encoders.parameters():
                parameter.requires_grad_(False)


def _draw_anew(module: nn.Module) -> None:
    """Draw a module's own parameters anew."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)  # attention's
    if callable(reset):
        reset()
