"""The names of transformers' VideoMAE and V-JEPA 2, translated to those of the authors and back.

There q, k and v are projections of their own, and here they are rows of one.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from videoattn.models.weights.files import CheckpointError, some_names

# parts of pre-training: the predictor of V-JEPA 2, the decoder of VideoMAE
_PRETRAINING = ("predictor.", "vjepa2.predictor.", "decoder.", "encoder_to_decoder.", "mask_token")
# the authors' names, then transformers'; I is the number of a block
_VIDEOMAE = (
    ("patch_embed.proj", "videomae.embeddings.patch_embeddings.projection"),
    ("blocks.I.norm1", "videomae.encoder.layer.I.layernorm_before"),
    ("blocks.I.attn.proj", "videomae.encoder.layer.I.attention.output.dense"),
    ("blocks.I.norm2", "videomae.encoder.layer.I.layernorm_after"),
    ("blocks.I.mlp.fc1", "videomae.encoder.layer.I.intermediate.dense"),
    ("blocks.I.mlp.fc2", "videomae.encoder.layer.I.output.dense"),
    ("norm", "videomae.layernorm"),
    ("fc_norm", "fc_norm"),
    ("head", "classifier"),
)
_VJEPA2 = (
    ("patch_embed.proj", "vjepa2.encoder.embeddings.patch_embeddings.proj"),
    ("blocks.I.norm1", "vjepa2.encoder.layer.I.norm1"),
    ("blocks.I.attn.proj", "vjepa2.encoder.layer.I.attention.proj"),
    ("blocks.I.norm2", "vjepa2.encoder.layer.I.norm2"),
    ("blocks.I.mlp.fc1", "vjepa2.encoder.layer.I.mlp.fc1"),
    ("blocks.I.mlp.fc2", "vjepa2.encoder.layer.I.mlp.fc2"),
    ("norm", "vjepa2.encoder.layernorm"),
    ("pooler.query_tokens", "pooler.query_tokens"),
    ("pooler.blocks.I.norm1", "pooler.self_attention_layers.I.layer_norm1"),
    ("pooler.blocks.I.attn.proj", "pooler.self_attention_layers.I.self_attn.out_proj"),
    ("pooler.blocks.I.norm2", "pooler.self_attention_layers.I.layer_norm2"),
    ("pooler.blocks.I.mlp.fc1", "pooler.self_attention_layers.I.mlp.fc1"),
    ("pooler.blocks.I.mlp.fc2", "pooler.self_attention_layers.I.mlp.fc2"),
    ("pooler.cross_attention_block.norm1", "pooler.cross_attention_layer.layer_norm1"),
    ("pooler.cross_attention_block.xattn.q", "pooler.cross_attention_layer.cross_attn.q_proj"),
    ("pooler.cross_attention_block.norm2", "pooler.cross_attention_layer.layer_norm2"),
    ("pooler.cross_attention_block.mlp.fc1", "pooler.cross_attention_layer.mlp.fc1"),
    ("pooler.cross_attention_block.mlp.fc2", "pooler.cross_attention_layer.mlp.fc2"),
    ("linear", "classifier"),
)
# the authors' packed projection, then the parts that transformers has, in the order of its rows
_QKV = ("query", "key", "value")
_ATTENTION = "videomae.encoder.layer.I.attention.attention."
_POOLER, _CROSS = "pooler.self_attention_layers.I.self_attn.", "pooler.cross_attention_layer.cross_attn."
_PACKED: dict[str, dict[str, tuple[str, ...]]] = {
    "videomae": {"blocks.I.attn.qkv": tuple(_ATTENTION + part for part in _QKV)},
    "vjepa2": {
        "blocks.I.attn.qkv": tuple(f"vjepa2.encoder.layer.I.attention.{part}" for part in _QKV),
        "pooler.blocks.I.attn.qkv": tuple(f"{_POOLER}{part}_proj" for part in "qkv"),
        "pooler.cross_attention_block.xattn.kv": tuple(f"{_CROSS}{part}_proj" for part in "kv"),
    },
}
_BIASES = (("blocks.I.attn.q_bias", "query"), ("blocks.I.attn.v_bias", "value"))


def is_transformers(names: Sequence[str]) -> bool:
    """Return whether the names are those of transformers' VideoMAE or V-JEPA 2."""
    starts = ("videomae.encoder.layer.", "vjepa2.encoder.layer.", "encoder.layer.0.attention.query.")
    return any(name.startswith(starts) for name in names) or _is_bare_videomae(names)


