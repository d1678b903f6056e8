"""Attention modules found in models of other libraries, and the modules that replace them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from videoattn.grid import Axis, TokenGrid
from videoattn.layers.attention import TokenMixer
from videoattn.operators import AttentionOperator, AttentionSite


class ReplacedAttention(nn.Module):
    """An attention module of another library that mixes with `operator` and keeps its own projections.

    Never constructed: the class of an existing module is set to this one, and set back by `revert_attention`, so that
    the module stays the same object with the same weights and hooks.
    """

    stands_for: tuple[str, ...]  # class names
    projections: tuple[str, ...]  # to q, k and v
    needs: tuple[str, ...] = ()  # other children that forward uses
    knows: tuple[str, ...] = ()  # children and own parameters that may be there
    weights_collected_outside = False  # by hooks, so that forward does not hear when they are asked for
    operator: AttentionOperator

    def check_tokens(self, x: Tensor) -> None:
        """Raise ValueError unless the stream [B, N, C] fills the grid that the operator was built for."""
        grid = self.operator.site.q_grid
        if x.shape[1] != grid.tokens:
            raise ValueError(
                f"this attention was replaced for {grid} of {grid.tokens} tokens and got {x.shape[1]}; replace it "
                "again for inputs of another size; masked tokens form no grid and are not supported"
            )

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mix q, k, v [B, heads, N, d], with patches in the order t, h, w, into [B, N, heads·d]."""
        return self.operator(q, k, v).transpose(1, 2).flatten(2)


class TimmAttention(ReplacedAttention):
    """Replacement for timm's Attention, with its norms of q and k and its norm and gate of the mixed values."""

    stands_for = ("Attention",)
    projections = ("qkv",)
    needs = ("q_norm", "k_norm", "proj", "proj_drop")
    knows = ("attn_drop", "norm", "gate")
    qkv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module
    gate: nn.Module
    proj: nn.Module
    proj_drop: nn.Module

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            raise ValueError("replaced attention does not accept attn_mask and cannot be causal")
        self.check_tokens(x)
        q, k, v = split_packed(self.qkv(x), self.operator.site.num_heads)
        # under autocast norms give float32
        mixed = self.mix(self.q_norm(q).type_as(v), self.k_norm(k).type_as(v), v)
        if getattr(self, "norm", None) is not None:
            mixed = self.norm(mixed)
        if getattr(self, "gate", None) is not None:
            mixed = mixed * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(mixed))


class TimesformerAttention(ReplacedAttention):
    """Replacement for transformers' TimesformerSelfAttention, whose joint form orders patches as h, w, t."""

    stands_for = ("TimesformerSelfAttention",)
    projections = ("qkv",)
    knows = ("attn_drop",)
    qkv: nn.Module

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor]:
        if output_attentions:
            refuse_weights()
        self.check_tokens(hidden_states)
        site = self.operator.site
        grid, space = site.q_grid, site.q_grid.h * site.q_grid.w
        in_our_order = swap_patch_axes(hidden_states, grid.prefix, space, grid.t)
        mixed = self.mix(*split_packed(self.qkv(in_our_order), site.num_heads))
        return (swap_patch_axes(mixed, grid.prefix, grid.t, space),)


class SeparateAttention(ReplacedAttention):
    """Replacement for transformers' VideoMAESelfAttention, and for VivitSelfAttention in releases that have it."""

    stands_for: tuple[str, ...] = ("VideoMAESelfAttention", "VivitSelfAttention")
    projections = ("query", "key", "value")
    weights_collected_outside = True
    knows: tuple[str, ...] = ("q_bias", "v_bias")  # VideoMAE's, in releases whose query and value have none

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if attention_mask is not None:
            raise ValueError("replaced attention does not accept attention_mask")
        self.check_tokens(hidden_states)
        q, k, v = (getattr(self, name)(hidden_states) for name in self.projections)
        if getattr(self, "q_bias", None) is not None:
            q, v = q + self.q_bias, v + self.v_bias
        num_heads = self.operator.site.num_heads
        return self.mix(*(x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))), None


class VivitAttention(SeparateAttention):
    """Replacement for transformers' VivitAttention in releases where it holds its projections itself."""

    stands_for = ("VivitAttention",)
    projections = ("q_proj", "k_proj", "v_proj")
    needs = ("o_proj",)
    knows = ()
    o_proj: nn.Module

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        mixed, _ = super().forward(hidden_states, attention_mask)
        return self.o_proj(mixed), None


STAND_INS: tuple[type[ReplacedAttention], ...] = (
    TimmAttention, TimesformerAttention, SeparateAttention, VivitAttention,
)  # fmt: skip


def split_packed(packed: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """Split a projection [B, N, (3, heads, d)] into q, k and v [B, heads, N, d]."""
    return packed.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def swap_patch_axes(x: Tensor, prefix: int, outer: int, inner: int) -> Tensor:
    """Reorder the patches of a stream [B, prefix + outer·inner, C] to (inner, outer)."""
    if outer == 1 or inner == 1:
        return x
    patches = x[:, prefix:].unflatten(1, (outer, inner)).transpose(1, 2).flatten(1, 2)
    return torch.cat([x[:, :prefix], patches], dim=1)


def refuse_weights() -> NoReturn:
    raise ValueError(
        "output_attentions=True asks for attention weights, which replaced attention does not compute; call "
        "videoattn.revert_attention to see them"
    )


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
    dropout = first_attribute(module, "attn_drop", "dropout_prob", "attention_dropout")
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
            if name in FAMILIES:
                found[path] = (module, FAMILIES[name])
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
