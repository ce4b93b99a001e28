"""Every method with every fusion and architecture: two steps, or a refusal; the table in docs/methods.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from models.test_architectures import CLASSES, Convolutions, Tokens, data, masks

from mmpareto.errors import UsageError
from mmpareto.methods import METHODS, Method, build_method
from mmpareto.methods.base import Change
from mmpareto.methods.scalarizations import GROUP
from mmpareto.models import ARCHITECTURES, FUSIONS, ModelError, MultimodalModel
from mmpareto.training.setup import set_up
from mmpareto.training.step import TrainingStep

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
ADDITIVE = ("concat", "sum", "cosine")
# TorchJD's weightings are routines like the others: one of them stands for all
NAMES = [*METHODS.names(group=""), *METHODS.names(group=GROUP)]
TRAINED = (*NAMES, "upgrad")
MODELS = [
    *(("late_fusion", fusion) for fusion in FUSIONS.names()),
    *((name, fusion) for name in ("mbt", "mmtm") for fusion in ("concat", "lmf")),
    ("transformer", "concat"),
]
OPTIONS: dict[str, dict[str, Any]] = {"finetune": {"pretrain_epochs": 1}, "mslr": {"factors": "a:0.5"}}
COLUMNS = ("missing modalities", "`--accumulate`", "several processes", "`--cuda_graph`")
SWITCHES = ("missing", "accumulate", "processes", "cuda_graph")


def class_of(method: str) -> Any:
    """What is registered: the class of a method, or of an integrator."""
    return METHODS[method].make


def needs(method: str) -> frozenset[str]:
    return getattr(class_of(method), "requires", frozenset())


def brings_fusion(method: str) -> bool:
    make = class_of(method)
    return isinstance(make, type) and issubclass(make, Method) and make.fusion is not Method.fusion


def built(architecture: str, fusion: str, method: Method) -> MultimodalModel:
    torch.manual_seed(0)
    kind = Convolutions if architecture == "mmtm" else Tokens
    encoders = {name: kind(size) for name, size in (("a", 3), ("v", 5))}
    options = {} if architecture in ("late_fusion", "mmtm") else {"token_width": 8, "layers": 2, "heads": 2}
    if architecture == "mbt":
        options["fusion_layer"] = 1
    maker = method.fusion if fusion == "concat" else lambda widths, classes, _: FUSIONS.build(fusion, widths, classes)
    return ARCHITECTURES.build(architecture, encoders, CLASSES, maker, **options).double()


def works(method: str, architecture: str, fusion: str) -> bool:
    """What the declarations say."""
    offered = {"features"} if architecture == "late_fusion" else set()
    if architecture != "transformer" and fusion in ADDITIVE:
        offered.add("contributions")
    if architecture == "mmtm":
        offered.add("gates")
    if method == "transformer" and architecture != method:
        return False
    return needs(method) <= offered and not (architecture == "transformer" and brings_fusion(method))


def moved(method: str, architecture: str, fusion: str, missing: bool) -> set[str]:
    """The tensors that two steps changed."""
    chosen = build_method(method, **OPTIONS.get(method, {}))
    model = built(architecture, fusion, chosen)
    set_up(chosen, model, 0, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = TrainingStep(model, chosen, optimizer)
    present = {name: mask for name, mask in masks().items() if name != "t"} if missing else None
    if present is not None:
        present["v"] |= ~present["a"]
    for seed in (1, 2):
        training(data(architecture, 2, seed), torch.arange(6) % CLASSES, present=present)
    assert all(value.isfinite().all() for value in model.state_dict().values()), method
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(("architecture", "fusion"), MODELS)
def test_each_pair_trains_or_is_refused_with_the_reason(architecture: str, fusion: str) -> None:
    for method in TRAINED:
        if fusion != "concat" and brings_fusion(method):
            continue  # refused where the flags are resolved
        if not works(method, architecture, fusion):
            with pytest.raises((UsageError, ModelError), match=r"needs|is its own fusion"):
                moved(method, architecture, fusion, missing=False)
            continue
        for missing in (False, True) if fusion in ("concat", "attention") else (False,):
            if missing and "missing" in getattr(class_of(method), "refuses", {}):
                continue
            changed = moved(method, architecture, fusion, missing)
            # one encoder learns first
            one = method in ("g2d", "reconboost")
            for group in ("encoders.", "heads.") if one else ("encoders.a.", "encoders.v.", "heads."):
                assert any(name.startswith(group) for name in changed), (method, missing)


@pytest.mark.parametrize(
    ("method", "architecture", "fusion", "message"),
    [
        ("ogm", "late_fusion", "film", "--fusion film does not have; take --fusion concat or cosine or sum, or"),
        ("greedy", "mbt", "concat", "--architecture mbt does not have; take --architecture mmtm"),
    ],
)
def test_a_refusal_names_the_flags_and_what_works(method: str, architecture: str, fusion: str, message: str) -> None:
    chosen = build_method(method)
    with pytest.raises(UsageError, match=f"^--method {method} needs ") as caught:
        set_up(chosen, built(architecture, fusion, chosen), 0, 2)
    assert message in str(caught.value)


def test_docs_say_what_goes_together() -> None:
    """On a failure: replace the table in docs/methods.md by the one that is printed."""
    models = {
        frozenset[str](): "any",
        frozenset({"contributions"}): "additive fusion: late_fusion, mbt, mmtm",
        frozenset({"features"}): "late_fusion",
        frozenset({"contributions", "features"}): "late_fusion, additive fusion",
    }
    lines = [f"| method | models | {' | '.join(COLUMNS)} |", f"| :-- | :-- | {' | '.join([':--'] * len(COLUMNS))} |"]
    for method in NAMES:
        refused = dict(getattr(class_of(method), "refuses", {}))
        if not build_method(method, **OPTIONS.get(method, {})).integrator.capturable:
            refused["cuda_graph"] = ""
        model = getattr(class_of(method), "architecture", None) or models[needs(method)]
        if brings_fusion(method):
            model = model if needs(method) else "late_fusion, mbt, mmtm"
            model += "; brings its fusion"
        cells = ["no" if switch in refused else "yes" for switch in SWITCHES]
        lines.append(f"| `{method}` | {model} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    assert table in DOCS.read_text(), table


def test_docs_list_all_methods_and_options() -> None:
    """On a failure: replace the table in docs/methods.md by the one that is printed."""
    lines = ["| method | what it is | options and defaults | backward passes |", "| :-- | :-- | :-- | --: |"]
    for name in METHODS:
        entry = METHODS[name]
        options = ", ".join(f"`{key}` {_shown(option.default)}" for key, option in entry.options.items())
        lines.append(f"| `{name}` | {entry.summary.rstrip('.')} | {options} | {build_method(name).integrator.passes} |")
    table = "\n".join(lines)
    assert table in DOCS.read_text(), table


def _shown(value: Any) -> str:
    return {"": "none", "True": "true", "False": "false", "None": "none"}.get(str(value), str(value))


def test_the_figure_groups_methods_by_what_they_change() -> None:
    """On a failure: replace the figure in docs/methods.md by the one that is printed."""
    groups: dict[str, list[str]] = {"gradients inside encoders": []} | {change: [] for change in get_args(Change)}
    for name in METHODS:
        groups[getattr(class_of(name), "changes", "gradients inside encoders")].append(name)
    lines = ["```mermaid", "flowchart LR", '    run(["a training run"])']
    for number, (change, names) in enumerate(groups.items()):
        rows = [", ".join(names[k : k + 7]) for k in range(0, len(names), 7)]
        lines.append(f'    run --> group{number}["{"<br/>".join([change, *rows])}"]')
    figure = "\n".join([*lines, "```"])
    assert figure in DOCS.read_text(), figure
