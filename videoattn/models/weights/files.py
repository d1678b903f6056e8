"""Files of weights: their tensors, and the settings of the model that they carry."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from videoattn.models.weights.containers import CheckpointError, first_line, read_container, write_weight_file
from videoattn.models.weights.transformers_folder import (
    CONFIG,
    check_counts,
    read_folder,
    read_processor,
    read_transformers_config,
)

__all__ = [
    "OURS",
    "CheckpointError",
    "Family",
    "WeightFile",
    "naming_file",
    "read_weight_file",
    "some_names",
    "unwrap_names",
    "write_weight_file",
]

Family = str  # the project in whose names a file's tensors are, such as "torchvision"
OURS: Family = "videoattn"

CONTAINERS = ("model_state", "state_dict", "model", "module", "target_encoder", "ema_encoder")
# Wrappers put these before every name; a prefix that not every name has is part of a name.
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")


@contextmanager
def naming_file(source: str) -> Iterator[None]:
    """Turn a ValueError into a CheckpointError whose message begins with the file's name."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


@dataclass(frozen=True)
class WeightFile:
    """A file's tensors, without the prefixes of wrapping modules, and what else it says of its model.

    `settings` holds num_heads, clip_size and model_name where the file or a config.json beside it says them, of a
    folder of transformers also model_type, norm_eps, head_eps, mean and std, and the arguments of the model where a
    file of ours notes them. `cfg` is the embedded YAML text and `class_names` the names of the classes in their order,
    if any.
    """

    source: str
    tensors: dict[str, Tensor]
    ema: bool = False
    cfg: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None


def read_weight_file(path: str | os.PathLike[str], *, trust: bool = False, ema: bool | str = "auto") -> WeightFile:
    """Read the tensors of a .pyth, .pt, .pth, .bin or .safetensors file, or of a folder of transformers, on the CPU.

    The file is checked for damage by the checksums that it carries. A pickle that needs code is refused unless `trust`,
    which runs that code. `ema` chooses averaged weights of our training checkpoints: True, False, or "auto" for those
    that hold some. Raises CheckpointError naming the file.
    """
    path = Path(path)
    if ema not in (True, False, "auto"):
        raise ValueError(f"ema expects True, False or 'auto', got {ema!r}")
    if path.is_dir():
        content, notes = read_folder(path, trust)
    elif path.is_file():
        content, notes = read_container(path, trust)
    else:
        raise CheckpointError(f"{path}: no such file")
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected tensors by name")

    tensors = _tensors_of(content)
    averaged = content.get("ema_state", _same_names(content.get("model_ema"), tensors))
    if averaged is not None and not isinstance(averaged, Mapping):
        raise CheckpointError(f"{path}: ema_state is a {type(averaged).__name__}, expected tensors by name")
    if ema is True and not averaged:
        raise CheckpointError(f"{path} holds no averaged weights (ema_state)")
    use_ema = bool(averaged) and ema is not False
    if use_ema and averaged is not None:
        tensors.update(averaged)
    strangers = [
        f"{name} ({_kind_of(value)})"
        for name, value in tensors.items()
        if _kind_of(value) != "dense Tensor" or not isinstance(name, str)
    ]
    if strangers or not tensors:
        what = f"also {some_names(strangers)}" if strangers else "no tensor"
        raise CheckpointError(
            f"{path} holds {what}, expected tensors by name, bare or under one of {', '.join(CONTAINERS)}"
        )
    cfg = notes.get("cfg") if isinstance(notes.get("cfg"), str) else None
    settings = {**_transformers_settings(path), **_cfg_settings(path, cfg), **_noted_settings(path, notes)}
    names = settings.pop("class_names", notes.get("class_names"))
    class_names = tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
    return WeightFile(str(path), unwrap_names(tensors), use_ema, cfg, settings, class_names)


