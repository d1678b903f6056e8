"""The MLP of a transformer's block on a CPU, some tokens at a time, so that hidden activations stay in the caches.

Whole hidden activations are written and read four times by a forward and backward pass, and memory that large comes
anew from the system each time, which costs as much as half of the products. Here it is written once.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CACHE_BYTES = 1 << 20  # of hidden activations, for each thread
# Measured: what memory costs shows where products are cheap, with few channels, and hidden activations large.
WORTH_BYTES = 8 << 20
WORTH_CHANNELS = 256


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `mlp` takes x [..., C] and is faster than plain layers, of which `weight` [hidden, C] is the first's."""
    if x.device.type != "cpu" or x.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if type(x) is not Tensor or type(weight) is not nn.Parameter or torch._C._are_functorch_transforms_active():
        return False
    hidden_bytes = x.numel() // x.shape[-1] * weight.shape[0] * x.element_size()
    return x.shape[-1] <= WORTH_CHANNELS and hidden_bytes >= WORTH_BYTES


def mlp(x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    """Of x [..., C], with weights [hidden, C] and [C', hidden], GELU between them: [..., C'].

    All of one type. The backward pass keeps x and the hidden activations before GELU, and can't be differentiated.
    """
    out: Tensor = _ChunkedMlp.apply(x.flatten(0, -2), w_in, b_in, w_out, b_out)
    return out.unflatten(0, x.shape[:-1])


class _ChunkedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
        rows = _chunk(x, w_in)
        keep = any(ctx.needs_input_grad)
        hidden = x.new_empty(x.shape[0] if keep else rows, w_in.shape[0])
        out = x.new_empty(x.shape[0], w_out.shape[0])
        for i in range(0, x.shape[0], rows):
            part = x[i : i + rows]
            before = hidden[i : i + rows] if keep else hidden[: len(part)]
            torch.addmm(b_in, part, w_in.t(), out=before)
            torch.addmm(b_out, F.gelu(before), w_out.t(), out=out[i : i + rows])
        ctx.save_for_backward(x, hidden if keep else None, w_in, w_out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, w_in, w_out = ctx.saved_tensors
        by_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        by_w_in, by_w_out = torch.zeros_like(w_in), torch.zeros_like(w_out)
        by_b_in, by_b_out = w_in.new_zeros(w_in.shape[0]), w_out.new_zeros(w_out.shape[0])
        rows = _chunk(x, w_in)
        for i in range(0, x.shape[0], rows):
            part, before, by_out = x[i : i + rows], hidden[i : i + rows], gradient[i : i + rows].contiguous()
            by_w_out.addmm_(by_out.t(), F.gelu(before))
            by_b_out += by_out.sum(0)
            by_before = torch.ops.aten.gelu_backward(by_out @ w_out, before)
            by_w_in.addmm_(by_before.t(), part)
            by_b_in += by_before.sum(0)
            if by_x is not None:
                torch.mm(by_before, w_in, out=by_x[i : i + rows])
        return by_x, by_w_in, by_b_in, by_w_out, by_b_out


def _chunk(x: Tensor, w_in: Tensor) -> int:
    return max(256, CACHE_BYTES * torch.get_num_threads() // (w_in.shape[0] * x.element_size()))
