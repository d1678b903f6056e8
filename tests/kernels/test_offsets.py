"""Compiled attention over constant offsets: a float64 reference over a random sweep, and promised properties."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from videoattn.grid import TokenGrid, cells_under
from videoattn.kernels.offset_plan import OffsetPlan
from videoattn.kernels.offsets import is_compiled, offset_attention
from videoattn.operators.fibonacci.sets import offset_sets, raster_positions

needs_kernel = pytest.mark.skipif(not is_compiled(), reason="no C++ compiler on this machine")


def plan_of(grid: TokenGrid, kv: TokenGrid | None = None, heads: int = 3, order: str = "thw", axial=False, block=1):
    kv = kv or grid
    cells = [cells_under(g, kv) for g in (grid, kv)]
    lengths = [kv.t, kv.h, kv.w] if axial else [kv.patches]
    if not axial:
        cells = [raster_positions(x, kv, order) for x in cells]
    offsets = [offset_sets(-(-n // block), heads, "modified", True) for n in lengths]
    return OffsetPlan(*cells, lengths, offsets, grid.prefix, block)


def reference(plan: OffsetPlan, q: Tensor, k: Tensor, v: Tensor, zero_logit: bool) -> Tensor:
    """A masked dense product in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    rows = plan.mask(0, plan.num_queries)
    mask = torch.cat([rows.new_ones(len(rows), plan.prefix, rows.shape[-1]), rows], dim=1)
    logits = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).unflatten(1, (-1, len(mask)))
    return logits.masked_fill(~mask, 0.0 if zero_logit else -torch.inf).softmax(-1).flatten(1, 2) @ v


