"""The Python in README and docs runs as it stands; what they link to is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from methods.small import batch, gradients, make

import mmpareto
from mmpareto.integration import Integrator
from mmpareto.methods import Method, Piece, cross_entropies

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "data").glob("*/README.md"))]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
FENCE = re.compile(r'^```(\w+)(?: title="([\w.]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippets of a page run one after the other, in a folder with the files that it shows."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for _, name, content in FENCE.findall(page.read_text()):
        if name:
            (tmp_path / name).write_text(content)
    space = {"__name__": "snippet"}
    for code in snippets(page):
        exec(compile(code, str(page), "exec"), space)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorials_run_as_typed(page: Path, tmp_path: Path) -> None:
    """Files are saved and commands run in the order of the page, in a clean copy; git sees nothing but these files."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0")[:-1]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name, follow_symlinks=False)
    for arguments in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    saved = []
    for language, name, content in FENCE.findall(page.read_text()):
        if name:
            (tmp_path / name).write_text(content)
            saved.append(name)
        elif language == "sh":
            subprocess.run(["sh", "-e", "-c", content], cwd=tmp_path, env=environment, check=True)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert sorted(line.split()[1] for line in status.stdout.splitlines() if line[0] != "A") == sorted(saved)


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    if not (ROOT / ".venv-docs").exists():
        pytest.skip("sh script/docs.sh was not run here: it installs MkDocs")
    built = subprocess.run(
        ["sh", "script/docs.sh", "build", "--site-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    index = (tmp_path / "index.html").read_text()
    assert f"MMPareto {mmpareto.__version__}" in index
    assert "gradient" in (tmp_path / "search" / "search_index.json").read_text()
    assert 'id="mmpareto.integration.Integrator.backward"' in (tmp_path / "api" / "integration.html").read_text()


def test_no_two_pages_train_in_one_folder() -> None:
    """A run with other settings is in the way: whoever follows one page and then the next must not meet it."""
    pages: dict[str, set[Path]] = {}
    for page in PAGES:
        for language, _, content in FENCE.findall(page.read_text()):
            for line in content.replace("\\\n", " ").splitlines() if language == "sh" else ():
                if re.search(r"(experiment|mmpareto|distributed)\.sh|(experiment|train)\.py", line):
                    folder = re.search(r"--(?:output|ckpt_path) (\S+)", line)
                    pages.setdefault("runs" if folder is None else folder[1], set()).add(page)
    assert not pages.pop("runs") & set(TUTORIALS)
    assert {folder: users for folder, users in pages.items() if len(users) > 1} == {}


def test_the_list_of_files_is_whole() -> None:
    """Where one file of a folder stands for all, the page says so; elsewhere each module is named."""
    page, package = (ROOT / "docs" / "architecture.md").read_text(), ROOT / "code" / "mmpareto"
    folders = ("", "api", "benchmarks", "experiments", "integration", "models", "training")
    files = [path for folder in folders for path in (package / folder).glob("*.py") if path.name != "__init__.py"]
    for path in (package / "datasets").glob("*.py"):
        files += [] if "@DATASETS.register" in path.read_text() or path.name == "__init__.py" else [path]
    assert [path.name for path in files if path.name not in page] == []
    assert page.index("__main__.py  ") < page.index("  cli/")  # the layers of pyproject.toml


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900


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
    model = make("one_joint", 3)[1]
    method.setup(model, 0, 1)
    inputs, label = batch(model)
    output = model(inputs)
    plain = cross_entropies(output, label)
    features = output.features
    without = [
        F.cross_entropy(model.fusion(features | {m: torch.zeros_like(features[m])}), label).item() for m in features
    ]
    value = method.losses(Piece(output, label, plain, 1.0)).joint.item()
    assert value == pytest.approx(0.75 * plain.joint.item() + 0.25 * sum(without) / 3)
    assert min(without) > 0
    gradients(method, model, inputs, label)  # and it trains


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    """MkDocs ends with an error where one is not; it is not installed here."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    pages += [path.relative_to(ROOT) for path in (ROOT / "data").glob("*/README.md")]
    assert [str(page) for page in pages if f": {page}\n" not in navigation] == []
