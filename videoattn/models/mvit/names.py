"""The names of an MViT's tensors in published files, and the sizes that the tensors show."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from videoattn.layers.attention import reorder_qkv_rows
from videoattn.models.weights.files import OURS, CheckpointError, Family, some_names

MVIT_FAMILIES: tuple[Family, ...] = ("slowfast", "torchvision", "pytorchvideo")

# Our module or parameter, then the same in SlowFast, torchvision and pytorchvideo.
_MODULES = (
    ("cls_token", "cls_token", "pos_encoding.class_token", "cls_positional_encoding.cls_token"),
    (
        "pos_embed_spatial", "pos_embed_spatial", "pos_encoding.spatial_pos",
        "cls_positional_encoding.pos_embed_spatial",
    ),
    (
        "pos_embed_temporal", "pos_embed_temporal", "pos_encoding.temporal_pos",
        "cls_positional_encoding.pos_embed_temporal",
    ),
    ("pos_embed_class", "pos_embed_class", "pos_encoding.class_pos", "cls_positional_encoding.pos_embed_class"),
    ("patch_embed.proj", "patch_embed.proj", "conv_proj", "patch_embed.patch_model"),
    ("norm", "norm", "norm", "norm_embed"),
    ("head", "head.projection", "head.1", "head.proj"),
)  # fmt: skip
# The same within a block; PROJ is where the block widens, in its shortcut or behind its MLP.
_BLOCK_MODULES = (
    ("mixers.joint.norm", "norm1", "norm1", "norm1"),
    ("mixers.joint.qkv", "attn.qkv", "attn.qkv", "attn.qkv"),
    ("mixers.joint.proj", "attn.proj", "attn.project.0", "attn.proj"),
    *((f"mixers.joint.pool_{x}", f"attn.pool_{x}", f"attn.pool_{x}.pool", f"attn.pool_{x}") for x in "qkv"),
    *((f"mixers.joint.pool_{x}.norm", f"attn.norm_{x}", f"attn.pool_{x}.norm_act.0", f"attn.norm_{x}") for x in "qkv"),
    *((f"mixers.joint.relative.tables.{x}", *[f"attn.rel_pos_{x}"] * 3) for x in "thw"),
    ("norm_mlp", "norm2", "norm2", "norm2"),
    ("mlp.fc1", "mlp.fc1", "mlp.0", "mlp.fc1"),
    ("mlp.fc2", "mlp.fc2", "mlp.3", "mlp.fc2"),
    ("PROJ", "proj", "project", "proj"),
)
_NAME = re.compile(r"(?P<module>.+?)(?P<kind>\.weight|\.bias)?")
# Newer pytorchvideos list pooling a second time.
_ALIAS = re.compile(r"(blocks\.\d+\.attn\.)_attention_pool_([qkv])\.(pool|norm)(\..+)")
_COLUMNS: dict[Family, int] = {"videoattn": 0, "slowfast": 1, "torchvision": 2, "pytorchvideo": 3}


def find_mvit_family(names: Sequence[str]) -> Family | None:
    """Return the family of an MViT's names, without wrapper prefixes; None if they are others."""
    if any(re.match(r"blocks\.\d+\.mixers\.", name) for name in names):
        return OURS if any(".shortcut." in name or ".pool_" in name for name in names) else None
    if any(name.startswith("pos_encoding.") for name in names):
        return "torchvision"
    if any(name.startswith("cls_positional_encoding.") for name in names):
        return "pytorchvideo"
    return "slowfast" if any(re.match(r"blocks\.\d+\.attn\.pool_[qkv]\.", name) for name in names) else None


