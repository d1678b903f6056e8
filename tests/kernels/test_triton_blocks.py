"""Attention between blocks of positions by Triton: against a float64 reference, and by what it promises.

On a GPU where there is one, else in Triton's interpreter, which is exact but says nothing of speed.
"""

import random
from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.kernels.processes import DEVICES, SLOW_DEVICES, interpreted
from tests.kernels.test_offsets import outcomes, packed, plan_of
from tests.kernels.test_triton_offsets import bound_of, dense_by, upstream_of
from tests.samples import first_quick
from videoattn.grid import TokenGrid
from videoattn.kernels.triton import launch as triton_launch
from videoattn.operators import AttentionSite, FibonacciAttention
from videoattn.operators.fibonacci import operator as fibonacci

on_devices = pytest.mark.parametrize("device", DEVICES)
slowly_on_devices = pytest.mark.parametrize("device", SLOW_DEVICES)
# grid, heads of the pattern, groups, head dimension, order, whether q, k and v are one tensor, semantics: blocks that
# are whole and cut short, no block whole, fewer and more prefix tokens than a block has
SHAPES = [
    (TokenGrid(1, 7, 7, 1), 2, 1, 16, "thw", True, False),
    (TokenGrid(2, 3, 7, 2), 1, 2, 24, "hwt", False, True),
    (TokenGrid(3, 5, 4, 1), 1, 1, 64, "hwt", True, False),
    (TokenGrid(1, 1, 5, 17), 1, 1, 16, "thw", False, True),
    (TokenGrid(1, 6, 8, 0), 3, 1, 16, "thw", True, True),
]


def tensors_of(grid: TokenGrid, heads: int, dim: int, dtype: torch.dtype, in_one: bool, device: str) -> list[Tensor]:
    x = packed(1, grid.tokens, heads, dim, dtype).detach().to(device)
    return [y.requires_grad_() for y in ((x,) if in_one else x.unbind(3))]


def check(shape, dtype: torch.dtype, device: str) -> None:
    grid, heads, groups, dim, order, in_one, zero_logit = shape
    plan = plan_of(grid, heads=heads, order=order, block=16).to(device)
    tensors = tensors_of(grid, groups * heads, dim, dtype, in_one, device)
    upstream, wide = upstream_of(plan, tensors), [x.detach().double().requires_grad_() for x in tensors]
    found = outcomes(lambda *given: plan.attend(given, zero_logit), tensors, upstream)
    expected = outcomes(dense_by(plan, zero_logit), wide, upstream.double())
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == dtype
        # weights and their gradients are rounded to the dtype before they are multiplied, so twice the bound
        error, bound = (x.double() - y).abs().max(), 2 * bound_of(dtype) * y.abs().max().clamp(min=1)
        assert error <= bound, f"{error} > {bound}"


def draw_shape(seed: int):
    rng = random.Random(seed)
    grid = TokenGrid(rng.choice((1, 3)), rng.choice((3, 5)), rng.choice((2, 11, 16)), rng.choice((0, 1, 2, 17)))
    return (
        grid, rng.choice((1, 3)), rng.choice((1, 2)), rng.choice((8, 16, 24, 64, 96, 128)),
        rng.choice(("thw", "hwt")), rng.random() < 0.5, rng.random() < 0.5,
    )  # fmt: skip


@pytest.mark.parametrize("shape", first_quick(SHAPES, 2), ids=str)
@interpreted
def test_outputs_and_gradients_equal_a_dense_product_under_the_mask(shape):
    dtype = torch.float32 if SHAPES.index(shape) % 2 else torch.float16
    check(shape, dtype, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter multiplies no bfloat16
@pytest.mark.parametrize("seed", range(16))
@interpreted
def test_outputs_and_gradients_equal_a_dense_product_for_any_grid(seed, dtype):
    check(draw_shape(seed), dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, *map(draw_shape, range(16)), (TokenGrid(8, 14, 14, 1), *SHAPES[1][1:])])
def test_a_gpu_computes_a_dense_product_under_the_mask(shape, dtype):
    check(shape, dtype, "cuda")


