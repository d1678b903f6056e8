"""The attentive pooler of V-JEPA 2's probes: a learned query that attends to all tokens of an encoder."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videoattn.layers.mlp import Mlp


class SelfAttentionBlock(nn.Module):
    """A pre-norm block of dense self-attention and an MLP on tokens [B, N, C], without positions."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(self.norm(x))
        q, k, v = rearrange(packed, "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads)
        x = x + self.proj(_attend(q, k, v))
        return x + self.mlp(self.norm_mlp(x))


class CrossAttentionBlock(nn.Module):
    """Queries [B, M, C] that attend to normalised tokens [B, N, C], then an MLP; there is no output projection."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.norm_mlp = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, mlp_dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        q = rearrange(self.q(queries), "b m (heads d) -> b heads m d", heads=self.num_heads)
        packed = self.kv(self.norm(tokens))
        k, v = rearrange(packed, "b n (two heads d) -> two b heads n d", two=2, heads=self.num_heads)
        queries = queries + _attend(q, k, v)
        return queries + self.mlp(self.norm_mlp(queries))


class AttentivePooler(nn.Module):
    """Pools tokens [B, N, C] of any number into [B, C]: `depth` self-attention blocks, then one learned query.

    Source: V-JEPA 2 (Assran et al., 2025), arXiv 2506.09985, whose probes have a depth of 3 and 16 heads.
    """

    def __init__(self, dim: int, num_heads: int = 16, depth: int = 3, mlp_dim: int | None = None) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"a probe's width must be a multiple of its heads, got {dim} and {num_heads}")
        sizes = (dim, num_heads, mlp_dim or 4 * dim)
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(SelfAttentionBlock(*sizes) for _ in range(depth))
        self.cross = CrossAttentionBlock(*sizes)

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        pooled: Tensor = self.cross(self.query.expand(tokens.shape[0], -1, -1), tokens)
        return pooled.squeeze(1)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)")
