"""What can be chosen by name; the packages that register it are imported when a class is asked for."""

from __future__ import annotations

from typing import Any

from mmpareto.errors import DatasetError, ModelError
from mmpareto.registry import Registry

# subclasses of MultimodalDataset, made of (root, split) and options
DATASETS: Registry[Any] = Registry(
    "dataset",
    "mmpareto.datasets",
    bases=("mmpareto.datasets.base:MultimodalDataset",),
    skip=("root", "split", "seed", "modalities", "download"),
    attributes=("recipe", "named_by_folder", "embedded", "must_hold"),
    aliases={
        "cg-mnist": "cgmnist",
        "crema-d": "cremad",
        "modelnet": "modelnet40",
        "kineticsound": "kinetics-sounds",
        "kineticsounds": "kinetics-sounds",
        "kineticssound": "kinetics-sounds",
        "kineticssounds": "kinetics-sounds",
        "ks": "kinetics-sounds",
    },
    error=DatasetError,
)
# functions `prepare(args) -> Outcome`; the function `add_arguments(parser)` of their module adds their flags, and the
# docstring of their module is their help
PREPARATIONS: Registry[Any] = Registry("preparation", "mmpareto.preparation", skip=("args",), error=DatasetError)
# subclasses of Method, and of Integrator for routines
METHODS: Registry[Any] = Registry(
    "method",
    "mmpareto.methods",
    bases=("mmpareto.methods.base:Method", "mmpareto.integration:Integrator"),
    attributes=("architecture",),
)
ALONE = "unimodal"  # the method that trains each encoder by the loss of its own head
# see the comment in models/encoders/base.py
ENCODERS: Registry[Any] = Registry(
    "encoder",
    "mmpareto.models.encoders",
    bases=("torch.nn:Module",),
    skip=("kind", "shape", "configuration"),
    error=ModelError,
)
# see the comment in models/fusions/base.py
FUSIONS: Registry[Any] = Registry(
    "fusion", "mmpareto.models.fusions", bases=("torch.nn:Module",), skip=("widths", "classes"), error=ModelError
)
# subclasses of MultimodalModel, made of (encoders, classes, fusion) and options
ARCHITECTURES: Registry[Any] = Registry(
    "architecture",
    "mmpareto.models",
    bases=("mmpareto.models.base:MultimodalModel",),
    skip=("encoders", "classes", "fusion"),
    error=ModelError,
)
# by the words of --list-... and `mmpareto list`
LISTED: dict[str, Registry[Any]] = {
    "datasets": DATASETS,
    "methods": METHODS,
    "encoders": ENCODERS,
    "fusions": FUSIONS,
    "architectures": ARCHITECTURES,
}


def architecture_of(method: str) -> str | None:
    """The architecture that a method brings; None where any may be chosen."""
    return METHODS[method].attributes.get("architecture")
