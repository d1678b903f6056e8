"""The three ways in which `LisaAttention` computes the same: by pairs of tokens, axis by axis, or by FFT."""

import torch
from torch import Tensor

from videoattn.operators.base import AttentionSite
from videoattn.operators.toeplitz import fourier_macs, fourier_sums, table_spectrum, toeplitz_matrices
from videoattn.operators.toeplitz_axes import axes_macs, axes_sums, by_columns, by_rows, frame_matrices, table_harmonics

# Elements of the largest tensor that is written in between: by pairs within the cache of a core, along axes of a machine.
PAIR_ELEMENTS, AXES_ELEMENTS = 2**18, 2**22
# By pairs, all heads are taken together up to this many keys, else one at a time with at least this many rows.
FEW_KEYS, LEAST_ROWS = 64, 8


class Form:
    """One way to compute. r1 and r2 [heads, L, ...] are made ready in two steps, `finish(begin(table))`.

    The second step may be taken for some heads at a time, where all of them would take too much memory.
    """

    def __init__(self, site: AttentionSite, num_patterns: int, wrap: bool) -> None:
        self.site, self.num_patterns, self.wrap = site, num_patterns, wrap

    def macs(self) -> int:
        """Of what patch keys give to patch queries in one row."""
        raise NotImplementedError

    def finished_elements(self) -> int:
        """Real numbers in one table after `finish`."""
        raise NotImplementedError

    def share(self) -> tuple[int, int]:
        """Rows and heads that are best taken at a time."""
        raise NotImplementedError

    def begin(self, table: Tensor, dtype: torch.dtype) -> Tensor:
        return table

    def finish(self, begun: Tensor, dtype: torch.dtype, cells: Tensor | None) -> Tensor:
        return begun

    def mix(self, q: Tensor, k: Tensor, v: Tensor, r1: Tensor, r2: Tensor, P: Tensor, cells: Tensor | None) -> Tensor:
        """q [B, heads, Nq, d], k and v [B, heads, Nk, d], finished r1 and r2, and P [heads, L, d] to [B, heads, Nq, d].

        `cells` [Nq] says which key is under a query, where their grids differ.
        """
        raise NotImplementedError


class Pairs(Form):
    """The weights of all pairs, by matrices [heads, Nq, L, Nk] of relative positions, and their product with v."""

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

    def mix(self, q: Tensor, k: Tensor, v: Tensor, r1: Tensor, r2: Tensor, P: Tensor, cells: Tensor | None) -> Tensor:
        out: Tensor = self.weights(q, k, r1, r2, P) @ v
        return out

    def weights(self, q: Tensor, k: Tensor, r1: Tensor, r2: Tensor, P: Tensor) -> Tensor:
        """[B, heads, Nq, Nk]."""
        products, static = q @ k.transpose(-2, -1), q @ P.transpose(-2, -1)
        # one product for each head and query, over the rows of the batch: [heads·Nq, L, B], then [heads·Nq, B, Nk]
        products, static = (x.permute(1, 2, 3, 0).flatten(0, 1) for x in (products, static))
        strengths = torch.baddbmm(static, r1.flatten(0, 1), products)
        weights = torch.bmm(strengths.transpose(1, 2), r2.flatten(0, 1))
        return weights.unflatten(0, r1.shape[:2]).permute(2, 0, 1, 3)


class Axes(Form):
    """Sums of keys and of values for each query and pattern, formed axis by axis, in float32 at least."""

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

    def mix(self, q: Tensor, k: Tensor, v: Tensor, r1: Tensor, r2: Tensor, P: Tensor, cells: Tensor | None) -> Tensor:
        kv, heads = self.site.kv_grid, []
        for tensors in zip(q.unbind(1), k.unbind(1), v.unbind(1), r1, r2, P, strict=True):
            heads.append(self._mix_head(*tensors, cells))
        return torch.stack(heads, 1)

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
    """The same sums by one transform over all axes."""

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

    def mix(self, q: Tensor, k: Tensor, v: Tensor, r1: Tensor, r2: Tensor, P: Tensor, cells: Tensor | None) -> Tensor:
        k_sums, v_sums = (fourier_sums(x, r, self.site.kv_grid, self.wrap) for x, r in ((k, r1), (v, r2)))
        k_sums = k_sums + P.unsqueeze(1)
        if cells is not None:
            k_sums, v_sums = k_sums.index_select(2, cells), v_sums.index_select(2, cells)
        strengths = (q.unsqueeze(-2) * k_sums).sum(-1, keepdim=True)
        return (strengths * v_sums).sum(-2)
