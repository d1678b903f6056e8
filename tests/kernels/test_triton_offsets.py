"""Attention over constant offsets by Triton: a float64 reference over a random sweep, and promised properties.

On a GPU where there is one, else in Triton's interpreter, which is exact but says nothing of speed.
"""

from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tests.kernels.processes import DEVICES, SLOW_DEVICES, interpreted
from tests.kernels.test_offsets import draw, outcomes, packed, plan_of, reference
from videoattn.grid import TokenGrid
from videoattn.kernels import offsets
from videoattn.kernels.offsets import has_kernel, offset_attention
from videoattn.kernels.triton import launch as triton_launch
from videoattn.operators import AttentionSite, FibonacciAttention

on_devices = pytest.mark.parametrize("device", DEVICES)
slowly_on_devices = pytest.mark.parametrize("device", SLOW_DEVICES)
ALL_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# quick seeds of `draw`: equal and unequal grids, raster and axial, both orders and semantics; the others are slow
QUICK = {22: torch.float32, 16: torch.float32, 24: torch.bfloat16}


def inputs(seed: int, dtype: torch.dtype, device: str) -> tuple[list[Tensor], bool]:
    shape, dim, rows, zero_logit = draw(seed)
    heads = (1 + seed % 2) * shape["heads"]
    if shape["kv"] == shape["grid"] and seed % 3:
        tensors = [packed(rows, shape["grid"].tokens, heads, dim, dtype)]
    else:
        tensors = [
            packed(rows, grid.tokens, heads, dim, dtype, seed=i)[..., i, :]
            for i, grid in enumerate((shape["grid"], shape["kv"], shape["kv"]))
        ]
    return [x.detach().to(device).requires_grad_() for x in tensors], zero_logit


def dense_by(plan, zero_logit: bool):
    return lambda *x: reference(plan, *(x[0].unbind(3) if len(x) == 1 else x), zero_logit)


def bound_of(dtype: torch.dtype) -> float:
    """Inputs are the same rounded numbers; sums are formed in float32 or float64, outputs rounded to the dtype."""
    computing = torch.promote_types(dtype, torch.float32)
    return 2 * torch.finfo(dtype).eps + 16 * torch.finfo(computing).eps


def check_against_reference(seed: int, dtype: torch.dtype, device: str) -> None:
    plan = plan_of(**draw(seed)[0] | {"block": 1}).to(device)
    tensors, zero_logit = inputs(seed, dtype, device)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    found = outcomes(lambda *given: plan.attend(given, zero_logit), tensors, upstream_of(plan, tensors))
    expected = outcomes(dense_by(plan, zero_logit), wide, upstream_of(plan, tensors).double())
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == dtype
        error, bound = (x.double() - y).abs().max(), bound_of(dtype) * y.abs().max().clamp(min=1)
        assert error <= bound, f"{error} > {bound}"


def upstream_of(plan, tensors: list[Tensor]) -> Tensor:
    q = tensors[0] if len(tensors) == 3 else tensors[0][..., 0, :]
    return torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(q)


