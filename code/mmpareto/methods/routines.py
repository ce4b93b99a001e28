"""Gradient integration on plain cross-entropies: the routines of `mmpareto.integration`, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmpareto.integration import (
    WEIGHTINGS,
    MetaBalance,
    MMPareto,
    OneJoint,
    OneUnimodal,
    Pareto,
    TorchJDWeighting,
    Uniform,
    weighting_options,
)
from mmpareto.methods.base import METHODS
from mmpareto.registry import Option, Range, Space

METHODS.register("one_joint", summary="one joint loss; unimodal heads learn on detached features")(OneJoint)


@METHODS.register("uniform")
def uniform() -> Uniform:
    """Uniform baseline: the plain sum of all losses."""
    return Uniform()


@METHODS.register("uniform_gamma", search={"gamma": Range(1.0, 4.0)})
def uniform_gamma(gamma: float = 1.5) -> Uniform:
    """Control: the uniform sum, encoder gradients times gamma.

    Args:
        gamma: factor of the encoders' gradients, MMPareto's 1.5 by default.
    """
    return Uniform(gamma)


METHODS.register("unimodal", summary="each encoder by its own head; the joint head learns on detached features")(
    OneUnimodal
)
METHODS.register("pareto", summary="conventional Pareto (MGDA): the minimum-norm point, always")(Pareto)
METHODS.register(
    "mmpareto",
    summary="MMPareto: Pareto direction in conflict, magnitude restored, times gamma",
    search={"gamma": Range(1.0, 4.0), "rescale": ["tensor", "encoder"]},
)(MMPareto)
METHODS.register(
    "metabalance",
    summary="MetaBalance (He et al., WWW 2022): the unimodal gradient at the joint one's norm",
    search={"relax": Range(0.1, 1.0), "beta": Range(0.5, 0.99)},
)(MetaBalance)


@dataclass(frozen=True)
class _Weighting:
    """Makes the integrator of a TorchJD weighting."""

    name: str

    def __call__(self, **options: Any) -> TorchJDWeighting:
        return TorchJDWeighting(self.name, **options)

    def options(self) -> dict[str, Option]:
        """Options of the weighting; TorchJD's documentation describes them."""
        return {key: Option(value, type(value), "") for key, value in weighting_options(self.name).items()}


TORCHJD = "TorchJD"
# options of weightings that a search varies
SEARCH: dict[str, Space] = {
    "cagrad": {"c": Range(0.1, 0.9)},
    "cr_mogm": {"alpha": Range(0.5, 0.99)},
    "fairgrad": {"alpha": Range(0.5, 4.0)},
    "gradvac": {"beta": Range(0.1, 0.9)},
    "nash_mtl": {"max_norm": Range(0.3, 3.0)},
    "pcd": {"tau": Range(0.005, 0.1)},
}
for _name, _entry in WEIGHTINGS.items():
    METHODS.register(_name, summary=f"TorchJD; {_entry.paper}", group=TORCHJD, search=SEARCH.get(_name))(
        _Weighting(_name)
    )
