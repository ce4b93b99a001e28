"""Hooks of MkDocs: the version in the header, and pages that stand outside of docs/.

README.md, CONTRIBUTING.md, CHANGELOG.md and data/*/README.md stay where readers of the repository look for them, and
are pages of the site too. Links are rewritten from paths in the repository to paths in the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "data/*/README.md",
    "LICENSE",
    "notebooks/*.ipynb",
    "examples/*.py",
]
FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://)([^)\s#]+)")


def on_config(config: Any) -> Any:
    """Put the package's version into the header."""
    source = (ROOT / "code" / "mmpareto" / "__init__.py").read_text()
    version = re.search(r'^__version__ = "(.+)"', source, re.MULTILINE)
    assert version is not None
    config.site_name = f"{config.site_name} {version[1]}"
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files outside of docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page."""
    if page.file.abs_src_path is None:
        return markdown
    folder = Path(page.file.abs_src_path).relative_to(ROOT).parent.as_posix()
    here = posixpath.dirname(page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1])).removeprefix("docs/")
        return f"]({posixpath.relpath(target, here or '.')}"

    parts = FENCE.split(markdown)  # the odd ones are code
    return "".join(part if number % 2 else LINK.sub(rewritten, part) for number, part in enumerate(parts))
