"""The weightings of the TorchJD library as methods: their names, papers, options, and ranges for a search.

Values are checked before the library is imported, which takes a second.
"""

from typing import Literal

from mmpareto.integration import TorchJDWeighting
from mmpareto.methods.base import METHODS
from mmpareto.methods.shared import finite, whole
from mmpareto.registry import Range

GROUP = "TorchJD"


@METHODS.register("aligned_mtl", group=GROUP)
def aligned_mtl(scale_mode: Literal["min", "median", "rmse"] = "min") -> TorchJDWeighting:
    """TorchJD; Senushkin et al., CVPR 2023.

    Args:
        scale_mode: eigenvalue of the Gramian to which both are scaled: min, median or rmse.
    """
    return TorchJDWeighting("aligned_mtl", scale_mode=scale_mode)


@METHODS.register("cagrad", group=GROUP, search={"c": Range(0.1, 0.9)})
def cagrad(c: float = 0.4, norm_eps: float = 0.0001) -> TorchJDWeighting:
    """TorchJD; Liu et al., NeurIPS 2021.

    Args:
        c: radius of the ball around the mean gradient, as a share of its norm.
        norm_eps: added where the Gramian is normalised.
    """
    return TorchJDWeighting("cagrad", c=finite("c", c), norm_eps=finite("norm_eps", norm_eps))


@METHODS.register("cr_mogm", group=GROUP, search={"alpha": Range(0.5, 0.99)})
def cr_mogm(alpha: float = 0.9) -> TorchJDWeighting:
    """TorchJD; Zhou et al., NeurIPS 2022; smooths MGDA.

    Args:
        alpha: share of the previous weights in the moving average; 0 for MGDA itself.
    """
    return TorchJDWeighting("cr_mogm", alpha=finite("alpha", alpha, most=1))


@METHODS.register("dualproj", group=GROUP)
def dualproj() -> TorchJDWeighting:
    """TorchJD; Lopez-Paz & Ranzato, NeurIPS 2017 (GEM)."""
    return TorchJDWeighting("dualproj")


@METHODS.register("fairgrad", group=GROUP, search={"alpha": Range(0.5, 4.0)})
def fairgrad(alpha: float = 1.0, max_iters: int = 200) -> TorchJDWeighting:
    """TorchJD; Ban & Ji, ICML 2024.

    Args:
        alpha: kind of fairness: 1 for proportional, larger values towards max-min.
        max_iters: of the solver in a step.
    """
    return TorchJDWeighting("fairgrad", alpha=finite("alpha", alpha), max_iters=whole("max_iters", max_iters, 1))


@METHODS.register("gradvac", group=GROUP, search={"beta": Range(0.1, 0.9)})
def gradvac(beta: float = 0.5, eps: float = 1e-08) -> TorchJDWeighting:
    """TorchJD; Wang et al., ICLR 2021.

    Args:
        beta: decay of the moving average of the cosine that is aimed at.
        eps: added to denominators.
    """
    return TorchJDWeighting("gradvac", beta=finite("beta", beta, most=1), eps=finite("eps", eps))


@METHODS.register("imtl_g", group=GROUP)
def imtl_g() -> TorchJDWeighting:
    """TorchJD; Liu et al., ICLR 2021."""
    return TorchJDWeighting("imtl_g")


@METHODS.register("mgda", group=GROUP)
def mgda(epsilon: float = 0.001, max_iters: int = 100) -> TorchJDWeighting:
    """TorchJD; Sener & Koltun, NeurIPS 2018, Frank-Wolfe solver.

    Args:
        epsilon: the solver ends with a step below it.
        max_iters: of the solver in a step.
    """
    return TorchJDWeighting(
        "mgda", epsilon=finite("epsilon", epsilon, 1e-12), max_iters=whole("max_iters", max_iters, 1)
    )


@METHODS.register("nash_mtl", group=GROUP, search={"max_norm": Range(0.3, 3.0)})
def nash_mtl(max_norm: float = 1.0, update_weights_every: int = 1, optim_niter: int = 20) -> TorchJDWeighting:
    """TorchJD; Navon et al., ICML 2022.

    Args:
        max_norm: greatest norm of the direction; 0 for no limit.
        update_weights_every: steps for which the weights are kept.
        optim_niter: iterations of the solver.
    """
    return TorchJDWeighting(
        "nash_mtl",
        max_norm=finite("max_norm", max_norm),
        update_weights_every=whole("update_weights_every", update_weights_every, 1),
        optim_niter=whole("optim_niter", optim_niter, 1),
    )


@METHODS.register("pcd", group=GROUP, search={"tau": Range(0.005, 0.1)})
def pcd(tau: float = 0.02, beta: float = 0.999, eps: float = 1e-08) -> TorchJDWeighting:
    """TorchJD; see TorchJD's documentation; primary objective: the joint loss.

    Args:
        tau: share of its normalised progress, of first order, that the unimodal losses are guaranteed.
        beta: decay of the moving average of the squared norms of the gradients.
        eps: added to it before its root is taken.
    """
    return TorchJDWeighting(
        "pcd", tau=finite("tau", tau, most=1), beta=finite("beta", beta, most=1), eps=finite("eps", eps)
    )


@METHODS.register("pcgrad", group=GROUP)
def pcgrad() -> TorchJDWeighting:
    """TorchJD; Yu et al., NeurIPS 2020."""
    return TorchJDWeighting("pcgrad")


@METHODS.register("random", group=GROUP)
def random() -> TorchJDWeighting:
    """TorchJD; Lin et al., TMLR 2022."""
    return TorchJDWeighting("random")


@METHODS.register("upgrad", group=GROUP)
def upgrad() -> TorchJDWeighting:
    """TorchJD; Quinton & Rey, 2024."""
    return TorchJDWeighting("upgrad")
