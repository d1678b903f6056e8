"""Folders of transformers' models by name: a local folder, or a repository of the Hugging Face Hub."""

import importlib
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from videoattn.compat import import_torchvision
from videoattn.models.weights.containers import first_line
from videoattn.models.weights.transformers_folder import CONFIG, INDEX, WEIGHTS

PREFIX = "transformers/"
_WEIGHTS = (WEIGHTS, INDEX, "model-*.safetensors")


def import_transformers() -> ModuleType:
    """Import transformers, after making torchvision importable. Raises ImportError saying how to install it."""
    import_torchvision()
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(f"{PREFIX}... needs transformers 5, which can't be imported: {error}") from error


def model_folder(name: str) -> Path:
    """Return the folder of transformers/FOLDER, or of transformers/OWNER/NAME on the hub, with its config.json.

    A local folder takes precedence. Raises ValueError where there is neither, or no config.json in the folder.
    """
    place = name.removeprefix(PREFIX)
    folder = Path(place)
    if not folder.is_dir():
        return _fetch(place, (CONFIG,), None)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"MODEL.MODEL_NAME {name}: the folder has no {CONFIG}; expected one that transformers wrote")
    return folder


def weights_folder(name: str) -> Path | None:
    """Return the folder of a model with its weights, fetched if need be; None for a local one without weights.

    Pickled weights of the hub are not fetched.
    """
    folder = model_folder(name)
    place = name.removeprefix(PREFIX)
    if not Path(place).is_dir() and not (folder / WEIGHTS).is_file():
        folder = _fetch(place, (CONFIG, *_WEIGHTS), folder.name)  # of the same commit
        if not any((folder / file).is_file() for file in (WEIGHTS, INDEX)):
            raise ValueError(f"{name}: the repository has no {WEIGHTS}, alone or in shards; pickles are not fetched")
    return folder if any((folder / file).is_file() for file in (WEIGHTS, INDEX, "pytorch_model.bin")) else None


@lru_cache(maxsize=16)
def _fetch(place: str, patterns: tuple[str, ...], revision: str | None) -> Path:
    """Return a repository's folder in the hub's cache. Raises ValueError saying why it can't be had."""
    from huggingface_hub import snapshot_download  # here, so that other models do without it

    try:
        return Path(snapshot_download(place, revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:  # of names, of repositories, and of the network
        raise ValueError(
            f"MODEL.MODEL_NAME {PREFIX}{place}: there is no folder {place}, and huggingface_hub can't fetch it from "
            f"the hub: {first_line(error)}"
        ) from error
