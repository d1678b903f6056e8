"""Attention modules found in models of this package and of other libraries."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from videoattn.convert.stand_ins import STAND_INS, ReplacedAttention
from videoattn.grid import Axis, TokenGrid
from videoattn.layers.attention import TokenMixer
from videoattn.operators import AttentionOperator, AttentionSite


@dataclass(frozen=True)
class Slot:
    """One attention module of a model: its place, and the class that it gets when replaced (None: it keeps its own)."""

    block: int
    axis: Axis
    module: nn.Module
    site: AttentionSite
    stand_in: type[ReplacedAttention] | None


def foreign_slot(module: nn.Module, block: int, axis: Axis, grid: TokenGrid) -> Slot:
    """Return the slot of an attention module that one of STAND_INS can replace.

    `grid` is that of one sequence. Raises ValueError if the module is of another class or is built differently, drops
    attention weights, or scales logits unusually.
    """
    if isinstance(module, ReplacedAttention):
        return Slot(block, axis, module, module.operator.site, type(module))
    kind, library = type(module).__name__, type(module).__module__.split(".")[0]
    own = {name for name, _ in [*module.named_children(), *module.named_parameters(recurse=False)]}
    stand_in = None
    if library in ("timm", "transformers"):
        stand_in = next((s for s in STAND_INS if kind in s.stands_for and own.issuperset(s.projections)), None)
    if stand_in is None:
        known = ", ".join(sorted({name for s in STAND_INS for name in s.stands_for}))
        raise ValueError(
            f"block {block} attends by {type(module).__module__}.{kind}; replace_attention supports {known}"
        )
    used = {*stand_in.projections, *stand_in.needs}
    if own - used - set(stand_in.knows) or used - own:
        raise ValueError(
            f"{kind} of block {block} expects {', '.join(sorted(used))} and perhaps {', '.join(stand_in.knows)}, got "
            f"{', '.join(sorted(own))}; this release of {library} builds it in a way that is not supported"
        )
    forward = vars(module).get("forward")
    if forward is not None and getattr(forward, "__func__", None) is not type(module).forward:
        raise ValueError(
            f"{kind} of block {block} has a forward of its own, as accelerate's hooks add; replace it before that"
        )
    dropout = first_attribute(module, "attn_drop", "dropout_prob", "attention_dropout", "dropout")
    if (p := getattr(dropout, "p", dropout)) > 0:
        raise ValueError(f"{kind} of block {block} drops attention weights with p = {p}, which operators do not; set 0")
    num_heads = int(first_attribute(module, "num_heads", "num_attention_heads"))
    head_dim = int(getattr(module, stand_in.projections[0]).out_features) * len(stand_in.projections) // 3 // num_heads
    if not math.isclose(scale := first_attribute(module, "scale", "scaling"), head_dim**-0.5):
        raise ValueError(f"{kind} of block {block} scales logits by {scale}, operators by {head_dim}**-0.5")
    return Slot(block, axis, module, AttentionSite(grid, grid, num_heads, head_dim, block), stand_in)


def first_attribute(module: nn.Module, *names: str) -> Any:
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"{type(module).__name__} has none of {', '.join(names)}")


def timm_slots(model: Any) -> Iterator[Slot]:
    if model.dynamic_img_size:
        raise ValueError("dynamic_img_size=True leaves the grid open until an image comes; build the model with False")
    if (p := getattr(model.patch_drop, "prob", 0)) > 0:
        raise ValueError(f"patch_drop_rate={p} drops patches in training, and the rest lie on no grid; set it to 0")
    height, width = model.patch_embed.grid_size
    grid = TokenGrid(1, height, width, model.num_prefix_tokens)
    for index, block in enumerate(model.blocks):
        yield foreign_slot(block.attn, index, Axis.SPACE, grid)


TIMESFORMER_ATTENTION = {
    "divided_space_time": {Axis.TIME: "temporal_attention", Axis.SPACE: "attention"},
    "joint_space_time": {Axis.JOINT: "attention"},
    "space_only": {Axis.SPACE: "attention"},
}


def timesformer_slots(model: Any) -> Iterator[Slot]:
    patches = model.embeddings.patch_embeddings
    width = patches.image_size[1] // patches.patch_size[1]
    # the position embeddings give the height, since the model's blocks derive it from the number of tokens
    height, rest = divmod(model.embeddings.position_embeddings.shape[1] - 1, width)
    if rest:
        raise ValueError(f"position embeddings for {height * width + rest} patches do not fill rows of {width}")
    grid = TokenGrid(model.config.num_frames, height, width, prefix=1)
    for index, block in enumerate(model.encoder.layer):
        for axis, name in TIMESFORMER_ATTENTION[model.config.attention_type].items():
            yield foreign_slot(getattr(block, name).attention, index, axis, grid.along(axis))


def tubelet_slots(model: Any) -> Iterator[Slot]:
    """Yield the slots of VideoMAE or ViViT, which cut a clip into tubelets and attend to all of them."""
    patches = model.embeddings.patch_embeddings
    side = patches.image_size  # of a square, or height and width
    size = (model.config.num_frames, *((side, side) if isinstance(side, int) else side))
    t, h, w = (length // stride for length, stride in zip(size, patches.projection.stride, strict=True))
    if t * h * w != patches.num_patches:
        raise ValueError(f"clips of {size} give {t} x {h} x {w} tubelets, but the model expects {patches.num_patches}")
    grid = TokenGrid(t, h, w, prefix=int(hasattr(model.embeddings, "cls_token")))
    blocks = model.layers if hasattr(model, "layers") else model.encoder.layer
    for index, block in enumerate(blocks):
        attention = getattr(block.attention, "attention", block.attention)
        yield foreign_slot(attention, index, Axis.JOINT, grid)


def vjepa2_slots(model: Any) -> Iterator[Slot]:
    """Yield the slots of V-JEPA 2's encoder; the predictor sees masked tokens, which lie on no grid."""
    for index, block in enumerate(model.encoder.layer):
        yield foreign_slot(block.attention, index, Axis.JOINT, _vjepa2_grid(model.config))


