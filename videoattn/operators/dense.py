"""Softmax attention over every pair of tokens."""

import math

import torch.nn.functional as F
from torch import Tensor

from videoattn.kernels.offsets import has_triton
from videoattn.kernels.short import fits, multiply_adds, short_attention
from videoattn.operators.base import AttentionOperator, AttentionSite


class DenseAttention(AttentionOperator):
    """Softmax attention over every pair of tokens (Vaswani et al., 2017).

    Many short sequences on a GPU are computed by a kernel for these. `forward` also accepts q, k and v packed in one
    tensor [rows, groups·heads, n, 3, d] as `q`.
    """

    forms_weights = True
    normalizes_weights = True
    accepts_packed = True

    def __init__(self, site: AttentionSite) -> None:
        super().__init__(site)
        self.has_triton = has_triton()

    def forward(
        self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        if self.has_triton and bias is None and fits(q, k, v):
            mixed: Tensor = short_attention([q] if k is None or v is None else [q, k, v])[0]
            return mixed
        if k is None or v is None:
            q, k, v = q.unbind(3)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = q @ k.transpose(-2, -1) / math.sqrt(self.site.head_dim)
        return (logits if bias is None else logits + bias).softmax(dim=-1)

    def macs(self) -> int:
        site = self.site
        return multiply_adds((1, site.num_heads, site.q_grid.tokens, site.head_dim), site.kv_grid.tokens)
