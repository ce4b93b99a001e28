"""Methods by name: what `--method` takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from mmpareto.importing import attribute, class_at
from mmpareto.integration.integrator import Integrator
from mmpareto.integration.metabalance import MetaBalance
from mmpareto.integration.mmpareto import MMPareto
from mmpareto.integration.one_pass import OneJoint, OneUnimodal, Uniform
from mmpareto.integration.pareto import Pareto
from mmpareto.integration.torchjd_weighting import WEIGHTINGS, TorchJDWeighting

# name -> what makes the integrator, and what it is in a line
METHODS: dict[str, tuple[Callable[..., Integrator], str]] = {
    "one_joint": (OneJoint, "one joint loss; unimodal heads learn on detached features"),
    "uniform": (Uniform, "uniform baseline: the plain sum of all losses"),
    "uniform_gamma": (partial(Uniform, gamma=1.5), "the control: uniform sum, encoder gradients times gamma"),
    "unimodal": (OneUnimodal, "each encoder by its own head alone; the joint head learns on detached features"),
    "pareto": (Pareto, "conventional Pareto (MGDA): the minimum-norm point, always"),
    "mmpareto": (MMPareto, "MMPareto: Pareto direction in conflict, magnitude restored, times gamma"),
    "metabalance": (
        MetaBalance,
        "MetaBalance (He et al., WWW 2022): the unimodal gradient at the joint one's norm",
    ),
    **{name: (partial(TorchJDWeighting, name), f"TorchJD; {entry.paper}") for name, entry in WEIGHTINGS.items()},
}


def method_options(method: str) -> dict[str, Any]:
    """The options that a method takes, with their defaults (`inspect.Parameter.empty` for those without).

    Raises ValueError for an unknown method.
    """
    if method in WEIGHTINGS:
        parameters = inspect.signature(attribute(WEIGHTINGS[method].weighting)).parameters
        known = {key: p.default for key, p in parameters.items() if key not in ("n_tasks", "weighting")}
        return known | {key: v for key, v in WEIGHTINGS[method].defaults.items() if key in known}
    parameters = inspect.signature(_maker(method)).parameters
    return {key: p.default for key, p in parameters.items() if not (method == "uniform" and key == "gamma")}


def build_integrator(method: str, **options: Any) -> Integrator:
    """The integrator of a method.

    method   one of METHODS, or `package.module:Class` for a routine that lives elsewhere (a subclass of Integrator).
    options  of that method, such as gamma.

    Raises ValueError for an unknown method, or an option that it does not take (named, with the known ones).
    """
    maker = _maker(method)
    known = method_options(method)
    for key in options:
        if key not in known:
            raise ValueError(f"method {method!r} has no option {key!r}; its options: {', '.join(known) or 'none'}")
    return maker(**options)


def _maker(method: str) -> Callable[..., Integrator]:
    if method in METHODS:
        return METHODS[method][0]
    if ":" not in method:
        raise ValueError(
            f"unknown method {method!r:.100}; known: {', '.join(METHODS)}, or package.module:Class for one of your own"
        )
    try:
        return class_at(method, Integrator)
    except ValueError as error:
        raise ValueError(f"method {error}") from error
