"""The contract of every attention operator: q, k, v in, mixed v out, no projections and no norms."""

import inspect
from dataclasses import dataclass

from torch import Tensor, nn

from videoattn.grid import TokenGrid


@dataclass(frozen=True)
class AttentionSite:
    """Where in a network an operator is installed; all of it is known when the model is built.

    `has_bias` says that `forward` will be given a bias for the logits (relative positions of MViT).
    """

    q_grid: TokenGrid
    kv_grid: TokenGrid
    num_heads: int
    head_dim: int
    layer: int
    has_bias: bool = False

    def __post_init__(self) -> None:
        if self.q_grid.prefix != self.kv_grid.prefix:
            raise ValueError(f"queries and keys need the same prefix tokens, got {self.q_grid} and {self.kv_grid}")
        if min(self.num_heads, self.head_dim) < 1 or self.layer < 0:
            raise ValueError(f"a site needs num_heads and head_dim >= 1 and layer >= 0, got {self}")


class AttentionOperator(nn.Module):
    """Mixes values among the tokens of one attention call.

    q is [rows, groups·heads, Nq, d]; k and v are [rows, groups·heads, Nk, d], with d the site's head dimension and the
    head index fastest within the second axis (groups is 1 except along time, see `videoattn.grid.split_calls`). All
    three may be strided views. Subclasses are final: to vary one, write another.

    `forms_weights` says that the values are mixed by a matrix that depends on q and k alone, which `weights` returns.
    `takes_packed` says that `forward` also takes a single packed [rows, groups·heads, n, 3, d], whose gradient it then
    forms in one piece. A subclass that takes no bias raises ValueError on a site that has one.
    """

    forms_weights = False
    takes_packed = False
    # Arguments that choose how a result is computed, and do not change it.
    HOW = ("implementation", "method")

    def __init__(self, site: AttentionSite) -> None:
        super().__init__()
        self.site = site

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Mixed values [rows, groups·heads, Nq, d]; `bias` is added to the logits, broadcast to [.., Nq, Nk]."""
        raise NotImplementedError

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        """The matrix [rows, groups·heads, Nq, Nk] that `forward` multiplies values by."""
        raise NotImplementedError(f"{type(self).__name__} forms no attention weights")

    def macs(self) -> int:
        """Multiply-accumulates of one attention call, all heads, counting only pairs that attend."""
        raise NotImplementedError

    @property
    def options(self) -> dict[str, object]:
        """Arguments of the constructor that change the result and are not the default, by their attributes."""
        parameters = inspect.signature(type(self)).parameters
        values = {name: getattr(self, name, p.default) for name, p in parameters.items() if name not in self.HOW}
        return {name: value for name, value in values.items() if name != "site" and value != parameters[name].default}

    def extra_repr(self) -> str:
        q, kv = self.site.q_grid, self.site.kv_grid
        return f"{q.t}x{q.h}x{q.w}+{q.prefix}" + ("" if q == kv else f" on {kv.t}x{kv.h}x{kv.w}+{kv.prefix}")
