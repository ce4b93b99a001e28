"""Every Gramian weighting of the TorchJD library as an integration routine; the only file here that imports torchjd."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from mmpareto.integration.integrator import Integrator


class _Entry(NamedTuple):
    weighting: str  # module:class
    defaults: dict[str, Any]  # options that TorchJD leaves to the caller, or that two objectives fix


# Not here: Mean, Sum and Constant look at no gradient (Uniform is their case); Krum needs at least three gradients;
# MoDo and SDMGrad need gradients of independent batches, ExcessMTL whole gradients.
WEIGHTINGS: dict[str, _Entry] = {
    "aligned_mtl": _Entry("torchjd.aggregation:AlignedMTLWeighting", {}),
    "cagrad": _Entry("torchjd.aggregation:CAGradWeighting", {"c": 0.4}),
    "cr_mogm": _Entry("torchjd.aggregation:CRMOGMWeighting", {}),
    "dualproj": _Entry("torchjd.aggregation:DualProjWeighting", {}),
    "fairgrad": _Entry("torchjd.aggregation:FairGradWeighting", {"alpha": 1.0}),
    "gradvac": _Entry("torchjd.aggregation:GradVacWeighting", {}),
    "imtl_g": _Entry("torchjd.aggregation:IMTLGWeighting", {}),
    "mgda": _Entry("torchjd.aggregation:MGDAWeighting", {}),
    "nash_mtl": _Entry(
        # TorchJD offers only the aggregator; its weighting sees the gradients through their Gramian alone
        "torchjd.aggregation._nash_mtl:_NashMTLWeighting",
        {"n_tasks": 2, "max_norm": 1.0, "update_weights_every": 1, "optim_niter": 20},
    ),
    "pcd": _Entry("torchjd.aggregation:PCDWeighting", {}),
    "pcgrad": _Entry("torchjd.aggregation:PCGradWeighting", {}),
    "random": _Entry("torchjd.aggregation:RandomWeighting", {}),
    "upgrad": _Entry("torchjd.aggregation:UPGradWeighting", {}),
}
_FACTORISED = ("nash_mtl",)  # takes the gradients, so it gets a square root of the Gramian
_DRAWN = ("random",)  # every process draws its own weights, so that one of them must decide
_EIGENVALUES = ("aligned_mtl",)  # scales by the smallest one, which nearly parallel gradients leave to rounding
_OWN_SCALE = ("pcd",)  # follows the gradients' norms over time, so the Gramian keeps its scale


class TorchJDWeighting(Integrator):
    """A weighting of TorchJD on the Gramian of a whole encoder: h = c (w_joint g_joint + w_unimodal g_unimodal).

    The constant c makes two equal gradients give their sum, whatever sum the weighting's weights have, so that
    routines are compared at one learning rate. The Gramian is divided by the mean of its diagonal first: the result is
    homogeneous of degree 1 (a loss scale passes through), and TorchJD's absolute thresholds do not mistake small
    gradients for none. The exception is `pcd`, which follows the gradients' norms over time; with a gradient scaler it
    needs `loss_scale` in `backward`.

    Two backward passes. Most of the weightings solve their problem on the CPU and so wait for the device once per
    encoder and step; none of them can be captured in a CUDA graph. Each encoder has a weighting and a state of its own.

    Args:
        name: one of WEIGHTINGS; their papers stand in `methods.torchjd`, their mathematics in TorchJD's documentation.
        options: of the weighting's constructor.

    Raises:
        ValueError: for an unknown name or option, ImportError (saying what to install) for a library that is missing.
    """

    capturable: ClassVar[bool] = False

    def __init__(self, name: str, **options: Any) -> None:
        if name not in WEIGHTINGS:
            raise ValueError(f"unknown TorchJD weighting {name!r}; known: {', '.join(WEIGHTINGS)}")
        self.name, self.float64_products = name, name in _EIGENVALUES
        self.options = WEIGHTINGS[name].defaults | options
        self._fresh = _make(name, self.options)
        self._weightings: dict[str, Any] = {}
        equal = self._weights(copy.deepcopy(self._fresh), torch.ones(2, 2, dtype=torch.float64))
        self.scale = round(2.0 / float(equal.sum()), 9)  # without the last bits of a solver or of drawn weights

    def coefficients(self, gramians: Tensor) -> Tensor:
        """[T, 2, 2] -> [T, 2], the same for every tensor; with the state of a nameless encoder."""
        return self.encoder_coefficients("", gramians)

    def encoder_coefficients(self, encoder: str, gramians: Tensor) -> Tensor:
        """See `coefficients`; with the state of this encoder's weighting."""
        if encoder not in self._weightings:
            self._weightings[encoder] = copy.deepcopy(self._fresh)
        total = gramians.sum(0)
        if not bool(total.isfinite().all()):  # an overflow of mixed precision: pass it on to the gradient scaler
            return gramians.new_full((len(gramians), 2), torch.nan)
        weights = self._weights(self._weightings[encoder], total.double()).to(total)
        if self.name in _DRAWN and self.processes > 1:
            dist.broadcast(weights, group=self.process_group, group_src=0)
        return (self.scale * weights).expand(len(gramians), 2)

    def _weights(self, weighting: Any, gramian: Tensor) -> Tensor:
        """The weights [2] for a Gramian [2, 2]; (1, 1) where both gradients are zero."""
        size = gramian.diagonal().mean()
        if not bool(size > 0):
            return torch.ones_like(gramian[0])
        statistic = gramian if self.name in _OWN_SCALE else gramian / size
        return weighting(_square_root(statistic) if self.name in _FACTORISED else statistic)

    def state_dict(self) -> dict[str, Any]:
        """{encoder: state of its weighting}."""
        return {encoder: _state(weighting) for encoder, weighting in self._weightings.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`.

        Raises:
            ValueError: for a state of another weighting.
        """
        self._weightings = {}
        for encoder, saved in state.items():
            self._weightings[encoder] = weighting = copy.deepcopy(self._fresh)
            _restore(weighting, saved, self.name)


def _weighting_class(name: str) -> Any:
    module, _, attribute = WEIGHTINGS[name].weighting.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _make(name: str, options: dict[str, Any]) -> Any:
    try:
        weighting_class = _weighting_class(name)
        inner = (_make("mgda", {}),) if name == "cr_mogm" else ()
        weighting = weighting_class(*inner, **options)
    except ImportError as error:
        raise ImportError(
            f'the method {name} needs more than is installed: pip install "torchjd[full]" ({error})'
        ) from error
    except TypeError as error:
        raise ValueError(f"the TorchJD weighting {name} does not take the options {options}: {error}") from error
    return weighting


def _square_root(gramian: Tensor) -> Tensor:
    """J [2, 2] with J J^T = gramian, also where that is singular."""
    values, vectors = torch.linalg.eigh(gramian)
    return vectors * values.clamp(min=0).sqrt()


def _state(weighting: Any) -> dict[str, Any]:
    """Buffers and plain attributes of a weighting and of what it wraps, as tensors and plain Python."""
    state: dict[str, Any] = {}
    for path, module in weighting.named_modules():
        values = {**module._buffers, **vars(module)}
        for key in ("step", "prvs_alpha", "_state_key", *module._buffers):
            if key in values:
                value = values[key]
                # Nash-MTL's solver works on NumPy's arrays
                state[f"{path}|{key}"] = torch.from_numpy(value.copy()) if key == "prvs_alpha" else value
    return state


def _restore(weighting: Any, state: Mapping[str, Any], name: str) -> None:
    expected = _state(weighting).keys()
    if state.keys() != expected:
        raise ValueError(f"the saved state is none of the TorchJD weighting {name}: found {sorted(state)}")
    modules = dict(weighting.named_modules())
    for full, value in state.items():
        path, _, key = full.partition("|")
        if isinstance(value, Tensor) and key != "_lambda":  # CR-MOGM's are where the weights are, all others on the CPU
            value = value.cpu()
        setattr(modules[path], key, value.numpy().copy() if key == "prvs_alpha" else value)
    if state.get("|prvs_alpha") is not None and state["|step"] > 0:
        weighting._init_optim_problem()  # otherwise made at step 0
