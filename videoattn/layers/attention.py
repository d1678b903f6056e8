"""Token mixers, the modules in the attention slots of a block."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videoattn.grid import Axis, TokenGrid, fold, merge_calls, split_calls
from videoattn.layers.views import GridModule
from videoattn.operators import AttentionOperator, AttentionSite

BuildOperator = Callable[[AttentionSite], AttentionOperator]
Carry = Literal["nothing", "update", "weights"]
QkvBias = Literal["all", "qv", "none"]


class TokenMixer(GridModule):
    """One attention slot along `axis` of a stream on `grid`.

    `forward(x, carried)` takes the stream [B, grid.tokens, C] and what the same slot carried from the block before. It
    returns its update in the folded layout [B, F, M, C] of `videoattn.grid.fold`, one sequence per frame (along SPACE
    and JOINT) or per location (along TIME), and what it carries to the next block: nothing, its update, or its
    attention weights, as `carry` says. `operator` is the attention operator of a mixer that attends, else None.
    """

    def __init__(self, grid: TokenGrid, axis: Axis, carry: Carry = "nothing") -> None:
        super().__init__()
        self.grid = grid
        self.axis = axis
        self.carry = carry
        self.operator: AttentionOperator | None = None

    def forward(self, x: Tensor, carried: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


class MultiheadAttention(TokenMixer):
    """Norm, one packed projection to q, k and v, an attention operator, and the output projection.

    The projection's rows are ordered (head, 3, d), so that q, k and v of every sequence are strided views of it.
    `bias` says which of q, k and v have one. `rotate` is applied to q and k before the operator. Raises ValueError if
    `carry` is "weights" and the operator forms none.
    """

    operator: AttentionOperator

    def __init__(
        self, dim: int, num_heads: int, grid: TokenGrid, axis: Axis, block: int, operator: BuildOperator,
        bias: QkvBias = "all", carry: Carry = "nothing", rotate: nn.Module | None = None, norm_eps: float = 1e-6,
    ) -> None:  # fmt: skip
        super().__init__(grid, axis, carry)
        if dim % num_heads:
            raise ValueError(f"the width must be a multiple of the number of heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.qkv = QVBiasedLinear(dim, num_heads) if bias == "qv" else nn.Linear(dim, 3 * dim, bias=bias == "all")
        self.rotate = rotate
        call_grid = grid.along(axis)
        self.operator = operator(AttentionSite(call_grid, call_grid, num_heads, dim // num_heads, block))
        if carry == "weights" and not self.operator.forms_weights:
            raise ValueError(
                f"{type(self.operator).__name__} along {axis.name} forms no attention weights that block {block + 1} "
                "could reuse; choose another ATTENTION.SKIP.PHI or operator"
            )
        self.proj = nn.Linear(dim, dim)

    def place_on(self, grid: TokenGrid) -> None:
        self.grid, along = grid, grid.along(self.axis)
        weight = self.proj.weight
        with weight.device:
            operator = self.operator.planned_for(replace(self.operator.site, q_grid=along, kv_grid=along))
        self.operator = operator.to(weight.device, weight.dtype)

    def forward(self, x: Tensor, carried: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        mixed, weights = self._mix(x)
        update = self.proj(merge_calls(mixed, x.shape[0], self.num_heads, self.axis))
        return update, update if self.carry == "update" else weights

    def _mix(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the mixed values of the stream, and the attention weights if they are carried.

        On its own, so that the memory of the projection is free before the output is projected.
        """
        packed = fold(self.qkv(self.norm(x)), self.grid, self.axis).unflatten(3, (self.num_heads, -1))
        packed = split_calls(packed, self.axis).unflatten(3, (3, -1))
        weights = None
        if self.rotate is not None or self.carry == "weights":
            q, k, v = packed.unbind(3)
            if self.rotate is not None:
                q, k = self.rotate(q), self.rotate(k)
        if self.carry == "weights":
            weights = self.operator.weights(q, k)
            mixed = weights @ v
        elif self.rotate is not None:
            mixed = self.operator(q, k, v)
        else:
            mixed = self.operator(packed) if self.operator.accepts_packed else self.operator(*packed.unbind(3))
        return mixed, weights


def count_heads(model: nn.Module) -> int | None:
    """Return the number of heads of the first attention in a model; None for a model without such attention."""
    return next((module.num_heads for module in model.modules() if isinstance(module, MultiheadAttention)), None)


class QVBiasedLinear(nn.Module):
    """A packed projection [..., C] to [..., (head, 3, d)] in which q and v have a bias and k has none."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.stack([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(x, self.weight, rearrange(parts, "three (heads d) -> (heads three d)", heads=self.num_heads))


def reorder_qkv_rows(rows: Tensor, num_heads: int, to_packed: bool = True) -> Tensor:
    """Reorder a projection's rows [3·heads·d, ...] from the usual (3, head, d) to our (head, 3, d), or back."""
    usual, ours = "(three heads d) ...", "(heads three d) ..."
    return rearrange(rows, f"{usual} -> {ours}" if to_packed else f"{ours} -> {usual}", three=3, heads=num_heads)
