"""Command lines and configuration files -> settings."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmpareto import config_files
from mmpareto.arguments import flags_of, parse, parse_settings
from mmpareto.config import SECTIONS, Config, differing
from mmpareto.errors import UsageError
from mmpareto.flag_values import assignment, shown, truth
from mmpareto.registries import DATASETS
from mmpareto.train_flags import MEANT, SHORT, Entries, train_parser

ROOT = Path("/somewhere")


def saved(config: Config, path: Path) -> Path:
    path.write_text(config_files.text(config.saved()))
    return path


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--method", "uniform", "--amp", "bf16", "--channels_last", "--clip_grad"],
        ["--gamma", "2", "--rescale", "encoder", "--encoder", "gray=pmr", "colour=cnn", "--random_seed", "7"],
        ["--dataset", "modelnet40", "--views", "1,3", "--augment", "device", "--data_root", "/a -b/c"],
        ["--optimizer", "adamw", "--lr_schedule", "cosine", "--warmup_epochs", "2", "--learning_rate", "1e-05"],
        ["--method", "pmr", "--method_options", "mu=0.5", "momentum=0.9", "--lr_decay_step", "3"],
        ["--dataset", "cremad", "--augment", "none", "--data_root", "/a"],
        ["--fusion", "cosine", "--fusion_options", "scale=5", "--method", "mslr", "--wandb"],
    ],
)
def test_a_written_configuration_gives_the_same_settings(flags: list[str], tmp_path: Path) -> None:
    config = parse([*flags, "--ckpt_path", "/run"], ROOT)
    path = saved(config, tmp_path / "config.yaml")
    again = parse(["--config", str(path), "--ckpt_path", "/run"], ROOT)
    assert again == config
    assert differing(again.flat(), config.flat()) == {}


def test_flags_override_a_file(tmp_path: Path) -> None:
    path = saved(
        parse(["--epochs", "3", "--gamma", "2", "--channels_last", "--amp", "bf16"], ROOT), tmp_path / "c.yaml"
    )
    config = parse(["--config", str(path), "--epochs", "4", "--no-channels_last", "--gamma", "3"], ROOT)
    assert (config.optim.epochs, config.engine.channels_last, config.engine.amp) == (4, False, "bf16")
    defaults = {"rescale": "tensor", "transition": "jump", "conflict": "encoder", "momentum": 0.0}
    assert config.method.method_options == {"gamma": 3.0, **defaults}
    other = parse(["--config", str(path), "--method", "uniform"], ROOT)
    assert (other.method.method_options, other.optim.epochs) == ({}, 3)  # another method has other options
    moved = parse(["--config", str(path), "--dataset", "cremad", "--data_root", "d"], ROOT)
    assert moved.data.dataset_options == {"audio_features": "fbank", "frames": 2, "image_size": 224}


def test_what_belongs_to_something_that_a_flag_replaces_does_not_contradict_it(tmp_path: Path) -> None:
    def config(content: dict[str, Any] | list[str], *flags: str) -> Config:
        path = tmp_path / "settings.yaml"
        text = yaml.safe_dump(content) if isinstance(content, dict) else config_files.text(parse(content, ROOT).saved())
        path.write_text(text)
        return parse(["--config", str(path), *flags], ROOT)

    # SGD in any case, and momentum beside another optimiser
    assert config({"optim": {"optimizer": "sgd", "momentum": 0.0}}).optim.momentum == 0.0
    assert config({"optim": {"optimizer": "Adam", "momentum": 0.5}}, "--optimizer", "SGD").optim.momentum == 0.5
    with pytest.raises(UsageError, match="--momentum is SGD's; Adam has none"):
        config({"optim": {"optimizer": "Adam", "momentum": 0.5}})
    assert config(["--momentum", "0.5"], "--optimizer", "Adam").optim.optimizer == "Adam"
    # schedules
    assert config([], "--lr_decay_step", "3").optim.lr_schedule == "step"
    assert config(["--lr_schedule", "cosine"], "--lr_decay_step", "3").optim.lr_schedule == "step"
    for schedule in ("cosine", "constant"):
        stepped = config(["--lr_decay_step", "3", "--lr_decay_ratio", "0.5"], "--lr_schedule", schedule).optim
        assert (stepped.lr_schedule, stepped.lr_decay_step, stepped.lr_decay_ratio) == (schedule, None, 0.1)
    # options and architectures of methods
    assert config({"gamma": {"gamma": 2}}, "--method_options", "gamma=3").method.method_options["gamma"] == 3.0
    assert config({"gamma": {"gamma": 2}}, "--method", "uniform").method.method_options == {}
    for one, other, architecture in (
        ("transformer", "mmpareto", "late_fusion"),
        ("greedy", "uniform", "late_fusion"),
        ("mmpareto", "transformer", "transformer"),
    ):
        assert config(["--method", one], "--method", other).model.architecture == architecture
    kept = config(["--architecture", "mbt"], "--method", "uniform").model
    assert kept.architecture == "mbt"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--probe_alone", "runs/unimodal/seed0"], "give --probe"),
        (["--no-train", "--probe"], "leave --probe out"),
        (["--no-train", "--overwrite"], "leave --overwrite out"),
        (["--no-train", "--resume"], "leave --resume out"),
    ],
)
def test_flags_without_effect_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(flags, ROOT)


def test_text_of_digits_is_no_number() -> None:
    for text, value in (("12", 12), ("-0.5", -0.5), ("1e-3", 0.001), ("0", 0), ("true", True), ("none", None)):
        assert assignment(f"account={text}") == ("account", value)
    for text in ("007", "1_000", "-01", "nightly"):
        assert assignment(f"account={text}") == ("account", text)


def test_what_a_file_switches_on_can_be_switched_off(tmp_path: Path) -> None:
    flags = ("--early_stopping", "3", "--amp", "bf16", "--checkpoint_minutes", "2", "--n_classes", "5")
    path = saved(parse(flags, ROOT), tmp_path / "settings.yaml")
    off = [word for flag in flags[::2] for word in (flag, "none")]
    config = parse(["--config", str(path), *off], ROOT)
    found = (config.optim.early_stopping, config.engine.amp, config.run.checkpoint_minutes, config.data.n_classes)
    assert found == (None,) * 4


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"wandb": False, "resume": False}, (None, None, None)),
        ({"wandb": True, "resume": True, "clip_grad": True}, ("mmpareto", "last.pt", 1.0)),
        ({"wandb": "mine", "resume": "auto", "clip_grad": 2.5}, ("mine", "auto", 2.5)),
    ],
)
def test_true_and_false_are_flags_that_stand_alone_and_none(settings: dict[str, Any], found: tuple[Any, ...]) -> None:
    config = parse_settings(settings, ROOT)
    assert (config.run.wandb, config.run.resume, config.optim.clip_grad) == found


@pytest.mark.parametrize(
    "flags", [[], ["--optimizer", "Adam"], ["--method", "transformer"], ["--dataset", "cremad", "--lr_decay_step", "7"]]
)
def test_settings_of_a_run_are_a_mapping_as_well(flags: list[str]) -> None:
    config = parse(flags, ROOT)
    assert parse_settings({}, ROOT, config.saved()) == config
    assert parse_settings({}, ROOT, config.flat()) == config
    assert parse_settings({"epochs": 3, "optimizer": "AdamW"}, ROOT, config.saved()).optim.optimizer == "AdamW"


def test_a_file_may_be_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "data:\n  dataset: cgmnist\n  dataset_options: {variance: 0.05}\nepochs: 7\nmodel:\n  encoder: {gray: cnn}\n"
        "optim:\n  learning_rate: 1e-3\n  clip_grad:\n"
    )
    config = parse(["--config", str(path)], ROOT)
    assert config.data.dataset_options == {"variance": 0.05}
    assert (config.optim.epochs, config.optim.learning_rate, config.optim.clip_grad) == (7, 0.001, None)
    assert (config.model.model, config.model.encoder) == ("pmr", {"gray": "cnn"})  # the recipe's, and the file's


def test_a_recipe_can_be_switched_off(tmp_path: Path) -> None:
    """By 0, and by what a run without clipping saves."""
    (tmp_path / "run.yaml").write_text("data: {dataset: cgmnist}\noptim: {clip_grad: null, learning_rate: null}\n")
    in_file = parse(["--config", str(tmp_path / "run.yaml")], ROOT).optim
    assert (in_file.clip_grad, in_file.learning_rate) == (None, 0.1)  # a rate must be, so it is the recipe's
    assert parse(["--dataset", "cgmnist"], ROOT).optim.clip_grad == 1
    assert parse(["--dataset", "cgmnist", "--clip_grad", "0"], ROOT).optim.clip_grad is None
    assert parse(["--config", str(tmp_path / "run.yaml"), "--clip_grad", "3"], ROOT).optim.clip_grad == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown flag --epoch for the dataset twoview; did you mean --epochs?"),
        ("optim: {lr: 1}", "unknown flag --lr for the dataset twoview; did you mean --learning_rate?"),
        ("optim: {epochs: none}", "--epochs: expected a whole number above zero, found 'none'"),
        ("method: {method: magic}", "unknown method 'magic'"),
        ("data: {dataset: [1]}", "dataset is \\[1\\], expected text"),
        ("method: {method_options: {gama: 2}}", "the method mmpareto has no option 'gama'; it takes gamma, rescale"),
        ("engine: {amp: true}", "invalid choice: 'true'"),
        ("optim: {epochs: 3}\nepochs: 4", "it holds 'epochs' twice"),
        ("- 3", "it holds no settings by name"),
        ("resume: last.pt", "resume cannot be set in a file; give --resume on the command line"),
        ("run: {overwrite: true}", "overwrite cannot be set in a file"),
        ("run: {train: false}", "train cannot be set in a file"),
        ("data: {dataset: 'nowhere:Set'}", "imports its own code, nowhere:Set: .* add --allow nowhere:Set"),
        ("method: {method: 'nowhere:M'}", "imports its own code, nowhere:M"),
        ("model: {fusion: 'nowhere:F'}", "imports its own code, nowhere:F"),
        ("model: {model: 'nowhere:E'}", "imports its own code, nowhere:E"),
        ("model: {encoder: {gray: 'nowhere:E'}}", "imports its own code, nowhere:E"),
    ],
)
def test_what_a_file_holds_wrongly_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        parse(["--config", str(path)], ROOT)
    with pytest.raises(UsageError, match=r"nowhere\.yaml: No such file"):
        parse(["--config", str(tmp_path / "nowhere.yaml")], ROOT)


def test_code_that_a_file_names_is_imported_where_the_command_line_allows_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("method: {method: 'nowhere:M'}")
    with pytest.raises(UsageError, match="'nowhere:M' cannot be imported: No module named 'nowhere'"):
        parse(["--config", str(path), "--allow", "nowhere:M"], ROOT)
    with pytest.raises(UsageError, match="'elsewhere:M' cannot be imported"):  # typed by a person
        parse(["--method", "elsewhere:M"], ROOT)


def test_another_spelling_is_the_same_dataset(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: {dataset: cremad, data_root: /data, dataset_options: {frames: 1}}")
    config = parse(["--config", str(path), "--dataset", "CREMA-D"], ROOT)
    assert (config.data.data_root, config.data.dataset_options["frames"]) == ("/data", 1)


def test_a_run_imports_no_dataset_but_the_one_that_is_named_and_no_library_that_it_does_not_need() -> None:
    """The embedded datasets read scikit-learn's digits without importing it."""
    program = (
        "import sys; from pathlib import Path; from mmpareto import datasets; datasets.build('twoview', None, 'val'); "
        "datasets.build('digits', None, 'train'); print(*sys.modules); import mmpareto.training.run; "
        "from mmpareto.arguments import parse; parse([], Path('/')); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    of_data, of_run = (set(line.split()) for line in done.stdout.splitlines())
    assert {"mmpareto.datasets.twoview", "mmpareto.datasets.digits"} <= of_data
    assert not {"sklearn", "scipy", "torchvision", "av"} & of_data
    assert not {"av", "pandas", "tabulate", "torchvision", "sklearn", "mmpareto.datasets.manifest"} & of_run


def test_every_field_is_one_flag_with_help() -> None:
    names = [item.name for kind in SECTIONS.values() for item in fields(kind)]
    assert len(set(names)) == len(names)
    assert {"gamma", "rescale", "variance"} <= flags_of("digits")
    assert set(names) <= flags_of("digits")


def test_names_with_a_space_between_them_are_no_list() -> None:
    with pytest.raises(UsageError, match="'b' belongs to no flag; a list is written with commas"):
        parse(["--dataset", "manifest", "--sequences", "a", "b"], ROOT)
    assert all(meant in {f"--{name}" for name in flags_of("twoview")} for meant in MEANT.values())


OTHER_RECIPE = {"momentum": 0.5, "clip_grad": 2.0, "lr_schedule": "cosine", "weight_decay": 0.0, "warmup_epochs": 1}
OTHER_RECIPE |= {"augment": "none", "amp": "bf16", "tf32": True, "integrate": "features", "n_classes": 10}


@pytest.mark.parametrize(("dataset", "recipe"), [*((name, {}) for name in DATASETS), ("digits", OTHER_RECIPE)])
def test_help_names_the_defaults_that_are_taken(
    dataset: str, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in recipe.items():
        monkeypatch.setitem(DATASETS[dataset].attributes["recipe"], name, value)
    config = parse(["--dataset", dataset], ROOT)
    values = {name: value for part in vars(config).values() for name, value in vars(part).items()}
    values |= config.data.dataset_options | {name: config.method.method_options[name] for name in SHORT}
    assert recipe.items() <= values.items()
    parser = train_parser(Entries({"dataset": dataset}))
    of_files = ("dataset", "data_root", "ckpt_path", "resume")  # their default is no value of the dataset
    for action in parser._actions:
        name = action.dest
        if name not in values or name in of_files or name.endswith("_options"):
            continue
        value = values[name]
        if isinstance(value, bool) and action.nargs == 0:
            value = "on" if value else "off"
        words = re.search(r"\(default: (.*?)(?:, |[;:)])", parser._get_formatter()._expand_help(action))
        if words is None:
            assert value is None, name  # the help says it in other words
        elif value in (None, (), {}):
            assert words[1] not in ("", "None"), name
        else:
            assert words[1] == shown(value), name


def test_the_recipe_of_a_dataset_comes_before_the_published_values() -> None:
    digits, cremad = parse(["--dataset", "digits"], ROOT), parse(["--dataset", "cremad"], ROOT)
    assert (digits.data.batch_size, digits.optim.epochs, digits.optim.learning_rate) == (32, 20, 0.3)
    assert (cremad.data.batch_size, cremad.optim.epochs, cremad.optim.learning_rate) == (64, 50, 0.002)
    assert cremad.data.data_root == "/somewhere/data/cremad"
    assert cremad.run.ckpt_path == "/somewhere/runs/cremad/mmpareto/seed0"


def test_a_method_may_bring_an_architecture(tmp_path: Path) -> None:
    config = parse(["--method", "transformer", "--ckpt_path", "/run"], ROOT)
    assert (config.model.architecture, config.model.architecture_options["layers"]) == ("transformer", 2)
    assert parse(["--config", str(saved(config, tmp_path / "c.yaml")), "--ckpt_path", "/run"], ROOT) == config
    assert parse(["--method", "greedy"], ROOT).model.architecture == "mmtm"
    assert parse(["--method", "greedy", "--architecture", "mbt"], ROOT).model.architecture == "mbt"


def test_what_is_of_one_start_is_not_saved() -> None:
    config = parse(["--overwrite", "--fast", "--ckpt_path", "/run"], ROOT)
    assert not {"overwrite", "resume", "fast", "train", "ckpt_path"} & config.flat().keys()
    assert yaml.safe_load(config_files.text(config.saved())) == config.saved()
    assert differing(config.flat(), replace(config, run=replace(config.run, wandb="x")).flat()) == {}


def test_an_option_that_was_not_saved_has_its_default() -> None:
    wanted = parse(["--method", "lfm", "--dataset", "twoview"], ROOT).flat()
    options = wanted["method_options"]
    assert "learned" in options
    older = wanted | {"method_options": {key: value for key, value in options.items() if key != "learned"}}
    assert not differing(older, wanted)
    assert not differing(wanted, older)
    other = wanted | {"method_options": options | {"learned": True}}
    assert list(differing(older, other)) == ["method_options"]
    assert list(differing(wanted | {"method_options": options | {"unknown": 1}}, wanted)) == ["method_options"]


@pytest.mark.parametrize("damage", [{"dataset": 5}, {"method": None}, {"method_options": 3}, {"fusion": {"a": 1}}])
def test_damaged_settings_differ_and_end_nothing(damage: dict[str, Any]) -> None:
    wanted = parse(["--dataset", "twoview"], ROOT).flat()
    assert damage.keys() <= differing(wanted | damage, wanted).keys()


def test_a_field_that_was_not_saved_has_its_default_and_an_unknown_one_differs() -> None:
    config = parse(["--dataset", "digits", "--learning_rate", "0.5"], ROOT)
    before = {key: value for key, value in config.flat().items() if key not in ("augment", "accumulate")}
    assert differing(before, config.flat()) == {}
    changed = replace(config, data=replace(config.data, augment="device"), optim=replace(config.optim, epochs=7))
    assert differing(before, changed.flat()) == {"augment": ("workers", "device"), "epochs": (20, 7)}
    assert differing(before | {"cutmix": 0.5}, config.flat()) == {"cutmix": (0.5, None)}


@pytest.mark.parametrize("what", ["methods", "datasets", "encoders", "fusions"])
def test_lists_are_printed(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([f"--list-{what}"], ROOT)
    assert not ended.value.code
    assert "package.module:Class" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("1", True), ("0", False)])
def test_what_is_true_or_false(text: str, value: bool) -> None:
    assert truth(text) is value


@pytest.mark.parametrize("text", ["0true", "10", "yes", "", " 1"])
def test_what_is_neither_true_nor_false(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected true or false, found"):
        truth(text)
