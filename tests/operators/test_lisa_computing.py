"""Laws of the ways to compute LiSA: in batches, in every type, at a known cost, on the meta device."""

import itertools
import math

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from tests.operators.lisa_cases import EQUAL, HEADS, METHODS, POOLED, D, L, build, qkv, with_prefix
from tests.samples import first_quick, sampled
from videoattn.grid import TokenGrid
from videoattn.operators import AttentionSite
from videoattn.operators.lisa.operator import EPS, LisaAttention
from videoattn.operators.lisa.toeplitz import table_macs
from videoattn.profiling.operations import build_handles

# ---- batches, types, size of numbers


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grids", [EQUAL, POOLED], ids=["equal", "pooled"])
def test_rows_and_groups_are_calls_of_their_own(grids, method):
    operator = build(*with_prefix(grids, 1), method=method, start=False)
    q, k, v = qkv(operator, rows=3, groups=2)
    whole = operator(q, k, v)
    for row, group in itertools.product(range(3), range(2)):
        at = (slice(row, row + 1), slice(group * HEADS, (group + 1) * HEADS))
        torch.testing.assert_close(operator(q[at], k[at], v[at]), whole[at], rtol=0, atol=1e-12)


def test_strided_views_of_a_packed_projection_give_the_same():
    operator = build(TokenGrid(2, 3, 5, 1), start=False)
    packed = torch.randn(2, 31, HEADS, 3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, k, v = packed.transpose(1, 2).unbind(3)
    assert not q.is_contiguous()
    torch.testing.assert_close(operator(q, k, v), operator(q.contiguous(), k.contiguous(), v.contiguous()))


INPUTS = {
    "zero": lambda x: torch.zeros_like(x),
    "equal": lambda x: torch.ones_like(x),
    "large": lambda x: 1e4 * (2 * torch.sigmoid(x) - 1),
    "equal and large": lambda x: torch.full_like(x, 1e4),
}


TYPES = [(x, None) for x in (torch.float32, torch.bfloat16, torch.float16)]  # of tensors, and of autocast
TYPES += [(x, y) for y in (torch.bfloat16, torch.float16) for x in (torch.float32, y)]


@pytest.mark.parametrize(
    ("types", "kind", "grids", "method"), sampled(TYPES, list(INPUTS), [EQUAL, POOLED], METHODS, every=5)
)
def test_output_and_gradients_are_finite(types, kind, grids, method):
    dtype, autocast = types
    for parameter_dtype in {torch.float32, dtype}:
        operator = build(*with_prefix(grids, 1), d=16, method=method).to(parameter_dtype)
        inputs = [INPUTS[kind](x).to(dtype).requires_grad_() for x in qkv(operator, dtype=torch.float32)]
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            out, weights = operator(*inputs), operator.weights(*inputs[:2])
        assert out.dtype == dtype and out.isfinite().all() and weights.dtype == dtype and weights.isfinite().all()
        # a mean: in float16 the gradient of a sum over tokens of values of 1e4 would not be finite in exact arithmetic
        (out.float().mean() + weights.float().mean()).backward()
        assert all(x.grad.isfinite().all() for x in [*inputs, *operator.parameters()])


@pytest.mark.parametrize("method", METHODS)
def test_zero_vectors_have_no_direction_and_no_gradient(method):
    operator = build(TokenGrid(2, 3, 5), method=method, start=False)
    q, k, v = qkv(operator)
    q[:, :, 7] = 0
    k[:, :, 11] = EPS / 4  # shorter than the least norm, but not zero
    inputs = [q.requires_grad_(), k.requires_grad_(), v]
    out = operator(*inputs)
    out.sin().sum().backward()
    assert (out[:, :, 7] == 0).all() and (q.grad[:, :, 7] == 0).all() and (q.grad[:, :, 8] != 0).any()
    assert (k.grad[:, :, 11] != 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_short_types_are_as_close_as_their_rounding(method, dtype):
    operator = build(TokenGrid(1, 6, 9, 1), d=32, method=method)
    q, k, v = (x.to(dtype) for x in qkv(operator))
    exact = operator(q.double(), k.double(), v.double())
    error = (operator.float()(q, k, v).double() - exact).abs().max() / exact.abs().max()
    assert error < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("method", ["axes", "fft"])
def test_sums_run_in_float32_under_autocast(method):
    operator = build(TokenGrid(2, 5, 7), method=method).float()
    q, k, v = qkv(operator, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = operator(q, k, v)
    assert torch.equal(out, operator(q, k, v))


# ---- cost


def executed_macs(operator):
    analysis = FlopCountAnalysis(operator, tuple(qkv(operator, rows=1))).clear_op_handles()
    counts = analysis.set_op_handle(**build_handles()).unsupported_ops_warnings(False).by_operator()
    assert not analysis.unsupported_ops()
    return sum(count for (quantity, _), count in counts.items() if quantity == "macs")


def harmonics_macs(num_tables, grid):
    """Multiply-accumulates of `table_harmonics`, which `macs` leaves out: they do not grow with the batch."""
    h, w = 2 * grid.h - 1, 2 * grid.w - 1
    return num_tables * (2 * grid.t - 1) * (2 * grid.h * h * w + grid.h * 2 * w * 2 * w)


@pytest.mark.parametrize(
    ("method", "grids", "wrap", "prefix"),
    sampled(METHODS, [EQUAL, POOLED, [TokenGrid(8, 1, 1)] * 2], [False, True], [0, 2], every=5),
)
def test_macs_are_those_executed_less_the_transforms_of_the_tables(method, grids, wrap, prefix):
    operator = build(*with_prefix(grids, prefix), num_patterns=L, wrap=wrap, method=method)
    tables = {
        "direct": 0, "axes": 2 * harmonics_macs(HEADS * L, grids[1]), "fft": 2 * table_macs(HEADS * L, grids[1], wrap)
    }[method]  # fmt: skip
    assert operator.macs() == executed_macs(operator) - tables


def test_macs_of_direct_products_are_counted_pair_by_pair():
    count = 0
    for _head, _query in itertools.product(range(HEADS), range(30)):
        count += L * D  # q̂·P
        for _key in range(30):
            count += D + L + L + D  # q̂·k̂, times r1, strengths times r2, weights times v
        for _class_key in range(2):
            count += D + D
    for _head, _class_query, _key in itertools.product(range(HEADS), range(2), range(32)):
        count += D + D
    assert build(TokenGrid(2, 3, 5, 2), num_patterns=L, method="direct").macs() == count


def test_macs_of_ffts_are_the_usual_count_for_each_channel():
    # 14 x 9 tokens padded to 27 x 18, each complex transform of n counted as 5/2 n log2 n, a real one as half of that:
    # forth whole, back 10 columns of 27 (18 halved), then 14 rows of 18
    forth = 1.25 * 27 * 18 * math.log2(27 * 18)
    back = 2.5 * 10 * 27 * math.log2(27) + 1.25 * 14 * 18 * math.log2(18)
    operator = build(TokenGrid(1, 14, 9), method="fft", num_patterns=L)
    assert operator.macs() == pytest.approx(2 * HEADS * D * (forth + L * back), rel=1e-4)


# ---- where it is built


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_patterns": 0}, "NUM_PATTERNS expects a whole number from 1 to 64, got 0"),
        ({"num_patterns": 2.0}, "NUM_PATTERNS expects .* got 2.0"),
        ({"num_patterns": True}, "NUM_PATTERNS expects .* got True"),
        ({"wrap": 1}, "WRAP expects True or False, got 1"),
        ({"method": "dct"}, "METHOD expects one of auto, direct, axes, fft, got 'dct'"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        build(TokenGrid(2, 3, 5), **options)


def test_a_bias_is_refused_when_built_and_when_given():
    grid = TokenGrid(2, 3, 5)
    with pytest.raises(ValueError, match="no logits to add a bias to; build the model without relative positions"):
        LisaAttention(AttentionSite(grid, grid, HEADS, D, 0, has_bias=True))
    operator = build(grid)
    q, k, v = qkv(operator)
    for call in (lambda bias: operator(q, k, v, bias), lambda bias: operator.weights(q, k, bias)):
        with pytest.raises(ValueError, match="no logits"):
            call(torch.zeros(30, 30))


def test_random_numbers_are_drawn_when_built_and_never_in_a_call():
    operator = build(TokenGrid(2, 3, 5, 1))
    before = torch.get_rng_state()
    operator(*qkv(operator))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(operator.P, build(TokenGrid(2, 3, 5, 1), seed=1).P)


def test_it_builds_without_memory_and_takes_its_start_afterwards():
    with torch.device("meta"):
        empty = LisaAttention(AttentionSite(*with_prefix(EQUAL, 1), HEADS, D, 0))
    operator = build(*with_prefix(EQUAL, 1))
    assert empty.macs() == operator.macs() and all(p.is_meta for p in empty.parameters())
    filled = empty.to_empty(device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        filled.reset_parameters()
    for name, parameter in operator.float().named_parameters():
        assert torch.equal(filled.get_parameter(name), parameter)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grids", first_quick([POOLED, EQUAL]))
def test_exported_program_gives_the_same_output(grids, method):
    operator = build(*with_prefix(grids, 1), method=method, start=False)
    program = torch.export.export(operator, tuple(qkv(operator, seed=2)))
    torch.testing.assert_close(program.module()(*qkv(operator)), operator(*qkv(operator)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grids", [EQUAL, POOLED], ids=["equal", "pooled"])
def test_compiled_operator_gives_the_same_output(grids, method):
    operator = build(*with_prefix(grids, 1), method=method).float()
    q, k, v = qkv(operator, dtype=torch.float32)
    compiled = torch.compile(operator, fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), operator(q, k, v), rtol=1e-4, atol=1e-5)


# ---- shares of rows and heads


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grids", [EQUAL, POOLED], ids=["equal", "pooled"])
def test_shares_of_rows_and_heads_do_not_change_the_output(monkeypatch, grids, method):
    operator = build(*with_prefix(grids, 1), heads=3, method=method, start=False)
    inputs = [x.requires_grad_() for x in qkv(operator, rows=5, groups=2)]
    results = []
    for rows, heads in ((10, 3), (1, 1), (4, 2)):
        monkeypatch.setattr(type(operator.form), "share", lambda form, share=(rows, heads): share)
        out = operator(*inputs)
        results.append([out, *torch.autograd.grad(out.sin().sum(), [*inputs, *operator.parameters()])])
    for whole, *shared in zip(*results, strict=True):
        for other in shared:
            torch.testing.assert_close(other, whole, rtol=0, atol=1e-12)


def test_shares_hold_at_least_one_row_and_all_heads_of_short_calls():
    for grid, heads in ((TokenGrid(8, 1, 1), 12), (TokenGrid(1, 14, 14), 1), (TokenGrid(16, 9, 9), 1)):
        for method in ("direct", "axes"):
            rows, at_once = build(grid, heads=12, d=1, num_patterns=1, method=method).form.share()
            assert rows >= 1 and at_once == (heads if method == "direct" else 1)
