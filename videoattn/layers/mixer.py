"""Token mixers: what fills the attention slot of a block."""

from collections.abc import Callable

from torch import Tensor, nn

from videoattn.grid import Axis, TokenGrid, fold, merge_calls, split_calls
from videoattn.operators import AttentionOperator, AttentionSite

BuildOperator = Callable[[AttentionSite], AttentionOperator]


class TokenMixer(nn.Module):
    """One pre-norm attention slot along `axis` of a stream on `grid`.

    `forward(x, previous)` takes the stream [B, grid.tokens, C] and what the same slot produced one block earlier, and
    returns its update in the folded layout [B, F, M, C] of `videoattn.grid.fold`, one attention call per frame (along
    SPACE and JOINT) or per location (along TIME).
    """

    def __init__(self, grid: TokenGrid, axis: Axis) -> None:
        super().__init__()
        self.grid = grid
        self.axis = axis

    def forward(self, x: Tensor, previous: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class MultiheadAttention(TokenMixer):
    """Norm, one packed projection to q, k and v, an attention operator, and the output projection.

    The projection's rows are ordered (head, 3, d), so that q, k and v of every attention call are strided views of it.
    """

    def __init__(
        self, dim: int, num_heads: int, grid: TokenGrid, axis: Axis, layer: int, operator: BuildOperator,
        qkv_bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(grid, axis)
        if dim % num_heads:
            raise ValueError(f"the width must be a multiple of the number of heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        call_grid = grid.along(axis)
        self.operator = operator(AttentionSite(call_grid, call_grid, num_heads, dim // num_heads, layer))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, previous: Tensor | None = None) -> Tensor:
        packed = fold(self.qkv(self.norm(x)), self.grid, self.axis).unflatten(3, (self.num_heads, -1))
        q, k, v = split_calls(packed, self.axis).unflatten(3, (3, -1)).unbind(3)
        return self.proj(merge_calls(self.operator(q, k, v), x.shape[0], self.num_heads, self.axis))


def reorder_qkv_rows(rows: Tensor, num_heads: int, to_packed: bool = True) -> Tensor:
    """Reorder a projection's rows [3·heads·d, ...] from the usual (3, head, d) to our (head, 3, d), or back."""
    outer, inner = (3, num_heads) if to_packed else (num_heads, 3)
    return rows.unflatten(0, (outer, inner, -1)).transpose(0, 1).flatten(0, 2)
