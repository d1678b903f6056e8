"""The contract of every attention operator: q, k, v in, mixed v out, no projections and no norms."""

from dataclasses import dataclass

from torch import Tensor, nn

from videoattn.grid import TokenGrid


@dataclass(frozen=True)
class AttentionSite:
    """Where in a network an operator is installed; all of it is known when the model is built."""

    q_grid: TokenGrid
    kv_grid: TokenGrid
    num_heads: int
    head_dim: int
    layer: int

    def __post_init__(self) -> None:
        if self.q_grid.prefix != self.kv_grid.prefix:
            raise ValueError(f"queries and keys need the same prefix tokens, got {self.q_grid} and {self.kv_grid}")
        if min(self.num_heads, self.head_dim) < 1 or self.layer < 0:
            raise ValueError(f"a site needs num_heads and head_dim >= 1 and layer >= 0, got {self}")


class AttentionOperator(nn.Module):
    """Mixes values among the tokens of one attention call.

    q is [rows, groups·heads, Nq, d]; k and v are [rows, groups·heads, Nk, d], with d the site's head dimension and the
    head index fastest within the second axis (groups is 1 except along time, see `videoattn.grid.split_calls`). All
    three may be strided views. Attention logits are scaled by 1/√d. Subclasses are final: to vary one, write another.
    """

    def __init__(self, site: AttentionSite) -> None:
        super().__init__()
        self.site = site

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Mixed values [rows, groups·heads, Nq, d]; `bias` is added to the logits, broadcast to [.., Nq, Nk]."""
        raise NotImplementedError

    def macs(self) -> int:
        """Multiply-accumulates of one attention call, all heads, counting only pairs that attend."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        q, kv = self.site.q_grid, self.site.kv_grid
        return f"{q.t}x{q.h}x{q.w}+{q.prefix}" + ("" if q == kv else f" on {kv.t}x{kv.h}x{kv.w}+{kv.prefix}")
