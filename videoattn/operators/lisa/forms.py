"""Three ways to compute `LisaAttention` with the same result: by pairs of tokens, axis by axis, or by FFT."""

import torch
from torch import Tensor

from videoattn.operators.base import AttentionSite
from videoattn.operators.lisa.toeplitz import fourier_macs, fourier_sums, table_spectrum, toeplitz_matrices
from videoattn.operators.lisa.toeplitz_axes import (
    axes_macs,
    axes_sums,
    by_columns,
    by_rows,
    frame_matrices,
    table_harmonics,
)

# Elements of the largest tensor written in between: by pairs for the cache of a core, along axes for that of a machine.
PAIR_ELEMENTS, AXES_ELEMENTS = 2**18, 2**22
# By pairs, all heads are taken together up to this many keys, else one at a time with at least this many rows.
FEW_KEYS, LEAST_ROWS = 64, 8


class Form:
    """One way to compute. r1 and r2 [heads, L, ...] are made ready in two steps, `finish(begin(table))`.

    The second step may process some heads at a time, if all of them would need too much memory.
    """

    def __init__(self, site: AttentionSite, num_patterns: int, wrap: bool) -> None:
        self.site, self.num_patterns, self.wrap = site, num_patterns, wrap

    def macs(self) -> int:
        """Return the multiply-accumulates from patch keys to patch queries in one row."""
        raise NotImplementedError

    def finished_elements(self) -> int:
        """Return the number of real numbers in one table after `finish`."""
        raise NotImplementedError

    def share(self) -> tuple[int, int]:
        """Return the best numbers of rows and heads to process at a time."""
        raise NotImplementedError

    def begin(self, table: Tensor, dtype: torch.dtype) -> Tensor:
        return table

    def finish(self, begun: Tensor, dtype: torch.dtype, cells: Tensor | None) -> Tensor:
        return begun

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, r1: Tensor, r2: Tensor, P: Tensor, g: Tensor | None, cells: Tensor | None
    ) -> Tensor:
        """Map patch queries q [B, heads, Nq, d], all k and v [B, heads, prefix + Nk, d] to [B, heads, Nq, d].

        r1 and r2 are finished, P is [heads, L, d], g [heads], or None without prefix; `cells` [Nq] says which patch key
        is under a query, where their grids differ.
        """
        raise NotImplementedError

    def split_prefix(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return class tokens and patches of [B, heads, prefix + Nk, ...]."""
        class_tokens, patches = x.split([self.site.kv_grid.prefix, self.site.kv_grid.patches], 2)
        return class_tokens, patches

    def add_class_keys(self, out: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None) -> Tensor:
        if g is None:
            return out
        class_k, class_v = self.split_prefix(k)[0], self.split_prefix(v)[0]
        return out + (q @ class_k.transpose(-2, -1) * g[:, None, None]) @ class_v


class Pairs(Form):
    """Compute the weights of all pairs, by matrices [heads, Nq, L, Nk] of relative positions, and their product."""

    def macs(self) -> int:
        nq, nk, d = self.site.q_grid.patches, self.site.kv_grid.patches, self.site.head_dim
        return self.site.num_heads * nq * (2 * nk * (d + self.num_patterns) + d * self.num_patterns)

    def finished_elements(self) -> int:
        return self.site.num_heads * self.num_patterns * self.site.q_grid.patches * self.site.kv_grid.patches

    def share(self) -> tuple[int, int]:
        nq, nk, d = self.site.q_grid.patches, self.site.kv_grid.patches, self.site.head_dim
        heads, least = (self.site.num_heads, 1) if nk <= FEW_KEYS else (1, LEAST_ROWS)
        return max(least, PAIR_ELEMENTS // (heads * nq * max(nk, d))), heads

    def finish(self, begun: Tensor, dtype: torch.dtype, cells: Tensor | None) -> Tensor:
        matrices = toeplitz_matrices(begun, self.site.kv_grid, self.wrap, dtype)
        return matrices if cells is None else matrices.index_select(1, cells)

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, r1: Tensor, r2: Tensor, P: Tensor, g: Tensor | None, cells: Tensor | None
    ) -> Tensor:
        class_weights, weights = self.weights(q, k, r1, r2, P, g)
        class_v, v = self.split_prefix(v)
        out: Tensor = weights @ v
        return out if class_weights is None else out + class_weights @ class_v

    def weights(
        self, q: Tensor, k: Tensor, r1: Tensor, r2: Tensor, P: Tensor, g: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """Return the weights of class keys [B, heads, Nq, prefix] or None, and of patch keys [B, heads, Nq, Nk]."""
        prefix, num_keys = self.site.kv_grid.prefix, self.site.kv_grid.patches
        # P as further keys: products of its few rows on their own would take as long as those of all keys
        keys = torch.cat([k, P.expand(k.shape[0], -1, -1, -1)], 2)
        class_keys, patches, static = (q @ keys.transpose(-2, -1)).split([prefix, num_keys, self.num_patterns], -1)
        # one product for each head and query, over the rows of the batch: [heads·Nq, L, B], then [heads·Nq, B, Nk]
        patches, static = (x.permute(1, 2, 3, 0).flatten(0, 1) for x in (patches, static))
        strengths = torch.baddbmm(static, r1.flatten(0, 1), patches)
        weights = torch.bmm(strengths.transpose(1, 2), r2.flatten(0, 1))
        weights = weights.unflatten(0, r1.shape[:2]).permute(2, 0, 1, 3)
        return None if g is None else g[:, None, None] * class_keys, weights


class Axes(Form):
    """Compute sums of keys and of values for each query and pattern axis by axis, in float32 at least."""

    def macs(self) -> int:
        site, num_patterns = self.site, self.num_patterns
        sums = 2 * axes_macs(site.num_heads * site.head_dim, num_patterns, site.kv_grid)
        return sums + site.num_heads * site.q_grid.patches * site.head_dim * num_patterns

    def finished_elements(self) -> int:
        kv = self.site.kv_grid
        return self.site.num_heads * self.num_patterns * kv.h * (2 * kv.w - 1) * 4 * kv.t**2

    def share(self) -> tuple[int, int]:
        kv = self.site.kv_grid
        harmonics = 2 * kv.h * (2 * kv.w - 1) * kv.t * self.num_patterns * self.site.head_dim
        return max(1, AXES_ELEMENTS // harmonics), 1

    def begin(self, table: Tensor, dtype: torch.dtype) -> Tensor:
        return table_harmonics(table, self.site.kv_grid, self.wrap, dtype)

    def finish(self, begun: Tensor, dtype: torch.dtype, cells: Tensor | None) -> Tensor:
        return frame_matrices(begun)

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, r1: Tensor, r2: Tensor, P: Tensor, g: Tensor | None, cells: Tensor | None
    ) -> Tensor:
        patch_k, patch_v = self.split_prefix(k)[1], self.split_prefix(v)[1]
        inputs = zip(q.unbind(1), patch_k.unbind(1), patch_v.unbind(1), strict=True)
        heads = [self._mix_head(*x, r1[head], r2[head], P[head], cells) for head, x in enumerate(inputs)]
        out = torch.stack(heads, 1)
        return self.add_class_keys(out, q, k, v, g)

    def _mix_head(
        self, q: Tensor, k: Tensor, v: Tensor, r1: Tensor, r2: Tensor, P: Tensor, cells: Tensor | None
    ) -> Tensor:
        kv, q_grid = self.site.kv_grid, self.site.q_grid
        q, k, v = by_columns(q, q_grid), by_columns(k, kv), by_columns(v, kv)  # [N, B, d]
        k_sums, v_sums = (axes_sums(x.flatten(1), r, kv).unflatten(2, x.shape[1:]) for x, r in ((k, r1), (v, r2)))
        if cells is not None:
            # the same cells, with queries and keys in the order h, w, t
            t, place = cells // (kv.h * kv.w), cells % (kv.h * kv.w)
            cells = by_columns((place * kv.t + t)[None, :, None], q_grid).flatten()
            k_sums, v_sums = k_sums.index_select(0, cells), v_sums.index_select(0, cells)
        strengths = (q.unsqueeze(1) * k_sums).sum(-1) + (q @ P.transpose(-2, -1)).transpose(1, 2)  # [Nq, L, B]
        return by_rows((strengths.unsqueeze(-1) * v_sums).sum(1), q_grid)


class Ffts(Form):
    """Compute the same sums by one transform over all axes."""

    def macs(self) -> int:
        channels = self.site.num_heads * self.site.head_dim
        return 2 * fourier_macs(channels, self.num_patterns, self.site.kv_grid, self.wrap)

    def finished_elements(self) -> int:
        return 0  # as `begin` has made it

    def share(self) -> tuple[int, int]:
        kv = self.site.kv_grid
        sums = self.num_patterns * self.site.head_dim * kv.patches
        return max(1, AXES_ELEMENTS // (self.site.num_heads * sums)), self.site.num_heads

    def begin(self, table: Tensor, dtype: torch.dtype) -> Tensor:
        return table_spectrum(table, self.site.kv_grid, self.wrap, dtype)

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, r1: Tensor, r2: Tensor, P: Tensor, g: Tensor | None, cells: Tensor | None
    ) -> Tensor:
        kv, patches = self.site.kv_grid, (self.split_prefix(k)[1], self.split_prefix(v)[1])
        k_sums, v_sums = (fourier_sums(x, r, kv, self.wrap) for x, r in zip(patches, (r1, r2), strict=True))
        k_sums = k_sums + P.unsqueeze(1)
        if cells is not None:
            k_sums, v_sums = k_sums.index_select(2, cells), v_sums.index_select(2, cells)
        strengths = (q.unsqueeze(-2) * k_sums).sum(-1, keepdim=True)
        return self.add_class_keys((strengths * v_sums).sum(-2), q, k, v, g)
