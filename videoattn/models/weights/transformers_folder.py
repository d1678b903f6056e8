"""Folders as transformers writes them: config.json, and safetensors in one file or in several with an index."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from videoattn.files import describe_content
from videoattn.models.weights.containers import CheckpointError, first_line, read_container

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# by model_type: the key and the default of frames, of height and width, and of the eps of norms
_KEYS: dict[str, tuple[tuple[str, Any], ...]] = {
    "timesformer": (("num_frames", 8), ("image_size", 224), ("layer_norm_eps", 1e-6)),
    "videomae": (("num_frames", 16), ("image_size", 224), ("layer_norm_eps", 1e-12)),
    "vjepa2": (("frames_per_clip", 64), ("crop_size", 256), ("layer_norm_eps", 1e-6)),
}
_HEADS = {"timesformer": 12, "videomae": 12, "vjepa2": 16}
TIMESFORMER_EPS = 1e-6
HEAD_EPS = "videoattn_head_eps"  # our note in config.json of what transformers' classes have no setting for
_TORCH_EPS = 1e-5  # of transformers' fc_norm


def read_folder(folder: Path, trust: bool = False) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Return the tensors of a folder and the notes beside them.

    Raises CheckpointError naming the folder or file where there is no config.json, no weights, or a shard that the
    index names is missing or holds other tensors.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder}: a folder without {CONFIG}; expected a file of weights, or a folder of transformers "
            f"({CONFIG} and {WEIGHTS})"
        )
    single = next((folder / name for name in (WEIGHTS, "pytorch_model.bin") if (folder / name).is_file()), None)
    if single is not None:
        return read_container(single, trust)
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"{folder} holds no weights; expected {WEIGHTS}, or shards with {INDEX}")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{folder / INDEX} has no weight_map, expected the file of every tensor by its name")
    tensors: dict[str, Tensor] = {}
    for shard in dict.fromkeys(places.values()):
        path = folder / shard
        if Path(shard).name != shard or not path.is_file():
            raise CheckpointError(f"{folder / INDEX} names the file {shard!r}, which is not in the folder")
        found, _ = read_container(path, trust)
        expected = {name for name, place in places.items() if place == shard}
        if found.keys() != expected:
            wrong = sorted(found.keys() ^ expected)
            raise CheckpointError(f"{path} does not hold the tensors that {INDEX} says: {', '.join(wrong[:4])}")
        tensors |= found
    return tensors, {}


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises CheckpointError naming the file."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        look = describe_content(path) or "damaged"
        raise CheckpointError(
            f"{path}, which describes the weights beside it, is not JSON ({first_line(error)}; the file is {look}): "
            "fetch it again, or move it away where it belongs to something else"
        ) from error
    if not isinstance(said, dict):
        raise CheckpointError(f"{path} holds a {type(said).__name__}, expected settings by name")
    return said


def read_transformers_config(path: Path) -> dict[str, Any]:
    """Return what transformers' config.json says: model_type, class_names, and of the types that we know also
    num_heads, clip_size, norm_eps and head_eps.

    Values that our models can't follow are named in "unsupported". Raises CheckpointError for a file that is no JSON,
    and for counts that are none.
    """
    said = read_json(path)
    model_type = said.get("model_type")
    names = class_names_of(said)
    found: dict[str, Any] = {"model_type": model_type} | ({} if names is None else {"class_names": names})
    if not isinstance(model_type, str) or model_type not in _KEYS:
        return found
    (frames, height, width), keys = clip_size_of(path, said), _KEYS[model_type]
    heads, eps = said.get("num_attention_heads", _HEADS[model_type]), said.get(*keys[2])
    check_counts(path, {"num_attention_heads": heads})
    head_eps = said.get(HEAD_EPS, _TORCH_EPS if model_type == "videomae" else eps)
    wrong = [
        f"{name} {said[name]!r}, expected {expected!r}"
        for name, expected in (("hidden_act", "gelu"), ("num_channels", 3), ("in_chans", 3))
        if said.get(name, expected) != expected
    ]
    wrong += [
        f"{name} {value!r}, expected a number above 0, at most 1"
        for name, value in (("layer_norm_eps", eps), (HEAD_EPS, head_eps))
        if not isinstance(value, float) or not 0 < value <= 1
    ]
    if model_type == "timesformer" and eps != TIMESFORMER_EPS:
        wrong.append(f"layer_norm_eps {eps!r}, and TimeSformer's norms have {TIMESFORMER_EPS:g}")
    found |= {"unsupported": f"{path} says {'; '.join(wrong)}"} if wrong else {}
    if model_type == "timesformer":
        return found | {"num_heads": heads, "clip_size": (frames, height, width)}
    return found | {
        "num_heads": heads, "clip_size": (frames, height, width), "norm_eps": eps, "head_eps": head_eps,
    }  # fmt: skip


def check_model_type(file: Any, family: str | None) -> None:
    """Raise CheckpointError where a file's config.json is of a model that we don't know, or not of its tensors, or
    asks for what our model of that type does not have.

    `family` is that of the tensors' names, None if nobody knows them.
    """
    model_type = file.settings.get("model_type")
    if model_type is None or (model_type not in _KEYS and family not in (None, "huggingface")):
        return
    if model_type not in _KEYS:
        raise CheckpointError(f"its {CONFIG} says model_type {model_type!r}, expected one of {', '.join(_KEYS)}")
    starts = {name.partition(".")[0] for name in file.tensors} & _KEYS.keys()
    if family == "huggingface" and starts and model_type not in starts:
        raise CheckpointError(f"its {CONFIG} says model_type {model_type!r}; its tensors are of {', '.join(starts)}")
    if family == "huggingface" and "unsupported" in file.settings:
        raise CheckpointError(file.settings["unsupported"])


def read_processor(folder: Path) -> dict[str, tuple[float, ...]]:
    """Return the mean and std of pixels that the preprocessor_config.json of a folder says, if any, of three channels.

    Raises CheckpointError for a file that is no JSON.
    """
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            said = read_json(folder / name)
            found = {key: said.get(f"image_{key}") for key in ("mean", "std")}
            return {key: tuple(value) for key, value in found.items() if isinstance(value, list) and len(value) == 3}
    return {}


def clip_size_of(path: Path, said: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return (T, H, W) of the clips of a model of transformers, by its config.json.

    Raises CheckpointError where it says no positive whole numbers.
    """
    default = (("frames_per_clip" if "frames_per_clip" in said else "num_frames", None), ("image_size", None))
    (frames_key, frames), (size_key, size), *_ = _KEYS.get(str(said.get("model_type")), default)
    frames, size = said.get(frames_key, frames), said.get(size_key, size)
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    check_counts(path, {frames_key: frames, size_key: height, "its width": width})
    return frames, height, width


def class_names_of(said: Mapping[str, Any]) -> list[str] | None:
    """Return the class names of a config.json in their order; None where it has none or transformers' LABEL_0."""
    names = said.get("id2label")
    if not isinstance(names, dict) or not names:
        return None
    ordered = [names.get(str(number)) for number in range(len(names))]
    known = all(isinstance(name, str) for name in ordered)
    return ordered if known and ordered != [f"LABEL_{number}" for number in range(len(names))] else None  # type: ignore[return-value]


def check_counts(source: Path | str, counts: Mapping[str, Any]) -> None:
    """Raise CheckpointError naming the counts that are no positive whole numbers."""
    wrong = [f"{key} {value!r}" for key, value in counts.items() if type(value) is not int or value < 1]
    if wrong:
        raise CheckpointError(f"{source} says {', '.join(wrong)}, expected positive whole numbers")
