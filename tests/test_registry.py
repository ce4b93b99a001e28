"""Registries: names, options from signature and docstring, classes elsewhere."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmpareto.command_line import listing
from mmpareto.data_folders import require_data
from mmpareto.datasets import DATASETS, DatasetError
from mmpareto.methods import METHODS
from mmpareto.models import ENCODERS, FUSIONS
from mmpareto.registries import LISTED, PREPARATIONS
from mmpareto.registry import REQUIRED, Registry, _source


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[object]:
    """A registry of a package with two modules, each of which registers something."""
    package = tmp_path / "toolbox"
    package.mkdir()
    (package / "__init__.py").write_text(
        'from mmpareto.registry import Registry\nTOOLS = Registry("tool", __package__, bases=("builtins:object",), '
        'skip=("wood",), aliases={"hm": "hammer"})\n'
    )
    (package / "hammer.py").write_text(
        "from toolbox import TOOLS\n"
        '@TOOLS.register("hammer")\n'
        "class Hammer:\n"
        '    """Drives nails.\n\n    It is heavy.\n\n    Args:\n'
        '        weight: in grams, as the\n            shop says.\n    """\n'
        "    def __init__(self, wood: str, weight: float = 300.0, *, grip: str) -> None:\n"
        "        self.wood, self.weight, self.grip = wood, weight, grip\n"
    )
    (package / "tongs.py").write_text(
        "from toolbox import TOOLS\n"
        '@TOOLS.register("flat-tongs", summary="hold things")\n'
        "def tongs(length: int = 10) -> list[int]:\n"
        "    return [length + 0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import toolbox  # type: ignore[import-not-found]

    return toolbox.TOOLS


def test_modules_register_by_a_decorator_and_are_imported_when_a_class_is_asked_for(tools: Registry[object]) -> None:
    assert tools.canonical("HAMMER") == tools.canonical("hm") == "hammer"
    assert list(tools) == ["flat-tongs", "hammer"]
    assert "flat_tongs" in tools
    assert "saw" not in tools
    assert not {"toolbox.hammer", "toolbox.tongs"} & set(sys.modules)
    assert tools["hammer"].make.__module__ == "toolbox.hammer"
    assert "toolbox.tongs" not in sys.modules
    assert tools["flat-tongs"].make(3) == [3]  # type: ignore[index, operator]
    with pytest.raises(ValueError, match="the tool 'hammer' is registered twice"):
        tools.register("hammer")(object)


def test_options_come_from_signature_and_docstring(tools: Registry[object]) -> None:
    entry = tools["hammer"]
    assert entry.summary == "Drives nails."
    assert {key: (option.default, option.type) for key, option in entry.options.items()} == {
        "weight": (300.0, float),
        "grip": (REQUIRED, str),
    }
    assert entry.options["weight"].help == "in grams, as the shop says."
    assert tools.table() == [
        ("flat-tongs", "length=10", "hold things"),
        ("hammer", "weight=300.0, grip", "Drives nails."),
    ]
    built = tools.build("hammer", "oak", grip="red")
    assert vars(built) == {"wood": "oak", "weight": 300.0, "grip": "red"}


@pytest.mark.parametrize("registry", [*LISTED.values(), PREPARATIONS], ids=lambda registry: registry.kind)
def test_sources_declare_what_is_registered_when_they_are_imported(registry: Registry[Any]) -> None:
    registry._discover()
    assert registry._declared.keys() == {
        name for name, item in registry._registrations.items() if _source(item.make).__module__.startswith("mmpareto.")
    }
    for name, declared in registry._declared.items():
        imported = registry._described(name, registry._registrations[name])
        assert replace(declared, get=None) == replace(imported, get=None)
        assert list(declared.options) == list(imported.options)


def test_a_module_that_registers_in_a_loop_is_imported(tools: Registry[object], tmp_path: Path) -> None:
    (tmp_path / "toolbox" / "saws.py").write_text(
        "from toolbox import TOOLS\nfor teeth in (10, 20):\n    TOOLS.register(f'saw{teeth}')(lambda: None)\n"
    )
    assert list(tools) == ["flat-tongs", "hammer", "saw10", "saw20"]
    assert "toolbox.saws" in sys.modules


def test_errors_name_what_is_known(tools: Registry[object]) -> None:
    with pytest.raises(ValueError, match="unknown tool 'hamer'; did you mean hammer\\? known: flat-tongs, hammer, or"):
        tools["hamer"]
    with pytest.raises(ValueError, match="the tool hammer has no option 'size'; its options: weight, grip"):
        tools.build("hammer", "oak", size=3)
    with pytest.raises(
        ValueError, match=r"the tool flat-tongs cannot use the options \{'length': 'x'\}: can only conc"
    ):
        tools.build("flat-tongs", length="x")
    with pytest.raises(ValueError, match="tool 'nowhere:Saw' cannot be imported: No module named 'nowhere'; name the"):
        tools["nowhere:Saw"]
    assert tools["toolbox.hammer:Hammer"].options.keys() == {"weight", "grip"}


def test_every_entry_has_a_summary_and_every_option_a_line_of_help() -> None:
    for registry in LISTED.values():
        for name in registry:
            entry = registry[name]
            assert entry.summary, name
            assert all(option.help for option in entry.options.values()), name
        lines = listing(registry).splitlines()
        assert max(map(len, lines)) <= 120
        assert lines[-1].endswith("or package.module:Class for one of your own")


def test_names_that_other_code_uses_are_known() -> None:
    assert DATASETS.canonical("CREMA-D") == "cremad"
    assert DATASETS.canonical("KS") == DATASETS.canonical("Kinetics_Sounds") == "kinetics-sounds"
    assert METHODS.canonical("MMPareto") == "mmpareto"
    assert ENCODERS.canonical("ResNet18") == "resnet18"
    assert {"concat", "cosine"} <= set(FUSIONS)
    with pytest.raises(DatasetError, match="did you mean cgmnist"):
        DATASETS.canonical("cgmnis")


def test_a_folder_in_which_a_dataset_finds_nothing_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for name in ("avmnist", "utd-mhad", "kinetics-sounds", "cremad"):
        with pytest.raises(DatasetError, match=r"has no dataset\.json, prepare it"):
            require_data(name, tmp_path)
        with pytest.raises(DatasetError, match="is missing"):
            require_data(name, tmp_path / "nowhere")
    (tmp_path / "visual").mkdir()
    require_data("cremad", tmp_path)  # as it is downloaded
    require_data("manifest", tmp_path)  # reads its table itself
    require_data("cgmnist", tmp_path / "nowhere")  # is downloaded there
