"""The settings of a run directory, read and written as one flat mapping."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpareto import config_files
from mmpareto.runs import CONFIG, RESOLVED, RunDirectory

OF_DATA = ("encoders", "configurations", "classes", "modalities", "readers", "samples")


def read_settings(folder: Path) -> dict[str, Any]:
    run = RunDirectory(folder)
    return run.read_config() | run.read_json(RESOLVED)


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes config.yaml and resolved.json."""
    plain = json.loads(json.dumps(settings, default=str))
    (folder / RESOLVED).write_text(json.dumps({key: plain.pop(key) for key in OF_DATA if key in plain}))
    (folder / CONFIG).write_text(config_files.text(plain))


def change_settings(folder: Path, without: str = "", **values: Any) -> None:
    """Writes other values into a run's settings, and takes one out."""
    settings = read_settings(folder) | values
    settings.pop(without, None)
    write_settings(folder, settings)
