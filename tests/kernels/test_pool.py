"""The compiled pooling of packed tokens against torch's convolution, forward and backward."""

import random
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from videoattn.grid import TokenGrid
from videoattn.kernels.pool import can_pool, pool_tokens
from videoattn.layers.pooled_attention import Pooling, TokenPool, pool_packed
from videoattn.models import MViT
from videoattn.models.mvit.plan import MViTShape
from videoattn.profiling.profile import profile

pytestmark = pytest.mark.skipif(not can_pool(torch.zeros(1)), reason="no C++ compiler on this machine")

IDENTITY = ((1, 1, 1), (1, 1, 1))
GRID, PREFIX = (3, 5, 7), 1


def reference(x, filters, strides, grid, prefix):
    """By torch's convolution, from float64 copies of the same arguments."""
    outputs = []
    heads, d = x.shape[2], x.shape[4]
    for i, weight in enumerate(filters):
        part, stride = x[:, :, :, i], strides[3 * i : 3 * i + 3]
        volume = part[:, prefix:].flatten(2).unflatten(1, tuple(grid)).permute(0, 4, 1, 2, 3)
        pooled = F.conv3d(
            volume, weight.repeat(heads, 1, 1, 1).unsqueeze(1), stride=stride, groups=heads * d,
            padding=[k // 2 for k in weight.shape[1:]],
        )  # fmt: skip
        tokens = pooled.permute(0, 2, 3, 4, 1).flatten(1, 3).unflatten(2, (heads, d))
        outputs.append(torch.cat([part[:, :prefix], tokens], dim=1).transpose(1, 2))
    return outputs


def draw(grid, prefix, poolings, batch=2, heads=2, d=5, dtype=torch.float64, seed=0):
    """Packed tokens, filters and strides."""
    generator = torch.Generator().manual_seed(seed)
    tokens = prefix + grid[0] * grid[1] * grid[2]
    x = torch.randn(batch, tokens, heads, len(poolings), d, generator=generator, dtype=torch.float64).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    filters = [torch.randn(d, *kernel, generator=generator, dtype=wide).requires_grad_() for kernel, _ in poolings]
    return x.requires_grad_(), filters, [step for _, stride in poolings for step in stride]


def both(x, filters, strides, grid, prefix):
    """(outputs, gradients of x and filters) of the operation, and of the reference in float64."""
    results = []
    for function, cast in ((pool_tokens, lambda y: y), (reference, lambda y: y.double())):
        inputs = [cast(y.detach()).requires_grad_() for y in (x, *filters)]
        outputs = function(inputs[0], inputs[1:], strides, list(grid), prefix)
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(y.shape, generator=generator).to(x.dtype).to(y.dtype) for y in outputs]
        results.append([*outputs, *torch.autograd.grad(outputs, inputs, cotangents)])
    return zip(*results, strict=True)


KERNELS = [(3, 3, 3), (1, 3, 3), (3, 1, 5), (1, 9, 9), (1, 1, 1), (5, 3, 1), (2, 4, 3)]
STRIDES = [(1, 1, 1), (1, 2, 2), (2, 3, 1), (1, 8, 8), (1, 4, 2)]
GRIDS = [(4, 5, 7), (1, 8, 3), (3, 2, 9), (1, 1, 1), (2, 3, 17)]


