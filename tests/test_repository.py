"""The repository's own files: they parse, agree with the package, and the notebook runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mmpareto

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mmpareto.__version__
    assert citation["cff-version"] == "1.2.0"
    assert f"## {mmpareto.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_runs_what_is_there() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert {"sh script/test.sh", "sh script/docs.sh"} <= set(commands)
    for command in commands:
        assert (ROOT / command.removeprefix("sh ")).exists()


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_issue_templates_have_what_the_form_needs(path: Path) -> None:
    template = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(template)
    for field in template["body"]:
        assert field["type"] == "textarea"
        assert field["attributes"]["label"]


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="needs a git checkout")
def test_git_ignores_what_documented_commands_write() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("data/*/README.md")]
    named = re.findall(r"(?:--output|--ckpt_path) ([a-z][\w./]*)", "\n".join(page.read_text() for page in pages))
    files = {name if Path(name).suffix else f"{name}/file" for name in (*named, "runs/twoview/mmpareto/seed0", "site")}
    done = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True)
    assert len(files) > 20
    assert files - set(done.stdout.split()) == set()


def test_the_conda_environment_installs_the_requirements() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][-1] == {"pip": ["-r requirements.txt"]}


def test_the_image_copies_what_is_there() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    sources = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert sources
    ignored = (ROOT / ".dockerignore").read_text()
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}\n" in ignored


def test_the_dockerfile_passes_a_linter() -> None:
    linter = shutil.which("tally", path=Path(sys.executable).parent)
    if linter is None:
        pytest.skip("needs tally-cli")
    flags = ("--no-config", "--no-color", "--fail-level", "warning", "--context", ROOT)
    done = subprocess.run([linter, "lint", *flags, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_notebook_is_clean_and_names_what_the_package_has() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    names = set(re.findall(r"mmpareto\.(\w+)", "\n".join("".join(cell["source"]) for cell in cells)))
    assert {"train", "compare", "evaluate", "load"} == names
    assert names <= set(dir(mmpareto))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'code'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("text/html" in output.get("data", {}) for output in outputs) >= 6
    said = "".join(output.get("text", "") for output in outputs if output.output_type == "stream")
    assert "epoch 1/3" in said  # of the progress bar
    assert (tmp_path / "runs_notebook" / "mmpareto" / "results.json").exists()