@pytest.mark.parametrize("seed", QUICK)
@interpreted
def test_outputs_and_gradients_equal_a_dense_product_under_the_mask(seed):
    check_against_reference(seed, QUICK[seed], "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
@interpreted
def test_outputs_and_gradients_equal_a_dense_product_for_any_grid(seed):
    dtype, grid = ALL_TYPES[(seed + seed // 4) % 4], draw(seed)[0]["grid"]
    if dtype is torch.bfloat16 and grid.tokens <= 64 and grid.prefix == 0:
        dtype = torch.float16  # the interpreter multiplies matrices of bfloat16 wrongly
    check_against_reference(seed, dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_TYPES)
@pytest.mark.parametrize("seed", range(40))
def test_a_gpu_computes_a_dense_product_under_the_mask(seed, dtype):
    check_against_reference(seed, dtype, "cuda")


@slowly_on_devices
@pytest.mark.parametrize(
    "shape",
    [{}, *(pytest.param(shape, marks=pytest.mark.slow) for shape in ({"axial": True}, {"kv": TokenGrid(2, 1, 1, 1)}))],
)
@pytest.mark.parametrize("zero_logit", [False, True])
@interpreted
def test_gradients_are_those_of_the_function_that_is_computed(shape, zero_logit, device):
    grid = TokenGrid(2, 1, 3, 1)
    plan, kv = plan_of(grid, heads=1, **shape).to(device), shape.get("kv", grid)
    tensors = [
        packed(1, tokens, 1, 4, torch.float64, seed=i)[..., i, :].detach().to(device).requires_grad_()
        for i, tokens in enumerate((grid.tokens, kv.tokens, kv.tokens))
    ]
    assert torch.autograd.gradcheck(lambda *x: plan.attend(x, zero_logit), tensors, fast_mode=True)


@pytest.mark.slow
@on_devices
@pytest.mark.parametrize("zero_logit", [False, True])
@interpreted
def test_every_run_gives_the_same_bits(zero_logit, device):
    plan = plan_of(TokenGrid(1, 3, 11, 1)).to(device)
    x = packed(2, 34, 3, 24).detach().to(device).requires_grad_()
    first, second = (
        outcomes(lambda given: plan.attend([given], zero_logit), [x], upstream_of(plan, [x])) for _ in "12"
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@slowly_on_devices
@pytest.mark.parametrize("seed", [10, pytest.param(35, marks=pytest.mark.slow)])
@interpreted
def test_several_programs_may_share_the_keys_of_a_prefix_token(seed, device):
    with patch.object(triton_launch, "WALK", 7):
        check_against_reference(seed, torch.float32, device)


@slowly_on_devices
@interpreted
def test_tokens_far_apart_in_memory_are_found_by_wider_numbers(device):
    import triton.language as tl

    from videoattn.kernels.triton import background as triton_background
    from videoattn.kernels.triton import offsets as triton_offsets
    from videoattn.kernels.triton import offsets_backward as triton_offsets_backward
    from videoattn.kernels.triton.arguments import index_type

    near = torch.empty(1, 1, 7, 8, device="meta")
    far = near.as_strided((1, 1, 7, 8), (0, 0, 2**31 // 7 + 1, 1))
    assert index_type(near, near) == tl.int32 and index_type(near, far) == tl.int64
    modules = (triton_offsets, triton_offsets_backward, triton_background)
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(patch.object(module, "index_type", lambda *views: tl.int64))
        check_against_reference(10, torch.float32, device)


@slowly_on_devices
@interpreted
def test_a_projection_gets_its_gradient_in_one_piece(device):
    plan = plan_of(TokenGrid(1, 2, 3, 1), heads=2).to(device)
    x = packed(1, 7, 2, 16).detach().to(device).requires_grad_()
    upstream = upstream_of(plan, [x])
    out, gradient = outcomes(lambda given: plan.attend([given]), [x], upstream)
    assert out.transpose(1, 2).is_contiguous() and gradient.transpose(1, 2).is_contiguous()
    apart = [y.detach().requires_grad_() for y in x.unbind(3)]
    separate = outcomes(lambda *given: plan.attend(given), apart, upstream)
    assert torch.equal(out, separate[0]) and torch.equal(gradient, torch.stack(separate[1:], dim=3))


@slowly_on_devices
@interpreted
def test_strides_of_any_kind_are_read(device):
    plan = plan_of(TokenGrid(1, 2, 3, 1), heads=1).to(device)
    q, k, v = (y.to(device) for y in packed(2, 7, 1, 16).detach().unbind(3))
    expected = plan.attend([q, k, v])
    across = q.transpose(2, 3).contiguous().transpose(2, 3)  # the last dimension is not contiguous
    assert torch.equal(plan.attend([across, k.contiguous(), v]), expected)
    one_row = k[:1].expand(2, -1, -1, -1)
    assert torch.equal(plan.attend([q, one_row, v]), plan.attend([q, one_row.clone(), v]))
    given = [y.clone().requires_grad_() for y in (q, k, v)]
    sums = outcomes(lambda *x: plan.attend(x), given, torch.ones((), device=device).expand(2, 1, 7, 16))
    ones = outcomes(lambda *x: plan.attend(x), given, torch.ones(2, 1, 7, 16, device=device))
    assert all(torch.equal(a, b) for a, b in zip(sums, ones, strict=True))


@on_devices
@interpreted
def test_an_empty_batch_is_no_problem(device):
    for grid in (TokenGrid(2, 3, 4, 1), TokenGrid(4, 1, 1)):
        plan, x = plan_of(grid).to(device), packed(0, grid.tokens, 3, 8).detach().to(device).requires_grad_()
        out, gradient = outcomes(lambda given, plan=plan: plan.attend([given]), [x], upstream_of(plan, [x]))
        assert out.shape == (0, 3, grid.tokens, 8) and gradient.shape == x.shape


@slowly_on_devices
@pytest.mark.parametrize("zero_logit", [False, True])
@pytest.mark.parametrize("size", [0.0, 30.0, 1e4])
@interpreted
def test_large_logits_neither_overflow_nor_vanish(size, zero_logit, device):
    plan, x = plan_of(TokenGrid(2, 2, 3, 1), heads=1).to(device), packed(1, 13, 1, 8).detach().to(device)
    big = (size * x).requires_grad_()
    wide = big.detach().double().requires_grad_()
    found = outcomes(lambda given: plan.attend([given], zero_logit), [big], upstream_of(plan, [x]))
    expected = outcomes(dense_by(plan, zero_logit), [wide], upstream_of(plan, [x]).double())
    assert all(result.isfinite().all() for result in found)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=0, atol=2e-5 * max(size, 1))


@interpreted
def test_tensors_that_do_not_fit_the_plan_are_refused():
    plan, x = plan_of(TokenGrid(1, 4, 5, 1)), packed(1, 21, 3, 8).detach()
    q, k, v = x.unbind(3)
    for wrong in ([q, k[:, :, 1:], v], [q, k, v[..., :4]], [q[:, :1], k, v], [y[:, :2] for y in (q, k, v)]):
        with pytest.raises(ValueError, match="20 keys and 1 prefix tokens"):
            plan.attend(wrong)
    with pytest.raises(ValueError, match="float64"):
        plan.attend([q, k.double(), v])
    with pytest.raises(ValueError, match="int32"):
        plan.attend([x.int()])


@on_devices
@interpreted
def test_the_operation_is_registered_in_full(device):
    plan = plan_of(TokenGrid(1, 2, 3, 1)).to(device)
    given = [packed(1, 7, 3, 8, torch.float64).detach().to(device).requires_grad_()]
    tables = (plan.offsets, plan.counts, plan.starts, plan.queries, plan.keys)
    torch.library.opcheck(
        offset_attention, (given, *tables, list(plan.lengths), plan.prefix, plan.block, False, plan.num_pairs),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("grid", [TokenGrid(8, 7, 7, 1), TokenGrid(16, 1, 1)])
def test_a_compiled_module_computes_the_same(grid):
    plan = plan_of(grid).cuda()
    x = packed(2, grid.tokens, 3, 32).detach().cuda().requires_grad_()
    compiled = torch.compile(lambda given: plan.attend([given]) * 2, fullgraph=True)
    found = outcomes(compiled, [x], upstream_of(plan, [x]))
    expected = outcomes(lambda given: plan.attend([given]) * 2, [x], upstream_of(plan, [x]))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("grid", [TokenGrid(4, 7, 5, 1), TokenGrid(8, 1, 1)])
@pytest.mark.parametrize("dtype", ALL_TYPES)
def test_auto_takes_the_kernel_on_a_gpu_and_keeps_no_mask(grid, dtype):
    at = AttentionSite(grid, grid, 3, 32, 0)
    x = packed(2, grid.tokens, 6, 32, dtype).detach().cuda()
    auto, masked = (FibonacciAttention(at, implementation=name).cuda() for name in ("auto", "masked"))
    mixed, expected = auto(x), masked(x.double())
    assert auto.keep is None and mixed.dtype is dtype
    assert (mixed.double() - expected).abs().max() <= 2 * bound_of(dtype) * expected.abs().max()


@pytest.mark.parametrize(("version", "serves"), [("3.9.0", True), ("3.3.1+git12", True), ("3.2.0", False)])
def test_a_gpu_needs_triton_of_a_certain_age_and_a_cpu_a_compiler(monkeypatch, version, serves):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    monkeypatch.setattr(offsets, "is_compiled", lambda: False)
    monkeypatch.setattr(offsets, "has_triton", offsets.has_triton.__wrapped__)
    assert [has_kernel(kind) for kind in ("cpu", "cuda", "mps")] == [False, serves, False]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(offsets, "is_compiled", lambda: True)
    assert [has_kernel(kind) for kind in ("cpu", "cuda", "mps")] == [True, False, False]
