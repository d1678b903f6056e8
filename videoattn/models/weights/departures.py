"""Differences between the settings that a file of weights was trained with and the settings that it is used with."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from videoattn.config import Config
from videoattn.grid import Axis
from videoattn.layers.attention import TokenMixer, count_heads
from videoattn.layers.pooled_attention import UNIT, PooledAttention, TokenPool
from videoattn.layers.skip import Leff, ReusedWeights
from videoattn.models.build import model_arguments
from videoattn.models.registry import find_spec
from videoattn.models.settings import read_description
from videoattn.models.weights.files import WeightFile
from videoattn.models.weights.report import Departure
from videoattn.operators import OPERATORS, DenseHeadsAttention

__all__ = [
    "Departure",
    "Description",
    "compare_descriptions",
    "describe_data",
    "describe_model",
    "find_departures",
    "format_departures",
    "refuse_replaced_attention",
]

logger = logging.getLogger(__name__)

# What a model computes and what it is fed, by settings key. A tuple of texts has one for each block.
Description = Mapping[str, Any]

_CLASS_NAMES = "class names"


def describe_model(model: nn.Module) -> Description:
    """Return what changes a model's output and cannot be told from the shapes of its tensors.

    This is the clip size, and along each axis the operator with its options, or what replaces attention, in each
    block; for an MViT also the strides of pooling, and residual pooling. A model adds more by an attribute `described`.
    """
    size: Any = model.clip_size
    described: dict[str, Any] = {**_describe_clip(size), **getattr(model, "described", {})}
    mixers = [module for module in model.modules() if isinstance(module, TokenMixer)]
    for axis in Axis:
        described[f"ATTENTION.{axis.name}"] = tuple(_describe_mixer(mixer) for mixer in mixers if mixer.axis is axis)
    pooled = [mixer for mixer in mixers if isinstance(mixer, PooledAttention)]
    if pooled:
        described["MVIT.POOL_Q_STRIDE"] = tuple(_stride(mixer.pool_q) for mixer in pooled)
        described["MVIT.POOL_KV_STRIDE"] = tuple(_stride(mixer.pool_k) for mixer in pooled)
        described["MVIT.PATCH_PADDING"] = _padding(model)
        described["MVIT.RESIDUAL_POOLING"] = tuple(str(mixer.residual_pooling) for mixer in pooled)
    return described


def refuse_replaced_attention(model: nn.Module, family: str) -> None:
    """Raise ValueError if `model` attends otherwise than readers of a family's files assume, who know dense alone."""
    described = describe_model(model)
    heads, probe_heads = count_heads(model), described.get("VIDEO_VIT.PROBE_HEADS")
    if family == "huggingface" and probe_heads not in (None, str(heads)):
        raise ValueError(
            f"transformers' probe has as many heads as the encoder, {heads}, and the model's has {probe_heads}, so its "
            "logits would be others there; convert --to vjepa2"
        )
    levels = described.get("VIDEO_VIT.PROBE_LEVELS", "")
    if family == "huggingface" and "," in levels:
        raise ValueError(
            f"transformers' probe sees the tokens of the last block, and the model's those of blocks {levels}, so its "
            "logits would be others there; convert --to vjepa2"
        )
    others = [
        f"{key} {text}"
        for key, value in described.items()
        if key.startswith("ATTENTION.")
        for text in dict.fromkeys(value)
        if text != "dense"
    ]
    if others:
        raise ValueError(
            f"files of {family} can't describe that a model attends by {', '.join(others)} and would be read as dense; "
            "convert --to videoattn, or add --as-dense if that is meant"
        )


def describe_data(cfg: Config, *, testing: bool, class_names: Sequence[str] | None = None) -> Description:
    """Return how `cfg` cuts clips out of videos and feeds them, for the test protocol if `testing`, else for training.

    Rates are left out where they have no effect, and the number of windows in a clip where there is but one.
    """
    data = cfg.data
    dataset = cfg.test.dataset if testing else cfg.train.dataset
    sampling = data.sampling if data.sampling != "auto" else "segments" if dataset == "ssv2" else "dense"
    rates: dict[str, Any] = {}
    if sampling in ("dense", "by_index"):
        rates["DATA.SAMPLING_RATE"] = data.sampling_rate
    if sampling == "dense":
        rates["DATA.TARGET_FPS"] = data.target_fps
    if data.num_segments > 1:
        rates["DATA.NUM_SEGMENTS"] = data.num_segments
    is_resized = not testing or (cfg.test.num_spatial_crops == 1 and dataset == "kinetics")  # else: to the crop
    return {
        "DATA.SAMPLING": sampling,
        **rates,
        **({"short side (DATA.TRAIN_JITTER_SCALES)": data.train_jitter_scales[0]} if is_resized else {}),
        "DATA.DECODING_SHORT_SIZE": data.decoding_short_size,
        "DATA.FRAMES_FPS": data.frames_fps,
        "DATA.MEAN": data.mean,
        "DATA.STD": data.std,
        "channel order (DATA.REVERSE_INPUT_CHANNEL)": "BGR" if data.reverse_input_channel else "RGB",
        _CLASS_NAMES: class_names,
    }


