"""The names of a TimeSformer's tensors in published files, and the sizes that the tensors show."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from videoattn.models.weights.adapt_attention import reorder_projections
from videoattn.models.weights.files import OURS, CheckpointError, Family, some_names

# TimeSformer's release (without its prefix "model."); transformers; an image ViT of timm, DeiT, MAE and others
TIMESFORMER_FAMILIES: tuple[Family, ...] = ("timesformer", "huggingface", "vit")

_BLOCKS = {
    "videoattn": "blocks.",
    "timesformer": "blocks.",
    "vit": "blocks.",
    "huggingface": "timesformer.encoder.layer.",
}
# Our module or parameter, then the same in TimeSformer's release and ViTs, then in transformers.
_MODULES = (
    ("cls_token", "cls_token", "timesformer.embeddings.cls_token"),
    ("pos_embed", "pos_embed", "timesformer.embeddings.position_embeddings"),
    ("time_embed", "time_embed", "timesformer.embeddings.time_embeddings"),
    ("patch_embed.proj", "patch_embed.proj", "timesformer.embeddings.patch_embeddings.projection"),
    ("norm", "norm", "timesformer.layernorm"),
    ("head", "head", "classifier"),
)
# The same within a block; SLOT is "joint" in joint models and "space" in all others.
_BLOCK_MODULES = (
    ("mixers.time.norm", "temporal_norm1", "temporal_layernorm"),
    ("mixers.time.qkv", "temporal_attn.qkv", "temporal_attention.attention.qkv"),
    ("mixers.time.proj", "temporal_attn.proj", "temporal_attention.output.dense"),
    ("temporal_fc", "temporal_fc", "temporal_dense"),
    ("mixers.SLOT.norm", "norm1", "layernorm_before"),
    ("mixers.SLOT.qkv", "attn.qkv", "attention.attention.qkv"),
    ("mixers.SLOT.proj", "attn.proj", "attention.output.dense"),
    ("norm_mlp", "norm2", "layernorm_after"),
    ("mlp.fc1", "mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "mlp.fc2", "output.dense"),
)
_FOREIGN_PARTS = "; ViTs with layer scale, distillation or register tokens, pooled heads or a decoder are other models"
_NAME = re.compile(r"(?P<module>.+?)(?P<kind>\.weight|\.bias)?")


def find_timesformer_family(names: Sequence[str]) -> Family | None:
    """Return the family of a TimeSformer's or image ViT's names, without wrapper prefixes; None if they are others."""
    if any(re.match(r"blocks\.\d+\.mixers\.", name) for name in names):
        pools = any(".shortcut." in name or ".pool_" in name for name in names)  # an MViT
        others = any(name.startswith(("norms.", "fc_norm.")) for name in names)  # a plain video ViT
        return None if pools or others else OURS
    if any(name.startswith("timesformer.encoder.layer.") for name in names):
        return "huggingface"
    pooled = any(re.match(r"blocks\.\d+\.attn\.pool_[qkv]\.", name) for name in names)
    if not pooled and any(re.match(r"blocks\.\d+\.attn\.qkv\.", name) for name in names):
        temporal = any(name == "time_embed" or ".temporal_" in name for name in names)
        if temporal:
            return "timesformer"
        plain = any(name.endswith(".q_bias") for name in names) or not {"cls_token", "head.weight"} & set(names)
        return None if plain else "vit"  # without a class token and a head: a plain video ViT
    return None


def attention_type_of(names: Iterable[str]) -> str:
    """Return the attention type of a model with these tensors, in any family's names."""
    names = list(names)
    if any(".mixers.time." in name or ".temporal_" in name for name in names):
        return "divided_space_time"
    timed = any(re.fullmatch(r"(timesformer\.embeddings\.)?time_embed(dings)?", name) for name in names)
    return "joint_space_time" if timed else "space_only"


