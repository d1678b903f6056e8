"""A file's weights fitted to a TimeSformer, and the TimeSformer that a file's tensors describe."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from videoattn.layers.attention import count_heads
from videoattn.layers.position import resize_space, resize_time
from videoattn.models.timesformer.model import TIMESFORMER_SIZES, TimeSformer
from videoattn.models.timesformer.names import TensorSizes, rename, to_ours
from videoattn.models.weights.adapt_attention import adapt_attention_weights, refuse_other_grids
from videoattn.models.weights.adapter import FitOptions
from videoattn.models.weights.files import OURS, CheckpointError, Family, WeightFile
from videoattn.models.weights.grids import said_grid, said_space, source_grid
from videoattn.models.weights.report import LoadReport, complete, keep_head, note_resized, start_pooler

# Widths whose number of heads is 64 dimensions each in every published model.
STANDARD_HEADS = {192: 3, 384: 6, 768: 12}
HEADS_OF_NAMES = {
    "vit_base_patch16_224": 12,  # what TimeSformer's release calls every model
    **{name: size["num_heads"] for name, size in TIMESFORMER_SIZES.items()},
}


def fit_timesformer(model: TimeSformer, file: WeightFile, report: LoadReport, options: FitOptions) -> dict[str, Tensor]:
    """Return the model's complete new state from the file's tensors, noted in `report`."""
    target, head = model.state_dict(), options.head
    num_heads, their_heads = count_heads(model), heads_of(file)
    assert num_heads is not None  # a model's first block always attends
    if their_heads not in (None, num_heads):
        raise CheckpointError(f"the file has {their_heads} heads, the model {num_heads}")
    state = to_ours(file.tensors, report.family, num_heads)
    theirs, ours = TensorSizes.of(state), TensorSizes.of(target)
    both = f"the file has {theirs}; the model has {ours}"

    if any(getattr(theirs, name) != getattr(ours, name) for name in ("depth", "embed_dim", "mlp_dim", "patch_size")):
        raise CheckpointError(both)
    if theirs.attention_type != ours.attention_type:
        if theirs.attention_type != "space_only":
            raise CheckpointError(f"the attention types differ: {both}")
        if head == "keep":
            raise CheckpointError(
                f"a file without time can start a video model but is none "
                f"(allow_new_head=True, or TRAIN.FINETUNE True, starts one): {both}"
            )
        state = _add_time(state, target, ours.attention_type, report)
    new = head == "new" or (head == "may_differ" and theirs.num_classes != ours.num_classes)
    state = keep_head(state, target, report, new=new, sizes=both)
    if head == "new":
        state = start_pooler(state, target, report)
    resized: list[str] = []
    if theirs.num_frames != ours.num_frames and theirs.num_frames is not None and ours.num_frames is not None:
        state["time_embed"] = resize_time(state["time_embed"], ours.num_frames)
        resized.append("time_embed")
    grid = (model.grid.h, model.grid.w)
    patch = (1, theirs.patch_size, theirs.patch_size)
    said = said_space(file, options, patch)
    old_grid = source_grid(theirs.num_positions, grid, said)
    if old_grid != grid:
        state["pos_embed"] = resize_space(state["pos_embed"], old_grid, grid)
        resized.append("pos_embed")

    note_resized(resized, report, model.clip_size, allowed=options.allow_resize, sizes=both)
    whole = complete(adapt_attention_weights(state, model, report), target)
    refuse_other_grids(state, model, said_grid(file, patch), model.grid)
    return whole


def _add_time(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], attention_type: str, report: LoadReport
) -> dict[str, Tensor]:
    """Return an image model's state with the parts that a video model has besides, named in `report`."""
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


def describe_timesformer(
    file: WeightFile, family: Family, given: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """Return the arguments of the model whose tensors these are; assumptions go to `notes`."""
    shape = TensorSizes.of(file.tensors if family == OURS else rename(file.tensors, family, OURS))
    if shape.num_classes is None:
        raise CheckpointError("there is no head among the tensors: build a model and use load_weights")
    if family == OURS and "operators" not in given:
        raise CheckpointError("the file does not say its attention operators: pass operators={...}, or {} for dense")
    num_heads = given.get("num_heads", heads_of(file))
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


def heads_of(file: WeightFile) -> int | None:
    """Return the number of heads that a file says, itself or by the name of its model; None where it says nothing."""
    said: int | None = file.settings.get("num_heads", HEADS_OF_NAMES.get(file.settings.get("model_name", "")))
    return said
