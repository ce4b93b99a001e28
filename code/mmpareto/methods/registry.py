"""Methods by name: what `--method` takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from mmpareto import integration
from mmpareto.flag_values import described_arguments
from mmpareto.importing import class_at
from mmpareto.integration import Integrator
from mmpareto.methods.agm import AGM
from mmpareto.methods.base import Method
from mmpareto.methods.gblending import GBlending
from mmpareto.methods.gradnorm import GradNorm
from mmpareto.methods.mmcosine import MMCosine
from mmpareto.methods.mslr import MSLR
from mmpareto.methods.ogm import OGM, OGMGE
from mmpareto.methods.pmr import PMR
from mmpareto.methods.unimodal import Ensemble, FineTune

_OWN: dict[str, tuple[Callable[..., Method], str]] = {
    "ensemble": (Ensemble, "unimodal models whose predictions are averaged"),
    "finetune": (FineTune, "unimodal pre-training, then one joint loss"),
    "ogm": (OGM, "OGM (Peng et al., CVPR 2022): the gradient of the modality ahead is made smaller"),
    "ogm_ge": (OGMGE, "OGM-GE (likewise): OGM, and noise"),
    "gblending": (GBlending, "G-Blending (Wang et al., CVPR 2020): loss weights from generalisation and overfitting"),
    "pmr": (PMR, "PMR (Fan et al., CVPR 2023): prototypes that draw slow modalities on"),
    "agm": (AGM, "AGM (Li et al., ICCV 2023): gradients modulated by Shapley parts of the logits"),
    "mmcosine": (MMCosine, "MMCosine (Xu et al., ICASSP 2023): a joint head of directions"),
    "mslr": (MSLR, "MSLR (Yao & Mihalcea, 2022): a learning rate for each modality"),
    "gradnorm": (GradNorm, "GradNorm (Chen et al., ICML 2018): loss weights that make tasks learn at one pace"),
}
# name -> what it is in a line: integration routines, which train on plain cross-entropies, and methods that do more
METHODS: dict[str, str] = {
    **{name: about for name, (_, about) in integration.METHODS.items()},
    **{name: about for name, (_, about) in _OWN.items()},
}


def method_options(method: str) -> dict[str, Any]:
    """The options that a method takes, with their defaults (`inspect.Parameter.empty` for those without).

    Raises ValueError for an unknown method.
    """
    made = _OWN[method][0] if method in _OWN else _foreign(method)
    if made is None:
        return integration.method_options(method)
    return {key: parameter.default for key, parameter in inspect.signature(made).parameters.items()}


def described_options(method: str) -> dict[str, str]:
    """What the method's docstring says of each of its options; empty where the method is a library's.

    Raises ValueError for an unknown method.
    """
    made = _OWN[method][0] if method in _OWN else _foreign(method)
    if made is None:
        maker = integration.METHODS[method][0]
        made = maker.func if isinstance(maker, functools.partial) else maker
        if made is integration.TorchJDWeighting:
            return {}
    return described_arguments(made)  # type: ignore[arg-type]  # all of them are classes


def build_method(method: str, **options: Any) -> Method:
    """A method ready for `setup`.

    method   one of METHODS, or `package.module:Class`: a subclass of Method, or of Integrator for a routine on plain
             cross-entropies.
    options  of that method, such as gamma.

    Raises ValueError for an unknown method, an option that it does not take (named, with the known ones) or a value
    that it cannot use; ImportError for a library that it needs and that is missing.
    """
    made = _OWN[method][0] if method in _OWN else _foreign(method)
    known = method_options(method)
    for key in options:
        if key not in known:
            raise ValueError(f"method {method!r} has no option {key!r}; its options: {', '.join(known) or 'none'}")
    try:
        built = integration.build_integrator(method, **options) if made is None else made(**options)
    except TypeError as error:  # text where a number is compared, say
        raise ValueError(f"method {method!r} cannot use the options {options}: {error}") from error
    return Method(built) if isinstance(built, Integrator) else built


def _foreign(method: str) -> Callable[..., Method | Integrator] | None:
    """A class by its import path; None for a name that integration knows."""
    if ":" not in method:
        if method not in METHODS:
            raise ValueError(
                f"unknown method {method!r:.100}; known: {', '.join(METHODS)}, or package.module:Class for one of your "
                "own"
            )
        return None
    try:
        return class_at(method, Method, Integrator)
    except ValueError as error:
        raise ValueError(f"method {error}") from error
