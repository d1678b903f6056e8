"""What every operator promises, on grids whose t, h and w all differ."""

import pytest
import torch
from torch import nn

from videoattn.grid import Axis, TokenGrid
from videoattn.operators import OPERATORS, AttentionSite

HEADS, D = 3, 8
# every way an operator can be set up here, by name and options
SETTINGS = [
    ("dense", {}),
    ("fibonacci", {}),
    ("fibonacci", {"variant": "wythoff", "semantics": "zero_logit"}),
    ("fibonacci", {"geometry": "axial", "order": "hwt", "heads_permutation": "none"}),
]
IDS = ["-".join([name, *map(str, options.values())]) for name, options in SETTINGS]


def test_every_operator_is_put_to_the_contract():
    assert {name for name, _ in SETTINGS} == OPERATORS.keys()


def site(axis, prefix, unequal=False):
    grid = TokenGrid(4, 3, 5, prefix).along(axis)
    kv = TokenGrid(max(grid.t // 2, 1), (grid.h + 1) // 2, (grid.w + 1) // 2, grid.prefix) if unequal else grid
    return AttentionSite(grid, kv, HEADS, D, layer=1)


def qkv(at, rows=2, groups=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = (at.q_grid.tokens, at.kv_grid.tokens, at.kv_grid.tokens)
    return [torch.randn(rows, groups * HEADS, n, D, dtype=dtype, generator=generator) for n in lengths]


SITES = [(axis, prefix, unequal) for axis in Axis for prefix in (0, 1) for unequal in (False, True)]


@pytest.mark.parametrize(("name", "options"), SETTINGS, ids=IDS)
@pytest.mark.parametrize(("axis", "prefix", "unequal"), SITES)
class TestContract:
    def build(self, name, options, *where):
        at = site(*where)
        return at, OPERATORS[name](at, **options)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_output_has_the_queries_shape_and_type(self, name, options, axis, prefix, unequal, dtype):
        at, operator = self.build(name, options, axis, prefix, unequal)
        out = operator(*qkv(at, dtype=dtype))
        assert out.shape == (2, HEADS, at.q_grid.tokens, D) and out.dtype == dtype and out.isfinite().all()

    def test_a_call_alone_equals_the_call_in_a_batch(self, name, options, axis, prefix, unequal):
        at, operator = self.build(name, options, axis, prefix, unequal)
        q, k, v = qkv(at, rows=3)
        alone = torch.cat([operator(q[i : i + 1], k[i : i + 1], v[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(operator(q, k, v), alone, rtol=0, atol=1e-12)

    def test_groups_of_heads_are_calls_of_their_own(self, name, options, axis, prefix, unequal):
        at, operator = self.build(name, options, axis, prefix, unequal)
        q, k, v = qkv(at, groups=4)
        grouped = operator(q, k, v)
        for g in range(4):
            heads = slice(g * HEADS, (g + 1) * HEADS)
            torch.testing.assert_close(grouped[:, heads], operator(q[:, heads], k[:, heads], v[:, heads]))

    def test_gradients_are_finite(self, name, options, axis, prefix, unequal):
        at, operator = self.build(name, options, axis, prefix, unequal)
        inputs = [x.requires_grad_() for x in qkv(at)]
        operator(*inputs).square().sum().backward()
        assert all(x.grad is not None and x.grad.isfinite().all() for x in [*inputs, *operator.parameters()])

    def test_weights_of_a_query_sum_to_one(self, name, options, axis, prefix, unequal):
        at, operator = self.build(name, options, axis, prefix, unequal)
        q, k, v = qkv(at)
        out = operator(q, k, torch.ones_like(v))
        torch.testing.assert_close(out, torch.ones_like(out))

    def test_the_global_random_state_is_left_alone(self, name, options, axis, prefix, unequal):
        import random

        before = random.getstate(), torch.get_rng_state()
        at, operator = self.build(name, options, axis, prefix, unequal)
        operator(*qkv(at))
        assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])

    def test_it_builds_without_memory(self, name, options, axis, prefix, unequal):
        with torch.device("meta"):
            at, operator = self.build(name, options, axis, prefix, unequal)
        at, real = self.build(name, options, axis, prefix, unequal)
        assert operator.macs() == real.macs() > 0


@pytest.mark.parametrize(("name", "options"), SETTINGS, ids=IDS)
def test_exported_program_gives_the_same_output(name, options):
    at = site(Axis.JOINT, 1)
    operator = OPERATORS[name](at, **options)
    program = torch.export.export(operator, tuple(qkv(at, seed=1)))
    torch.testing.assert_close(program.module()(*qkv(at)), operator(*qkv(at)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), SETTINGS, ids=IDS)
def test_compiled_operator_gives_the_same_output(name, options):
    at = site(Axis.SPACE, 1)
    operator: nn.Module = OPERATORS[name](at, **options)
    compiled = torch.compile(operator, fullgraph=True)
    torch.testing.assert_close(compiled(*qkv(at, dtype=torch.float32)), operator(*qkv(at, dtype=torch.float32)))