def _same_names(averaged: Any, tensors: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return another project's averaged weights if they are those of all tensors, under the same names."""
    if not isinstance(averaged, Mapping):
        return None
    found = {str(name).removeprefix("module."): value for name, value in averaged.items() if name != "n_averaged"}
    return found if found.keys() == tensors.keys() else None


def _tensors_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file holds under one of CONTAINERS, or the first of several probes, or all of it."""
    probes = content.get("classifiers")
    if isinstance(probes, Sequence) and probes and isinstance(probes[0], Mapping):
        return dict(probes[0])
    container = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), "")
    return dict(content[container] if container else content)


def _kind_of(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.is_meta:
        return "Tensor without data"
    if value.is_quantized:
        return f"quantized Tensor, {value.dtype}"
    return "dense Tensor" if value.layout == torch.strided else f"Tensor, {value.layout}"


def unwrap_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under names without the prefixes that wrapping modules gave to every one of them."""
    unwrapped = dict(tensors)
    while unwrapped:
        prefix = next((p for p in WRAPPER_PREFIXES if all(name.startswith(p) for name in unwrapped)), None)
        if prefix is None:
            break
        unwrapped = {name.removeprefix(prefix): value for name, value in unwrapped.items()}
    return unwrapped


def _transformers_settings(path: Path) -> dict[str, Any]:
    """Return what the config.json of a folder, or beside a file that transformers may have written, says."""
    if path.is_dir():
        return read_transformers_config(path / CONFIG) | read_processor(path)
    neighbour = path.with_name(CONFIG)
    described = path.suffix in (".safetensors", ".bin") and neighbour.is_file()
    return read_transformers_config(neighbour) if described else {}


def _cfg_settings(path: Path, cfg: str | None) -> dict[str, Any]:
    """Return what an embedded cfg of ours or of TimeSformer's release says."""
    try:
        said = yaml.safe_load(cfg or "")
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that does not exist, say
        raise CheckpointError(f"{path}: its cfg is not YAML: {first_line(error)}") from error
    sections = said if isinstance(said, dict) else {}
    timesformer, data, model = (
        section if isinstance(section := sections.get(name), dict) else {} for name in ("TIMESFORMER", "DATA", "MODEL")
    )
    heads, name = timesformer.get("NUM_HEADS"), model.get("MODEL_NAME")
    frames, crop = data.get("NUM_FRAMES"), data.get("TRAIN_CROP_SIZE")
    counts = {"TIMESFORMER.NUM_HEADS": heads, "DATA.NUM_FRAMES": frames, "DATA.TRAIN_CROP_SIZE": crop}
    check_counts(f"{path}: its cfg", {key: value for key, value in counts.items() if value is not None})
    found: dict[str, Any] = {} if heads is None else {"num_heads": heads}
    if isinstance(name, str):
        found["model_name"] = name
    if frames is not None and crop is not None:
        found["clip_size"] = (frames, crop, crop)
    return found


def _noted_settings(path: Path, notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `write_weight_file` noted beside the tensors: num_heads "12", clip_size "8x224x224", and JSON."""
    found: dict[str, Any] = {}
    try:
        if isinstance(text := notes.get("class_names"), str):
            found["class_names"] = json.loads(text)
        if isinstance(text := notes.get("arguments"), str):
            found["arguments"] = json.loads(text)
            if not isinstance(found["arguments"], dict):
                raise ValueError(f"expected arguments by name, got {text[:60]!r}")
        if isinstance(heads := notes.get("num_heads"), str):
            found["num_heads"] = int(heads)
        if isinstance(size := notes.get("clip_size"), str):
            frames, height, width = (int(n) for n in size.split("x"))
            found["clip_size"] = (frames, height, width)
        if min(found.get("num_heads", 1), *found.get("clip_size", (1,))) < 1:
            raise ValueError(f"expected positive numbers, got {found}")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its notes on num_heads, clip_size, arguments and class names can't be read: {error}"
        ) from error
    return found


def some_names(names: Sequence[str], most: int = 8) -> str:
    """Return the first `most` names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
