"""Lisa operators and inputs for tests."""

import torch

from videoattn.grid import TokenGrid
from videoattn.operators import AttentionSite
from videoattn.operators.lisa.operator import LisaAttention

HEADS, D, L = 2, 4, 3
METHODS = ("direct", "axes", "fft")
EQUAL = (TokenGrid(2, 3, 5), TokenGrid(2, 3, 5))
POOLED = (TokenGrid(3, 6, 10), TokenGrid(2, 3, 5))


def build(q_grid, kv_grid=None, heads=HEADS, d=D, start=True, seed=0, **options):
    """A float64 operator; with `start=False` every parameter is random, so that no initial zero hides anything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        operator = LisaAttention(AttentionSite(q_grid, kv_grid or q_grid, heads, d, 0), **options).double()
    if not start:
        for name, parameter in operator.named_parameters():
            scale = operator.site.kv_grid.patches**-0.5 if name in ("r1", "r2") else 1.0
            parameter.data = scale * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return operator


def qkv(operator, rows=2, groups=1, seed=1, dtype=torch.float64):
    at, generator = operator.site, torch.Generator().manual_seed(seed)
    lengths = (at.q_grid.tokens, at.kv_grid.tokens, at.kv_grid.tokens)
    return [torch.randn(rows, groups * at.num_heads, n, at.head_dim, dtype=dtype, generator=generator) for n in lengths]


def with_prefix(grids, prefix):
    return [TokenGrid(g.t, g.h, g.w, prefix) for g in grids]
