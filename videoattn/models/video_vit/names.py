"""The names of a video ViT's tensors in published files, and the sizes that the tensors show."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from videoattn.models.video_vit.huggingface import from_authors, is_transformers, to_authors
from videoattn.models.weights.adapt_attention import reorder_projections
from videoattn.models.weights.files import OURS, CheckpointError, Family, some_names

# VideoMAE's code, fine-tuned or pre-trained; V-JEPA 2 and 2.1, encoder, probe, or both; transformers' classes of both
VIDEO_VIT_FAMILIES: tuple[Family, ...] = ("videomae", "vjepa2", "huggingface")

# Our module or parameter, then the authors'. I is the number of a block or norm.
_MODULES = (
    ("patch_embed.proj", "patch_embed.proj"),
    ("patch_embed_image.proj", "patch_embed_img.proj"),
    ("video_embed", "video_mod_embed"),
    ("image_embed", "img_mod_embed"),
    ("cls_token", "cls_token"),
    ("pos_embed", "pos_embed"),
    ("blocks.I.mixers.joint.norm", "blocks.I.norm1"),
    ("blocks.I.mixers.joint.qkv.q_bias", "blocks.I.attn.q_bias"),
    ("blocks.I.mixers.joint.qkv.v_bias", "blocks.I.attn.v_bias"),
    ("blocks.I.mixers.joint.qkv", "blocks.I.attn.qkv"),
    ("blocks.I.mixers.joint.proj", "blocks.I.attn.proj"),
    ("blocks.I.norm_mlp", "blocks.I.norm2"),
    ("blocks.I.mlp.fc1", "blocks.I.mlp.fc1"),
    ("blocks.I.mlp.fc2", "blocks.I.mlp.fc2"),
    ("norms.I", "norms_block.I"),
    ("fc_norm", "fc_norm"),
    ("pooler.query", "pooler.query_tokens"),
    ("pooler.blocks.I.norm", "pooler.blocks.I.norm1"),
    ("pooler.blocks.I.qkv", "pooler.blocks.I.attn.qkv"),
    ("pooler.blocks.I.proj", "pooler.blocks.I.attn.proj"),
    ("pooler.blocks.I.norm_mlp", "pooler.blocks.I.norm2"),
    ("pooler.blocks.I.mlp.fc1", "pooler.blocks.I.mlp.fc1"),
    ("pooler.blocks.I.mlp.fc2", "pooler.blocks.I.mlp.fc2"),
    ("pooler.cross.norm", "pooler.cross_attention_block.norm1"),
    ("pooler.cross.q", "pooler.cross_attention_block.xattn.q"),
    ("pooler.cross.kv", "pooler.cross_attention_block.xattn.kv"),
    ("pooler.cross.norm_mlp", "pooler.cross_attention_block.norm2"),
    ("pooler.cross.mlp.fc1", "pooler.cross_attention_block.mlp.fc1"),
    ("pooler.cross.mlp.fc2", "pooler.cross_attention_block.mlp.fc2"),
)
_NAME = re.compile(r"(?P<module>.+?)(?P<tensor>\.weight|\.bias)?")
_PRETRAINING = "encoder_to_decoder."


def find_video_vit_family(names: Sequence[str]) -> Family | None:
    """Return the family of a video ViT's names, without wrapper prefixes; None if they are others."""
    if any(re.match(r"blocks\.\d+\.mixers\.joint\.", name) for name in names):
        return OURS if any(name.startswith(("norms.", "fc_norm.")) for name in names) else None
    if is_transformers(names):
        return "huggingface"
    if any(name.startswith("pooler.") and "cross_attention_block" in name for name in names):
        return "vjepa2"
    blocks = any(re.match(r"(encoder\.)?blocks\.\d+\.attn\.qkv\.weight", name) for name in names)
    if blocks and any(re.fullmatch(r"(encoder\.)?blocks\.\d+\.attn\.q_bias", name) for name in names):
        return "videomae"
    if blocks and any(name.startswith(("norms_block.", "video_mod_embed")) for name in names):
        return "vjepa2"
    return "vjepa2" if blocks and "cls_token" not in names and "head.weight" not in names else None


def rename(tensors: Mapping[str, Tensor], source: Family, target: Family) -> dict[str, Tensor]:
    """Return the tensors under another family's names, rows untouched; one of the two families is ours.

    Raises CheckpointError listing names without a rule.
    """
    column, other = (0, 1) if source == OURS else (1, 0)
    table = {row[column]: row[other] for row in _MODULES}
    foreign = source if target == OURS else target
    head = ("head", "linear" if foreign == "vjepa2" else "head")
    table[head[column]] = head[other]
    levels = any(re.match(r"norms(_block)?\.1\.", name) for name in tensors)
    if not levels:  # a single norm is called "norm"
        table[("norms.0", "norm")[column]] = ("norms.0", "norm")[other]
        table.pop(("norms.I", "norms_block.I")[column])
    renamed, unknown = {}, []
    for name, value in tensors.items():
        match = _NAME.fullmatch(name)
        assert match is not None
        module = match["module"]
        number = re.search(r"\.(\d+)(?=\.|$)", module)
        general = module if number is None else module[: number.start(1)] + "I" + module[number.end(1) :]
        found = table.get(module) or table.get(general)
        if found is None:
            unknown.append(name)
            continue
        renamed[(found if number is None else found.replace("I", number[1], 1)) + (match["tensor"] or "")] = value
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors have no place in {'a' if target == OURS else f'the {target} form of a'} video "
            f"ViT: {some_names(unknown)}"
        )
    return renamed


