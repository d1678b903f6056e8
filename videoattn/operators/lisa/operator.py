"""LiSA: values mixed by learned functions of relative position, each as strong as query and keys make it."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from videoattn.grid import cells_under
from videoattn.kernels.transforms import without_autocast
from videoattn.operators.base import AttentionOperator, AttentionSite
from videoattn.operators.crossovers import LISA_TIME_OF_MAC
from videoattn.operators.derived import Derived
from videoattn.operators.lisa.forms import Axes, Ffts, Form, Pairs
from videoattn.operators.lisa.toeplitz import table_sizes

Method = Literal["auto", "direct", "axes", "fft"]

EPS = 1e-6
FORMS: dict[str, type[Form]] = {"direct": Pairs, "axes": Axes, "fft": Ffts}
# Of r1 and of r2 at most this much is kept between the calls of an evaluation, besides a copy of each.
KEPT_BYTES = 20_000_000
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

    `method` only says how this is computed; every choice is exact for every length. "direct" forms the weights of all
    pairs, in the inputs' type, by matrices of relative positions. "axes" and "fft" form both sums, in float32 (float64
    for float64 inputs) whatever autocast says: "axes" by products along one axis after the other, "fft" by a transform
    of all axes, O(N log N). "auto" chooses the fastest by the estimate of `videoattn.operators.crossovers`. Without
    gradients, what is computed from r1 and r2 is kept for later calls, at most 40 MB and a copy of r1 and r2, until
    they change; `videoattn.operators.derived` says how that is seen.

    A zero vector has no direction: its q̂ or k̂ is 0, with gradient 0.

    Source: the abstracts of LiSA (arXiv 2211.16289), and relational self-attention (Kim et al., NeurIPS 2021), by the
    same first author, with its local window opened to the whole grid. Differs: see `reset_parameters`.
    """

    forms_weights = True
    accepts_bias = False
    grid_parameters = ("r1", "r2")
    cells: Tensor | None

    def __init__(
        self,
        site: AttentionSite,
        num_patterns: Annotated[int, Field(ge=1, le=64), "structural patterns per head"] = 4,
        wrap: Annotated[bool, "positions wrap around: a smaller FFT, another function"] = False,
        method: Annotated[Method, "auto: the fastest by grid and device"] = "auto",
    ) -> None:
        super().__init__(site)
        self.num_patterns, self.wrap, self.method = num_patterns, wrap, method
        self.forms = {name: form(site, num_patterns, wrap) for name, form in FORMS.items()}
        self.fastest = {
            device: min(self.forms, key=lambda method: times[method] * self.forms[method].macs())
            for device, times in LISA_TIME_OF_MAC.items()
        }
        self._kept = (Derived(KEPT_BYTES), Derived(KEPT_BYTES))
        q, kv, heads = site.q_grid, site.kv_grid, site.num_heads
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
        if self.P.is_meta:
            return
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

    # ---- how it is computed

    @property
    def form(self) -> Form:
        """Return the way to compute on the device of its parameters."""
        if self.method != "auto":
            return self.forms[self.method]
        return self.forms[self.fastest["cuda" if self.P.is_cuda else "cpu"]]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        self.refuse_bias(bias)
        prefix, dtype = self.site.kv_grid.prefix, q.dtype
        if isinstance(self.form, Pairs):
            out = self.mix_patches(q[:, :, prefix:], k, v)
        else:
            wide = torch.promote_types(dtype, torch.float32)
            with without_autocast(q.device):
                out = self.mix_patches(q[:, :, prefix:].to(wide), k.to(wide), v.to(wide))
        if prefix == 0:
            return out.to(dtype)
        class_out = F.scaled_dot_product_attention(q[:, :, :prefix], k, v)
        return torch.cat([class_out.to(dtype), out.to(dtype)], dim=2)

    def mix_patches(self, q: Tensor, k: Tensor, v: Tensor, normalize: bool = True) -> Tensor:
        """Mix the values of all keys for patch queries; without `normalize`, q and k are used as they are.

        For a share of heads and rows at a time, so that what is written in between stays in the cache. A graph of the
        call takes all rows at once: a loop over shares would fix their number in it.
        """
        form, dtype, num_heads = self.form, q.dtype, self.site.num_heads
        shape = (q.shape[0], q.shape[1] // num_heads)
        rows_at_once, heads_at_once = form.share()
        is_graph = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        parameters = [self._table(form, 0, dtype), self._table(form, 1, dtype), self.P.to(dtype)]
        if self.g is not None:
            parameters.append(self.g.to(dtype))
        shares = [share.split(heads_at_once) for share in parameters]
        for x in (q, k, v):
            x = x.unflatten(1, (shape[1], num_heads)).flatten(0, 1)
            shares.append(x.split(heads_at_once, 1))
        heads = []
        for r1, r2, *rest, q, k, v in zip(*shares, strict=True):
            r1, r2 = self._finish(form, r1, dtype), self._finish(form, r2, dtype)
            parts: list[Sequence[Tensor]] = [[x] if is_graph else x.split(rows_at_once) for x in (q, k, v)]
            rows = [
                self._mix_share(form, a, b, c, r1, r2, *rest, normalize=normalize)
                for a, b, c in zip(*parts, strict=True)
            ]
            heads.append(concatenate(rows, 0))
        out: Tensor = concatenate(heads, 1).unflatten(0, shape).flatten(1, 2)
        return out

    def _mix_share(
        self, form: Form, q: Tensor, k: Tensor, v: Tensor, r1: Tensor, r2: Tensor, P: Tensor, g: Tensor | None = None,
        *, normalize: bool,
    ) -> Tensor:  # fmt: skip
        if normalize:
            q, k = direction(q).to(q.dtype), direction(k).to(k.dtype)
        return form.mix(q, k, v, r1, r2, P, g, self.cells)

    def _table(self, form: Form, index: int, dtype: torch.dtype) -> Tensor:
        """Return r1 or r2 as the form uses it: finished, or only begun if the result is too large to keep."""
        table, kept = (self.r1, self.r2)[index], self._kept[index]
        if self._keeps_finished(form, dtype):
            return kept(table, (form, dtype), lambda: form.finish(form.begin(table, dtype), dtype, self.cells))
        return kept(table, (form, dtype), lambda: form.begin(table, dtype))

    def _finish(self, form: Form, table: Tensor, dtype: torch.dtype) -> Tensor:
        return table if self._keeps_finished(form, dtype) else form.finish(table, dtype, self.cells)

    def _keeps_finished(self, form: Form, dtype: torch.dtype) -> bool:
        return form.finished_elements() * dtype.itemsize <= KEPT_BYTES

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the matrix [rows, groups·heads, Nq, Nk] that multiplies the values, for any `method`."""
        self.refuse_bias(bias)
        prefix, pairs = self.site.kv_grid.prefix, Pairs(self.site, self.num_patterns, self.wrap)
        q_unit, k_unit = (direction(x).to(q.dtype) for x in (q[:, :, prefix:], k))
        shape = (q.shape[0], q.shape[1] // self.site.num_heads)
        q_unit, k_unit = (x.unflatten(1, (shape[1], -1)).flatten(0, 1) for x in (q_unit, k_unit))
        r1, r2 = (pairs.finish(r, q.dtype, self.cells) for r in (self.r1, self.r2))
        P, g = self.P.to(q.dtype), None if self.g is None else self.g.to(q.dtype)
        patch_rows: Tensor = torch.cat(
            [x for x in pairs.weights(q_unit, k_unit, r1, r2, P, g) if x is not None], dim=-1
        )
        patch_rows = patch_rows.unflatten(0, shape).flatten(1, 2)
        if prefix == 0:
            return patch_rows.to(q.dtype)
        # element-wise, in float32 at least: autocast would round a product to a type in which large logits overflow
        dtype = torch.promote_types(q.dtype, torch.float32)
        logits = (q[:, :, :prefix, None].to(dtype) * k[:, :, None].to(dtype)).sum(-1) / math.sqrt(self.site.head_dim)
        return torch.cat([logits.softmax(dim=-1), patch_rows], dim=2).to(q.dtype)

    def macs(self) -> int:
        """Return the MACs of products and Fourier transforms of one sequence, by the method chosen for the device.

        As in `videoattn.profiling`, element-wise products are not counted: those of spectra, and where the sums are
        formed those of a token's strengths. Nor is what is computed from r1 and r2, which all calls share.
        """
        site = self.site
        class_tokens = 2 * site.head_dim * site.kv_grid.prefix * (site.kv_grid.tokens + site.q_grid.patches)
        return self.form.macs() + site.num_heads * class_tokens

    def extra_repr(self) -> str:
        form = type(self.form).__name__.lower()
        return f"{super().extra_repr()}, num_patterns={self.num_patterns}, wrap={self.wrap}, by {form}"


def concatenate(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def direction(x: Tensor) -> Tensor:
    """Divide x by its norm over the last dimension, in float32 at least; zero vectors stay zero, with gradient 0."""
    # next to zero the slope is 1/EPS, which would be infinite in half precision; norms of strided views are slow
    x = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * norm.clamp_min(EPS).reciprocal().masked_fill(norm == 0, 0.0)


def smoothing(length: int, deviation: float, wrap: bool) -> Tensor:
    """Return a Gaussian of relative position along one axis (deviation 0: a delta), with squares that sum to 1.

    The sum is over the keys of one query, averaged over queries: the larger |δ|, the fewer queries have such a key.
    """
    delta = torch.arange(length) if wrap else torch.arange(1 - length, length)
    distance = torch.minimum(delta, length - delta) if wrap else delta.abs()
    values = (distance == 0).float() if deviation == 0 else (-0.5 * (distance / deviation) ** 2).exp()
    share_of_queries = 1.0 if wrap else 1 - distance / length
    return values / (values.square() * share_of_queries).sum().sqrt()