def mvit_to_ours(tensors: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Return a file's tensors under our names and with our shapes and row order; q, k and v are packed.

    Raises CheckpointError listing names without a rule.
    """
    if family == "videoattn":
        return dict(tensors)
    renamed = _rename(_pack(_drop_aliases(tensors)), family, "videoattn")
    for name in ("cls_token", "pos_embed_class", "pos_embed_spatial", "pos_embed_temporal"):
        if name in renamed and family == "torchvision":
            renamed[name] = rearrange(renamed[name], "... c -> 1 (...) c")
    return _reorder(renamed, to_packed=True)


def mvit_from_ours(tensors: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Return our tensors as another family names, shapes and orders them; the inverse of `mvit_to_ours`.

    q, k and v are written packed for SlowFast (MVIT.SEPARATE_QKV False) and apart for pytorchvideo. Raises
    CheckpointError for what the family cannot hold: parameters of an operator, skipped blocks, divided attention.
    """
    if family == "videoattn":
        return dict(tensors)
    if family not in MVIT_FAMILIES:
        raise CheckpointError(f"an MViT has no form in {family}'s names; choose one of {', '.join(MVIT_FAMILIES)}")
    renamed = _rename(_reorder(tensors, to_packed=False), "videoattn", family)
    if family == "torchvision":
        for name in list(renamed):
            if name.startswith("pos_encoding."):
                value = renamed[name]
                renamed[name] = value[0] if name.endswith(("spatial_pos", "temporal_pos")) else value[0, 0]
    return _unpack(renamed) if family == "pytorchvideo" else renamed


def published_state(state: Mapping[str, Tensor], family: Family, num_heads: int | None) -> dict[str, Tensor]:
    """Return `mvit_from_ours` for a file to be written; the tensors tell the numbers of heads."""
    return mvit_from_ours(state, family)


def _rename(tensors: Mapping[str, Tensor], source: Family, target: Family) -> dict[str, Tensor]:
    columns = [_COLUMNS[source], _COLUMNS[target]]
    renamed, unknown = {}, []
    for name, value in tensors.items():
        place = re.fullmatch(r"(?P<start>blocks\.\d+\.)(?P<rest>.+)", name)
        match = _NAME.fullmatch(place["rest"] if place else name)
        start = place["start"] if place else ""
        table = {row[columns[0]]: row[columns[1]] for row in (_BLOCK_MODULES if place else _MODULES)}
        if place:  # where our block widens depends on it
            widened = _widened_module(tensors, start, source)
            table = {row.replace("PROJ", widened): other.replace("PROJ", widened) for row, other in table.items()}
        found = table.get(match["module"]) if match else None
        if match is None or found is None:
            unknown.append(name)
        else:
            renamed[start + found + (match["kind"] or "")] = value
    if unknown:
        form = "an MViT" if target == "videoattn" else f"the {target} form of an MViT"
        raise CheckpointError(f"{len(unknown)} tensors have no place in {form}: {some_names(unknown)}")
    return renamed


def _widened_module(tensors: Mapping[str, Tensor], start: str, source: Family) -> str:
    """Return our module that widens the block whose names begin with `start`: attention's shortcut, or the MLP's."""
    if source == "videoattn":
        return "shortcut.proj" if f"{start}shortcut.proj.weight" in tensors else "widen"
    norms = [tensors.get(f"{start}norm{i}.weight") for i in (1, 2)]
    same = any(norm is None for norm in norms) or norms[0].shape == norms[1].shape  # type: ignore[union-attr]
    return "widen" if same else "shortcut.proj"


def _drop_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop second names of the same tensor. Raises CheckpointError if the two differ."""
    kept = {name: value for name, value in tensors.items() if not _ALIAS.fullmatch(name)}
    for name, value in tensors.items():
        if match := _ALIAS.fullmatch(name):
            plain = f"{match[1]}{'pool' if match[3] == 'pool' else 'norm'}_{match[2]}{match[4]}"
            if not torch.equal(kept.setdefault(plain, value), value):
                raise CheckpointError(f"{name} and {plain} are one tensor in pytorchvideo, but differ here")
    return kept


def _pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pack separate projections to q, k and v into one. Raises CheckpointError if one of the three is missing."""
    packed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        match = re.fullmatch(r"(blocks\.\d+\.attn\.)([qkv])\.(weight|bias)", name)
        if not match:
            packed[name] = value
            continue
        parts = [tensors.get(f"{match[1]}{x}.{match[3]}") for x in "qkv"]
        if any(part is None for part in parts):
            raise CheckpointError(f"{name} is present without its counterparts for q, k and v")
        packed[f"{match[1]}qkv.{match[3]}"] = torch.cat(parts)  # type: ignore[arg-type]
    return packed


def _unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    unpacked: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if match := re.fullmatch(r"(blocks\.\d+\.attn\.)qkv\.(weight|bias)", name):
            unpacked |= {f"{match[1]}{x}.{match[2]}": part for x, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            unpacked[name] = value
    return unpacked


def _reorder(tensors: Mapping[str, Tensor], to_packed: bool) -> dict[str, Tensor]:
    heads = MViTGeometry.of(tensors).num_heads if any(".qkv." in name for name in tensors) else ()
    reordered = {}
    for name, value in tensors.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.mixers\.joint\.qkv\.(weight|bias)", name):
            value = reorder_qkv_rows(value, heads[int(match[1])], to_packed)
        reordered[name] = value
    return reordered


@dataclass(frozen=True)
class MViTGeometry:
    """The sizes that an MViT's tensors show, block by block."""

    attention_type: str
    patch_kernel: tuple[int, ...]
    embed_dim: int
    attention_dims: tuple[int, ...]
    dims_out: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_dims: tuple[int, ...]
    num_classes: int | None
    table_lengths: tuple[int, ...] | None
    num_positions: tuple[int, int] | None

    @property
    def depth(self) -> int:
        return len(self.attention_dims)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "MViTGeometry":
        """Read from tensors under our names. Raises CheckpointError naming those that are missing."""
        patch = _need(tensors, "patch_embed.proj.weight", 5)
        blocks = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
        divided = any(".mixers.time." in name for name in tensors)
        slot = "space" if divided else "joint"
        attention, out, heads, mlp = [], [], [], []
        head_dim = _head_dim(tensors, sorted(blocks), slot)
        for block in range(max(blocks, default=-1) + 1):
            start = f"blocks.{block}."
            attention.append(_need(tensors, f"{start}norm_mlp.weight", 1).shape[0])
            mlp.append(_need(tensors, f"{start}mlp.fc1.weight", 2).shape[0])
            out.append(_need(tensors, f"{start}mlp.fc2.weight", 2).shape[0])
            heads.append(max(1, attention[-1] // head_dim[block]))
        head, space, time = (tensors.get(name) for name in ("head.weight", "pos_embed_spatial", "pos_embed_temporal"))
        tables = [
            tensors.get(f"blocks.0.mixers.{'time' if divided and x == 't' else slot}.relative.tables.{x}")
            for x in "thw"
        ]
        return cls(
            attention_type="divided" if divided else "joint",
            patch_kernel=tuple(patch.shape[2:]),
            embed_dim=patch.shape[0],
            attention_dims=tuple(attention),
            dims_out=tuple(out),
            num_heads=tuple(heads),
            mlp_dims=tuple(mlp),
            num_classes=None if head is None else head.shape[0],
            table_lengths=None
            if any(table is None for table in tables)
            else tuple(table.shape[0] for table in tables if table is not None),
            num_positions=None if space is None or time is None else (time.shape[1], space.shape[1]),
        )

    def __str__(self) -> str:
        classes = "no head" if self.num_classes is None else f"{self.num_classes} classes"
        positions = "no positions" if self.table_lengths is None else "tables of relative positions"
        if self.num_positions is not None:
            positions = "{} x {} positions".format(*self.num_positions)
        widths = ", ".join(f"{dim} ({self.attention_dims.count(dim)})" for dim in dict.fromkeys(self.attention_dims))
        return f"{self.attention_type} MViT, depth {self.depth}, widths {widths} (blocks), {positions}, {classes}"


def _need(tensors: Mapping[str, Tensor], name: str, dims: int) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"there is no {name} among the tensors")
    if tensors[name].dim() != dims:
        raise CheckpointError(f"{name} expects {dims} dimensions, got shape {tuple(tensors[name].shape)}")
    return tensors[name]


def _head_dim(tensors: Mapping[str, Tensor], blocks: Sequence[int], slot: str) -> dict[int, int]:
    """Return each block's head dimension: that of its pooling, else of the nearest pooling block before, else after."""
    known: dict[int, int] = {}
    for block in blocks:
        for part in ("pool_q.norm.weight", "pool_k.norm.weight", "pool_v.norm.weight"):
            if (norm := tensors.get(f"blocks.{block}.mixers.{slot}.{part}")) is not None:
                known[block] = norm.shape[0]
    if not known:
        raise CheckpointError("no block pools, so that the number of heads can't be told from the tensors")
    return {
        block: known.get(block, known[max((k for k in known if k < block), default=min(known))]) for block in blocks
    }
