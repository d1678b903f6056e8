"""The contract of every attention operator: q, k, v in, mixed v out, no projections and no norms."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from videoattn.grid import TokenGrid
from videoattn.kernels.transforms import is_transformed
from videoattn.operators.options import check_options, options_of
from videoattn.seeding import torch_seed

_NO_LOGITS = "there are no logits to add a bias to"


@dataclass(frozen=True)
class HeadShare:
    """Some of an attention's heads: their numbers, and how many heads there are in all."""

    heads: tuple[int, ...]
    all_heads: int


@dataclass(frozen=True)
class AttentionSite:
    """The place of an operator in a network; all of it is known when the model is built.

    `block` is the index of the transformer block. With `has_bias`, `forward` receives a bias of the logits (relative
    positions of MViT). Where several operators share the heads of an attention, `share` says which of them the
    `num_heads` heads here are; an operator whose heads differ reads it by `head_numbers` and `all_heads`.
    """

    q_grid: TokenGrid
    kv_grid: TokenGrid
    num_heads: int
    head_dim: int
    block: int
    has_bias: bool = False
    share: HeadShare | None = None

    def __post_init__(self) -> None:
        if self.q_grid.prefix != self.kv_grid.prefix:
            raise ValueError(f"queries and keys need the same prefix tokens, got {self.q_grid} and {self.kv_grid}")
        if min(self.num_heads, self.head_dim) < 1 or self.block < 0:
            raise ValueError(f"a site needs num_heads and head_dim >= 1 and block >= 0, got {self}")
        if self.share is not None and len(self.share.heads) != self.num_heads:
            raise ValueError(f"a share of {len(self.share.heads)} heads at a site of {self.num_heads}: {self}")

    @property
    def head_numbers(self) -> tuple[int, ...]:
        """The numbers of the heads here among all heads of the attention."""
        return self.share.heads if self.share else tuple(range(self.num_heads))

    @property
    def all_heads(self) -> int:
        """The number of heads of the attention, of which an operator may have a share."""
        return self.share.all_heads if self.share else self.num_heads


class AttentionOperator(nn.Module):
    """Mixes values among the tokens of one sequence. A subclass is constructed from the site and its options.

    q is [rows, groups·heads, Nq, d]; k and v are [rows, groups·heads, Nk, d], with d the site's head dimension and the
    head index fastest within the second axis (groups is 1 except along time, see `videoattn.grid.split_calls`). All
    three may be strided views. Subclasses are final: to vary one, write another.

    The signature of the constructor is the configuration: see `videoattn.operators.options`. Options are checked by
    their annotations before the constructor runs. A site that an operator can't serve it refuses there, with a
    ValueError that names the grids or the option.

    Declared by the class:
    - `forms_weights`: values are mixed by a matrix that depends on q and k alone, which `weights` returns.
    - `normalizes_weights`: each row of that matrix sums to one, as after a softmax.
    - `accepts_bias`: a bias can be added to the logits. Where it is False, sites that have one are refused.
    - `accepts_packed`: `forward` also accepts a single packed [rows, groups·heads, n, 3, d], whose gradient it then
      forms in one piece.
    - `grid_parameters`: the parameters whose entries belong to positions of the grid, so that the operator serves no
      other; None, the default, stands for all that it has.
    - `HOW`: the options that choose how a result is computed, and do not change it.
    """

    forms_weights = False
    normalizes_weights = False
    accepts_bias = True
    accepts_packed = False
    grid_parameters: tuple[str, ...] | None = None
    HOW = ("implementation", "method")
    _given: dict[str, Any]

    def __new__(cls, *arguments: Any, **keywords: Any) -> Self:
        operator = super().__new__(cls)
        vars(operator)["_given"] = check_options(cls, arguments, keywords)
        return operator

    def __init__(self, site: AttentionSite) -> None:
        super().__init__()
        self.site = site
        if site.has_bias and not self.accepts_bias:
            raise ValueError(
                f"{_NO_LOGITS}; build the model without relative positions, or without {type(self).__name__}"
            )

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        # torch's fused attention lacks derivatives that its plain form has
        with sdpa_kernel(SDPBackend.MATH) if is_transformed() else nullcontext():
            return super().__call__(*arguments, **keywords)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return mixed values [rows, groups·heads, Nq, d]; `bias` is added to the logits, broadcast to [.., Nq, Nk]."""
        raise NotImplementedError

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the matrix [rows, groups·heads, Nq, Nk] that `forward` multiplies values by."""
        raise NotImplementedError(f"{type(self).__name__} forms no attention weights")

    def macs(self) -> int:
        """Return the multiply-accumulates of one sequence, all heads, counting only pairs that attend."""
        raise NotImplementedError

    def dense_start(self) -> dict[str, Tensor]:
        """Return the parameters, by name, with which the operator is closest to dense attention.

        They are the start where the weights around it were trained with dense attention. Parameters that are left out
        keep their initial values.
        """
        return {}

    def bound_parameters(self) -> list[str]:
        """Return the names of the parameters that belong to positions of the grid."""
        own = [name for name, _ in self.named_parameters()]
        return own if self.grid_parameters is None else [name for name in own if name in self.grid_parameters]

    def planned_for(self, site: AttentionSite) -> Self:
        """Return an operator with the same options and parameters for another site.

        Raises ValueError if it has parameters that belong to its grid, or can't serve the site.
        """
        if bound := self.bound_parameters():
            grid = self.site.kv_grid
            raise ValueError(
                f"{type(self).__name__} serves no other grid than {grid.t} x {grid.h} x {grid.w}, to whose positions "
                f"its parameters {', '.join(bound)} belong"
            )
        with torch_seed(0):  # initial values are replaced; the caller's generator stays untouched
            planned = type(self)(site, **self._given)
        if next(self.parameters(), None) is not None:
            for mine, other in zip(self.modules(), planned.modules(), strict=True):
                other._parameters = mine._parameters
        return planned.train(self.training)

    def refuse_bias(self, bias: Tensor | None) -> None:
        """Raise ValueError on a bias, in `forward` and `weights` of an operator that supports none."""
        if bias is not None:
            raise ValueError(_NO_LOGITS)

    @property
    def options(self) -> dict[str, object]:
        """Return the options given to the constructor that change the result and differ from their defaults."""
        known = options_of(type(self))
        return {
            name: value for name, value in self._given.items() if name not in self.HOW and value != known[name].default
        }

    def extra_repr(self) -> str:
        q, kv = self.site.q_grid, self.site.kv_grid
        return f"{q.t}x{q.h}x{q.w}+{q.prefix}" + ("" if q == kv else f" on {kv.t}x{kv.h}x{kv.w}+{kv.prefix}")