@pytest.mark.slow
@on_devices
@interpreted
def test_every_run_gives_the_same_bits_and_gradients_one_piece(device):
    grid = TokenGrid(1, 4, 5, 1)
    plan = plan_of(grid, heads=1, block=16).to(device)
    x, apart = (tensors_of(grid, 1, 24, torch.float32, in_one, device) for in_one in (True, False))
    upstream = upstream_of(plan, x)
    first, second, separate = (
        outcomes(lambda *given: plan.attend(given, True), given, upstream) for given in (x, x, apart)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(a.transpose(1, 2).is_contiguous() for a in first)
    assert torch.equal(first[0], separate[0]) and torch.equal(first[1], torch.stack(separate[1:], dim=3))


@slowly_on_devices
@interpreted
def test_several_programs_may_share_the_keys_of_a_prefix_token(device):
    with patch.object(triton_launch, "WALK", 7):
        check((TokenGrid(1, 3, 6, 2), 1, 1, 16, "thw", True, True), torch.float32, device)


@slowly_on_devices
@interpreted
def test_tokens_far_apart_in_memory_are_found_by_wider_numbers(device):
    import triton.language as tl

    from videoattn.kernels.triton import blocks as triton_blocks
    from videoattn.kernels.triton import blocks_backward as triton_blocks_backward

    with ExitStack() as stack:
        for module in (triton_blocks, triton_blocks_backward):
            stack.enter_context(patch.object(module, "index_type", lambda *views: tl.int64))
        check((TokenGrid(2, 3, 3, 1), 1, 1, 16, "hwt", True, False), torch.float32, device)


@slowly_on_devices
@pytest.mark.parametrize("zero_logit", [False, True])
@interpreted
def test_large_logits_neither_overflow_nor_vanish(zero_logit, device):
    grid, size = TokenGrid(1, 4, 5), 1e4
    plan = plan_of(grid, heads=1, block=16).to(device)
    x = (size * tensors_of(grid, 1, 8, torch.float32, True, device)[0].detach()).requires_grad_()
    wide = x.detach().double().requires_grad_()
    upstream = upstream_of(plan, [x])
    found = outcomes(lambda given: plan.attend([given], zero_logit), [x], upstream)
    expected = outcomes(dense_by(plan, zero_logit), [wide], upstream.double())
    assert all(result.isfinite().all() for result in found)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=0, atol=2e-5 * size)


@on_devices
@interpreted
def test_an_empty_batch_is_no_problem(device):
    grid = TokenGrid(2, 3, 4, 1)
    plan, x = plan_of(grid, block=16).to(device), packed(0, grid.tokens, 3, 16).detach().to(device).requires_grad_()
    out, gradient = outcomes(lambda given: plan.attend([given]), [x], upstream_of(plan, [x]))
    assert out.shape == (0, 3, grid.tokens, 16) and gradient.shape == x.shape


@interpreted
def test_inputs_beyond_the_kernel_are_refused():
    grid = TokenGrid(1, 4, 5, 1)
    for block, dim, dtype in ((5, 16, torch.float32), (16, 136, torch.float32), (16, 16, torch.float64)):
        with pytest.raises(ValueError, match=f"got blocks of {block}, heads of {dim} and {dtype}"):
            plan_of(grid, block=block).attend([packed(1, grid.tokens, 3, dim, dtype).detach()])
    plan, q = plan_of(grid, kv=TokenGrid(1, 2, 3, 1), block=16), packed(1, 21, 3, 16).detach()[..., 0, :]
    with pytest.raises(ValueError, match="on one grid alone, got 21 queries and 7 keys"):
        plan.attend([q, q[:, :, :7], q[:, :, :7]])


def test_a_gpu_takes_blocks_of_one_grid_and_of_the_dtypes_of_tensor_cores(monkeypatch):
    monkeypatch.setattr(fibonacci, "has_kernel", lambda kind: True)
    grid = TokenGrid(2, 6, 6, 1)
    same = FibonacciAttention(AttentionSite(grid, grid, 3, 16, 0), geometry="block")
    pooled = FibonacciAttention(AttentionSite(grid, TokenGrid(2, 3, 3, 1), 3, 16, 0), geometry="block")
    raster = FibonacciAttention(AttentionSite(grid, TokenGrid(2, 3, 3, 1), 3, 16, 0))
    assert [x.kernels for x in (same, pooled, raster)] == [{"cpu", "cuda"}, {"cpu"}, {"cpu", "cuda"}]
    with FakeTensorMode():
        taken = {
            dtype: same._choose(torch.empty(1, 3, grid.tokens, 3, 16, device="cuda", dtype=dtype), None, None)
            for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
        }
    assert taken.pop(torch.float64) == "masked" and set(taken.values()) == {"compiled"}


@pytest.mark.gpu
@pytest.mark.parametrize("order", ["thw", "hwt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_auto_takes_the_kernel_on_a_gpu_and_keeps_no_mask(order, dtype):
    grid = TokenGrid(4, 7, 5, 1)
    at = AttentionSite(grid, grid, 3, 32, 0)
    x = packed(2, grid.tokens, 6, 32, dtype).detach().cuda()
    auto, masked = (
        FibonacciAttention(at, geometry="block", order=order, implementation=name).cuda() for name in ("auto", "masked")
    )
    mixed, expected = auto(x), masked(x.double())
    assert (auto.keep is None) == (dtype is not torch.float64) and mixed.dtype is dtype
    assert (mixed.double() - expected).abs().max() <= 4 * bound_of(dtype) * expected.abs().max()