def rename(tensors: Mapping[str, Tensor], source: Family, target: Family) -> dict[str, Tensor]:
    """Return the tensors under another family's names, rows untouched.

    Raises CheckpointError listing names without a rule.
    """
    slot = "joint" if attention_type_of(tensors) == "joint_space_time" else "space"
    columns = [{"videoattn": 0, "huggingface": 2}.get(family, 1) for family in (source, target)]
    modules, block_modules = (
        {row[columns[0]].replace("SLOT", slot): row[columns[1]].replace("SLOT", slot) for row in table}
        for table in (_MODULES, _BLOCK_MODULES)
    )
    in_block = re.compile(rf"{re.escape(_BLOCKS[source])}(?P<block>\d+)\.(?P<rest>.+)")
    renamed, unknown = {}, []
    for name, value in tensors.items():
        place = in_block.fullmatch(name)
        match = _NAME.fullmatch(place["rest"] if place else name)
        found = (block_modules if place else modules).get(match["module"]) if match else None
        if match is None or found is None:
            unknown.append(name)
            continue
        start = f"{_BLOCKS[target]}{place['block']}." if place else ""
        renamed[start + found + (match["kind"] or "")] = value
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors have no place in {'a' if target == 'videoattn' else f'the {target} form of a'} "
            f"TimeSformer: {some_names(unknown)}" + (_FOREIGN_PARTS if source == "vit" else "")
        )
    return renamed


def to_ours(tensors: Mapping[str, Tensor], family: Family, num_heads: int) -> dict[str, Tensor]:
    """Return a file's tensors under our names, with the rows of every qkv projection in our order."""
    if family == "videoattn":
        return dict(tensors)
    return reorder_projections(rename(tensors, family, "videoattn"), num_heads, to_packed=True)


def from_ours(tensors: Mapping[str, Tensor], family: Family, num_heads: int) -> dict[str, Tensor]:
    """Return our tensors as another family names and orders them; the inverse of `to_ours`.

    Raises CheckpointError for what that family cannot hold: parameters of an operator, blocks that skip attention,
    time in an image ViT.
    """
    if family == "videoattn":
        return dict(tensors)
    if family == "vit" and attention_type_of(tensors) != "space_only":
        raise CheckpointError("only a space-only model has the form of an image ViT")
    renamed = rename(reorder_projections(tensors, num_heads, to_packed=False), "videoattn", family)
    slots: dict[str, set[str]] = {}
    for name in tensors:
        if match := re.fullmatch(r"blocks\.(\d+)\.mixers\.(.+)", name):
            slots.setdefault(match[1], set()).add(match[2])
    uneven = [block for block, names in slots.items() if names != slots["0"]]
    if uneven:
        raise CheckpointError(f"{family} has no blocks that attend in other ways: {', '.join(uneven)} differ from 0")
    return renamed


def release_state(state: Mapping[str, Tensor], family: Family, num_heads: int | None) -> dict[str, Tensor]:
    """Return `from_ours` for a file to be written. Raises ValueError without a number of heads."""
    if num_heads is None:
        raise ValueError(f"num_heads is needed to order the rows of qkv for {family}")
    return from_ours(state, family, num_heads)


@dataclass(frozen=True)
class TensorSizes:
    """The sizes that a model's tensors show; `num_frames` is None where there is no time embedding."""

    attention_type: str
    depth: int
    embed_dim: int
    mlp_dim: int
    patch_size: int
    num_classes: int | None
    num_positions: int
    num_frames: int | None

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "TensorSizes":
        """Read from tensors under our names. Raises CheckpointError naming those that are missing or misshapen."""
        needed = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
        for name, dims in needed.items():
            if name not in tensors:
                raise CheckpointError(f"there is no {name} among the tensors")
            if tensors[name].dim() != dims:
                raise CheckpointError(f"{name} expects {dims} dimensions, got shape {tuple(tensors[name].shape)}")
        blocks = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
        head, time = tensors.get("head.weight"), tensors.get("time_embed")
        return cls(
            attention_type=attention_type_of(tensors),
            depth=max(blocks) + 1,
            embed_dim=tensors["cls_token"].shape[-1],
            mlp_dim=tensors["blocks.0.mlp.fc1.weight"].shape[0],
            patch_size=tensors["patch_embed.proj.weight"].shape[-1],
            num_classes=None if head is None else head.shape[0],
            num_positions=tensors["pos_embed"].shape[1] - 1,
            num_frames=None if time is None else time.shape[1],
        )

    def __str__(self) -> str:
        frames = "" if self.num_frames is None else f", {self.num_frames} frames"
        classes = "no head" if self.num_classes is None else f"{self.num_classes} classes"
        return (
            f"{self.attention_type}, depth {self.depth}, width {self.embed_dim}, MLP width {self.mlp_dim}, "
            f"patch {self.patch_size}, {self.num_positions} positions{frames}, {classes}"
        )
