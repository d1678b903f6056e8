import copy
import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.shared_files import GOLDEN, needs_golden
from videoattn.grid import Axis, TokenGrid
from videoattn.kernels.focused_plain import focus
from videoattn.operators import AttentionSite
from videoattn.operators.focused_linear import FocusedLinearAttention
from videoattn.profiling.operations import build_handles
from videoattn.profiling.profile import profile

HEADS, D = 3, 8
EPS = 1e-6
GRIDS = {axis: TokenGrid(4, 3, 5, 2).along(axis) for axis in Axis}
COARSE = {axis: TokenGrid(2, 2, 3, 2).along(axis) for axis in Axis}
SITES = [(axis, unequal) for axis in Axis for unequal in (False, True)]


def site(axis, unequal=False, prefix=None, heads=HEADS, d=D, block=1, has_bias=False):
    q, kv = GRIDS[axis], (COARSE if unequal else GRIDS)[axis]
    if prefix is not None:
        q, kv = (TokenGrid(g.t, g.h, g.w, prefix) for g in (q, kv))
    return AttentionSite(q, kv, heads, d, block, has_bias)


def build(at, seed=0, **options):
    """An operator in float64 whose parameters are all random: zeros at the start would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    operator = FocusedLinearAttention(at, **options).double()
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
    return operator


def qkv(at, rows=2, groups=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = (at.q_grid.tokens, at.kv_grid.tokens, at.kv_grid.tokens)
    return [torch.randn(rows, groups * HEADS, n, D, generator=generator, dtype=dtype) for n in lengths]


def merged(x):
    """[rows, heads, N, d] to [rows, N, heads·d]."""
    return x.transpose(1, 2).flatten(2)


def embedding(operator):
    """Positions of all keys [Nk, heads·d], entry by entry."""
    kv = operator.site.kv_grid
    rows = [torch.zeros(operator.site.num_heads * operator.site.head_dim, dtype=torch.float64)] * kv.prefix
    for t, h, w in itertools.product(range(kv.t), range(kv.h), range(kv.w)):
        row = torch.zeros_like(operator.scale)
        if operator.pos_time is not None:
            row = row + operator.pos_time[t]
        if operator.pos_space is not None:
            row = row + operator.pos_space[h * kv.w + w]
        rows.append(row)
    return torch.stack(rows)


def features(operator, x):
    """φ of merged tokens [rows, N, heads·d] by the plain formula, split into heads."""
    x = (x.relu() + EPS) / F.softplus(operator.scale)
    powered = x**operator.power
    x = powered / powered.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)
    return x.unflatten(2, (operator.site.num_heads, -1)).transpose(1, 2)


def quadratic_weights(operator, q, k):
    """The N x N matrix of the linear part."""
    q, k = features(operator, merged(q)), features(operator, merged(k) + embedding(operator))
    products = q @ k.transpose(-2, -1)
    return products / (products.sum(-1, keepdim=True) + k.shape[-2] * EPS)


def convolution(operator, v):
    """DWC [rows, heads, Nq, d] with one dense 3-D kernel, on values resampled dimension by dimension."""
    q, kv = operator.site.q_grid, operator.site.kv_grid
    rows, heads, _, d = v.shape
    x = v[:, :, kv.prefix :].flatten(0, 1).unflatten(1, (kv.t, kv.h, kv.w)).permute(0, 4, 1, 2, 3)
    flat = F.interpolate(x.flatten(1, 2), size=(q.h, q.w), mode="bilinear").unflatten(1, (d, kv.t))
    columns = flat.permute(0, 3, 4, 1, 2).flatten(0, 2)
    x = F.interpolate(columns, size=q.t, mode="linear").unflatten(0, (-1, q.h, q.w)).permute(0, 3, 4, 1, 2)
    kernel = torch.ones(d, 1, 1, 1, 1, dtype=v.dtype)
    if operator.dwc_time is not None:
        kernel = kernel * operator.dwc_time[:, :, :, :, None]
    if operator.dwc_space is not None:
        kernel = kernel * operator.dwc_space[:, :, None]
    x = F.conv3d(x, kernel, operator.dwc_bias, padding=tuple(n // 2 for n in kernel.shape[2:]), groups=d)
    x = x.permute(0, 2, 3, 4, 1).flatten(1, 3).unflatten(0, (rows, heads))
    return torch.cat([x.new_zeros(rows, heads, q.prefix, d), x], dim=2)


# ---- the official code


@needs_golden
@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("flatten_swin_n36_d32_h4_p3", TokenGrid(1, 6, 6)),
        ("flatten_pvt_n36_d32_h2_sr1", TokenGrid(1, 6, 6)),
        ("flatten_pvt_n24_4x6_d32_h2", TokenGrid(1, 4, 6)),
    ],
)
def test_layer_equals_the_official_layer(name, grid):
    case = torch.load(GOLDEN / f"{name}_f64.pt", weights_only=True)
    state, x, heads = case["state_dict"], case["x"].clone().requires_grad_(), case["ctor"]["num_heads"]
    operator = FocusedLinearAttention(AttentionSite(grid, grid, heads, 32 // heads, block=0)).double()
    operator.load_state_dict(
        {
            "scale": state["scale"].flatten(),
            "pos_space": state["positional_encoding"][0],
            "dwc_space": state["dwc.weight"],
            "dwc_bias": state["dwc.bias"],
        }
    )
    names = ["qkv"] if "qkv.weight" in state else ["q", "kv"]
    weight, bias = (torch.cat([state[f"{n}.{kind}"] for n in names]) for kind in ("weight", "bias"))
    q, k, v = (x @ weight.T + bias).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    y = merged(operator(q, k, v)) @ state["proj.weight"].T + state["proj.bias"]
    torch.testing.assert_close(y, case["y"], rtol=0, atol=1e-12)
    (y * case["cotangent"]).sum().backward()
    torch.testing.assert_close(x.grad, case["grad_x"], rtol=0, atol=1e-12)


# ---- laws


@pytest.mark.parametrize("power", [1, 2.5, 3, 8])
@pytest.mark.parametrize(("axis", "unequal"), SITES)
def test_linear_form_equals_its_quadratic_form(axis, unequal, power):
    operator = build(site(axis, unequal), power=power)
    inputs = [x.requires_grad_() for x in qkv(operator.site)]
    leaves = [*inputs, *operator.parameters()]
    out = operator(*inputs)
    q, k, v = inputs
    expected = quadratic_weights(operator, q, k) @ v + convolution(operator, v)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((y * cotangent).sum(), leaves) for y in (out, expected))
    for gradient, direct in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, direct, rtol=0, atol=1e-10)


@pytest.mark.parametrize("power", [1, 3, 8])
def test_dividing_by_the_largest_channel_changes_nothing(power):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 2, HEADS, 7, D, generator=generator, dtype=torch.float64).exp()).requires_grad_()
    norms = [y.square().sum(dim=(2, 4), keepdim=True).sqrt() for y in (x, x**power)]
    naive, ours = x**power / norms[1] * norms[0], focus(x, power)
    torch.testing.assert_close(ours, naive, rtol=1e-13, atol=1e-13)
    cotangent = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    direct, gradient = (torch.autograd.grad((y * cotangent).sum(), x)[0] for y in (naive, ours))
    torch.testing.assert_close(gradient, direct, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_feature_map_are_its_derivatives():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 2, 3, 2, generator=generator, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(lambda x: focus(x, 3), x.requires_grad_())


def test_focusing_keeps_a_tokens_norm_over_all_heads_and_not_a_heads():
    x = torch.rand(2, 1, HEADS, 7, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    focused = focus(x, 3)
    torch.testing.assert_close(focused.square().sum((2, 4)), x.square().sum((2, 4)))
    assert (focused.norm(dim=4) - x.norm(dim=4)).abs().min() > 1e-3


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0])
def test_weights_of_a_query_sum_to_one_but_for_epsilon(size):
    operator = build(site(Axis.JOINT), kernel_size=0)
    with torch.no_grad():
        operator.pos_time.zero_()
        operator.pos_space.zero_()
    q, k, v = (x * size for x in qkv(operator.site))
    total = features(operator, merged(q)) @ features(operator, merged(k)).sum(2, keepdim=True).transpose(-2, -1)
    expected = total / (total + operator.site.kv_grid.tokens * EPS)
    torch.testing.assert_close(operator(q, k, torch.ones_like(v)), expected.expand_as(v))
    if size == 1.0:
        assert (1 - expected).median() < 1e-5
    if size == 0.0:
        assert expected.max() < 1e-4


@pytest.mark.parametrize("axis", Axis)
def test_position_embedding_is_added_to_patch_keys_alone(axis):
    operator = build(site(axis))
    q, k, v = qkv(operator.site)
    bare = copy.deepcopy(operator)
    with torch.no_grad():
        for parameter in (bare.pos_time, bare.pos_space):
            if parameter is not None:
                parameter.zero_()
    shift = embedding(operator).unflatten(1, (HEADS, D)).transpose(0, 1)
    assert (shift[:, : operator.site.kv_grid.prefix] == 0).all()
    torch.testing.assert_close(operator(q, k, v), bare(q, k + shift, v), rtol=0, atol=1e-13)
    assert (operator(q, k, v) - bare(q, k, v)).abs().max() > 1e-3


def test_embeddings_are_one_per_axis_or_factored_and_zero_at_first():
    shapes = {}
    for axis in Axis:
        operator = FocusedLinearAttention(site(axis, unequal=True))
        positions = {"time": operator.pos_time, "space": operator.pos_space}
        shapes[axis] = {name: tuple(p.shape) for name, p in positions.items() if p is not None}
        assert all((p == 0).all() for p in positions.values() if p is not None) and (operator.scale == 0).all()
    assert shapes == {
        Axis.SPACE: {"space": (6, 24)},
        Axis.TIME: {"time": (2, 24)},
        Axis.JOINT: {"time": (2, 24), "space": (6, 24)},
    }


def test_kernels_span_the_axes_of_the_query_grid_that_are_longer_than_one():
    def kernels(grid, **options):
        operator = FocusedLinearAttention(AttentionSite(grid, TokenGrid(2, 3, 2), HEADS, D, 0), **options)
        return [None if p is None else tuple(p.shape[2:]) for p in (operator.dwc_time, operator.dwc_space)]

    assert kernels(TokenGrid(4, 3, 5)) == [(3, 1), (5, 5)]
    assert kernels(TokenGrid(4, 3, 5), kernel_size=1) == [(1, 1), (1, 1)]
    assert kernels(TokenGrid(4, 3, 5), kernel_size=0) == [None, None]
    assert kernels(TokenGrid(4, 1, 1), kernel_size=7) == [(7, 1), None]
    assert kernels(TokenGrid(4, 1, 5), kernel_size=7) == [(3, 1), (1, 7)]
    assert kernels(TokenGrid(1, 3, 5), kernel_size=3) == [None, (3, 3)]
    assert kernels(TokenGrid(1, 1, 1)) == [None, (1, 1)]


def test_convolution_begins_as_torch_starts_one_with_the_identity_along_joint_time():
    torch.manual_seed(0)
    operator = FocusedLinearAttention(site(Axis.JOINT))
    assert torch.equal(operator.dwc_time[:, 0, :, 0], torch.tensor([[0.0, 1.0, 0.0]]).expand(D, 3))
    assert 0.15 < operator.dwc_space.abs().max() <= 1 / 5
    time = FocusedLinearAttention(site(Axis.TIME)).dwc_time
    assert 1 / 5 < time.abs().max() <= 1 / math.sqrt(5)


# ---- prefix tokens, grids, groups


@pytest.mark.parametrize("axis", [Axis.SPACE, Axis.JOINT])
def test_prefix_tokens_take_part_in_the_sums_and_not_in_the_convolution(axis):
    whole, linear = build(site(axis)), build(site(axis), kernel_size=0)
    linear.load_state_dict({n: p for n, p in whole.state_dict().items() if "dwc" not in n})
    q, k, v = qkv(whole.site)
    q = q.abs()  # a query without a positive channel in a head sees nothing there
    prefix = whole.site.q_grid.prefix
    torch.testing.assert_close(whole(q, k, v)[:, :, :prefix], linear(q, k, v)[:, :, :prefix])
    for changed in (1, 2):
        inputs = [q, k, v]
        inputs[changed] = inputs[changed].clone()
        inputs[changed][:, :, :prefix] += 1
        change, linear_change = (f(*inputs) - f(q, k, v) for f in (whole, linear))
        assert (change.abs().amax(-1) > 1e-6).all()  # every query sees it, through the sums
        torch.testing.assert_close(change, linear_change, rtol=0, atol=1e-13)


@pytest.mark.parametrize("heights", [(3, 6), (6, 3), (1, 3), (3, 1)])
def test_unequal_grids_resample_values_along_the_grid(heights):
    grid, kv = TokenGrid(4, heights[0], 5, 1), TokenGrid(2, heights[1], 3, 1)
    whole, linear = (build(AttentionSite(grid, kv, HEADS, D, 0), kernel_size=size) for size in (5, 0))
    linear.load_state_dict({n: p for n, p in whole.state_dict().items() if "dwc" not in n})
    q, k, v = qkv(whole.site)
    on_grid = v[:, :, 1:].transpose(-2, -1).unflatten(-1, (kv.t, kv.h, kv.w)).flatten(0, 1)
    on_grid = F.interpolate(on_grid, size=(grid.t, grid.h, grid.w), mode="trilinear", align_corners=False)
    resampled = on_grid.flatten(2).transpose(-2, -1).unflatten(0, (2, HEADS))
    same = build(AttentionSite(grid, grid, HEADS, D, 0))
    same.load_state_dict({**same.state_dict(), **{n: p for n, p in whole.state_dict().items() if "dwc" in n}})
    expected = convolution(same, F.pad(resampled, (0, 0, 1, 0)))
    torch.testing.assert_close(whole(q, k, v) - linear(q, k, v), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis", Axis)
def test_groups_of_heads_are_calls_of_their_own(axis):
    operator = build(site(axis))
    q, k, v = qkv(operator.site, groups=4)
    alone = [operator(*(x[:, g * HEADS : (g + 1) * HEADS] for x in (q, k, v))) for g in range(4)]
    torch.testing.assert_close(operator(q, k, v), torch.cat(alone, dim=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("axis", "unequal"), SITES)
def test_a_call_alone_equals_the_call_in_a_batch_of_strided_views(axis, unequal):
    operator = build(site(axis, unequal))
    q, k, v = qkv(operator.site, rows=3)
    alone = torch.cat([operator(q[i : i + 1], k[i : i + 1], v[i : i + 1]) for i in range(3)])
    if not unequal:
        packed = torch.stack([q, k, v], dim=2).permute(0, 3, 1, 2, 4).contiguous()
        q, k, v = packed.permute(0, 2, 3, 1, 4).unbind(2)
    torch.testing.assert_close(operator(q, k, v), alone, rtol=0, atol=1e-12)


# ---- numerics


def magnitudes(at, kind, dtype):
    q, k, v = qkv(at)
    if kind == "huge":
        inputs = [(x * 4e3).clamp(-1e4, 1e4) for x in (q, k, v)]
    elif kind == "zero":
        inputs = [x * 0 for x in (q, k, v)]
    elif kind == "negative":
        inputs = [-x.abs() * 4e3 for x in (q, k)] + [v * 4e3]
    elif kind == "zero queries":
        inputs = [q * 0, k * 4e3, v * 4e3]
    else:
        inputs = [torch.full_like(x, 1e4) for x in (q, k, v)]
    return [x.to(dtype).requires_grad_() for x in inputs]


@pytest.mark.parametrize("power", [3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, "autocast"])
@pytest.mark.parametrize("kind", ["huge", "zero", "negative", "zero queries", "equal"])
@pytest.mark.parametrize(("axis", "unequal"), [(Axis.SPACE, False), (Axis.JOINT, True)])
def test_outputs_and_gradients_are_finite_and_close_to_float64(axis, unequal, kind, dtype, power):
    torch.manual_seed(0)
    exact = FocusedLinearAttention(site(axis, unequal), power=power).double()
    autocast, dtype = dtype == "autocast", torch.float32 if dtype == "autocast" else dtype
    operator = copy.deepcopy(exact).to(dtype)
    exact.load_state_dict(operator.state_dict())  # the rounded parameters
    inputs = magnitudes(exact.site, kind, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = operator(*inputs)
    assert out.dtype == dtype and out.isfinite().all()
    expected = exact(*(x.detach().double() for x in inputs))
    error = (out.double() - expected).abs().max() / expected.abs().max()
    assert error < 4 * torch.finfo(dtype).eps
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out.float() * cotangent).mean().backward()
    assert all(x.grad.isfinite().all() for x in [*inputs, *operator.parameters()])


def test_float16_inputs_take_float32_parameters():
    operator = FocusedLinearAttention(site(Axis.JOINT))
    inputs = qkv(operator.site, dtype=torch.float16)
    exact = copy.deepcopy(operator).double()(*(x.double() for x in inputs))
    torch.testing.assert_close(operator(*inputs).double(), exact, rtol=1e-3, atol=1e-3)
    assert operator(*qkv(operator.site)).dtype == torch.float64


def test_sums_accumulate_in_float32_under_autocast():
    """Alternating large values whose mean is small: 16-bit sums over the keys would lose it."""
    at = AttentionSite(TokenGrid(1, 20, 50), TokenGrid(1, 20, 50), HEADS, D, 0)
    operator = FocusedLinearAttention(at, kernel_size=0)
    q, k = (torch.ones(1, HEADS, 1000, D) for _ in range(2))
    v = torch.tensor([1000.0, -999.0]).repeat(500)[:, None].expand(1, HEADS, 1000, D)
    with torch.autocast("cpu", torch.bfloat16):
        out = operator(q, k, v)
    torch.testing.assert_close(out, torch.full_like(out, 0.5), rtol=1e-3, atol=0)


# ---- cost


@pytest.mark.parametrize(("axis", "unequal"), SITES)
@pytest.mark.parametrize("kernel_size", [0, 3, 5])
def test_macs_are_those_counted_one_by_one_and_executed(axis, unequal, kernel_size):
    operator = FocusedLinearAttention(site(axis, unequal), kernel_size=kernel_size).eval()
    q, kv = operator.site.q_grid, operator.site.kv_grid
    space = [n for n in (q.h, q.w) if n > 1]
    count = 0
    for _head, _channel in itertools.product(range(HEADS), range(D)):
        for _token, _value_channel in itertools.product(range(q.tokens + kv.tokens), range(D)):
            count += 1  # a key times a value, a query times a sum
        count += q.tokens  # a query times the sum of keys
        for _patch in range(q.patches):
            count += kernel_size ** len(space) if kernel_size and space else 0
            count += (min(kernel_size, 3) if space else kernel_size) if q.t > 1 else 0
    assert operator.macs() == count
    inputs = tuple(x[:1] for x in qkv(operator.site, dtype=torch.float32))
    analysis = FlopCountAnalysis(operator, inputs).clear_op_handles().set_op_handle(**build_handles())
    analysis.unsupported_ops_warnings(False)
    executed = sum(n for (quantity, _), n in analysis.by_operator().items() if quantity == "macs")
    assert executed == count and not analysis.unsupported_ops()


class Clip(nn.Module):
    """The smallest model whose clip is q, k and v of one attention call."""

    def __init__(self, at):
        super().__init__()
        self.operator = FocusedLinearAttention(at)

    def forward(self, packed):
        return self.operator(*packed.unbind(1))


def test_the_profiler_counts_it_without_computing():
    at = site(Axis.JOINT)
    with torch.device("meta"):
        model, clip = Clip(at), torch.empty(1, 3, HEADS, at.q_grid.tokens, D)
    counted = profile(model, clip)
    assert counted.macs_executed == counted.macs_needed == model.operator.macs()


# ---- refusals, and what programs do with modules


def test_a_bias_is_refused_when_built_and_when_called():
    with pytest.raises(ValueError, match="no logits to add a bias to"):
        FocusedLinearAttention(site(Axis.SPACE, has_bias=True))
    operator = FocusedLinearAttention(site(Axis.SPACE))
    with pytest.raises(ValueError, match="no logits to add a bias to"):
        operator(*qkv(operator.site, dtype=torch.float32), torch.zeros(1))


@pytest.mark.parametrize("power", [0.5, 0, -3, 100.5, math.nan, math.inf, "3", True])
def test_powers_out_of_range_are_refused(power):
    with pytest.raises(ValueError, match=f"POWER expects a number from 1 to 100, got {power!r}"):
        FocusedLinearAttention(site(Axis.SPACE), power=power)


@pytest.mark.parametrize("kernel_size", [2, 4, -1, -3, 101, 3.0, True, (3, 3)])
def test_kernels_without_a_centre_are_refused(kernel_size):
    expected = "an odd number below 100, or 0 for no convolution" if type(kernel_size) is int else "a whole number"
    with pytest.raises(ValueError, match=f"KERNEL_SIZE expects {expected}, got {re.escape(repr(kernel_size))}"):
        FocusedLinearAttention(site(Axis.SPACE), kernel_size=kernel_size)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="focusing_factor"):
        FocusedLinearAttention(site(Axis.SPACE), focusing_factor=3)


def test_only_torchs_generator_is_used_and_only_to_build():
    import random

    state = random.getstate()
    operator = FocusedLinearAttention(site(Axis.JOINT))
    before = torch.get_rng_state()
    operator(*qkv(operator.site))
    assert random.getstate() == state and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("axis", "unequal"), SITES)
def test_it_builds_without_memory(axis, unequal):
    with torch.device("meta"):
        operator = FocusedLinearAttention(site(axis, unequal))
        out = operator(*(x.to("meta") for x in qkv(operator.site, dtype=torch.bfloat16)))
    real = FocusedLinearAttention(site(axis, unequal))
    assert operator.macs() == real.macs() > 0
    assert {n: p.shape for n, p in operator.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert out.shape == (2, HEADS, operator.site.q_grid.tokens, D) and out.dtype == torch.bfloat16


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("unequal", [False, True])
def test_exported_program_gives_the_same_output(unequal, autocast):
    operator = build(site(Axis.JOINT, unequal)).float()
    inputs, others = (tuple(qkv(operator.site, dtype=torch.float32, seed=seed)) for seed in (0, 1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        program = torch.export.export(operator, inputs)
        torch.testing.assert_close(program.module()(*others), operator(*others))


def test_recomputing_in_the_backward_pass_changes_nothing():
    operator = build(site(Axis.JOINT, unequal=True))
    inputs = [x.requires_grad_() for x in qkv(operator.site)]
    leaves = [*inputs, *operator.parameters()]
    kept, recomputed = (
        torch.autograd.grad(out.square().sum(), leaves)
        for out in (operator(*inputs), checkpoint(operator, *inputs, use_reentrant=False))
    )
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis", "unequal", "autocast"),
    [(Axis.SPACE, False, False), (Axis.TIME, False, True), (Axis.JOINT, True, False), (Axis.JOINT, False, True)],
)
def test_compiled_operator_gives_the_same_output(axis, unequal, autocast):
    operator = build(site(axis, unequal)).float()
    inputs = qkv(operator.site, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.testing.assert_close(torch.compile(operator, fullgraph=True)(*inputs), operator(*inputs))


def test_an_implementation_that_there_is_not_is_refused(monkeypatch):
    at = site(Axis.SPACE, 1)
    with pytest.raises(ValueError, match="IMPLEMENTATION expects one of auto, plain, compiled, got 'fast'"):
        FocusedLinearAttention(at, implementation="fast")
    monkeypatch.setattr("videoattn.operators.focused_linear.is_compiled", lambda: False)
    assert not FocusedLinearAttention(at).compiled
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler"):
        FocusedLinearAttention(at, implementation="compiled")
