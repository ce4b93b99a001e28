"""Gradient integration on plain cross-entropies: the routines of `mmpareto.integration`, by name."""

from dataclasses import dataclass
from typing import Any

from mmpareto.integration import (
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
from mmpareto.registry import Option, Range

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
METHODS.register("aligned_mtl", summary="TorchJD; Senushkin et al., CVPR 2023", group=TORCHJD)(
    _Weighting("aligned_mtl")
)
METHODS.register("cagrad", summary="TorchJD; Liu et al., NeurIPS 2021", group=TORCHJD, search={"c": Range(0.1, 0.9)})(
    _Weighting("cagrad")
)
METHODS.register(
    "cr_mogm",
    summary="TorchJD; Zhou et al., NeurIPS 2022; smooths MGDA",
    group=TORCHJD,
    search={"alpha": Range(0.5, 0.99)},
)(_Weighting("cr_mogm"))
METHODS.register("dualproj", summary="TorchJD; Lopez-Paz & Ranzato, NeurIPS 2017 (GEM)", group=TORCHJD)(
    _Weighting("dualproj")
)
METHODS.register("fairgrad", summary="TorchJD; Ban & Ji, ICML 2024", group=TORCHJD, search={"alpha": Range(0.5, 4.0)})(
    _Weighting("fairgrad")
)
METHODS.register("gradvac", summary="TorchJD; Wang et al., ICLR 2021", group=TORCHJD, search={"beta": Range(0.1, 0.9)})(
    _Weighting("gradvac")
)
METHODS.register("imtl_g", summary="TorchJD; Liu et al., ICLR 2021", group=TORCHJD)(_Weighting("imtl_g"))
METHODS.register("mgda", summary="TorchJD; Sener & Koltun, NeurIPS 2018, Frank-Wolfe solver", group=TORCHJD)(
    _Weighting("mgda")
)
METHODS.register(
    "nash_mtl", summary="TorchJD; Navon et al., ICML 2022", group=TORCHJD, search={"max_norm": Range(0.3, 3.0)}
)(_Weighting("nash_mtl"))
METHODS.register(
    "pcd",
    summary="TorchJD; see TorchJD's documentation; primary objective: the joint loss",
    group=TORCHJD,
    search={"tau": Range(0.005, 0.1)},
)(_Weighting("pcd"))
METHODS.register("pcgrad", summary="TorchJD; Yu et al., NeurIPS 2020", group=TORCHJD)(_Weighting("pcgrad"))
METHODS.register("random", summary="TorchJD; Lin et al., TMLR 2022", group=TORCHJD)(_Weighting("random"))
METHODS.register("upgrad", summary="TorchJD; Quinton & Rey, 2024", group=TORCHJD)(_Weighting("upgrad"))
