"""Every operation of the package: refused, by name, where torch would take its tangents for zero; batched by loop."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.processes import interpreted
from tests.kernels.test_gather import HEADS, NQ, SLOTS, D, plan_and_mask
from tests.kernels.test_offsets import plan_of
from videoattn.grid import TokenGrid
from videoattn.kernels import depthwise, focused, gather, offsets, pool
from videoattn.kernels.cpu.compiler import load_library
from videoattn.kernels.focused_plain import attend_plainly
from videoattn.kernels.plain import attend_by_offsets
from videoattn.kernels.transforms import constant_when_compiled

needs_kernels = pytest.mark.skipif(load_library("offset_attention") is None, reason="kernels are not compiled here")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def offset_attention() -> tuple[Callable[..., Any], list[Tensor]]:
    plan = plan_of(TokenGrid(2, 3, 2, 1), heads=2)
    tables = (plan.offsets, plan.counts, plan.starts, plan.queries, plan.keys)
    rest = (*tables, list(plan.lengths), 1, 1, True, plan.num_pairs)
    return (lambda *x: offsets.offset_attention(x, *rest)[0]), [randn(2, 2, 13, 3, seed=i) for i in range(3)]


def focused_linear() -> tuple[Callable[..., Any], list[Tensor]]:
    inputs = [randn(2, 2, 13, 3, seed=i) for i in range(3)]
    inputs += [randn(6).abs() + 0.5, randn(2, 6), randn(6, 6), randn(3, 1, 3, 3), randn(3, 1, 3, 1), randn(3)]
    return (lambda *x: focused.focused_linear(x[:3], *x[3:], [2, 3, 2], 1, 3.0)[0]), inputs


def pool_tokens() -> tuple[Callable[..., Any], list[Tensor]]:
    inputs = [randn(2, 13, 2, 2, 3), randn(3, 1, 3, 3), randn(3, 3, 1, 3)]
    strides = [1, 1, 1, 1, 2, 1]
    return (lambda x, *filters: torch.cat(pool.pool_tokens(x, filters, strides, [2, 3, 2], 1), 2)), inputs


def depthwise_conv3d() -> tuple[Callable[..., Any], list[Tensor]]:
    return (lambda x, w: depthwise._depthwise_conv3d(x, w, [1, 2, 1])), [randn(2, 2, 3, 4, 5), randn(5, 3, 3, 1)]


def of_pairs(name: str) -> Callable[[], tuple[Callable[..., Any], list[Tensor]]]:
    def build() -> tuple[Callable[..., Any], list[Tensor]]:
        plan, _ = plan_and_mask()
        operation, used = getattr(gather, name), ~plan.unused()
        a, b, weights = randn(2, HEADS, NQ, D), randn(2, HEADS, plan.num_keys, D), randn(2, HEADS, NQ, SLOTS)
        first, second = {"gather_products": (a, b), "gather_sums": (weights, b), "gather_sums_by_key": (weights, a)}[
            name
        ]

        def run(first: Tensor, second: Tensor) -> Tensor:
            first = first if name == "gather_products" else first * used
            result = operation(first, second, plan.keys, plan.slots, plan.starts)
            return result * used if name == "gather_products" else result

        return run, [first, second]

    return build


COMPILED = {"offset_attention": offset_attention, "focused_linear": focused_linear, "pool_tokens": pool_tokens}
PLAIN = {"depthwise_conv3d": depthwise_conv3d}
PLAIN |= {name: of_pairs(name) for name in ("gather_products", "gather_sums", "gather_sums_by_key")}
operations = pytest.mark.parametrize(
    ("name", "build"),
    [*(pytest.param(*x, marks=needs_kernels) for x in COMPILED.items()), *PLAIN.items()],
    ids=[*COMPILED, *PLAIN],
)


def test_every_operation_is_put_to_these_tests():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("videoattn::")}
    known = {f"videoattn::{name}" for name in (*COMPILED, *PLAIN, "short_attention")}
    import videoattn.kernels.short  # noqa: F401

    assert {name.removesuffix("_backward") for name in registered} <= known


@operations
def test_tangents_are_refused_with_the_operations_name_and_a_remedy(name, build):
    run, inputs = build()
    with pytest.raises(NotImplementedError, match=f"videoattn::{name} has no derivative in forward mode.*; call "):
        torch.func.jvp(run, tuple(inputs), tuple(inputs))
    with pytest.raises(NotImplementedError), torch.autograd.forward_ad.dual_level():
        run(*(torch.autograd.forward_ad.make_dual(x, x) for x in inputs))


@operations
def test_tangents_of_a_gradient_are_refused(name, build):
    run, inputs = build()
    inputs = [x.requires_grad_() for x in inputs]
    out = run(*inputs)
    upstream = torch.ones_like(out)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(upstream, upstream)
        if name == "depthwise_conv3d":  # whose gradient is torch's own
            assert torch.autograd.grad(out, inputs, dual)
            return
        with pytest.raises(NotImplementedError, match="has no derivative in forward mode"):
            torch.autograd.grad(out, inputs, dual)


@operations
def test_vmap_equals_a_loop_forward_and_backward(name, build):
    run, inputs = build()
    batch = [torch.stack([x, x + 0.5]) for x in inputs]
    expected = torch.stack([run(*x) for x in zip(*batch, strict=True)])
    torch.testing.assert_close(torch.func.vmap(run)(*batch), expected, rtol=0, atol=1e-12)
    by_last = [x if i else x.movedim(0, -1) for i, x in enumerate(batch)]
    dims = tuple(-1 if i == 0 else 0 for i in range(len(batch)))
    torch.testing.assert_close(torch.func.vmap(run, in_dims=dims)(*by_last), expected, rtol=0, atol=1e-12)
    inputs = [x.requires_grad_() for x in inputs]
    out = run(*inputs)
    upstream = torch.stack([out.detach().cos(), out.detach().sin()])
    batched = torch.func.vmap(lambda x: torch.autograd.grad(out, inputs, x, retain_graph=True))(upstream)
    for i in range(2):
        alone = torch.autograd.grad(out, inputs, upstream[i], retain_graph=True)
        torch.testing.assert_close([x[i] for x in batched], list(alone), rtol=0, atol=1e-12)


@operations
def test_second_derivatives_equal_numerical_ones(name, build):
    run, inputs = build()
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True, atol=1e-4)


@pytest.mark.slow
@operations
def test_third_derivatives_equal_numerical_ones(name, build):
    run, inputs = build()
    inputs = [x.requires_grad_() for x in inputs]

    def slope(*inputs: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(run(*inputs).pow(3).sum(), inputs[:1], create_graph=True)
        return gradient

    assert torch.autograd.gradgradcheck(slope, inputs, fast_mode=True, atol=1e-3)


@needs_kernels
@pytest.mark.parametrize("build", COMPILED.values(), ids=COMPILED)
def test_autograds_older_batches_are_refused_with_a_remedy(build):
    run, inputs = build()
    inputs = [x.requires_grad_() for x in inputs]
    out = run(*inputs)
    with pytest.raises(NotImplementedError, match=r"is_grads_batched or vectorize.*use torch.func.vmap"):
        torch.autograd.grad(out, inputs, torch.stack([out, out]).detach(), is_grads_batched=True)


@needs_kernels
def test_plain_forms_compute_the_same_as_kernels():
    run, inputs = offset_attention()
    plan = plan_of(TokenGrid(2, 3, 2, 1), heads=2)
    tables = (plan.offsets, plan.counts, plan.starts, plan.queries, plan.keys)
    for block, zero_logit in ((1, True), (1, False)):
        rest = (*tables, list(plan.lengths), 1, block, zero_logit, plan.num_pairs)
        for a, b in zip(offsets.offset_attention(inputs, *rest), attend_by_offsets(inputs, *rest), strict=True):
            torch.testing.assert_close(a, b)
    run, inputs = focused_linear()
    plain = attend_plainly(inputs[:3], inputs[3], inputs[4:], [2, 3, 2], 1, 3.0)
    torch.testing.assert_close(run(*inputs), plain)


@needs_kernels
def test_compiled_code_refuses_tangents_too():
    run, inputs = offset_attention()

    def tangent(*inputs: Tensor) -> Tensor:
        return torch.func.jvp(run, inputs, inputs)[1]

    with pytest.raises(Exception, match="videoattn::offset_attention has no derivative in forward mode"):
        torch.compile(tangent, fullgraph=True, backend="aot_eager")(*inputs)


def second_derivatives(function: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    given = [x.detach().requires_grad_() for x in inputs]
    first = torch.autograd.grad(function(*given).pow(3).sum(), given, create_graph=True)
    return torch.autograd.grad(sum(x.pow(2).sum() for x in first), given)


@pytest.mark.slow
@interpreted
def test_short_attention_refuses_tangents_and_has_second_derivatives():
    from videoattn.kernels.short import short_attention

    inputs = [randn(1, 2, 4, 8, seed=i).float() for i in range(3)]

    def run(*x: Tensor) -> Tensor:
        return short_attention(list(x))[0]

    for transform in (
        lambda: torch.func.jvp(run, tuple(inputs), tuple(inputs)),
        lambda: torch.func.vmap(lambda x: torch.func.jvp(lambda q: run(q, *inputs[1:]), (x,), (x,)))(inputs[0][None]),
    ):
        with pytest.raises(NotImplementedError, match=r"videoattn::short_attention has no derivative.*scaled_dot"):
            transform()
    batch = [torch.stack([x, x + 0.5]) for x in inputs]
    expected = torch.stack([run(*x) for x in zip(*batch, strict=True)])
    torch.testing.assert_close(torch.func.vmap(run)(*batch), expected)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1) @ v

    torch.testing.assert_close(second_derivatives(run, inputs), second_derivatives(plain, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@interpreted
def test_offset_attention_of_a_gpu_refuses_tangents_and_has_second_derivatives():
    run, inputs = offset_attention()
    with pytest.raises(NotImplementedError, match="videoattn::offset_attention has no derivative in forward mode"):
        torch.func.jvp(run, tuple(inputs), tuple(inputs))
    plan = plan_of(TokenGrid(2, 3, 2, 1), heads=2)
    tables = (plan.offsets, plan.counts, plan.starts, plan.queries, plan.keys)
    rest = (*tables, list(plan.lengths), 1, 1, True, plan.num_pairs)
    torch.testing.assert_close(
        second_derivatives(run, inputs), second_derivatives(lambda *x: attend_by_offsets(x, *rest)[0], inputs)
    )


def test_constants_are_marked_for_the_compiler_as_torch_marks_them():
    theirs, ours = torch.compiler.assume_constant_result(lambda: 1), constant_when_compiled(lambda: 1)
    assert vars(theirs) == vars(ours) != {}
