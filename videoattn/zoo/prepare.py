"""Preparation of a row's evaluation: its settings, its weights, and for our own rows the clips."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from videoattn.config import Config
from videoattn.files import cache_folder
from videoattn.zoo.hub import web_address
from videoattn.zoo.protocol import ZooRow, locate_probe, locate_weights


def prepare_row(
    row: ZooRow, weights: str | None = None, overrides: Sequence[object] = (), probe: str | None = None
) -> tuple[Config, Path, Path | None]:
    """Return the settings of a row's evaluation, its weights, and its probe where that is a file of its own.

    Clips of our own rows are rendered if they are absent. Raises ValueError that says all that is missing.
    """
    if row.top1 is None:
        raise ValueError(
            f"{row.name} is an encoder without classes, so there is nothing to evaluate: name a row with a probe, or "
            f"train one on it (TRAIN.CHECKPOINT_FILE_PATH zoo:{row.name})"
        )
    missing, path, probe_path = [], None, None
    try:
        path = locate_weights(row, weights)
        probe_path = locate_probe(row, probe, path)
    except ValueError as error:
        missing.append(str(error))
        probe_place = cache_folder() / row.file
        if row.encoder is not None and path is None and probe is None and not probe_place.exists():
            places = " or ".join(map(web_address, row.urls))
            missing.append(f"and {row.file}, its probe, from {places}, at {probe_place} (or --probe FILE)")
    cfg = row.config(overrides)
    if not cfg.data.path_to_data_dir:
        if row.is_ours:
            cfg = row.config(["DATA.PATH_TO_DATA_DIR", str(render_clips(row)), *overrides])
        else:
            split = "test set" if row.dataset == "diving48" else "validation set"
            lists = "the json files of its annotations" if row.dataset == "ssv2" else f"test.csv of its {split}"
            missing.append(f"{row.name} needs DATA.PATH_TO_DATA_DIR FOLDER with {lists} ({row.dataset})")
    if path is None or missing:
        raise ValueError("\n".join(missing))
    return cfg, path, probe_path


def render_clips(row: ZooRow) -> Path:
    """Return the folder in the cache with the clips of a row of ours, after what is missing of them is rendered.

    Its name holds the settings of the clips. Of several processes, ranks too, one renders and the others wait.
    """
    folder = cache_folder() / "clips" / "_".join(["motion", *(word.lstrip("-") for word in row.clips_from)])
    make = [sys.executable, "-m", "videoattn", "motion", str(folder), *row.clips_from]
    if subprocess.run(make).returncode:
        raise ValueError(f"the clips of {row.name} could not be rendered into {folder}; VIDEOATTN_CACHE names another")
    return folder
