"""Softmax attention over every pair of tokens."""

import math

import torch.nn.functional as F
from torch import Tensor

from videoattn.operators.base import AttentionOperator


class DenseAttention(AttentionOperator):
    """Scaled dot-product attention (Vaswani et al., 2017)."""

    forms_weights = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = q @ k.transpose(-2, -1) / math.sqrt(self.site.head_dim)
        return (logits if bias is None else logits + bias).softmax(dim=-1)

    def macs(self) -> int:
        site = self.site
        return 2 * site.num_heads * site.head_dim * site.q_grid.tokens * site.kv_grid.tokens
