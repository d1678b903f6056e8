"""Reading and writing files of weights: tensors only, whatever container they come in."""

import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor

from videoattn.files import atomic_write
from videoattn.models.timesformer import TIMESFORMER_SIZES

CONTAINERS = ("model_state", "state_dict", "model", "module")
PICKLES = (".pyth", ".pt", ".pth", ".bin")
# Wrappers put these before every name; a prefix that not every name has is part of a name.
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.")

HEADS_OF_NAMES = {
    "vit_base_patch16_224": 12,  # what TimeSformer's release calls every model
    **{name: size["num_heads"] for name, size in TIMESFORMER_SIZES.items()},
}

_ZIP_START = b"PK\x03\x04"
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# What unpickling damaged bytes, or classes that are not there, raises.
_READ_ERRORS = (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, ImportError)


class CheckpointError(ValueError):
    """A file of weights that can't be read, or does not belong to the model; the message names file and tensors."""


@contextmanager
def naming_file(source: str) -> Iterator[None]:
    """Turns a ValueError into a CheckpointError whose message begins with the file's name."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


@dataclass(frozen=True)
class WeightFile:
    """A file's tensors, without the prefixes of wrapping modules, and what else it says of its model.

    `settings` holds num_heads and clip_size where the file or a config.json beside it says them; `cfg` is the
    embedded YAML text and `class_names` the names of the classes in their order, if any.
    """

    source: str
    tensors: dict[str, Tensor]
    ema: bool = False
    cfg: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None


def read_weight_file(path: str | os.PathLike[str], *, trust: bool = False, ema: bool | str = "auto") -> WeightFile:
    """Tensors of a .pyth, .pt, .pth, .bin or .safetensors file, on the CPU and where possible mapped, not read.

    A pickle that needs code is refused unless `trust`, which runs that code. `ema` takes the averaged weights of our
    training checkpoints: True, False, or "auto" for those that hold some. Raises CheckpointError naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if ema not in (True, False, "auto"):
        raise ValueError(f"ema expects True, False or 'auto', got {ema!r}")
    if path.suffix == ".safetensors":
        content, notes = _read_safetensors(path)
    else:
        content = notes = _read_pickle(path, trust)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected tensors by name")

    container = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), "")
    tensors = dict(content[container] if container else content)
    averaged = content.get("ema_state")
    if averaged is not None and not isinstance(averaged, Mapping):
        raise CheckpointError(f"{path}: ema_state is a {type(averaged).__name__}, expected tensors by name")
    if ema is True and not averaged:
        raise CheckpointError(f"{path} holds no averaged weights (ema_state)")
    use_ema = bool(averaged) and ema is not False
    if use_ema and averaged is not None:
        tensors.update(averaged)
    strangers = [
        f"{name} ({type(value).__name__})"
        for name, value in tensors.items()
        if not isinstance(value, Tensor) or not isinstance(name, str)
    ]
    if strangers or not tensors:
        what = f"also {some_names(strangers)}" if strangers else "no tensor"
        raise CheckpointError(
            f"{path} holds {what}, expected tensors by name, bare or under one of {', '.join(CONTAINERS)}"
        )
    cfg = notes.get("cfg") if isinstance(notes.get("cfg"), str) else None
    settings = {**_neighbour_settings(path), **_cfg_settings(path, cfg), **_noted_settings(path, notes)}
    names = notes.get("class_names")
    class_names = tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
    return WeightFile(str(path), unwrap_names(tensors), use_ema, cfg, settings, class_names)


