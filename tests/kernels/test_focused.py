"""The compiled form of focused linear attention against the plain one."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from videoattn.grid import TokenGrid
from videoattn.kernels.focused import focused_linear, is_compiled
from videoattn.operators import AttentionSite
from videoattn.operators.focused_linear import FocusedLinearAttention

pytestmark = pytest.mark.skipif(not is_compiled(), reason="no C++ compiler on this machine")

GRID = TokenGrid(2, 3, 5, 1)


def build(grid, kv_grid=None, heads=2, d=8, **options):
    """The compiled and the plain operator in float64, with the same random parameters."""
    site = AttentionSite(grid, kv_grid or grid, heads, d, block=0)
    both = [FocusedLinearAttention(site, **options).double() for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in both[0].parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
    both[1].load_state_dict(both[0].state_dict())
    both[1].compiled = False
    return both


def packed_inputs(site, rows=2, groups=1, dtype=torch.float64):
    """[rows, groups·heads, n, 3, d], laid out as a projection writes it."""
    generator = torch.Generator().manual_seed(1)
    shape = (rows, site.q_grid.tokens, groups * site.num_heads, 3, site.head_dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2)


def separate_inputs(site, rows=2, groups=1, dtype=torch.float64):
    """Return tensors in which q's channels don't lie side by side and the others' heads do."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(rows, n, groups * site.num_heads, site.head_dim, generator=generator, dtype=torch.float64).to(dtype)
        for n in (site.q_grid.tokens, site.kv_grid.tokens, site.kv_grid.tokens)
    )
    return q.permute(0, 3, 2, 1).contiguous().permute(0, 2, 3, 1), k.transpose(1, 2), v.transpose(1, 2)


def run(operator, inputs):
    """Output, and gradients by inputs and parameters."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = operator(*inputs)
    generator = torch.Generator().manual_seed(2)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return [out, *torch.autograd.grad(out, [*inputs, *operator.parameters()], cotangent)]


def draw(seed):
    choose = random.Random(seed)
    grid = TokenGrid(choose.choice([1, 1, 2, 3, 7]), *choose.choices([1, 2, 5, 7, 11], k=2), choose.randrange(3))
    kv_grid = grid
    if seed % 4 == 3:
        kv_grid = TokenGrid(choose.choice([1, 2, 5]), *choose.choices([1, 3, 5], k=2), grid.prefix)
    heads, d = choose.choice([1, 2, 3]), choose.choice([5, 8, 20, 32, 64, 128])
    options = {"power": choose.choice([1, 2, 3, 3, 2.5, 20]), "kernel_size": choose.choice([0, 3, 5, 11])}
    return (grid, kv_grid, heads, d, options), (choose.choice([0, 1, 2]), choose.choice([1, 1, 3]))


@pytest.mark.parametrize("seed", range(32))
def test_both_forms_give_the_same_output_and_gradients(seed):
    (grid, kv_grid, heads, d, options), (rows, groups) = draw(seed)
    compiled, plain = build(grid, kv_grid, heads, d, **options)
    is_packed = grid == kv_grid and seed % 2 == 0
    inputs = separate_inputs(plain.site, rows, groups)
    if is_packed:
        inputs = [packed_inputs(plain.site, rows, groups)]
    for ours, expected in zip(run(compiled, inputs), run(plain, inputs), strict=True):
        scale = max(expected.abs().max().item(), 1.0) if expected.numel() else 1.0
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("grid", "d", "power"), [(GRID, 8, 2.5), (GRID, 20, 17), (TokenGrid(1, 14, 14, 1), 64, 3)])
def test_single_and_half_precision_are_close_to_float64(grid, d, power, dtype):
    compiled, plain = build(grid, d=d, power=power)
    compiled.float()
    plain.load_state_dict(compiled.state_dict())  # the rounded parameters
    inputs = packed_inputs(plain.site, dtype=dtype)
    ours, exact = run(compiled, [inputs]), run(plain, [inputs.double()])
    assert ours[0].dtype == ours[1].dtype == dtype
    for i, (mine, expected) in enumerate(zip(ours, exact, strict=True)):
        # a power multiplies what is rounded before it; gradients sum over tokens, from a rounded cotangent
        allowed = (max(4, power) if i == 0 else 64) * torch.finfo(dtype).eps
        assert (mine.double() - expected).abs().max() <= allowed * expected.abs().max()


@pytest.mark.parametrize("power", [2, 2.5, 3])
def test_gradients_are_the_derivatives(power):
    compiled, _ = build(TokenGrid(2, 2, 3, 1), heads=2, d=3, power=power, kernel_size=3)
    inputs = packed_inputs(compiled.site, rows=1).requires_grad_()
    names, values = zip(*compiled.named_parameters(), strict=True)

    def call(inputs, *values):
        return torch.func.functional_call(compiled, dict(zip(names, values, strict=True)), (inputs,))

    assert torch.autograd.gradcheck(call, (inputs, *values))


@pytest.mark.parametrize("groups", [1, 5])
def test_any_number_of_threads_gives_the_same_bits(groups):
    compiled, _ = build(TokenGrid(2, 7, 7, 1), heads=3, d=16)
    inputs = [packed_inputs(compiled.float().site, groups=groups, dtype=torch.float32)]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(compiled, inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nan_stays_nan():
    compiled, _ = build(GRID)
    for part in range(3):
        inputs = packed_inputs(compiled.site)
        inputs[1, 0, 4, part, 3] = torch.nan
        seen = compiled(inputs).isnan().any(dim=(1, 2, 3))
        assert seen.tolist() == [False, True]


def test_flops_are_counted_forward_and_backward():
    compiled, _ = build(GRID)
    inputs = packed_inputs(compiled.site, rows=3).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        out = compiled(inputs)
        assert counter.get_total_flops() == 3 * 2 * compiled.macs()
        out.sum().backward()
    assert counter.get_total_flops() == 3 * 8 * compiled.macs()


def test_refusals_name_the_shapes_that_do_not_fit():
    scale, table = torch.ones(16), torch.ones(5, 16)
    q = torch.ones(1, 2, 5, 8)
    rest = (None, None, None, [1, 1, 5], 0, 3.0)
    with pytest.raises(ValueError, match="one dtype"):
        focused_linear([q, q, q.double()], scale, None, table, *rest)
    with pytest.raises(ValueError, match="parameters of torch.float32"):
        focused_linear([q, q, q], scale.double(), None, table, *rest)
    with pytest.raises(ValueError, match=r"2 heads on 1x1x5 patches and 0 prefix tokens got q \[1, 2, 5, 8\]"):
        focused_linear([q, q[:, :, 1:], q], scale, None, table, *rest)
    with pytest.raises(ValueError, match="embeddings of 1 frames and 4 places"):
        focused_linear([q, q, q], scale, None, table[1:], *rest)