def vjepa2_pooler_slots(pooler: Any) -> Iterator[Slot]:
    """Yield the slots of V-JEPA 2's pooler, which sees the tokens of one clip."""
    for index, block in enumerate(pooler.self_attention_layers):
        yield foreign_slot(block.self_attn, index, Axis.JOINT, _vjepa2_grid(block.self_attn.config))


def _vjepa2_grid(config: Any) -> TokenGrid:
    side = config.crop_size // config.patch_size
    return TokenGrid(config.frames_per_clip // config.tubelet_size, side, side)


def our_slots(model: nn.Module) -> Iterator[Slot]:
    """Yield the slots of a model of this package; those that skip attention have nothing to replace."""
    for module in model.modules():
        if isinstance(module, TokenMixer) and isinstance(module.operator, AttentionOperator):
            yield Slot(module.operator.site.block, module.axis, module, module.operator.site, None)


def is_ours(module: nn.Module) -> bool:
    """Return whether a module is a whole model of this package: it knows its clips and has attention slots."""
    return hasattr(module, "clip_size") and any(isinstance(part, TokenMixer) for part in module.modules())


# by name, so that a library is not imported to learn that a model is not of it
FAMILIES: dict[str, Callable[[Any], Iterator[Slot]]] = {
    "timm.models.vision_transformer.VisionTransformer": timm_slots,
    "transformers.models.timesformer.modeling_timesformer.TimesformerModel": timesformer_slots,
    "transformers.models.vivit.modeling_vivit.VivitModel": tubelet_slots,
    "transformers.models.videomae.modeling_videomae.VideoMAEModel": tubelet_slots,
    "transformers.models.vjepa2.modeling_vjepa2.VJEPA2Model": vjepa2_slots,
}
# the same of parts that are replaced only where they are passed by themselves
PARTS: dict[str, Callable[[Any], Iterator[Slot]]] = {
    "transformers.models.vjepa2.modeling_vjepa2.VJEPA2AttentivePooler": vjepa2_pooler_slots,
}
REFUSED = {
    "transformers.models.videomae.modeling_videomae.VideoMAEForPreTraining": (
        "its encoder sees the unmasked tokens alone, which lie on no grid; use VideoMAEForVideoClassification or "
        "VideoMAEModel"
    ),
}


def find_slots(model: nn.Module) -> tuple[nn.Module, list[Slot]]:
    """Return the supported model that `model` is or contains, and its slots. Raises ValueError unless there is one."""
    found: dict[str, tuple[nn.Module, Callable[[Any], Iterator[Slot]]]] = {}
    for path, module in model.named_modules():
        for cls in type(module).__mro__:
            name = f"{cls.__module__}.{cls.__qualname__}"
            if name in REFUSED:
                raise ValueError(f"the attention of {cls.__name__} cannot be replaced: {REFUSED[name]}")
            if name in FAMILIES or (not path and name in PARTS):
                found[path] = (module, FAMILIES.get(name) or PARTS[name])
        if is_ours(module):
            found[path] = (module, our_slots)
    if not found:
        known = ", ".join(f"{name.rpartition('.')[2]} ({name.split('.')[0]})" for name in FAMILIES)
        raise ValueError(
            f"replace_attention supports {known}, the transformers of videoattn, and models that contain one, got "
            f"{type(model).__name__}"
        )
    if len(found) > 1:
        raise ValueError(f"{type(model).__name__} contains several models, pass one of them: {', '.join(found)}")
    ((base, slots_of),) = found.values()
    try:
        slots = list(slots_of(base))
    except AttributeError as error:
        raise ValueError(f"{type(base).__name__} is not built as replace_attention expects: {error}") from error
    if len({id(slot.module) for slot in slots}) < len(slots):
        raise ValueError(f"blocks of this {type(base).__name__} share attention modules; expected one for each block")
    return base, slots
