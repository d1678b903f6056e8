"""Weights between files and models: every tensor of the file used, every tensor of the model filled, or named."""

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from videoattn.compat import import_timm
from videoattn.layers.mixer import MultiheadAttention
from videoattn.layers.position import resize_space, resize_time
from videoattn.models.build import parse_description
from videoattn.models.sparse_twin import suit_attention
from videoattn.models.timesformer import TimeSformer
from videoattn.models.weight_files import (
    CheckpointError,
    WeightFile,
    naming_file,
    read_weight_file,
    some_names,
    write_weight_file,
)
from videoattn.models.weight_names import Family, Geometry, find_family, from_ours, rename, source_grid, to_ours
from videoattn.seeding import torch_seed

__all__ = [
    "CheckpointError",
    "LoadReport",
    "from_checkpoint",
    "from_ours",
    "load_imagenet_vit",
    "load_weights",
    "save_weights",
    "to_ours",
]

logger = logging.getLogger(__name__)

# Widths whose number of heads is 64 dimensions each in every published model.
STANDARD_HEADS = {192: 3, 384: 6, 768: 12}


@dataclass
class LoadReport:
    """What became of each tensor, by our names, except `dropped`, which the model has no use for.

    `initialised` tensors do not come from the file as they are: a new head, or temporal weights of an image model.
    """

    source: str
    family: Family
    ema: bool = False
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kind = f"{self.family}, averaged weights" if self.ema else self.family
        parts = [f"{self.source} ({kind}): {len(self.loaded)} tensors loaded"]
        for what in ("resized", "initialised", "dropped"):
            names = getattr(self, what)
            counts = Counter(re.sub(r"^blocks\.\d+\.", "blocks.*.", name) for name in names)
            listed = ", ".join(name + (f" ({n})" if n > 1 else "") for name, n in counts.items())
            parts.append(f"{len(names)} {what}" + (f": {listed}" if names else ""))
        return "; ".join(parts + self.notes)


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, allow_new_head: bool = False,
    file_grid: tuple[int, int] | None = None, trust: bool = False, ema: bool | Literal["auto"] = "auto",
) -> LoadReport:  # fmt: skip
    """Fill a TimeSformer from a file of ours, of TimeSformer's release, of transformers, or of an image ViT.

    Position and time embeddings of other sizes are resized; `file_grid` is the file's (h, w) in patches where its
    tensors leave that open. `allow_new_head` is for fine-tuning: a head for other classes is left as it is, and a
    file without time starts a video model, as published: temporal attention copied from the spatial one, temporal_fc
    and time embedding zero. A dense file also fills a model with other attention operators or skipped blocks: what
    dense attention does not have keeps its initial value, and the report names it. `trust` loads pickles that run code.
    `ema` takes averaged weights: "auto" if there are any.

    Raises CheckpointError, before anything is changed, that names the tensors or sizes which do not fit.
    """
    file = read_weight_file(path, trust=trust, ema=ema)
    return _fill(model, file, "may_differ" if allow_new_head else "keep", file_grid)


def load_imagenet_vit(
    model: nn.Module, source: str | os.PathLike[str], *, file_grid: tuple[int, int] | None = None, trust: bool = False
) -> LoadReport:
    """Start a TimeSformer from an image ViT: a local file, or "timm:NAME", which timm fetches; its head is left out.

    Raises CheckpointError where timm can't fetch it, or the file is no plain ViT with a class token of these sizes.
    """
    name = str(source)
    if not name.startswith("timm:"):
        file = read_weight_file(source, trust=trust)
    else:
        timm = import_timm()
        try:
            vit = timm.create_model(name.removeprefix("timm:"), pretrained=True, num_classes=0)
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"timm can't provide {name} ({str(error).splitlines()[0]}): give a name of timm.list_pretrained(), or "
                "fetch the weights where there is a network and give the path of the .safetensors or .pth file"
            ) from error
        file = WeightFile(name, vit.state_dict())
    with naming_file(name):
        family = find_family(file.tensors)
        if family != "vit":
            raise CheckpointError(f"expected an image ViT, got a {family} video model; load_weights loads those")
    return _fill(model, file, "new", file_grid)


