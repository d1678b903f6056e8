"""Sites of one head, one token, one frame or one channel, and batches of one or none: as the plain form has it."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.operators.sites import SETTINGS, identify, names_its_reason, other_values
from videoattn.grid import TokenGrid
from videoattn.operators import OPERATORS, AttentionSite
from videoattn.operators.base import AttentionOperator
from videoattn.operators.options import options_of

EVERY = [*SETTINGS, ("fibonacci", {"keep_self": False, "variant": "wythoff", "implementation": "gather"})]
# Query and key grids (t, h, w).
GRIDS = [
    ((1, 1, 1), (1, 1, 1)), ((2, 1, 1), (2, 1, 1)), ((1, 1, 3), (1, 1, 3)), ((2, 3, 2), (1, 1, 1)),
    ((1, 1, 1), (2, 2, 1)),
]  # fmt: skip


def plain_form(name: str, operator: AttentionOperator, options: dict, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if operator.forms_weights:
        return operator.weights(q, k) @ v
    how = options_of(type(operator)).get("implementation")
    if how is None or "plain" not in other_values(how):  # it is its own plain form
        return operator(q, k, v)
    twin = OPERATORS[name](operator.site, **options | {"implementation": "plain"}).double()
    return torch.func.functional_call(twin, dict(operator.named_parameters()), (q, k, v))


def gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    upstream = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(5))
    return list(torch.autograd.grad((out * upstream).sum(), inputs, materialize_grads=True))


@pytest.mark.parametrize(("name", "options"), EVERY, ids=[identify(*setting) for setting in EVERY])
@pytest.mark.parametrize("rows", [0, 1])
def test_the_smallest_sites_and_batches_give_what_the_plain_form_gives(name, options, rows):
    built = 0
    for (q_grid, kv_grid), num_heads, (d, prefix) in itertools.product(GRIDS, (1, 2), ((1, 0), (3, 1), (1, 2))):
        site = AttentionSite(TokenGrid(*q_grid, prefix), TokenGrid(*kv_grid, prefix), num_heads, d, block=0)
        try:
            operator = OPERATORS[name](site, **options).double()
        except ValueError as error:
            assert names_its_reason(str(error), name, site)
            continue
        built += 1
        generator = torch.Generator().manual_seed(1)
        inputs = [
            torch.randn(rows, num_heads, n, d, dtype=torch.float64, generator=generator).requires_grad_()
            for n in (site.q_grid.tokens, site.kv_grid.tokens, site.kv_grid.tokens)
        ]
        out, expected = operator(*inputs), plain_form(name, operator, options, *inputs)
        assert out.shape == (rows, num_heads, site.q_grid.tokens, d)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
        by_all = [*inputs, *operator.parameters()]
        found = gradients(out, by_all)
        torch.testing.assert_close(found, gradients(expected, by_all), rtol=0, atol=1e-10)
        with torch.no_grad():
            torch.testing.assert_close(operator(*inputs), expected, rtol=0, atol=1e-10)
        if operator.accepts_packed and q_grid == kv_grid:
            packed = torch.stack([x.detach() for x in inputs], 3).requires_grad_()
            torch.testing.assert_close(operator(packed), expected, rtol=0, atol=1e-10)
            (by_packed,) = gradients(operator(packed), [packed])
            torch.testing.assert_close(by_packed, torch.stack(found[:3], 3), rtol=0, atol=1e-10)
    assert built
