"""Transforms of torch beyond an output and its gradient are right for every operator and implementation."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.operators.sites import HEADS, SETTINGS, D, build_or_skip, identify, qkv, refusal, site
from videoattn.grid import Axis
from videoattn.operators import OPERATORS, DenseAttention, FibonacciAttention, LisaAttention

EVERY = [*SETTINGS, ("fibonacci", {}), ("lisa", {})]
IDS = [identify(*setting) for setting in EVERY]
# The second joins groups of heads to one call, as attention along time does. An operator that refuses unequal grids is
# tested on equal ones.
PLACES = [(Axis.JOINT, 1, True, 1), (Axis.TIME, 0, False, 2)]
CLOSE = {"rtol": 1e-9, "atol": 1e-11}

every_operator = pytest.mark.parametrize(("name", "options"), EVERY, ids=IDS)
every_place = pytest.mark.parametrize(
    "place", [PLACES[0], pytest.param(PLACES[1], marks=pytest.mark.slow)], ids=["joint", "time"]
)


def build(name: str, options: dict[str, Any], place: tuple[Axis, int, bool, int]) -> tuple[Any, list[Tensor]]:
    *where, groups = place
    if where[-1] and refusal(name, options, site(*where)):
        where[-1] = False
    operator = build_or_skip(name, options, site(*where)).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
    return operator, qkv(operator.site, groups=groups)


def like(tensors: list[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in tensors]


def check_tangent(tangent: Tensor | None, function: Any, inputs: list[Tensor], tangents: list[Tensor]) -> None:
    """<w, J t> = <Jᵀ w, t> for a random w; the right-hand side is by backward gradients."""
    assert tangent is not None
    (weights,) = like([tangent], seed=2)
    inputs = [x.detach().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad((function(*inputs) * weights).sum(), inputs)
    expected = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    torch.testing.assert_close((tangent.detach() * weights).sum(), expected, **CLOSE)
    assert expected.abs() > 1e-3


@every_operator
@every_place
class TestTransforms:
    def test_tangents_agree_with_gradients(self, name, options, place):
        operator, inputs = build(name, options, place)
        tangents = like(inputs, seed=1)
        check_tangent(torch.func.jvp(operator, tuple(inputs), tuple(tangents))[1], operator, inputs, tangents)
        for needs_gradient in (False, True):
            with forward_ad.dual_level():
                duals = [
                    forward_ad.make_dual(x.detach().requires_grad_(needs_gradient), t)
                    for x, t in zip(inputs, tangents, strict=True)
                ]
                tangent = forward_ad.unpack_dual(operator(*duals)).tangent
            check_tangent(tangent, operator, inputs, tangents)

    def test_tangents_by_parameters_agree_with_gradients(self, name, options, place):
        operator, inputs = build(name, options, place)
        names = [key for key, _ in operator.named_parameters()]
        if not names:
            return
        values = [x.detach() for x in operator.parameters()]

        def run(*values: Tensor) -> Tensor:
            return torch.func.functional_call(operator, dict(zip(names, values, strict=True)), tuple(inputs))

        tangents = like(values, seed=1)
        check_tangent(torch.func.jvp(run, tuple(values), tuple(tangents))[1], run, values, tangents)

    def test_vmap_equals_a_loop(self, name, options, place):
        operator, inputs = build(name, options, place)
        batch = [torch.stack([x, *like([x], seed=4)]) for x in inputs]
        expected = torch.stack([operator(*x) for x in zip(*batch, strict=True)])
        torch.testing.assert_close(torch.func.vmap(operator)(*batch), expected, **CLOSE)
        q, k, v = batch[0], inputs[1], inputs[2]
        expected = torch.stack([operator(x, k, v) for x in q])
        torch.testing.assert_close(torch.func.vmap(operator, in_dims=(0, None, None))(q, k, v), expected, **CLOSE)

    def test_gradients_by_torch_func_are_those_of_autograd_alone_and_in_a_batch(self, name, options, place):
        operator, inputs = build(name, options, place)

        def loss(*inputs: Tensor) -> Tensor:
            return operator(*inputs).pow(3).sum()

        given = [x.detach().requires_grad_() for x in inputs]
        expected = torch.autograd.grad(loss(*given), given)
        gradient = torch.func.grad(loss, argnums=(0, 1, 2))
        torch.testing.assert_close(gradient(*inputs), expected, **CLOSE)
        batched = torch.func.vmap(gradient)(*(x[None] for x in inputs))
        torch.testing.assert_close([x[0] for x in batched], list(expected), **CLOSE)

    def test_gradients_of_a_batch_of_outputs_equal_those_one_by_one(self, name, options, place):
        operator, inputs = build(name, options, place)
        given = [x.detach().requires_grad_() for x in inputs]
        out = operator(*given)
        upstream = torch.stack([out.detach().cos(), out.detach().sin()])
        batched = torch.func.vmap(lambda x: torch.autograd.grad(out, given, x, retain_graph=True))(upstream)
        for i in range(2):
            alone = torch.autograd.grad(out, given, upstream[i], retain_graph=True)
            torch.testing.assert_close([x[i] for x in batched], list(alone), **CLOSE)

    def test_second_derivatives_equal_numerical_ones(self, name, options, place):
        operator, inputs = build(name, options, place)
        inputs = [x.detach()[:1].requires_grad_() for x in inputs]
        # torch's fused attention has none; with its plain form in place, dense attention and class tokens have
        with sdpa_kernel(SDPBackend.MATH):
            assert torch.autograd.gradgradcheck(operator, inputs, fast_mode=True, atol=1e-4)

    def test_transforms_leave_nothing_behind(self, name, options, place):
        operator, inputs = build(name, options, place)
        with torch.no_grad():
            expected = OPERATORS[name](operator.site, **options).double()
            expected.load_state_dict(operator.state_dict())
            torch.func.jvp(operator, tuple(inputs), tuple(inputs))
            torch.func.vmap(operator)(*(x[None] for x in inputs))
            torch.testing.assert_close(operator(*inputs), expected(*inputs), rtol=0, atol=0)
            if operator.forms_weights:
                q, k, _ = inputs
                torch.func.jvp(operator.weights, (q, k), (q, k))
                torch.testing.assert_close(operator.weights(q, k), expected.weights(q, k), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_compiled_tangents_agree_with_gradients(name):
    operator, inputs = build(name, {}, PLACES[0])
    tangents = like(inputs, seed=1)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def tangent(*inputs: Tensor) -> Tensor:
        return torch.func.jvp(operator, inputs[:3], inputs[3:])[1]

    check_tangent(tangent(*inputs, *tangents), operator, inputs, tangents)


def test_second_derivatives_of_fused_dense_attention_are_torchs_error_and_not_zero():
    for method in (DenseAttention, LisaAttention):
        operator = method(site(Axis.JOINT, 1)).double()
        inputs = [x.requires_grad_() for x in qkv(operator.site)]
        gradients = torch.autograd.grad(operator(*inputs).sum(), inputs, create_graph=True)
        with pytest.raises(RuntimeError, match="_scaled_dot_product_flash_attention_for_cpu_backward"):
            torch.autograd.grad(gradients[0].square().sum(), inputs)


def test_a_bias_has_tangents():
    operator = FibonacciAttention(site(Axis.SPACE, 1, has_bias=True)).double()
    q, k, v = qkv(operator.site)
    (bias,) = like([torch.zeros(2, HEADS, q.shape[2], k.shape[2], dtype=q.dtype)], seed=5)

    def run(q: Tensor, bias: Tensor) -> Tensor:
        return operator(q, k, v, bias)

    assert q.shape[-1] == D
    tangents = like([q, bias], seed=1)
    check_tangent(torch.func.jvp(run, (q, bias), tuple(tangents))[1], run, [q, bias], tangents)
