"""Attention within many short sequences by Triton: against float64 references, dense and by the pattern of offsets."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.processes import DEVICES, SLOW_DEVICES, interpreted
from tests.kernels.test_offsets import outcomes, packed, plan_of, reference
from tests.kernels.test_triton_offsets import bound_of, upstream_of
from tests.samples import first_quick
from videoattn.grid import Axis, TokenGrid, fold, split_calls
from videoattn.kernels import short
from videoattn.kernels.layout import empty_gradients, empty_outputs
from videoattn.kernels.triton.launch import supports_short
from videoattn.operators import AttentionSite, DenseAttention
from videoattn.profiling.operations import kernel_formulas

on_devices = pytest.mark.parametrize("device", DEVICES)
slowly_on_devices = pytest.mark.parametrize("device", SLOW_DEVICES)
# tokens of a sequence, heads, groups, head dimension: whole and broken tiles, a last tile that isn't full
SHAPES = [(1, 1, 3, 8), (8, 3, 5, 16), (12, 2, 5, 24), (7, 1, 2, 128), (32, 2, 2, 64), (33, 1, 2, 40), (64, 1, 1, 80)]


def given(n: int, sequences: int, dim: int, dtype: torch.dtype, device: str, rows: int = 2) -> Tensor:
    return packed(rows, n, sequences, dim, dtype).detach().to(device).requires_grad_()


def dense(x: Tensor) -> Tensor:
    mixed, _ = short.short_attention([x])
    return mixed


def check(attend, expect, x: Tensor) -> None:
    upstream, wide = upstream_of(None, [x]), x.detach().double().requires_grad_()
    found, expected = outcomes(attend, [x], upstream), outcomes(expect, [wide], upstream.double())
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == x.dtype
        # weights and their gradients are rounded to the dtype before they are multiplied, so twice the bound
        assert (a.double() - b).abs().max() <= 2 * bound_of(x.dtype) * b.abs().max().clamp(min=1)


def check_shape(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> None:
    n, heads, groups, dim = shape
    assert supports_short(dim, dtype, n)
    x = given(n, heads * groups, dim, dtype, device)
    check(dense, lambda y: F.scaled_dot_product_attention(*y.unbind(3)), x)
    plan = plan_of(TokenGrid(n, 1, 1), heads=heads).to(device)
    for zero_logit in (False, True):
        check(
            lambda y, z=zero_logit: plan.attend([y], z),
            lambda y, z=zero_logit: reference(plan, *y.unbind(3), z),
            x.detach().requires_grad_(),
        )


# the interpreter multiplies no bfloat16
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", first_quick(SHAPES, 2))
@interpreted
def test_outputs_and_gradients_equal_a_dense_product(shape, dtype):
    if supports_short(shape[3], dtype, shape[0]):
        check_shape(shape, dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (8, 12, 196, 64), (24, 12, 49, 64), (64, 12, 49, 64)])
def test_a_gpu_computes_a_dense_product(shape, dtype):
    if supports_short(shape[3], dtype, shape[0]):
        check_shape(shape, dtype, "cuda")


@slowly_on_devices
@pytest.mark.parametrize("zero_logit", [False, True])
@interpreted
def test_both_kernels_for_offsets_compute_the_same(zero_logit, device):
    from videoattn.kernels.triton import offsets as triton_offsets
    from videoattn.kernels.triton import offsets_backward as triton_offsets_backward
    from videoattn.kernels.triton import short as triton_short

    plan, x = plan_of(TokenGrid(9, 1, 1), heads=2).to(device), given(9, 4, 16, torch.float32, device, rows=1).detach()
    views, tables, results = x.unbind(3), (plan.offsets, plan.counts, None, None, None), []
    for row_by_row in (True, False):
        (out, logsumexp), (gradient,) = empty_outputs([x]), empty_gradients([x])
        if row_by_row:
            triton_offsets.run_forward(views, tables, [9], 0, zero_logit, out, logsumexp)
            triton_offsets_backward.run_backward(
                views, tables, [9], 0, zero_logit, out, logsumexp, out.cos(), gradient.unbind(3)
            )
        else:
            triton_short.run_forward(views, out, logsumexp, *tables[:2], zero_logit)
            triton_short.run_backward(views, logsumexp, out.cos(), gradient.unbind(3), *tables[:2], zero_logit)
        results.append((out, logsumexp, gradient))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@on_devices
@interpreted
def test_sequences_along_time_are_read_in_place(device):
    grid, heads, dim = TokenGrid(6, 2, 3, 1), 2, 16
    stream = torch.randn(2, grid.tokens, heads * 3 * dim, generator=torch.Generator().manual_seed(0)).to(device)
    sequences = split_calls(fold(stream, grid, Axis.TIME).unflatten(3, (heads, -1)), Axis.TIME).unflatten(3, (3, -1))
    assert sequences.untyped_storage().data_ptr() == stream.untyped_storage().data_ptr()
    check(dense, lambda y: F.scaled_dot_product_attention(*y.unbind(3)), sequences.detach().requires_grad_())


@pytest.mark.slow
@on_devices
@interpreted
def test_every_run_gives_the_same_bits_and_gradients_one_piece(device):
    x = given(12, 5, 16, torch.float32, device)
    first, second = (outcomes(dense, [x], upstream_of(None, [x])) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(a.transpose(1, 2).is_contiguous() for a in first)
    apart = [y.detach().requires_grad_() for y in x.unbind(3)]
    separate = outcomes(lambda *y: short.short_attention(y)[0], apart, upstream_of(None, [x]))
    assert torch.equal(first[0], separate[0]) and torch.equal(first[1], torch.stack(separate[1:], dim=3))


@on_devices
@interpreted
def test_an_empty_batch_and_strides_of_any_kind_are_no_problem(device):
    empty = given(8, 3, 16, torch.float32, device, rows=0)
    out, gradient = outcomes(dense, [empty], upstream_of(None, [empty]))
    assert out.shape == (0, 3, 8, 16) and gradient.shape == empty.shape
    q, k, v = given(8, 3, 16, torch.float32, device).detach().unbind(3)
    across = q.transpose(2, 3).contiguous().transpose(2, 3)  # the last dimension is not contiguous
    expected, _ = short.short_attention([q, k, v])
    assert torch.equal(short.short_attention([across, k.contiguous(), v])[0], expected)


@on_devices
@interpreted
def test_the_operation_is_registered_in_full_and_counted(device):
    x = given(8, 2, 16, torch.float32, device)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(short.short_attention, ([x],), test_utils=tests)
    with FlopCounterMode(display=False) as counter:
        dense(x).sum().backward()
    counts, macs = (
        counter.get_flop_counts()["Global"],
        2 * (2 * 2) * 8 * 8 * 16,
    )  # two products, two rows, two sequences
    assert counts[torch.ops.videoattn.short_attention] == 2 * macs
    assert counts[torch.ops.videoattn.short_attention_backward] == 5 * macs
    formula = kernel_formulas()["videoattn::short_attention"]
    assert formula([[(2, 2, 8, 3, 16)]], [(2, 2, 8, 16), (2, 2, 8)]) == macs


def test_dense_attention_on_a_cpu_is_torchs_packed_or_not():
    grid = TokenGrid(8, 1, 1)
    operator, x = DenseAttention(AttentionSite(grid, grid, 3, 16, 0)), given(8, 6, 16, torch.float32, "cpu").detach()
    expected = F.scaled_dot_product_attention(*x.unbind(3))
    assert torch.equal(operator(x), expected) and torch.equal(operator(*x.unbind(3)), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_dense_attention_on_a_gpu_takes_the_kernel_for_short_sequences(compiled):
    grid = TokenGrid(8, 1, 1)
    operator = DenseAttention(AttentionSite(grid, grid, 3, 16, 0))
    x = given(8, 6, 16, torch.float16, "cuda")
    run = torch.compile(operator, fullgraph=True) if compiled else operator
    with torch.profiler.profile() as profiler:
        check(run, lambda y: F.scaled_dot_product_attention(*y.unbind(3)), x)
    taken = [event.name for event in profiler.events() if event.name.startswith("videoattn::")]
    assert {"videoattn::short_attention", "videoattn::short_attention_backward"} <= set(taken)
    bias = torch.zeros(1, 1, 8, 8, device="cuda", dtype=torch.float16)
    q, k, v = x.detach().unbind(3)
    torch.testing.assert_close(operator(q, k, v, bias), operator(q, k, v), rtol=1e-2, atol=1e-2)


def test_few_tokens_of_narrow_heads_are_short():
    assert supports_short(64, torch.bfloat16, 64) and supports_short(128, torch.float16, 8)
    for dim, dtype, n in (
        (64, torch.bfloat16, 65),
        (64, torch.float32, 33),
        (129, torch.float16, 8),
        (96, torch.float32, 8),
        (64, torch.float64, 8),
    ):
        assert not supports_short(dim, dtype, n)