def _is_bare_videomae(names: Iterable[str]) -> bool:
    """Return whether the names are those of VideoMAEModel by itself, which an image ViT has with a class token."""
    names = set(names)
    return "encoder.layer.0.attention.attention.query.weight" in names and "embeddings.cls_token" not in names


def to_authors(tensors: Mapping[str, Tensor], dropped: list[str]) -> tuple[str, dict[str, Tensor]]:
    """Return the authors' family and the tensors under its names; parts of pre-training alone go to `dropped`.

    Raises CheckpointError listing names without a rule, and parts of a projection that are missing.
    """
    is_videomae = any(name.startswith("videomae.") for name in tensors) or _is_bare_videomae(tensors)
    family = "videomae" if is_videomae else "vjepa2"
    dropped += [name for name in tensors if name.startswith(_PRETRAINING)]
    left = {name: value for name, value in tensors.items() if not name.startswith(_PRETRAINING)}
    if not any(name.startswith(f"{family}.") for name in left):  # an encoder by itself
        left = {f"{family}.{name}": value for name, value in left.items()}
    table = {theirs: authors for authors, theirs in (_VIDEOMAE if family == "videomae" else _VJEPA2)}
    if family == "videomae":
        for authors, part in _BIASES:
            table[f"{_ATTENTION}{part}.bias"] = authors
            table[_ATTENTION + authors.rpartition(".")[2]] = authors  # in older files
    renamed: dict[str, Tensor] = {}
    for packed, parts in _PACKED[family].items():
        for number in _numbers(left, parts[0]):
            for tensor in (".weight",) if family == "videomae" else (".weight", ".bias"):
                names = [part.replace("I", number) + tensor for part in parts]
                missing = [name for name in names if name not in left]
                if missing:
                    raise CheckpointError(f"there is no {some_names(missing)} among the tensors")
                renamed[packed.replace("I", number) + tensor] = torch.cat([left.pop(name) for name in names])
    unknown = []
    for name, value in left.items():
        found = _translate(name, table)
        if found is None:
            unknown.append(name)
        else:
            renamed[found] = value
    if unknown:
        raise CheckpointError(f"{len(unknown)} tensors have no place in a video ViT: {some_names(unknown)}")
    if family == "videomae" and "blocks.0.attn.q_bias" not in renamed:
        raise CheckpointError(f"there is no {_ATTENTION.replace('I', '0')}query.bias among the tensors of a VideoMAE")
    return family, renamed


def from_authors(tensors: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Return tensors under the names of transformers; the inverse of `to_authors`.

    Raises CheckpointError for what transformers' classes cannot hold.
    """
    table = dict(_VIDEOMAE if family == "videomae" else _VJEPA2)
    table |= {authors: f"{_ATTENTION}{part}.bias" for authors, part in _BIASES} if family == "videomae" else {}
    packed = _PACKED[family]
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, value in tensors.items():
        module, tensor = _split(name)
        general, number = _generalise(module)
        if general in packed:
            for part, rows in zip(packed[general], value.chunk(len(packed[general])), strict=True):
                renamed[part.replace("I", number) + tensor] = rows
        elif (found := _translate(name, table)) is not None:
            renamed[found] = value
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"transformers' {family} has no place for {some_names(unknown)}")
    return renamed


def _translate(name: str, table: Mapping[str, str]) -> str | None:
    module, tensor = _split(name)
    for known, rest in ((name, ""), (module, tensor)):
        general, number = _generalise(known)
        if general in table:
            return table[general].replace("I", number, 1) + rest
    return None


def _split(name: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.+?)(\.weight|\.bias)?", name)
    assert match is not None
    return match[1], match[2] or ""


def _generalise(module: str) -> tuple[str, str]:
    """Return a name with I for its first number, and the number."""
    number = re.search(r"(?<=\.)\d+(?=\.|$)", module)
    return (module, "") if number is None else (module[: number.start()] + "I" + module[number.end() :], number[0])


def _numbers(names: Iterable[str], part: str) -> list[str]:
    """Return the numbers of the blocks that have a part; one empty text for a part without a number."""
    found = {_generalise(_split(name)[0]) for name in names}
    return sorted((number for general, number in found if general == part), key=lambda number: int(number or 0))