def unwrap_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that wrapping modules gave to every one of them."""
    unwrapped = dict(tensors)
    while unwrapped:
        prefix = next((p for p in WRAPPER_PREFIXES if all(name.startswith(p) for name in unwrapped)), None)
        if prefix is None:
            break
        unwrapped = {name.removeprefix(prefix): value for name, value in unwrapped.items()}
    return unwrapped


def write_weight_file(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors whole or not at all: .safetensors, or .pyth, .pt or .pth as {"model_state": ...}.

    Raises OSError naming the file where it can't be written; an older file then stays.
    """
    path = Path(path)
    whole = torch.contiguous_format  # tensors that share memory are written apart
    tensors = {name: value.detach().cpu().clone(memory_format=whole) for name, value in tensors.items()}
    if path.suffix == ".safetensors":
        with atomic_write(path) as temporary:
            try:
                safetensors.torch.save_file(tensors, temporary, {"format": "pt", **(metadata or {})})
                os.chmod(temporary, 0o666 & ~_umask())  # safetensors lets nobody else read
            except safetensors.SafetensorError as error:
                raise OSError(str(error)) from error
    elif path.suffix in PICKLES:
        with atomic_write(path) as temporary:
            torch.save({"model_state": tensors, **(metadata or {})}, temporary)
    else:
        raise ValueError(f"{path}: expected a name that ends in .safetensors, {', '.join(PICKLES)}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def _read_pickle(path: Path, trust: bool) -> Any:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise CheckpointError(f"{path} is empty")
    if not start.startswith((_ZIP_START, _LEGACY_START)):
        raise CheckpointError(f"{path} was not written by torch.save, it begins with {start[:24]!r}")
    if start.startswith(_ZIP_START) and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is cut short ({path.stat().st_size} bytes): fetch or write it again")
    mapped = start.startswith(_ZIP_START)
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust, mmap=mapped)
    except pickle.UnpicklingError as error:
        needed = sorted(set(re.findall(r"GLOBAL ([\w.]*\w)", str(error))))
        if trust or not needed:
            raise CheckpointError(f"{path} can't be read: {_first_line(error)}") from error
        raise CheckpointError(
            f"{path} needs code to be loaded ({', '.join(needed)}), and such a file can run anything. If you trust "
            "where it comes from, pass trust=True, or convert it once with "
            "torch.save(torch.load(FILE, weights_only=False)['model'], NEW_FILE)"
        ) from error
    except _READ_ERRORS as error:
        raise CheckpointError(f"{path} can't be read: {type(error).__name__}: {_first_line(error)}") from error


def _neighbour_settings(path: Path) -> dict[str, Any]:
    """What transformers' config.json beside its weights says."""
    neighbour = path.with_name("config.json")
    if path.suffix not in (".safetensors", ".bin") or not neighbour.is_file():
        return {}
    try:
        said = json.loads(neighbour.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{neighbour} is not JSON: {error}") from error
    if not isinstance(said, dict) or said.get("model_type") != "timesformer":
        return {}
    size = said.get("image_size", 224)
    height, width = size if isinstance(size, list) else (size, size)
    return {"num_heads": said.get("num_attention_heads", 12), "clip_size": (said.get("num_frames", 8), height, width)}


def _cfg_settings(path: Path, cfg: str | None) -> dict[str, Any]:
    """What an embedded cfg of ours or of TimeSformer's release says."""
    try:
        said = yaml.safe_load(cfg or "")
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path}: its cfg is not YAML: {_first_line(error)}") from error
    sections = said if isinstance(said, dict) else {}
    timesformer, data, model = (
        section if isinstance(section := sections.get(name), dict) else {} for name in ("TIMESFORMER", "DATA", "MODEL")
    )
    found = {"num_heads": timesformer.get("NUM_HEADS") or HEADS_OF_NAMES.get(str(model.get("MODEL_NAME")))}
    frames, crop = data.get("NUM_FRAMES"), data.get("TRAIN_CROP_SIZE")
    if isinstance(frames, int) and isinstance(crop, int):
        found["clip_size"] = (frames, crop, crop)
    return {name: value for name, value in found.items() if value is not None}


def _noted_settings(path: Path, notes: Mapping[str, Any]) -> dict[str, Any]:
    """What `write_weight_file` noted beside the tensors: num_heads "12", clip_size "8x224x224"."""
    found: dict[str, Any] = {}
    try:
        if isinstance(heads := notes.get("num_heads"), str):
            found["num_heads"] = int(heads)
        if isinstance(size := notes.get("clip_size"), str):
            frames, height, width = (int(n) for n in size.split("x"))
            found["clip_size"] = (frames, height, width)
    except ValueError as error:
        raise CheckpointError(f"{path}: its notes on num_heads and clip_size can't be read: {error}") from error
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


def some_names(names: Sequence[str], most: int = 8) -> str:
    """The first `most` names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
