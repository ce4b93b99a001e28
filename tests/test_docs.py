"""The Python in README and docs runs as it stands; what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from methods.small import batch, gradients, made

from mmpareto.integration import Integrator
from mmpareto.methods import Method, Piece, cross_entropies

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "data").glob("*/README.md"))]


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_snippets_run(page: Path) -> None:
    for code in snippets(page):
        exec(compile(code, str(page), "exec"), {"__name__": "snippet"})


def test_the_snippets_are_found() -> None:
    assert sum(len(snippets(page)) for page in PAGES) >= 2


def test_the_documented_routine_does_what_it_says() -> None:
    space: dict[str, type[Integrator]] = {}
    exec(snippets(ROOT / "docs" / "methods.md")[0], space)
    routine = space["Damped"](share=0.25)  # type: ignore[call-arg]
    quiet, conflict = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]), torch.tensor([[[1.0, -0.5], [-0.5, 1.0]]])
    assert routine.coefficients(quiet).tolist() == [[1.0, 1.0]]
    assert routine.coefficients(conflict).tolist() == [[0.25, 1.0]]


def test_the_documented_method_does_what_it_says() -> None:
    space: dict[str, type[Method]] = {}
    exec(snippets(ROOT / "docs" / "methods.md")[1], space)
    method = space["LeaveOneOut"](share=0.25)  # type: ignore[call-arg]
    model = made("one_joint", 3)[1]
    method.setup(model, 0, 1)
    inputs, label = batch(model)
    output = model(inputs)
    plain = cross_entropies(output, label)
    features = output.features
    without = [
        F.cross_entropy(model.fusion(features | {m: torch.zeros_like(features[m])}), label).item() for m in features
    ]
    found = method.losses(Piece(output, label, plain, 1.0)).joint.item()
    assert found == pytest.approx(0.75 * plain.joint.item() + 0.25 * sum(without) / 3)
    assert min(without) > 0
    gradients(method, model, inputs, label)  # and it trains


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        assert target.startswith("https://") or (page.parent / target).exists(), target