@pytest.mark.parametrize(("kernel", "stride", "grid"), list(product(KERNELS, STRIDES, GRIDS)))
def test_any_kernel_stride_and_grid(kernel, stride, grid):
    arguments = draw(grid, PREFIX, [(kernel, stride)])
    if min((n + 2 * (k // 2) - k) // s + 1 for n, k, s in zip(grid, kernel, stride, strict=True)) < 1:
        pytest.skip("nothing is left of this grid")
    for ours, expected in both(*arguments, grid, PREFIX):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("seed", range(24))
def test_any_packing_width_prefix_and_type(seed):
    choose = random.Random(seed)
    grid, prefix = tuple(choose.choices([1, 2, 3, 6, 11], k=3)), choose.choice([0, 1, 3])
    poolings = [
        choose.choice([IDENTITY, ((3, 3, 3), (1, 2, 2)), ((3, 3, 3), (1, 1, 1))])
        for _ in range(choose.choice([1, 2, 3]))
    ]
    dtype = choose.choice([torch.float64, torch.float32, torch.bfloat16])
    d = choose.choice([1, 3, 4, 8, 13, 32, 41, 96])
    arguments = draw(grid, prefix, poolings, choose.choice([1, 3]), choose.choice([1, 4]), d, dtype, seed)
    assert all(y.dtype == dtype for y in pool_tokens(*arguments[:3], list(grid), prefix))
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 0.01}[dtype]
    for ours, expected in both(*arguments, grid, prefix):
        scale = max(float(expected.detach().abs().max()), 1.0)
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=tolerance * scale)


def test_an_identity_copies_and_a_prefix_passes_by():
    x, filters, strides = draw(GRID, 2, [IDENTITY, ((3, 3, 3), (1, 2, 2))])
    with torch.no_grad():
        filters[0].fill_(1)
        copied, pooled = pool_tokens(x, filters, strides, list(GRID), 2)
    assert torch.equal(copied, x[:, :, :, 0].transpose(1, 2))
    assert torch.equal(pooled[:, :, :2], x[:, :2, :, 1].transpose(1, 2))
    assert not torch.equal(pooled[:, :, 2], x[:, 2, :, 1])


def test_a_view_of_any_strides_gives_the_same_as_a_copy():
    x, filters, strides = draw(GRID, PREFIX, [((3, 3, 3), (1, 2, 2))] * 2)
    for view in (x.transpose(1, 4).contiguous().transpose(1, 4), torch.cat([x, x], dim=-1)[..., :5]):
        assert not view.is_contiguous()
        for ours, expected in zip(
            pool_tokens(view, filters, strides, list(GRID), PREFIX),
            pool_tokens(x, filters, strides, list(GRID), PREFIX), strict=True,
        ):  # fmt: skip
            assert torch.equal(ours, expected)


def test_any_number_of_threads_gives_the_same_bits():
    arguments = draw((4, 9, 10), 1, [((3, 3, 3), (1, 2, 2))] * 3, d=32, dtype=torch.float32)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append([ours for ours, _ in both(*arguments, (4, 9, 10), 1)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.slow
def test_derivatives_are_those_of_finite_differences_and_the_operation_is_well_behaved():
    x, filters, strides = draw((2, 3, 4), 1, [((3, 3, 3), (1, 2, 2)), IDENTITY], batch=1, d=2)

    def pool(y, *weights):
        return pool_tokens(y, list(weights), strides, [2, 3, 4], 1)

    assert torch.autograd.gradcheck(pool, (x, *filters), fast_mode=True)
    torch.library.opcheck(pool_tokens, (x, filters, strides, [2, 3, 4], 1))


def test_only_gradients_that_are_asked_for_are_formed():
    x, filters, strides = draw(GRID, PREFIX, [((3, 3, 3), (1, 2, 2))] * 2)
    filters = [filters[0].detach(), filters[1]]
    outputs = pool_tokens(x.detach(), filters, strides, list(GRID), PREFIX)
    sum(y.sum() for y in outputs).backward()
    assert filters[0].grad is None and filters[1].grad is not None and x.grad is None


def test_unsuitable_tensors_are_refused_with_shapes():
    x, filters, strides = draw(GRID, PREFIX, [((3, 3, 3), (1, 2, 2))])
    with pytest.raises(ValueError, match=r"4x5x7 patches and 1 prefix tokens got tokens \[2, 106, 2, 1, 5\]"):
        pool_tokens(x, filters, strides, [4, 5, 7], PREFIX)
    with pytest.raises(ValueError, match=r"torch.float64 and torch.float32"):
        pool_tokens(x, [weight.float() for weight in filters], strides, list(GRID), PREFIX)


def test_torchs_counter_knows_it():
    x, filters, strides = draw(GRID, PREFIX, [((3, 3, 3), (1, 2, 2)), IDENTITY])
    with FlopCounterMode(display=False) as counter:
        outputs = pool_tokens(x, filters, strides, list(GRID), PREFIX)
    assert counter.get_total_flops() == 2 * 27 * outputs[0][:, :, PREFIX:].numel()


def test_a_profile_is_the_same_where_it_can_be_compiled_and_elsewhere():
    shape = MViTShape(depth=2, embed_dim=8, pool_kv_stride_adaptive=(1, 2, 2), pool_kernel=(3, 3, 3))
    build = partial(MViT, (4, 32, 32), shape, 3)
    with torch.device("meta"):
        elsewhere = build()
    here, there = profile(build(), (4, 32, 32)), profile(elsewhere, (4, 32, 32))
    assert here.macs_by_operation == there.macs_by_operation and here.activations == there.activations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_is_the_same_without_the_compiled_form(dtype, monkeypatch):
    grid = TokenGrid(2, 6, 4, 1)
    torch.manual_seed(0)
    pools = [TokenPool(8, grid, Pooling((3, 3, 3), (1, 2, 2))), None, TokenPool(8, grid, Pooling((3, 3, 3)))]
    x = torch.randn(2, grid.tokens, 3, 3, 8).to(dtype)
    compiled = pool_packed(x, pools, grid)
    for module in ("layers.pooled_attention", "kernels.depthwise"):
        monkeypatch.setattr(f"videoattn.{module}.can_pool", lambda _: False)
    for ours, plain in zip(compiled, pool_packed(x, pools, grid), strict=True):
        assert ours.dtype == plain.dtype == dtype
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)