def from_checkpoint(
    path: str | os.PathLike[str], *, num_heads: int | None = None, clip_size: tuple[int, int, int] | None = None,
    attention_type: str | None = None, trust: bool = False, ema: bool | Literal["auto"] = "auto", **overrides: Any,
) -> nn.Module:  # fmt: skip
    """The model that a file describes, with its weights, in eval mode.

    A training checkpoint of ours says everything; other files leave some of it open, and what is missing is asked for
    by name in a CheckpointError: num_heads unless the width is a standard one, clip_size where the crop is not square
    or there is no time embedding, operators in our bare files. Given values take precedence; `overrides` are further
    arguments of the model. What was loaded, and what was assumed, is logged.
    """
    file = read_weight_file(path, trust=trust, ema=ema)
    given = {"num_heads": num_heads, "clip_size": clip_size, "attention_type": attention_type, **overrides}
    given = {name: value for name, value in given.items() if value is not None}
    build: Any = TimeSformer
    notes: list[str] = []
    with naming_file(file.source):
        family = find_family(file.tensors)
        if family == "videoattn" and file.cfg is not None:
            build, said = parse_description(file.cfg)
            arguments = {**said, **given}
        else:
            arguments = _arguments_of(file, family, given, notes)
        with torch_seed(0):  # initial values are overwritten; the caller's generator stays untouched
            model: nn.Module = build(**arguments)
    report = _fill(model, file, "keep", None)
    report.notes += notes
    logger.info("%s", report)
    return model.eval()


def save_weights(
    state: Mapping[str, Tensor], path: str | os.PathLike[str], family: Family = "videoattn", *,
    num_heads: int | None = None, clip_size: tuple[int, int, int] | None = None, cfg: str | None = None,
) -> None:  # fmt: skip
    """Write a model's state dict in a family's names and row order, whole or not at all.

    The ending chooses safetensors, or {"model_state": ...} for .pyth, .pt, .pth; .pyth of "timesformer" carries the
    prefix "model." that its own code expects. `num_heads` is needed for every family but ours; it, `clip_size` and
    the YAML text `cfg` are noted in the file for `from_checkpoint`. Raises OSError naming a file that can't be written.
    """
    if family != "videoattn" and num_heads is None:
        raise ValueError(f"num_heads is needed to order the rows of qkv for {family}")
    tensors = from_ours(state, family, num_heads or 1)
    if family == "timesformer" and str(path).endswith(".pyth"):
        tensors = {f"model.{name}": value for name, value in tensors.items()}
    notes = {
        "num_heads": None if num_heads is None else str(num_heads),
        "clip_size": None if clip_size is None else "x".join(map(str, clip_size)),
        "cfg": cfg,
    }
    write_weight_file(tensors, path, {name: text for name, text in notes.items() if text is not None})


def _fill(
    model: nn.Module, file: WeightFile, head: Literal["keep", "may_differ", "new"], file_grid: tuple[int, int] | None
) -> LoadReport:
    if not isinstance(model, TimeSformer):
        raise ValueError(f"weights are loaded into a TimeSformer, got {type(model).__name__}")
    with naming_file(file.source):
        report = LoadReport(file.source, find_family(file.tensors), file.ema)
        state = _fit(model, file, report, head, file_grid)
    model.load_state_dict(state)
    special = {*report.resized, *report.initialised}
    report.loaded = [name for name in state if name not in special]
    return report


