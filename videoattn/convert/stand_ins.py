"""The modules that replace attention modules of other libraries, and keep their projections."""

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from videoattn.layers.rotary import RotaryPositions
from videoattn.operators import AttentionOperator


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

    def set_up(self) -> None:
        """Add what `forward` needs besides the operator, which the module has by then."""

    def take_down(self) -> None:
        """Remove what `set_up` added."""

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


class VJEPA2Attention(ReplacedAttention):
    """Replacement for the attention of transformers' V-JEPA 2 encoder, with its rotary positions."""

    stands_for = ("VJEPA2RopeAttention",)
    projections = ("query", "key", "value")
    needs = ("proj",)
    knows = ("dropout",)
    weights_collected_outside = True
    proj: nn.Module
    rotate: nn.Module

    def set_up(self) -> None:
        site = self.operator.site
        device = next(self.parameters()).device
        with device:
            self.rotate = RotaryPositions(site.q_grid, site.head_dim, "tiled").to(next(self.parameters()).dtype)

    def take_down(self) -> None:
        del self.rotate

    def forward(self, hidden_states: Tensor, position_mask: Tensor | None = None) -> tuple[Tensor, None]:
        if position_mask is not None:
            raise ValueError("replaced attention does not accept position_mask")
        self.check_tokens(hidden_states)
        num_heads = self.operator.site.num_heads
        q, k, v = (getattr(self, name)(hidden_states).unflatten(2, (num_heads, -1)) for name in self.projections)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return self.proj(self.mix(self.rotate(q), self.rotate(k), v)), None


class VJEPA2PoolerAttention(SeparateAttention):
    """Replacement for the self-attention of transformers' V-JEPA 2 pooler."""

    stands_for = ("VJEPA2PoolerSelfAttention",)
    projections = ("q_proj", "k_proj", "v_proj")
    needs = ("out_proj",)
    knows = ()
    out_proj: nn.Module

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        mixed, _ = super().forward(hidden_states, attention_mask)
        return self.out_proj(mixed), None


STAND_INS: tuple[type[ReplacedAttention], ...] = (
    TimmAttention, TimesformerAttention, SeparateAttention, VivitAttention, VJEPA2Attention, VJEPA2PoolerAttention,
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
