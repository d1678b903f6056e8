"""A file's weights fitted to an MViT, and the MViT that a file's tensors or embedded settings describe."""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
import yaml
from torch import Tensor

from videoattn.grid import TokenGrid
from videoattn.layers.pooled_attention import Size3, resize_table
from videoattn.layers.position import resize_space, resize_time
from videoattn.models.mvit.model import MViT
from videoattn.models.mvit.names import MViTGeometry, mvit_to_ours
from videoattn.models.mvit.plan import MViTShape
from videoattn.models.mvit.settings import read_mvit
from videoattn.models.settings import read_description
from videoattn.models.weights.adapt_attention import adapt_attention_weights
from videoattn.models.weights.adapter import FitOptions
from videoattn.models.weights.files import OURS, CheckpointError, Family, WeightFile
from videoattn.models.weights.grids import said_space, source_grid
from videoattn.models.weights.report import LoadReport, complete, keep_head, note_resized, start_pooler

_SAME = ("patch_kernel", "embed_dim", "attention_dims", "dims_out", "num_heads", "mlp_dims")


def fit_mvit(model: MViT, file: WeightFile, report: LoadReport, options: FitOptions) -> dict[str, Tensor]:
    """Return the model's complete new state from the file's tensors, noted in `report`."""
    target, head = model.state_dict(), options.head
    state = mvit_to_ours(file.tensors, report.family)
    theirs, ours = MViTGeometry.of(state), MViTGeometry.of(target)
    both = f"the file has a {theirs}; the model is a {ours}"
    if any(getattr(theirs, name) != getattr(ours, name) for name in _SAME):
        differing = next(name for name in _SAME if getattr(theirs, name) != getattr(ours, name))
        raise CheckpointError(
            f"{both}; {differing.replace('_', ' ')}: {getattr(theirs, differing)} and {getattr(ours, differing)}"
        )
    if theirs.attention_type != ours.attention_type:
        if theirs.attention_type == "divided":
            raise CheckpointError(f"a divided model can't become a joint one: {both}")
        if head == "keep":
            raise CheckpointError(
                f"a joint model can start a divided one but is none "
                f"(allow_new_head=True, or TRAIN.FINETUNE True, starts one): {both}"
            )
        state = _divide(state, target, report)
    new = head == "new" or (head == "may_differ" and theirs.num_classes != ours.num_classes)
    state = keep_head(state, target, report, new=new, sizes=both)
    if head == "new":
        state = start_pooler(state, target, report)
    patch = model.patch_embed.proj.stride
    resized = _resize(state, target, model.grid, said_space(file, options, patch))
    note_resized(list(resized), report, model.clip_size, allowed=options.allow_resize, sizes=both)
    return complete(adapt_attention_weights({**state, **resized}, model, report), target)


def _resize(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], grid: TokenGrid, said: tuple[int, int] | None
) -> dict[str, Tensor]:
    """Return the tensors of positions that are for another grid than the model's, resized; `said` is the file's."""
    resized: dict[str, Tensor] = {}
    for name, value in target.items():
        if name not in state or state[name].dim() != value.dim():
            continue
        if name == "pos_embed_spatial":
            theirs = source_grid(state[name].shape[1], (grid.h, grid.w), said)
            if theirs != (grid.h, grid.w):
                resized[name] = resize_space(state[name], theirs, (grid.h, grid.w), prefix=0)
        elif state[name].shape == value.shape:
            continue
        elif name == "pos_embed_temporal":
            resized[name] = resize_time(state[name], value.shape[1])
        elif ".relative.tables." in name and state[name].shape[1] == value.shape[1]:
            resized[name] = resize_table(state[name], value.shape[0])
    return resized


