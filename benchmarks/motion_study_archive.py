"""Runs known from a study's JSON alone, made on another machine or in a folder that is gone: they are not repeated."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from motion_study_runs import FREE_KEYS, Run, read_json, write_json

from videoattn.config.load import dump_config, load_config
from videoattn.config.strict_yaml import read_settings
from videoattn.files import atomic_write


def fingerprint(run: Run) -> str:
    """A hash of all settings that a run's result depends on, its clips' among them."""
    text = dump_config(load_config(run.setting.path, run.overrides))
    settings = {key: setting.value for key, setting in read_settings(text, "config").items()}
    relevant = {key: value for key, value in settings.items() if not key.startswith(FREE_KEYS)}
    said = json.dumps([relevant, run.data_settings], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def adopt_runs(file: Path, runs: Sequence[Run]) -> list[Run]:
    """Put the records of `file`, a study's JSON, into the folders of runs with the same settings that have not begun.

    Returns those runs. A record made with other settings is left alone.
    """
    if not file.exists():
        return []
    content = read_json(file)
    records = {record["fingerprint"]: record for record in content["runs"]}
    adopted = []
    for run in runs:
        record: dict[str, Any] | None = records.get(fingerprint(run))
        if record is None or run.folder.exists():
            continue
        place = content["trained_on"][record["trained_on"]]
        kept = {key: value for key, value in record.items() if key not in ("fingerprint", "trained_on")}
        run.folder.mkdir(parents=True)
        write_json(run.folder / "data.json", run.data_settings)
        with atomic_write(run.folder / "config.yaml") as temporary:
            temporary.write_text(run.config_text(), encoding="utf-8")
        write_json(run.folder / "results.json", kept | place)
        adopted.append(run)
    return adopted
