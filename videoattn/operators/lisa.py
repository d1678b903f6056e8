"""LiSA: values mixed by learned functions of relative position, each as strong as query and keys make it."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.grid import cells_under
from videoattn.operators.base import AttentionOperator, AttentionSite
from videoattn.operators.toeplitz import fourier_macs, fourier_sums, reversed_toeplitz, table_sizes, toeplitz_sums

Method = Literal["auto", "fft", "direct"]

EPS = 1e-6
# From this many patch keys on "auto" takes FFTs. With 12 heads of 64 channels, forward and backward of one row take as
# long either way at about 1400 keys on a CPU core, but from here on the direct form's matrices take 0.4 GB per layer.
FFT_FROM_KEYS = 1024
# Share of noise in the energy of the first pattern at the start.
NOISE = 0.01


class LisaAttention(AttentionOperator):
    """Our realisation of LiSA from its published description: its code and equations were never released.

    With q̂, k̂ = q, k divided by their norms (at least 1e-6), each head has L = `num_patterns` structural patterns:

        a_l,i = q̂_i · (P_l + Σ_j r1_l(i - j) k̂_j)
        o_i   = Σ_l a_l,i Σ_j r2_l(i - j) v_j

    where i - j is a relative position on the grid, per axis, and no softmax follows: weights Σ_l a_l,i r2_l(i - j) may
    be negative and sum to anything. r1, r2 are [heads, L, 2t-1, 2h-1, 2w-1] with δ = 0 in the middle, P [heads, L, d].
    `wrap=True` joins the ends of each axis: r1, r2 are [heads, L, t, h, w] with δ mod n as index.

    A class query attends to all tokens by softmax. A class key c adds g (q̂_i · k̂_c) v_c to each patch query, g one
    number per head, initially 1/N for N patch keys. On unequal grids a query stands at the key cell under it.

    `method` only says how this is computed; every choice is exact for every length. "fft" forms both sums by FFT, in
    float32 (float64 for float64 inputs) whatever autocast says: O(N log N). "direct" forms matrices over pairs of
    tokens, in the inputs' type: the weights themselves, or where that takes fewer products (many more queries than
    keys) those of the two sums. "auto" takes FFTs from 1024 patch keys on.

    A zero vector has no direction: its q̂ or k̂ is 0, with gradient 0. Raises ValueError on options out of range and on
    a site with a bias for logits, of which there are none.

    Source: the abstracts of LiSA (arXiv 2211.16289), and relational self-attention (Kim et al., NeurIPS 2021), by the
    same first author, with its local window opened to the whole grid. Differs: see `reset_parameters`.
    """

    forms_weights = True
    cells: Tensor | None

    def __init__(self, site: AttentionSite, num_patterns: int = 4, wrap: bool = False, method: Method = "auto") -> None:
        super().__init__(site)
        if type(num_patterns) is not int or num_patterns < 1:
            raise ValueError(f"NUM_PATTERNS expects a whole number of at least 1, got {num_patterns!r}")
        if type(wrap) is not bool:
            raise ValueError(f"WRAP expects True or False, got {wrap!r}")
        if method not in get_args(Method):
            raise ValueError(f"METHOD expects one of {', '.join(get_args(Method))}, got {method!r}")
        if site.has_bias:
            raise ValueError(
                "lisa attention has no logits to add a bias to; build the model without relative positions"
            )
        self.num_patterns = num_patterns
        self.wrap = wrap
        q, kv, heads = site.q_grid, site.kv_grid, site.num_heads
        self.uses_fft = method == "fft" or (method == "auto" and kv.patches >= FFT_FROM_KEYS)
        self.weighs_pairs = not self.uses_fft and self._pair_macs() <= self._sum_macs()
        sizes = table_sizes(kv, wrap)
        self.r1 = nn.Parameter(torch.empty(heads, num_patterns, *sizes))
        self.r2 = nn.Parameter(torch.empty(heads, num_patterns, *sizes))
        self.P = nn.Parameter(torch.empty(heads, num_patterns, site.head_dim))
        self.g = nn.Parameter(torch.empty(heads)) if kv.prefix else None
        cells = None
        if (q.t, q.h, q.w) != (kv.t, kv.h, kv.w):
            t, h, w = cells_under(q, kv).T
            cells = torch.from_numpy((t * kv.h + h) * kv.w + w).to(self.P.device)
        self.register_buffer("cells", cells, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with E[(Σ_l a_l)²] = 1, a delta in r2_0, ever wider Gaussians in the other r2_l, and g = 1/N.

        Up to a common factor √(d/(d+1)), P's rows are orthogonal (if L <= d) and of length √(d/L), and r1 is noise of
        variance 1/(L·N). So for q̂ and k̂ without preferred directions the a_l are uncorrelated, each with mean square
        1/L: d/(d+1) of it from P, the rest from r1, which weighs as much as P where all q̂ and k̂ are the same.

        The Gaussian of pattern l has a deviation of l tokens along each axis, and r2_0 a little noise. Each r2_l is
        scaled to Σ_j r2_l(i - j)² = √e/N, averaged over queries, so this is the output's variance for values of
        variance 1. Softmax attention has between 1/N (logits near 0) and e/N (many keys, logits of variance 1).

        Differs: the definition asks for Σ_l a_l near 1 in expectation. That is 0 for every P and r1 where q̂ and -q̂ are
        equally likely; here the mean square is 1. Rows of weights sum to a root mean square of 0.9 for 8 tokens in a
        row, of 0.5 for 14 × 14.
        """
        heads, num_patterns, d = self.P.shape
        kv, num_keys = self.site.kv_grid, self.site.kv_grid.patches
        share = d / (d + 1)
        nn.init.normal_(self.r1, std=math.sqrt(share / (num_patterns * num_keys)))
        energy = math.sqrt(math.e) / num_keys if num_keys > 1 else 1.0
        nn.init.normal_(self.r2, std=math.sqrt(NOISE * energy / num_keys))
        with torch.no_grad():
            self.r2[:, 1:] = 0
            for head in range(heads):
                start = torch.empty(num_patterns, d, device=self.P.device, dtype=torch.float32)
                self.P[head] = nn.init.orthogonal_(start, gain=math.sqrt(share * max(d / num_patterns, 1)))
            for pattern in range(num_patterns):
                t, h, w = (smoothing(n, pattern, self.wrap).to(self.r2) for n in (kv.t, kv.h, kv.w))
                self.r2[:, pattern] += math.sqrt(energy) * t[:, None, None] * h[:, None] * w
        if self.g is not None:
            nn.init.constant_(self.g, 1 / num_keys)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        self._refuse_bias(bias)
        prefix = self.site.kv_grid.prefix
        dtype = torch.promote_types(q.dtype, torch.float32) if self.uses_fft else q.dtype
        q_unit, k_unit = direction(q[:, :, prefix:]).to(dtype), direction(k).to(dtype)
        out = self.mix_patches(q_unit, k_unit[:, :, prefix:], v[:, :, prefix:].to(dtype))
        if prefix == 0:
            return out.to(q.dtype)
        out = out + self._class_key_weights(q_unit, k_unit[:, :, :prefix]) @ v[:, :, :prefix].to(dtype)
        class_out = F.scaled_dot_product_attention(q[:, :, :prefix], k, v)
        return torch.cat([class_out.to(q.dtype), out.to(q.dtype)], dim=2)

    def mix_patches(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What patch keys give to patch queries, for q and k as they are: neither is normalised here."""
        if self.weighs_pairs:
            return self._reversed_weights(q, k) @ v.flip(-2)
        rows, heads = q.shape[0], self.site.num_heads
        q, k, v = (x.unflatten(1, (-1, heads)).flatten(0, 1) for x in (q, k, v))
        k_sums, v_sums = self._sums(k, self.r1) + self.P.to(k.dtype).unsqueeze(1), self._sums(v, self.r2)
        if self.cells is not None:
            k_sums, v_sums = k_sums.index_select(2, self.cells), v_sums.index_select(2, self.cells)
        strengths = (q.unsqueeze(-2) * k_sums).sum(-1, keepdim=True)
        out: Tensor = (strengths * v_sums).sum(-2).unflatten(0, (rows, -1)).flatten(1, 2)
        return out

    def _sums(self, x: Tensor, table: Tensor) -> Tensor:
        """Σ_j table_l(i - j) x_j on the key grid: [B, heads, Nk, d] to [B, heads, Nk, L, d]."""
        if self.uses_fft:
            return fourier_sums(x, table, self.site.kv_grid, self.wrap)
        return toeplitz_sums(x, reversed_toeplitz(table, self.site.kv_grid, self.wrap, x.dtype))

    def _reversed_weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Weights of patch keys in reverse order for patch queries, [rows, groups·heads, Nq, Nk]."""
        r1, r2 = (reversed_toeplitz(table, self.site.kv_grid, self.wrap, q.dtype) for table in (self.r1, self.r2))
        if self.cells is not None:
            r1, r2 = r1.index_select(1, self.cells), r2.index_select(1, self.cells)
        q, k = (x.unflatten(1, (-1, self.site.num_heads)) for x in (q, k))
        products = (q @ k.flip(-2).transpose(-2, -1)).flatten(0, 1)  # [B, heads, Nq, Nk]
        static = (q @ self.P.to(q.dtype).transpose(-2, -1)).flatten(0, 1)  # [B, heads, Nq, L]
        # one product for each head and query, over the rows of the batch: [heads, Nq, B, Nk] and [heads, Nq, L, Nk]
        strengths = products.permute(1, 2, 0, 3) @ r1.transpose(-2, -1) + static.permute(1, 2, 0, 3)
        weights: Tensor = (strengths @ r2).permute(2, 0, 1, 3).unflatten(0, q.shape[:2]).flatten(1, 2)
        return weights

    def _class_key_weights(self, q: Tensor, k: Tensor) -> Tensor:
        assert self.g is not None
        products = (q @ k.transpose(-2, -1)).unflatten(1, (-1, self.site.num_heads))
        weights: Tensor = (self.g.to(q.dtype)[:, None, None] * products).flatten(1, 2)
        return weights

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        """The matrix [rows, groups·heads, Nq, Nk] that values are multiplied by, whatever `method` is."""
        self._refuse_bias(bias)
        prefix = self.site.kv_grid.prefix
        q_unit, k_unit = direction(q[:, :, prefix:]).to(q.dtype), direction(k).to(q.dtype)
        patch_rows = self._reversed_weights(q_unit, k_unit[:, :, prefix:]).flip(-1)
        if prefix == 0:
            return patch_rows.to(q.dtype)
        patch_rows = torch.cat([self._class_key_weights(q_unit, k_unit[:, :, :prefix]), patch_rows], dim=-1)
        # element-wise, in float32 at least: autocast would round a product to a type in which large logits overflow
        dtype = torch.promote_types(q.dtype, torch.float32)
        logits = (q[:, :, :prefix, None].to(dtype) * k[:, :, None].to(dtype)).sum(-1) / math.sqrt(self.site.head_dim)
        return torch.cat([logits.softmax(dim=-1), patch_rows], dim=2).to(q.dtype)

    def _refuse_bias(self, bias: Tensor | None) -> None:
        if bias is not None:
            raise ValueError("lisa attention has no logits to add a bias to")

    def macs(self) -> int:
        """Products and Fourier transforms of one call.

        As in `videoattn.profile`, element-wise products are not counted: those of spectra, and where the sums are
        formed those of a token's strengths. Nor are the transforms of r1 and r2, which a call shares with all others.
        """
        site = self.site
        patches = self._pair_macs() if self.weighs_pairs else self._sum_macs()
        class_tokens = 2 * site.head_dim * site.kv_grid.prefix * (site.kv_grid.tokens + site.q_grid.patches)
        return patches + site.num_heads * class_tokens

    def _pair_macs(self) -> int:
        nq, nk, d = self.site.q_grid.patches, self.site.kv_grid.patches, self.site.head_dim
        return self.site.num_heads * nq * (2 * nk * (d + self.num_patterns) + d * self.num_patterns)

    def _sum_macs(self) -> int:
        channels, kv = self.site.num_heads * self.site.head_dim, self.site.kv_grid
        if self.uses_fft:
            return 2 * fourier_macs(channels, self.num_patterns, kv, self.wrap)
        return 2 * channels * self.num_patterns * kv.patches**2

    def extra_repr(self) -> str:
        form = "fft" if self.uses_fft else "pairs" if self.weighs_pairs else "sums"
        return f"{super().extra_repr()}, num_patterns={self.num_patterns}, wrap={self.wrap}, by {form}"


def direction(x: Tensor) -> Tensor:
    """x divided by its norm over the last dimension, in float32 at least; zero vectors stay zero, with gradient 0."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # next to zero the slope is 1/EPS, which would be infinite in half precision
    return (x / norm.clamp_min(EPS)).masked_fill(norm == 0, 0.0)


def smoothing(length: int, deviation: float, wrap: bool) -> Tensor:
    """A Gaussian of relative position along one axis (deviation 0: a delta), with squares that sum to 1.

    The sum is over the keys of one query, averaged over queries: the larger |δ|, the fewer queries have such a key.
    """
    delta = torch.arange(length) if wrap else torch.arange(1 - length, length)
    distance = torch.minimum(delta, length - delta) if wrap else delta.abs()
    values = (distance == 0).float() if deviation == 0 else (-0.5 * (distance / deviation) ** 2).exp()
    share_of_queries = 1.0 if wrap else 1 - distance / length
    return values / (values.square() * share_of_queries).sum().sqrt()