def _divide(state: Mapping[str, Tensor], target: Mapping[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
    """Return a joint model's state as a divided model's: it becomes attention in space, and temporal_fc is zero.

    Filters that pool are summed over time, which leaves clips of one repeated frame as they are but at their ends.
    """
    divided: dict[str, Tensor] = {}
    for name, value in state.items():
        moved = name.replace(".mixers.joint.", ".mixers.space.")
        if ".relative.tables.t" in moved:
            moved = moved.replace(".mixers.space.", ".mixers.time.")
        if moved in target and value.dim() == 5 and value.shape != target[moved].shape and ".pool_" in moved:
            value = value.sum(dim=2, keepdim=True)
            report.notes.append(f"{moved} summed over time")
        divided[moved] = value
    added = [name for name in target if name not in divided and (".mixers.time." in name or ".temporal_fc." in name)]
    divided |= {name: torch.zeros_like(target[name]) if ".temporal_fc." in name else target[name] for name in added}
    report.initialised += added
    return divided


def describe_mvit(file: WeightFile, family: Family, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the arguments of the MViT that a foreign file holds: by its embedded settings, else by its tensors.

    Assumptions go to `notes`. Raises CheckpointError where something can't be told.
    """
    if family == OURS:
        raise CheckpointError("the file does not say how its MViT pools: build the model and use load_weights")
    if "num_heads" in given:
        raise CheckpointError("the file holds an MViT, which determines the numbers of heads: expected no num_heads")
    shape = MViTGeometry.of(mvit_to_ours(file.tensors, family))
    if shape.num_classes is None:
        raise CheckpointError("there is no head among the tensors: build a model and use load_weights")
    said = _embedded_arguments(file.cfg) if file.cfg else None
    if said is None:
        said = _arguments_of_tensors(shape, file.tensors, notes)
        if "clip_size" not in given:
            said["clip_size"] = file.settings.get("clip_size") or _clip_size(shape)
    return {**said, "num_classes": shape.num_classes, **given}


def _embedded_arguments(cfg: str) -> dict[str, Any] | None:
    """Return the arguments that SlowFast's embedded settings say; None where they are of another program."""
    said = yaml.safe_load(cfg)
    if not isinstance(said, dict) or not isinstance(said.get("MVIT"), dict):
        return None
    model, data = (section if isinstance(section := said.get(name), dict) else {} for name in ("MODEL", "DATA"))
    crop = data.get("TRAIN_CROP_SIZE", 224)
    kept = {
        "MVIT": said["MVIT"],
        "MODEL": {"MODEL_NAME": "MViT", **{k: model[k] for k in ("DROPOUT_RATE", "NUM_CLASSES") if k in model}},
        "DATA": {"NUM_FRAMES": data.get("NUM_FRAMES", 8), "TRAIN_CROP_SIZE": crop, "TEST_CROP_SIZE": crop},
    }
    known = read_description(json.dumps(kept, default=str))  # JSON is YAML, and never has its aliases
    size = (known.data.num_frames, known.data.train_crop_size, known.data.train_crop_size)
    return {"clip_size": size, **read_mvit({}, known)}


def _arguments_of_tensors(shape: MViTGeometry, tensors: Mapping[str, Tensor], notes: list[str]) -> dict[str, Any]:
    """Return arguments as in published models: 2 x 2 pooling where heads double, keys and values by 8 x 8 at first."""
    dims_in = (shape.embed_dim, *shape.dims_out[:-1])
    in_attention = dims_in != shape.attention_dims  # MViTv2 widens there, MViTv1 in the MLP of the block before
    doubled = [i for i in range(1, shape.depth) if shape.num_heads[i] != shape.num_heads[i - 1]]
    factors = {i: shape.num_heads[i] / shape.num_heads[i - 1] for i in doubled}
    every = [i for i in range(shape.depth) if any(name.startswith(f"blocks.{i}.attn.pool_q.") for name in tensors)]
    kernels: set[Any] = {tuple(v.shape[2:]) for n, v in tensors.items() if ".attn.pool_" in n and v.dim() == 5}
    known = MViTShape(
        embed_dim=shape.embed_dim, depth=shape.depth, num_heads=shape.num_heads[0], dim_mul=factors, head_mul=factors,
        dim_mul_in_attention=in_attention,
        pool_q_stride={i: (1, 2, 2) if i in doubled else (1, 1, 1) for i in {*every, *doubled}},
        pool_kv_stride_adaptive=(1, 8, 8), pool_kernel=next(iter(kernels)) if len(kernels) == 1 else None,
    )  # fmt: skip
    notes.append("pooling assumed as in published models: queries by 1 x 2 x 2 where heads double, keys by 1 x 8 x 8")
    return {
        "shape": known,
        "patch_kernel": shape.patch_kernel,
        "patch_padding": tuple(k // 2 for k in shape.patch_kernel),
        "positions": "none" if shape.num_positions is None else "separable",
        "rel_pos_spatial": shape.table_lengths is not None,
        "rel_pos_temporal": shape.table_lengths is not None,
        "residual_pooling": in_attention,
        "mlp_ratio": (shape.mlp_dims[0] + 1e-3) / shape.attention_dims[0],  # the model rounds down
    }


def _clip_size(shape: MViTGeometry) -> Size3:
    """Return the clip size from the number of positions, for patches 2 frames x 4 x 4 pixels apart as published."""
    if shape.num_positions is not None:
        t, count = shape.num_positions
        side = math.isqrt(count)
        if side * side != count:
            raise CheckpointError(f"the height and width of {count} positions can't be told: pass clip_size=(T, H, W)")
    elif shape.table_lengths is not None:
        t, h, w = ((length + 1) // 2 for length in shape.table_lengths)
        return 2 * t, 4 * h, 4 * w
    else:
        raise CheckpointError("the clip's size can't be told from the tensors: pass clip_size=(T, H, W)")
    return 2 * t, 4 * side, 4 * side
