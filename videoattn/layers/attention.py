"""Token mixers: what fills the attention slot of a block."""

from collections.abc import Callable
from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from videoattn.grid import Axis, TokenGrid, fold, merge_calls, split_calls
from videoattn.operators import AttentionOperator, AttentionSite

BuildOperator = Callable[[AttentionSite], AttentionOperator]
HandOn = Literal["nothing", "update", "weights"]


class TokenMixer(nn.Module):
    """One attention slot along `axis` of a stream on `grid`.

    `forward(x, previous)` takes the stream [B, grid.tokens, C] and what the same slot handed on one block earlier. It
    returns its update in the folded layout [B, F, M, C] of `videoattn.grid.fold`, one attention call per frame (along
    SPACE and JOINT) or per location (along TIME), and what it hands on to the next block, as `hand_on` says.
    """

    def __init__(self, grid: TokenGrid, axis: Axis, hand_on: HandOn = "nothing") -> None:
        super().__init__()
        self.grid = grid
        self.axis = axis
        self.hand_on = hand_on

    def forward(self, x: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


class MultiheadAttention(TokenMixer):
    """Norm, one packed projection to q, k and v, an attention operator, and the output projection.

    The projection's rows are ordered (head, 3, d), so that q, k and v of every attention call are strided views of it.
    Raises ValueError where `hand_on` asks for weights and the operator forms none.
    """

    def __init__(
        self, dim: int, num_heads: int, grid: TokenGrid, axis: Axis, layer: int, operator: BuildOperator,
        qkv_bias: bool = True, hand_on: HandOn = "nothing",
    ) -> None:  # fmt: skip
        super().__init__(grid, axis, hand_on)
        if dim % num_heads:
            raise ValueError(f"the width must be a multiple of the number of heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        call_grid = grid.along(axis)
        self.operator = operator(AttentionSite(call_grid, call_grid, num_heads, dim // num_heads, layer))
        if hand_on == "weights" and not self.operator.forms_weights:
            raise ValueError(
                f"{type(self.operator).__name__} along {axis.name} forms no attention weights that block {layer + 1} "
                "could reuse; choose another PHI or operator"
            )
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        packed = fold(self.qkv(self.norm(x)), self.grid, self.axis).unflatten(3, (self.num_heads, -1))
        packed = split_calls(packed, self.axis).unflatten(3, (3, -1))
        weights = None
        if self.hand_on == "weights":
            q, k, v = packed.unbind(3)
            weights = self.operator.weights(q, k)
            mixed = weights @ v
        else:
            mixed = self.operator(packed) if self.operator.takes_packed else self.operator(*packed.unbind(3))
        update = self.proj(merge_calls(mixed, x.shape[0], self.num_heads, self.axis))
        return update, update if self.hand_on == "update" else weights


def reorder_qkv_rows(rows: Tensor, num_heads: int, to_packed: bool = True) -> Tensor:
    """Reorder a projection's rows [3·heads·d, ...] from the usual (3, head, d) to our (head, 3, d), or back."""
    usual, ours = "(three heads d) ...", "(heads three d) ..."
    return rearrange(rows, f"{usual} -> {ours}" if to_packed else f"{ours} -> {usual}", three=3, heads=num_heads)