def packed(rows: int, tokens: int, heads: int, dim: int, dtype=torch.float32, seed: int = 0) -> Tensor:
    """Return random q, k and v, laid out as a projection writes them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, tokens, heads, 3, dim, generator=generator, dtype=torch.float64).to(dtype)
    return x.transpose(1, 2).requires_grad_()


def outcomes(attend, tensors: list[Tensor], upstream: Tensor | None = None) -> list[Tensor]:
    out = attend(*tensors)
    if upstream is None:
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out, *torch.autograd.grad(out, tensors, upstream.to(out.dtype))]


def draw(seed: int):
    """Sizes of a problem: odd lengths, prime grids, one head, any head dimension."""
    rng = random.Random(seed)
    prefix = rng.choice((0, 1, 2))
    grid = TokenGrid(rng.choice((1, 2, 5)), rng.choice((1, 3, 7)), rng.choice((2, 5, 11)), prefix)
    pooled = TokenGrid(grid.t, (grid.h + 1) // 2, (grid.w + 1) // 2, prefix)
    axial = rng.random() < 0.3
    return {
        "grid": grid,
        "kv": rng.choice((grid, pooled)),
        "heads": rng.choice((1, 3, 4)),
        "order": rng.choice(("thw", "hwt")),
        "axial": axial,
        "block": 1 if axial else random.Random(-seed - 1).choice((1, 1, 5, 16)),
    }, rng.choice((8, 12, 16, 24, 32, 40, 64, 80, 96, 128)), rng.choice((1, 2)), rng.random() < 0.4  # fmt: skip


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(40))
def test_outputs_and_gradients_equal_a_dense_product_under_the_mask(seed, dtype):
    shape, dim, rows, zero_logit = draw(seed)
    plan, groups = plan_of(**shape), 1 + seed % 2
    heads = groups * shape["heads"]
    if shape["kv"] == shape["grid"] and seed % 3:
        tensors = [packed(rows, shape["grid"].tokens, heads, dim, dtype)]
    else:
        grids = (shape["grid"], shape["kv"], shape["kv"])
        tensors = [
            packed(rows, grid.tokens, heads, dim, dtype, seed=i)[..., i, :].detach().requires_grad_()
            for i, grid in enumerate(grids)
        ]
    wide = [x.detach().double().requires_grad_() for x in tensors]

    def dense(*given):
        return reference(plan, *(given[0].unbind(3) if len(given) == 1 else given), zero_logit)

    found = outcomes(lambda *given: plan.attend(given, zero_logit), tensors)
    upstream = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = outcomes(dense, wide, upstream.to(dtype).double())
    # inputs are the same rounded numbers; sums are formed in float32, outputs and what is saved of them are rounded
    bound = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == dtype
        assert (x.double() - y).abs().max() <= bound * y.abs().max().clamp(min=1)


@needs_kernel
@pytest.mark.parametrize("zero_logit", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("block", [1, 16])
def test_any_number_of_threads_gives_the_same_bits_every_time(rows, zero_logit, block):
    """300 tokens of one head: with more threads than heads, each head is taken in parts."""
    plan, tensors = plan_of(TokenGrid(3, 10, 10, 1), heads=1, block=block), [packed(rows, 301, 1, 24)]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 1, 2, 5):
            torch.set_num_threads(threads)
            results.append(outcomes(lambda x: plan.attend([x], zero_logit), tensors))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], result, strict=True))


@needs_kernel
def test_a_projection_gets_its_gradient_in_one_piece():
    plan, x = plan_of(TokenGrid(1, 5, 5, 1)), packed(2, 26, 3, 16)
    out, gradient = outcomes(lambda given: plan.attend([given]), [x])
    assert out.transpose(1, 2).is_contiguous() and gradient.transpose(1, 2).is_contiguous()
    separate = outcomes(lambda *given: plan.attend(given), [y.detach().requires_grad_() for y in x.unbind(3)])
    torch.testing.assert_close(out, separate[0], rtol=0, atol=0)
    torch.testing.assert_close(gradient, torch.stack(separate[1:], dim=3), rtol=0, atol=0)


@needs_kernel
def test_strides_of_any_kind_are_read():
    plan, (q, k, v) = plan_of(TokenGrid(1, 4, 5)), packed(2, 20, 3, 16).detach().unbind(3)
    expected = plan.attend([q, k, v])
    reversed_dims = q.transpose(2, 3).contiguous().transpose(2, 3)  # the last dimension is not contiguous
    torch.testing.assert_close(plan.attend([reversed_dims, k.contiguous(), v]), expected, rtol=0, atol=0)
    one_row = k[:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(plan.attend([q, one_row, v]), plan.attend([q, one_row.clone(), v]), rtol=0, atol=0)
    x = packed(2, 20, 3, 16)
    sums = outcomes(lambda given: plan.attend([given]), [x], torch.ones(()).expand(2, 3, 20, 16))
    torch.testing.assert_close(sums[1], outcomes(lambda g: plan.attend([g]), [x], torch.ones(2, 3, 20, 16))[1])


@needs_kernel
def test_an_empty_batch_is_no_problem():
    plan, x = plan_of(TokenGrid(2, 3, 4, 1)), packed(0, 25, 3, 8)
    out, gradient = outcomes(lambda given: plan.attend([given]), [x])
    assert out.shape == (0, 3, 25, 8) and gradient.shape == x.shape


@needs_kernel
@pytest.mark.parametrize("zero_logit", [False, True])
@pytest.mark.parametrize("size", [0.0, 30.0, 1e4])
def test_large_logits_neither_overflow_nor_vanish(size, zero_logit):
    plan, x = plan_of(TokenGrid(2, 3, 4, 1)), packed(2, 25, 3, 8)
    big = (size * x.detach()).requires_grad_()
    wide = big.detach().double().requires_grad_()
    found = outcomes(lambda given: plan.attend([given], zero_logit), [big])
    expected = outcomes(lambda given: reference(plan, *given.unbind(3), zero_logit), [wide])
    assert all(result.isfinite().all() for result in found)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=0, atol=2e-5 * max(size, 1))


@needs_kernel
def test_tensors_that_do_not_fit_the_plan_are_refused():
    plan, x = plan_of(TokenGrid(1, 4, 5, 1)), packed(1, 21, 3, 8).detach()
    q, k, v = x.unbind(3)
    two_heads = [y[:, :2] for y in (q, k, v)]
    for wrong in ([q, k[:, :, 1:], v], [q, k, v[..., :4]], [q[:, :1], k, v], [q[..., :4], k, v], two_heads):
        with pytest.raises(ValueError, match="20 keys and 1 prefix tokens"):
            plan.attend(wrong)
    with pytest.raises(ValueError, match="float16"):
        plan.attend([x.half()])
    with pytest.raises(ValueError, match="float64"):
        plan.attend([q, k.double(), v])


@needs_kernel
@pytest.mark.parametrize("tensors", [1, 3])
def test_the_operation_is_registered_in_full(tensors):
    plan, x = plan_of(TokenGrid(2, 2, 3, 1)), packed(2, 13, 3, 8, torch.float64)
    given = [x] if tensors == 1 else [y.detach().requires_grad_() for y in x.unbind(3)]
    tables = (plan.offsets, plan.counts, plan.starts, plan.queries, plan.keys)
    torch.library.opcheck(
        offset_attention, (given, *tables, list(plan.lengths), plan.prefix, plan.block, False, plan.num_pairs),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip


@needs_kernel
def test_torch_counts_the_attending_pairs():
    plan, x = plan_of(TokenGrid(2, 3, 4, 1)), packed(2, 25, 6, 8)  # two groups of the plan's three heads
    pairs = int(plan.mask(0, plan.num_queries).sum()) + 3 * 25
    assert plan.num_pairs == pairs
    with FlopCounterMode(display=False) as counter:
        plan.attend([x]).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    forward = 2 * (2 * 2) * (2 * 8 * pairs)  # two products in each of two rows and two groups
    assert counts[torch.ops.videoattn.offset_attention] == forward
    assert counts[torch.ops.videoattn.offset_attention_backward] == 2.5 * forward


def test_blocks_of_several_axes_are_refused():
    with pytest.raises(ValueError, match="blocks of 4 positions need a raster of one axis"):
        plan_of(TokenGrid(2, 3, 4), axial=True, block=4)


def test_the_mask_of_some_queries_is_a_part_of_the_whole():
    grid = TokenGrid(3, 4, 5, 2)
    for shape in ({}, {"order": "hwt"}, {"axial": True}, {"kv": TokenGrid(3, 2, 3, 2)}):
        plan = plan_of(grid, **shape)
        whole = plan.mask(0, 60)
        assert torch.equal(plan.mask(7, 31), whole[:, 7:31])
        assert int(whole.sum(-1).min()) == plan.fewest_keys > 0 and whole[..., :2].all()
        assert int(whole.sum()) + whole.shape[0] * 2 * whole.shape[-1] == plan.num_pairs and plan.keyless is None


def test_a_query_without_a_key_is_named():
    cells = np.arange(5)[:, None]
    plan = OffsetPlan(
        cells,
        cells,
        [5],
        [
            [[0], [1, 4]],
        ],
        0,
    )
    assert plan.keyless is None and plan.fewest_keys == 1
    plan = OffsetPlan(cells, cells, [5], [[[0], [3]]], 0)
    assert plan.keyless == (1, 2) and plan.fewest_keys == 0
