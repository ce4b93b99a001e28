"""Gradient integration on plain cross-entropies: the routines of `mmpareto.integration`, by name."""

from mmpareto.integration import MetaBalance, MMPareto, OneJoint, OneUnimodal, Pareto, Uniform
from mmpareto.methods.base import METHODS
from mmpareto.registry import Range

METHODS.register("one_joint", summary="One joint loss; unimodal heads learn on detached features")(OneJoint)


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


METHODS.register("unimodal", summary="Each encoder by its own head; the joint head learns on detached features")(
    OneUnimodal
)
METHODS.register("pareto", summary="Conventional Pareto (MGDA): the minimum-norm point, always")(Pareto)
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