def find_departures(file: WeightFile, model: nn.Module, data: Description | None = None) -> list[Departure] | None:
    """Compare what a file says about itself with the model that it fills and the `data` that the model is fed.

    Return None where the file does not say its settings, unless the little that it says differs already. Settings that
    cannot be read are a logged warning, and None.
    """
    said: dict[str, Any] = {_CLASS_NAMES: file.class_names}
    if "clip_size" in file.settings:
        said |= _describe_clip(file.settings["clip_size"])
    said |= {
        f"VIDEO_VIT.{name.upper()}": f"{file.settings[name]:g}"
        for name in ("norm_eps", "head_eps")
        if name in file.settings
    }
    said |= {f"DATA.{name.upper()}": file.settings[name] for name in ("mean", "std") if name in file.settings}
    if file.cfg is not None:
        try:
            said |= {key: value for key, value in _describe_settings(file).items() if key != _CLASS_NAMES}
        except ValueError as error:
            first = str(error).splitlines()[0]
            logger.warning("%s: its own settings can't be read, so they are not compared: %s", file.source, first)
            return None
    departures = compare_descriptions(said, {**describe_model(model), **(data or {})})
    return departures if file.cfg is not None else departures or None


def compare_descriptions(said: Description, here: Description) -> list[Departure]:
    """Return what is in both descriptions with different values; an unknown value differs from none."""
    departures = []
    for key, value in said.items():
        if key == _CLASS_NAMES:
            departures += _compare_names(value, here.get(key))
        elif key in here and value != here[key]:
            departures.append(Departure(key, _show(value), _show(here[key])))
    return departures


def format_departures(departures: Sequence[Departure]) -> str:
    """Return one warning that names all departures, one in a line."""
    head = "the weights were trained with other settings than those in use, which changes what the model computes:"
    return "\n".join([head, *(f"  {departure}" for departure in departures)])


def _describe_settings(file: WeightFile) -> Description:
    """Describe the model and data of a file's own settings. Raises ValueError where they can't be read."""
    cfg = read_description(file.cfg or "")
    cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"test_crop_size": cfg.data.train_crop_size})})
    arguments = model_arguments(cfg)  # knows whether there is such a model
    with torch.device("meta"):
        model = find_spec(cfg.model.model_name).build(**arguments)
    return {**describe_model(model), **describe_data(cfg, testing=False)}


def _describe_clip(size: Sequence[int]) -> dict[str, Any]:
    frames, height, width = size
    return {
        "DATA.NUM_FRAMES": frames,
        "crop (DATA.TEST_CROP_SIZE)": f"{height}" if height == width else f"{height}x{width}",
    }


def _describe_mixer(mixer: TokenMixer) -> str:
    """Return an operator's name with the options that are not the default, or what replaces attention in a slot."""
    operator = mixer.operator
    if operator is not None:
        kind = type(operator.others if isinstance(operator, DenseHeadsAttention) else operator)
        name = next((name for name, known in OPERATORS.items() if kind is known), kind.__name__)
        options = ", ".join(f"{key.upper()} {value}" for key, value in operator.options.items())
        return f"{name} ({options})" if options else name
    if isinstance(mixer, ReusedWeights):
        return "skipped (PHI weights)"
    return "skipped (PHI leff)" if isinstance(getattr(mixer, "phi", None), Leff) else "skipped (PHI identity)"


def _padding(model: nn.Module) -> str:
    """Return the padding of the patch embedding, the model's first convolution."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv3d))
    return "x".join(map(str, first.padding))


def _stride(pool: TokenPool | None) -> str:
    return "x".join(map(str, UNIT if pool is None else pool.pooling.stride))


def _compare_names(theirs: Sequence[str] | None, ours: Sequence[str] | None) -> list[Departure]:
    """Compare names of as many classes; underscores count as spaces and capitals as small letters."""
    if theirs is None or ours is None or len(theirs) != len(ours):
        return []
    plain = [[name.replace("_", " ").lower() for name in names] for names in (theirs, ours)]
    differing = [number for number, pair in enumerate(zip(*plain, strict=True)) if pair[0] != pair[1]]
    if not differing:
        return []
    first, more = differing[0], f" and {len(differing) - 1} more" if len(differing) > 1 else ""
    return [Departure(f"name of class {first}{more}", repr(theirs[first]), repr(ours[first]))]


def _show(value: object) -> str:
    """Return a value as short text; blocks with the same value are named together."""
    if not (isinstance(value, tuple) and all(isinstance(item, str) for item in value)):
        return str(list(value)) if isinstance(value, tuple) else str(value)
    blocks: dict[str, list[int]] = {}
    for number, text in enumerate(value):
        blocks.setdefault(text, []).append(number)
    if len(blocks) < 2:
        return next(iter(blocks), "none")
    return ", ".join(f"{text} in {_name_blocks(numbers)}" for text, numbers in blocks.items())


def _name_blocks(numbers: Sequence[int]) -> str:
    """Return sorted numbers as text, consecutive ones as a range, such as "blocks 0, 4-11"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    listed = ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
    return f"block{'s' if len(numbers) > 1 else ''} {listed}"