def _fit(
    model: TimeSformer, file: WeightFile, report: LoadReport, head: str, file_grid: tuple[int, int] | None
) -> dict[str, Tensor]:
    """The model's complete new state from the file's tensors, noted in `report`."""
    target = model.state_dict()
    num_heads = _num_heads(model)
    if file.settings.get("num_heads", num_heads) != num_heads:
        raise CheckpointError(f"the file has {file.settings['num_heads']} heads, the model {num_heads}")
    state = to_ours(file.tensors, report.family, num_heads)
    theirs, ours = Geometry.of(state), Geometry.of(target)
    both = f"the file has {theirs}; the model has {ours}"

    if any(getattr(theirs, name) != getattr(ours, name) for name in ("depth", "embed_dim", "mlp_dim", "patch_size")):
        raise CheckpointError(both)
    if theirs.attention_type != ours.attention_type:
        if theirs.attention_type != "space_only":
            raise CheckpointError(f"the attention types differ: {both}")
        if head == "keep":
            raise CheckpointError(
                f"a file without time can start a video model but is none (allow_new_head=True starts one): {both}"
            )
        state = _add_time(state, target, ours.attention_type, report)
    new_head = head == "new" or (head == "may_differ" and theirs.num_classes != ours.num_classes)
    if new_head:
        report.dropped += [name for name in state if name.startswith("head.")]
        report.initialised += [name for name in target if name.startswith("head.")]
        state = {name: value for name, value in state.items() if not name.startswith("head.")}
        state |= {name: value for name, value in target.items() if name.startswith("head.")}
    elif theirs.num_classes != ours.num_classes:
        raise CheckpointError(f"the classes differ (allow_new_head=True starts a new head): {both}")

    if theirs.num_frames != ours.num_frames and theirs.num_frames is not None and ours.num_frames is not None:
        state["time_embed"] = resize_time(state["time_embed"], ours.num_frames)
        report.resized.append("time_embed")
    grid = (model.grid.h, model.grid.w)
    if file_grid is None and "clip_size" in file.settings:
        height, width = file.settings["clip_size"][1:]
        file_grid = height // theirs.patch_size, width // theirs.patch_size
    old_grid = source_grid(theirs.num_positions, grid, file_grid)
    if old_grid != grid:
        state["pos_embed"] = resize_space(state["pos_embed"], old_grid, grid)
        report.resized.append("pos_embed")

    suited = suit_attention(state, model)
    state = suited.state
    report.initialised += suited.initialised
    report.dropped += suited.dropped
    report.notes += suited.notes

    problems = {
        "missing": [name for name in target if name not in state],
        "unexpected": [name for name in state if name not in target],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in target.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    found = [f"{len(names)} {what}: {some_names(names)}" for what, names in problems.items() if names]
    if found:
        raise CheckpointError("; ".join(found))
    return {name: state[name] for name in target}


def _add_time(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], attention_type: str, report: LoadReport
) -> dict[str, Tensor]:
    """An image model's state with the parts that a video model has besides, named in `report`."""
    if attention_type == "joint_space_time":
        added = {"time_embed": torch.zeros_like(target["time_embed"])}
        moved = {name.replace(".mixers.space.", ".mixers.joint."): value for name, value in state.items()}
    else:
        spatial = {name: value for name, value in state.items() if ".mixers.space." in name}
        added = {name.replace(".mixers.space.", ".mixers.time."): value for name, value in spatial.items()}
        zeros = [name for name in target if name == "time_embed" or ".temporal_fc." in name]
        added |= {name: torch.zeros_like(target[name]) for name in zeros}
        moved = dict(state)
    report.initialised += list(added)
    return {**moved, **added}


def _arguments_of(file: WeightFile, family: Family, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Arguments of the model whose tensors these are; assumptions go to `notes`."""
    shape = Geometry.of(file.tensors if family == "videoattn" else rename(file.tensors, family, "videoattn"))
    if shape.num_classes is None:
        raise CheckpointError("there is no head among the tensors: build a model and use load_weights")
    if family == "videoattn" and "operators" not in given:
        raise CheckpointError("the file does not say its attention operators: pass operators={...}, or {} for dense")
    num_heads = given.get("num_heads", file.settings.get("num_heads"))
    if num_heads is None and shape.embed_dim in STANDARD_HEADS:
        num_heads = STANDARD_HEADS[shape.embed_dim]
        notes.append(f"{num_heads} heads assumed from width {shape.embed_dim}")
    if num_heads is None:
        raise CheckpointError(f"the number of heads can't be told from width {shape.embed_dim}: pass num_heads=")
    side = math.isqrt(shape.num_positions)
    frames, height, width = file.settings.get("clip_size", (None, side * shape.patch_size, side * shape.patch_size))
    frames = shape.num_frames or frames
    square = "clip_size" in file.settings or side * side == shape.num_positions
    if "clip_size" not in given and (frames is None or not square):
        missing = "the number of frames" if square else f"the height and width of {shape.num_positions} positions"
        raise CheckpointError(f"{missing} can't be told from the tensors: pass clip_size=(T, H, W)")
    return {
        "clip_size": (frames, height, width),
        "patch_size": shape.patch_size,
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_classes": shape.num_classes,
        "attention_type": shape.attention_type,
        "mlp_ratio": (shape.mlp_dim + 0.5) / shape.embed_dim,  # the model rounds down
        **given,
        "num_heads": num_heads,
    }


def _num_heads(model: TimeSformer) -> int:
    return next(module.num_heads for module in model.modules() if isinstance(module, MultiheadAttention))