def to_ours(
    tensors: Mapping[str, Tensor], family: Family, num_heads: int, dropped: list[str], with_norm: bool = True
) -> dict[str, Tensor]:
    """Return a file's tensors under our names, with the rows of the encoder's packed projections in our order.

    Names of tensors that the model has no use for go to `dropped`: the decoder of a pre-trained VideoMAE, unless
    `with_norm` also the norm before it, and a table of positions beside rotary ones.
    """
    if family == OURS:
        return dict(tensors)
    kept = dict(tensors)
    if family == "huggingface":
        family, kept = to_authors(tensors, dropped)
    elif any(name.startswith(_PRETRAINING) for name in tensors) or all(name.startswith("encoder.") for name in tensors):
        kept = {
            name.removeprefix("encoder."): value
            for name, value in tensors.items()
            if name.startswith("encoder.") and (with_norm or not name.startswith("encoder.norm."))
        }
        dropped += [name for name in tensors if name.removeprefix("encoder.") not in kept]
    if family == "vjepa2" and kept.pop("pos_embed", None) is not None:
        dropped.append("pos_embed")
    return reorder_projections(rename(kept, family, OURS), num_heads, to_packed=True)


def from_ours(tensors: Mapping[str, Tensor], family: Family, num_heads: int | None) -> dict[str, Tensor]:
    """Return our tensors as another family names and orders them; the inverse of `to_ours`.

    Raises CheckpointError for what that family cannot hold, such as parameters of an operator.
    """
    if family == OURS:
        return dict(tensors)
    if num_heads is None:
        raise ValueError(f"num_heads is needed to order the rows of qkv for {family}")
    has_parts = any(name.endswith(".q_bias") for name in tensors)
    if family == "huggingface":
        authors = "videomae" if has_parts else "vjepa2"
        return from_authors(from_ours(tensors, authors, num_heads), authors)
    if (family == "videomae") != has_parts:
        raise CheckpointError(
            f"{family} has {'q_bias and v_bias' if family == 'videomae' else 'one bias of q, k and v'}, and the model "
            f"has {'q_bias and v_bias' if has_parts else 'another bias'}"
        )
    return rename(reorder_projections(tensors, num_heads, to_packed=False), OURS, family)


@dataclass(frozen=True)
class VideoViTSizes:
    """The sizes that a model's tensors show; None for what is not among them."""

    depth: int
    embed_dim: int
    mlp_dim: int
    tubelet: tuple[int, int]  # frames, and height and width
    bias: str
    modality: bool
    num_levels: int
    head: str
    num_classes: int | None
    probe_depth: int
    num_positions: int | None  # learned ones, class tokens' included

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "VideoViTSizes":
        """Read from tensors under our names. Raises CheckpointError naming those that are missing or misshapen."""
        needed = {"patch_embed.proj.weight": 5, "blocks.0.mlp.fc1.weight": 2, "blocks.0.mixers.joint.norm.weight": 1}
        needed |= {"pos_embed": 3} if "pos_embed" in tensors else {}
        for name, dims in needed.items():
            if name not in tensors:
                probe = " (a probe alone: pass the encoder's file, and this as probe=)" if _has_pooler(tensors) else ""
                raise CheckpointError(f"there is no {name} among the tensors{probe}")
            if tensors[name].dim() != dims:
                raise CheckpointError(f"{name} has the shape {tuple(tensors[name].shape)}, expected {dims} dimensions")
        width, _, frames, height, _ = tensors["patch_embed.proj.weight"].shape
        norm = tensors.get("pooler.cross.norm.weight")
        if norm is not None and norm.shape != (width,):
            raise CheckpointError(
                f"the probe is for tokens of width {len(norm)}, and those of the encoder have {width}"
            )
        qkv = "blocks.0.mixers.joint.qkv"
        pooler, mean = _has_pooler(tensors), "fc_norm.weight" in tensors
        head = "attentive" if pooler else "mean" if mean else "class_token" if "head.weight" in tensors else "none"
        return cls(
            depth=1 + max(_numbers(tensors, r"blocks\.(\d+)\.")),
            embed_dim=width,
            mlp_dim=tensors["blocks.0.mlp.fc1.weight"].shape[0],
            tubelet=(frames, height),
            bias="qv" if f"{qkv}.q_bias" in tensors else "all" if f"{qkv}.bias" in tensors else "none",
            modality="video_embed" in tensors,
            num_levels=1 + max(_numbers(tensors, r"norms\.(\d+)\."), default=0),
            head=head,
            num_classes=tensors["head.weight"].shape[0] if "head.weight" in tensors else None,
            probe_depth=1 + max(_numbers(tensors, r"pooler\.blocks\.(\d+)\."), default=-1),
            num_positions=tensors["pos_embed"].shape[1] if "pos_embed" in tensors else None,
        )

    def __str__(self) -> str:
        frames, size = self.tubelet
        head = f"{self.head} head for {self.num_classes} classes" if self.head != "none" else "no head"
        tubelets = f"tubelets of {frames} x {size} x {size}"
        learned = "" if self.num_positions is None else f", {self.num_positions} learned positions"
        return f"{self.depth} blocks of width {self.embed_dim} and {self.mlp_dim}, {tubelets}{learned}, {head}"


def _has_pooler(tensors: Iterable[str]) -> bool:
    return any(name.startswith("pooler.") for name in tensors)


def _numbers(tensors: Iterable[str], pattern: str) -> Iterable[int]:
    return [int(found[1]) for name in tensors if (found := re.match(pattern, name))]
