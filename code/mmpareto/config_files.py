"""config.yaml: the settings of a run by section, written by train.py, or by hand for `train.py --config`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmpareto.json_files import require_regular

MOST_BYTES = 2**20


SECTIONS = ("data", "model", "method", "optim", "engine", "run")


class _Loader(yaml.SafeLoader):
    """Plain values only: no aliases, which a few bytes can expand to gigabytes, and no name twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias (*name): write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        content = super().construct_mapping(node, deep)
        if len(content) < len(node.value):
            names = [str(key.value) for key, _ in node.value]
            raise yaml.YAMLError(f"it holds {max(names, key=names.count)[:100]!r} twice")
        return content


# "1e-3" is a number, as in YAML 1.2; dates are text
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_sections(path: Path) -> dict[str, dict[str, Any]]:
    """The settings in a file, {section: {name: value}}; those that stand outside of a section are in the section "".

    Raises:
        OSError: where it cannot be opened.
        ValueError: where it is not such a file: no YAML of values by name, more than MOST_BYTES, a name twice.
    """
    require_regular(path)
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 10} KiB")
    try:
        content = yaml.load(data, _Loader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        mark = getattr(error, "problem_mark", None)
        raise ValueError(" ".join(problem.split())[:200] + (f" (line {mark.line + 1})" if mark else "")) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError("it holds no settings by name")
    sections: dict[str, dict[str, Any]] = {"": {}}
    for name, value in content.items():
        if isinstance(value, dict) and name in SECTIONS:
            sections[name] = value
        else:
            sections[""][name] = value
    return sections


def flattened(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{section: {name: value}} -> {name: value}.

    Raises:
        ValueError: where two sections hold the same name, or a name is no text.
    """
    flat: dict[str, Any] = {}
    for values in sections.values():
        for name, value in values.items():
            if name in flat or not isinstance(name, str):
                raise ValueError(f"it holds {str(name)[:100]!r} twice" if name in flat else f"{name!r:.100} is no name")
            flat[name] = value
    return flat


def text(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """The content of config.yaml for settings in types of JSON."""
    return yaml.safe_dump(dict(sections), sort_keys=False, allow_unicode=True, width=1000)
