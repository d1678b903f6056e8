"""Focused linear attention (FLatten): no softmax, so its cost grows with the number of tokens, not with its square."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from videoattn.grid import TokenGrid
from videoattn.kernels.cpu.compiler import explain_absence
from videoattn.kernels.focused import attend, is_compiled, multiply_adds
from videoattn.kernels.focused_plain import attend_plainly, convolve
from videoattn.kernels.layout import DTYPES, split
from videoattn.kernels.transforms import without_autocast
from videoattn.operators.base import AttentionOperator, AttentionSite

Implementation = Literal["auto", "plain", "compiled"]

# Depth in time of the convolution on a site that has frames and locations, where its space part comes first.
JOINT_TIME_TAPS = 3


def check_kernel_size(size: int) -> int:
    """Return the size of a convolution that keeps its centre; raise ValueError on another."""
    if size and (size % 2 == 0 or not 0 < size < 100):
        raise ValueError("an odd number below 100, or 0 for no convolution")
    return size


class FocusedLinearAttention(AttentionOperator):
    """Linear attention whose feature map sharpens directions, plus a depthwise convolution of the values.

    With x ↦ (relu(x) + 1e-6) / softplus(scale), one scale per channel, a token's feature is φ(x) = x^p / ‖x^p‖ · ‖x‖
    for p = `power` >= 1, the norms over all heads·d channels together; there is no 1/√d:

        o_i = φ(q_i) (Σ_j φ(k_j)ᵀ v_j) / (φ(q_i)·Σ_j φ(k_j) + Nk·1e-6) + DWC(v)_i

    The sum over keys comes first whatever the lengths: 2·N·d² multiply-accumulates per head, dearer than softmax
    attention below d tokens.

    Keys get an embedding of their position, initially zero; where there are frames and locations it is the sum of one
    over t and one over (h, w). Prefix tokens are part of the sums, but have no embedding and are not part of DWC.

    DWC has one kernel per channel, shared by the heads, and a bias. It spans `kernel_size` (odd; 0 leaves DWC out)
    tokens along each axis longer than 1. Where there are frames and locations it is (1, k, k), then at most 3 along
    time, which begins as the identity; one kernel over all three axes took over 4 times as long to train on a CPU.

    Parameters are used in float32 (float64 for float64 inputs), as is everything between input and output.
    `implementation` says how: "plain" by torch; "compiled" by the kernel of `videoattn.kernels.focused`, on a CPU with
    a C++ compiler, faster at every length; "auto" by the kernel wherever it works.
    `forward` also accepts q, k and v packed in one tensor [rows, groups·heads, n, 3, d] as `q`.

    Source: FLatten Transformer (arXiv 2308.00442) and its released code. Differs: tokens are divided by their largest
    channel before the power, which changes nothing in real arithmetic and keeps it finite in every precision; on
    unequal grids DWC sees values resampled to the query grid along t, h and w, there along the flattened sequence;
    prefix tokens are not treated there.
    """

    accepts_bias = False
    accepts_packed = True
    grid_parameters = ("pos_time", "pos_space")

    def __init__(
        self,
        site: AttentionSite,
        power: Annotated[float, Field(ge=1, le=100), "how strongly q and k are focused"] = 3,
        kernel_size: Annotated[
            int,
            AfterValidator(check_kernel_size),
            "of the depthwise convolution along each axis: odd, or 0 for none",
        ] = 5,
        implementation: Annotated[
            Implementation,
            "plain: by torch; compiled: by a kernel in C++, on a CPU; auto: by the kernel where it works",
        ] = "auto",
    ) -> None:
        super().__init__(site)
        self.power = power
        self.implementation = implementation
        self.compiled = implementation != "plain" and is_compiled()
        if implementation == "compiled" and not self.compiled:
            raise ValueError(
                "IMPLEMENTATION: compiled needs a C++ compiler, found by CXX or as c++; set IMPLEMENTATION: auto "
                f"({explain_absence('focused_linear')})"
            )
        self.kernel_size = kernel_size
        q, kv, d = site.q_grid, site.kv_grid, site.head_dim
        width = site.num_heads * d
        self.scale = nn.Parameter(torch.empty(width))
        self.pos_time = nn.Parameter(torch.empty(kv.t, width)) if kv.t > 1 else None
        self.pos_space = nn.Parameter(torch.empty(kv.h * kv.w, width)) if kv.t == 1 or kv.h * kv.w > 1 else None
        self.dwc_space = self.dwc_time = self.dwc_bias = None
        if kernel_size > 0:
            taps_t, taps_h, taps_w = (kernel_size if n > 1 else 1 for n in (q.t, q.h, q.w))
            has_space = q.t == 1 or q.h * q.w > 1
            if has_space:
                self.dwc_space = nn.Parameter(torch.empty(d, 1, taps_h, taps_w))
                taps_t = min(taps_t, JOINT_TIME_TAPS)
            if q.t > 1:
                self.dwc_time = nn.Parameter(torch.empty(d, 1, taps_t, 1))
            self.dwc_bias = nn.Parameter(torch.empty(d))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set scale and embeddings to zero, and the convolution as torch does: uniform within ±1/√taps."""
        for parameter in (self.scale, self.pos_time, self.pos_space):
            if parameter is not None:
                nn.init.zeros_(parameter)
        main = self.dwc_time if self.dwc_space is None else self.dwc_space
        if main is None or self.dwc_bias is None:
            return
        bound = 1 / math.sqrt(main[0].numel())
        nn.init.uniform_(main, -bound, bound)
        nn.init.uniform_(self.dwc_bias, -bound, bound)
        if self.dwc_time is not None and self.dwc_time is not main:
            nn.init.dirac_(self.dwc_time, groups=self.site.head_dim)

    def dense_start(self) -> dict[str, Tensor]:
        """Return a convolution of zeros, of which dense attention has none; what it learns grows from there."""
        main = "dwc_time" if self.dwc_space is None else "dwc_space"
        names = [main, "dwc_bias"] if self.dwc_bias is not None else []
        return {name: torch.zeros_like(getattr(self, name)) for name in names}

    def forward(
        self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        self.refuse_bias(bias)
        tensors: Sequence[Tensor] = (q,) if k is None or v is None else (q, k, v)
        dtype, grid, kv = q.dtype, self.site.q_grid, self.site.kv_grid
        by_kernel = self.compiled and q.device.type == "cpu"
        if self.implementation == "compiled" and not by_kernel and q.device.type != "meta":
            raise ValueError(
                f"IMPLEMENTATION: compiled expects tensors on a CPU, got {q.device}; set IMPLEMENTATION: auto"
            )
        wide = torch.promote_types(dtype, torch.float32)
        resamples = self.kernel_size > 0 and grid != kv  # values, before they are convolved
        if not by_kernel or dtype not in DTYPES or resamples:
            tensors = [x.to(wide) for x in tensors]
        size, embeddings = (grid.t, grid.h, grid.w), [self.pos_time, self.pos_space]
        kernels = [self.dwc_space, self.dwc_time, self.dwc_bias]
        with without_autocast(q.device):
            parameters = [None if x is None else x.to(wide) for x in embeddings + kernels]
            used = [*parameters[:2], None, None, None] if resamples else parameters
            scale = F.softplus(self.scale.to(wide))
            out = (attend if by_kernel else attend_plainly)(tensors, scale, used, size, grid.prefix, self.power)
            if resamples:
                space, time, dwc_bias = parameters[2:]
                assert dwc_bias is not None
                patches = resample(split(tensors)[2][:, :, kv.prefix :], kv, grid)
                out = out + convolve(patches, space, time, dwc_bias, size, grid.prefix)
            return out.to(dtype)

    def macs(self) -> int:
        """Return products and every tap of the convolution, at the border too, as for other convolutions."""
        site, q = self.site, self.site.q_grid
        tensors = [(1, site.num_heads, grid.tokens, site.head_dim) for grid in (q, site.kv_grid, site.kv_grid)]
        space, time = (None if kernel is None else kernel.shape for kernel in (self.dwc_space, self.dwc_time))
        return multiply_adds(tensors, None, None, None, space, time, None, (q.t, q.h, q.w))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, power={self.power}, kernel_size={self.kernel_size}"


def resample(patches: Tensor, grid: TokenGrid, to: TokenGrid) -> Tensor:
    """Interpolate patches [rows, groups·heads, N, d] linearly along t, h and w to another grid."""
    rows, heads, _, d = patches.shape
    x = patches.permute(0, 1, 3, 2).reshape(rows, heads * d, grid.t, grid.h, grid.w)
    x = F.interpolate(x, size=(to.t, to.h, to.w), mode="trilinear", align_corners=False)
    return x.reshape(rows, heads, d, to.patches).transpose(2, 3)
