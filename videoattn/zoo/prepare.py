"""Preparation of a row's evaluation: its settings, its weights, and for our own rows the clips."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from videoattn.config import Config
from videoattn.files import cache_folder
from videoattn.zoo.protocol import ZooRow, locate_weights


def prepare_row(row: ZooRow, weights: str | None = None, overrides: Sequence[object] = ()) -> tuple[Config, Path]:
    """Return the settings of a row's evaluation and its weights; clips of our own rows are rendered if they are absent.

    Raises ValueError that says all that is missing.
    """
    missing, path = [], None
    try:
        path = locate_weights(row, weights)
    except ValueError as error:
        missing.append(str(error))
    cfg = row.config(overrides)
    if not cfg.data.path_to_data_dir:
        if row.is_ours:
            cfg = row.config(["DATA.PATH_TO_DATA_DIR", str(render_clips(row)), *overrides])
        else:
            lists = "the json files of its annotations" if row.dataset == "ssv2" else "test.csv of its validation set"
            missing.append(f"{row.name} needs DATA.PATH_TO_DATA_DIR FOLDER with {lists} ({row.dataset})")
    if path is None or missing:
        raise ValueError("\n".join(missing))
    return cfg, path


def render_clips(row: ZooRow) -> Path:
    """Return the folder in the cache with the clips of a row of ours, after what is missing of them is rendered.

    Its name holds the settings of the clips. Of several processes, ranks too, one renders and the others wait.
    """
    folder = cache_folder() / "clips" / "_".join(["motion", *(word.lstrip("-") for word in row.clips_from)])
    make = [sys.executable, "-m", "videoattn", "motion", str(folder), *row.clips_from]
    if subprocess.run(make).returncode:
        raise ValueError(f"the clips of {row.name} could not be rendered into {folder}; VIDEOATTN_CACHE names another")
    return folder
