"""Says whether the Python that runs this satisfies a requirements file; no network. Exit status 0 when it does.

python script/check_requirements.py requirements.txt
"""

import sys
from importlib import metadata

if sys.version_info < (3, 11):  # noqa: UP036  older Pythons do run this file: it is what tells them
    sys.exit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")

try:
    from packaging.requirements import Requirement
except ModuleNotFoundError:  # a bare environment: pip carries its own copy
    try:
        from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]
    except ModuleNotFoundError:
        sys.exit("neither packaging nor pip is installed")


def unmet(text: str, extras: set[str]) -> list[str]:
    """What of one requirement line (its extras' requirements included) is missing or has the wrong version."""
    requirement = Requirement(text)
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return [f"{text}: not installed"]
    if not requirement.specifier.contains(version, prereleases=True):
        return [f"{text}: found {version}"]
    problems = []
    for extra in requirement.extras - extras:
        for inner in metadata.requires(requirement.name) or []:
            marker = Requirement(inner).marker
            if marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
                problems += unmet(inner.split(";")[0], extras | {extra})
    return problems


def main(path: str) -> int:
    """Prints a line for each unmet requirement of the file at `path`; their number is the result."""
    with open(path, encoding="utf-8") as file:
        lines = [line.split("#")[0].strip() for line in file]
    problems = [problem for line in lines if line for problem in unmet(line, set())]
    print("\n".join(problems), end="\n" if problems else "")
    return len(problems)


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1]) else 0)
