"""Attention that stays dense in some heads while another operator computes the others."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from videoattn.operators.base import AttentionOperator, AttentionSite, HeadShare
from videoattn.operators.dense import DenseAttention

BuildOperator = Callable[[AttentionSite], AttentionOperator]


class DenseHeadsAttention(AttentionOperator):
    """Dense attention in `heads`, and `others` in the remaining heads of a site.

    Dense heads run in torch's fused attention, which is faster there than a kernel for sparse patterns. `others` was
    built for the site's other heads, by `keep_heads_dense`. It keeps the patterns that these heads have in a model
    without dense heads.
    """

    others: AttentionOperator

    def __init__(self, site: AttentionSite, heads: tuple[int, ...], others: AttentionOperator) -> None:
        super().__init__(site)
        self._given = {}  # `others` is a module and no option
        self.heads = heads
        self.dense = DenseAttention(share_site(site, heads))
        self.others = others
        # flags of an instance, which those of a class describe elsewhere
        self.forms_weights, self.normalizes_weights = others.forms_weights, others.normalizes_weights
        self.accepts_bias, self.accepts_packed = others.accepts_bias, others.accepts_packed
        is_dense = [head in heads for head in range(site.num_heads)]
        self.runs = [(dense, len([*run])) for dense, run in groupby(is_dense)]

    def forward(
        self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        tensors = [q] if k is None or v is None else [q, k, v]
        own, rest = ([self._select(x, dense) for x in tensors] for dense in (True, False))
        if bias is None:
            parts = self.dense(*own), self.others(*rest)
        else:
            parts = tuple(
                operator(*given, bias=self._select(bias, dense, dim=-3))
                for operator, given, dense in ((self.dense, own, True), (self.others, rest, False))
            )
        # a token's heads lie side by side, as in a projection
        return self._join([part.transpose(1, 2) for part in parts], dim=2).transpose(1, 2)

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        parts = [
            operator.weights(
                self._select(q, dense), self._select(k, dense),
                *([] if bias is None else [self._select(bias, dense, dim=-3)]),
            )
            for operator, dense in ((self.dense, True), (self.others, False))
        ]  # fmt: skip
        return self._join(parts, dim=1)

    def macs(self) -> int:
        return self.dense.macs() + self.others.macs()

    def planned_for(self, site: AttentionSite) -> "DenseHeadsAttention":
        others = self.others.planned_for(
            replace(site, num_heads=self.others.site.num_heads, share=self.others.site.share)
        )
        return DenseHeadsAttention(site, self.heads, others).train(self.training)

    def dense_start(self) -> dict[str, Tensor]:
        return {f"others.{name}": value for name, value in self.others.dense_start().items()}

    @property
    def options(self) -> dict[str, object]:
        return {**self.others.options, "dense_heads": self.heads}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, heads {', '.join(map(str, self.heads))} dense"

    def _select(self, x: Tensor, dense: bool, dim: int = 1) -> Tensor:
        """Return the heads of one kind from a tensor with groups·heads, or 1, at `dim`: a view if they are one run."""
        if x.dim() < -dim or x.shape[dim] == 1:
            return x
        dim = dim % x.dim()
        x, lengths = x.unflatten(dim, (-1, self.site.num_heads)), [length for _, length in self.runs]
        parts = [part for part, (kind, _) in zip(x.split(lengths, dim + 1), self.runs, strict=True) if kind == dense]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim + 1)).flatten(dim, dim + 1)

    def _join(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        """Put the results of dense and other heads, groups·heads at `dim`, into the order of the site's heads."""
        counts = {True: len(self.heads), False: self.site.num_heads - len(self.heads)}
        ahead = {True: 0, False: 0}
        kinds = dict(zip((True, False), parts, strict=True))
        kinds = {dense: part.unflatten(dim, (-1, counts[dense])) for dense, part in kinds.items()}
        runs = []
        for dense, length in self.runs:
            runs.append(kinds[dense].narrow(dim + 1, ahead[dense], length))
            ahead[dense] += length
        return torch.cat(runs, dim + 1).flatten(dim, dim + 1)


def keep_heads_dense(
    build: BuildOperator, dense_heads: Sequence[tuple[int, int]], key: str = "DENSE_HEADS"
) -> BuildOperator:
    """Return a builder of the operators of `build` in which the (block, head) pairs of `dense_heads` stay dense.

    The builder raises ValueError, naming `key`, for heads that a site lacks.
    """

    def build_at(site: AttentionSite) -> AttentionOperator:
        heads = tuple(sorted({head for block, head in dense_heads if block == site.block}))
        if not heads:
            return build(site)
        if heads[-1] >= site.num_heads or heads[0] < 0:
            raise ValueError(
                f"{key} expects heads 0 to {site.num_heads - 1} in block {site.block}, got {', '.join(map(str, heads))}"
            )
        if len(heads) == site.num_heads:
            return DenseAttention(site)
        rest = tuple(head for head in range(site.num_heads) if head not in heads)
        return DenseHeadsAttention(site, heads, build(share_site(site, rest)))

    return build_at


def share_site(site: AttentionSite, heads: tuple[int, ...]) -> AttentionSite:
    """Return the site of some heads of a site, which know their numbers and how many heads there are in all."""
    numbers = site.head_numbers
    return replace(site, num_heads=len(heads), share=HeadShare(tuple(numbers[head] for head in heads), site.all_heads))


def outer_operators(modules: Sequence[tuple[str, Any]]) -> dict[str, AttentionOperator]:
    """Return the attention operators among named modules, without those that are parts of another."""
    found: dict[str, AttentionOperator] = {}
    inner: set[int] = set()
    for name, module in modules:
        if isinstance(module, AttentionOperator) and id(module) not in inner:
            found[name] = module
            inner |= {id(part) for part in module.modules()}
    return found
