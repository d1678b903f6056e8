"""The contract of every operator, on grids whose t, h and w all differ."""

import copy
import functools
import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn

from tests.operators.sites import (
    HEADS,
    SETTINGS,
    SITES,
    D,
    build_or_skip,
    identify,
    names_its_reason,
    other_values,
    qkv,
    refusal,
    site,
)
from videoattn.grid import Axis
from videoattn.operators import OPERATORS
from videoattn.operators.options import options_of

IDS = [identify(name, options) for name, options in SETTINGS]
WIDE = {"rtol": 0, "atol": 1e-12}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def test_every_operator_accepts_a_site_by_default_and_refusals_name_their_reason():
    places = [site(*where, has_bias) for where in SITES for has_bias in (False, True)]
    for name in OPERATORS:
        answers = {at: refusal(name, {}, at) for at in places}
        assert None in answers.values(), name
        for at, reason in answers.items():
            assert reason is None or names_its_reason(reason, name, at), (name, at, reason)
    assert OPERATORS.keys() == {name for name, _ in SETTINGS}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_choice_of_every_option_can_be_built_or_says_why_not(name):
    at = site(Axis.SPACE, 1)
    for option in options_of(OPERATORS[name]).values():
        for value in [option.default, *other_values(option)]:
            reason = refusal(name, {option.name: value}, at)
            assert reason is None or option.name.upper() in reason
        with pytest.raises(ValueError, match=f"{option.name.upper()} expects .*, got "):
            OPERATORS[name](at, **{option.name: object()})


def build(name, options, *where):
    """The operator at a site, in float64, with parameters away from the zeros that some begin with; a copy of one."""
    return site(*where), copy.deepcopy(build_once(name, tuple(options.items()), where))


@functools.cache
def build_once(name, options, where):
    operator = build_or_skip(name, dict(options), site(*where)).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
    return operator


def at_every_site(law):
    """Return a test of `law` at all SITES, which reports each of them by itself."""

    def test(self, subtests, name, options):
        for axis, prefix, unequal in SITES:
            with subtests.test(axis=str(axis), prefix=prefix, unequal=unequal):
                law(self, name, options, axis, prefix, unequal)

    test.__name__ = law.__name__
    return test


@pytest.mark.parametrize(("name", "options"), SETTINGS, ids=IDS)
class TestContract:
    @at_every_site
    def test_output_has_the_queries_shape_and_type(self, name, options, axis, prefix, unequal):
        at, operator = build(name, options, axis, prefix, unequal)
        for dtype in DTYPES:
            for inside in (torch.float32, dtype):
                out = operator.to(inside)(*qkv(at, dtype=dtype))
                assert out.shape == (2, HEADS, at.q_grid.tokens, D) and out.dtype == dtype and out.isfinite().all()

    @at_every_site
    def test_a_call_alone_equals_the_call_in_a_batch(self, name, options, axis, prefix, unequal):
        at, operator = build(name, options, axis, prefix, unequal)
        q, k, v = qkv(at, rows=3)
        alone = torch.cat([operator(q[i : i + 1], k[i : i + 1], v[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(operator(q, k, v), alone, **WIDE)

    @at_every_site
    def test_groups_of_heads_are_calls_of_their_own(self, name, options, axis, prefix, unequal):
        at, operator = build(name, options, axis, prefix, unequal)
        q, k, v = qkv(at, groups=4)
        grouped = operator(q, k, v)
        for g in range(4):
            heads = slice(g * HEADS, (g + 1) * HEADS)
            torch.testing.assert_close(grouped[:, heads], operator(q[:, heads], k[:, heads], v[:, heads]), **WIDE)

    @at_every_site
    def test_strided_views_give_what_copies_give(self, name, options, axis, prefix, unequal):
        at, operator = build(name, options, axis, prefix, unequal)
        q, k, v = qkv(at)
        views = [torch.stack([x.transpose(1, 2)] * 3, dim=3)[:, :, :, 1].transpose(1, 2) for x in (q, k, v)]
        assert not views[0].is_contiguous()
        torch.testing.assert_close(operator(*views), operator(q, k, v), **WIDE)

    @at_every_site
    def test_gradients_are_finite_and_reach_every_parameter(self, name, options, axis, prefix, unequal):
        at, operator = build(name, options, axis, prefix, unequal)
        inputs = [x.requires_grad_() for x in qkv(at)]
        operator(*inputs).square().sum().backward()
        for x in [*inputs, *operator.parameters()]:
            assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() > 0

    @at_every_site
    def test_weights_are_what_values_are_multiplied_by(self, name, options, axis, prefix, unequal):
        at, operator = build(name, options, axis, prefix, unequal)
        q, k, v = qkv(at)
        if not operator.forms_weights:
            with pytest.raises(NotImplementedError, match="forms no attention weights"):
                operator.weights(q, k)
            return
        weights = operator.weights(q, k)
        torch.testing.assert_close(weights @ v, operator(q, k, v), **WIDE)
        if operator.normalizes_weights:
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))

    @at_every_site
    def test_random_states_are_left_alone(self, name, options, axis, prefix, unequal):
        """Building may draw initial parameters from torch's generator; nothing else draws from any."""

        def states():
            return random.getstate(), np.random.get_state()[1].tolist()

        before = states()
        at = site(axis, prefix, unequal)
        drawn = torch.get_rng_state()
        operator = build_or_skip(name, options, at)
        if not list(operator.parameters()):
            assert torch.equal(torch.get_rng_state(), drawn)
        drawn = torch.get_rng_state()
        operator(*qkv(at, dtype=torch.float32))
        assert states() == before and torch.equal(torch.get_rng_state(), drawn)

    @at_every_site
    def test_it_builds_without_memory(self, name, options, axis, prefix, unequal):
        at = site(axis, prefix, unequal)
        _, real = build(name, options, axis, prefix, unequal)
        with torch.device("meta"):
            operator = OPERATORS[name](at, **options)
        assert operator.macs() == real.macs() > 0
        assert all(parameter.is_meta for parameter in operator.parameters())

    @at_every_site
    def test_a_bias_is_added_to_logits_or_refused_when_built(self, name, options, axis, prefix, unequal):
        at, operator = build(name, options, axis, prefix, unequal)
        q, k, v = qkv(at)
        bias = torch.randn(HEADS, q.shape[2], k.shape[2], dtype=q.dtype, generator=torch.Generator().manual_seed(5))
        biased = site(axis, prefix, unequal, has_bias=True)
        if reason := refusal(name, options, biased):
            assert "bias" in reason
            with pytest.raises(ValueError, match="bias"):
                operator(q, k, v, bias)
            return
        accepting = OPERATORS[name](biased, **options).double()
        accepting.load_state_dict(operator.state_dict())
        out = accepting(q, k, v, bias)
        torch.testing.assert_close(operator(q, k, v, bias), out, **WIDE)
        torch.testing.assert_close(operator(q, k, v, torch.zeros_like(bias)), operator(q, k, v), **WIDE)
        # a bias acts wherever logits do, which is nowhere if each query has a single key
        assert torch.allclose(out, operator(q, k, v)) == torch.allclose(operator(-q, k, v), operator(q, k, v))
        if operator.forms_weights:
            torch.testing.assert_close(out, operator.weights(q, k, bias) @ v, **WIDE)


HARD = {
    "large": lambda x: 1e4 * (x / x.abs().max()),
    "zero": torch.zeros_like,
    "equal": lambda x: torch.full_like(x, 1e4),
}


@pytest.mark.parametrize(("name", "options"), SETTINGS, ids=IDS)
@pytest.mark.parametrize("where", [(Axis.SPACE, 1, False), (Axis.TIME, 0, False), (Axis.JOINT, 1, True)])
def test_hard_inputs_give_finite_outputs_and_gradients(subtests, name, options, where):
    at = site(*where)
    built = build_or_skip(name, options, at)
    for kind, precision in itertools.product(HARD, [*DTYPES, "autocast"]):
        with subtests.test(kind=kind, precision=str(precision)):
            dtype = torch.float32 if precision == "autocast" else precision
            operator = copy.deepcopy(built).to(dtype)
            inputs = [HARD[kind](x).to(dtype).requires_grad_() for x in qkv(at)]
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
                out = operator(*inputs)
            assert out.isfinite().all()
            out.backward(torch.full_like(out, 1e-4))  # larger gradients of parameters lie beyond what fp16 can hold
            for x in [*inputs, *operator.parameters()]:
                assert x.grad is None or x.grad.isfinite().all()


EXPORTED = {name: (name, options) for name, options in reversed(SETTINGS)}.values()  # one setting of each, to be quick


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(*setting, id=identify(*setting), marks=[pytest.mark.slow] * (setting not in EXPORTED))
        for setting in [*SETTINGS, ("lisa", {}), ("fibonacci", {})]
    ],
)
@pytest.mark.parametrize("where", [(Axis.JOINT, 1, False), pytest.param((Axis.TIME, 0, True), marks=pytest.mark.slow)])
def test_a_program_exported_with_a_dynamic_batch_takes_every_batch(name, options, where):
    at, operator = build(name, options, *where)
    rows = torch.export.Dim("rows", min=1, max=1024)
    program = torch.export.export(operator, tuple(qkv(at, seed=1)), dynamic_shapes=({0: rows},) * 3).module()
    for size in (1, 2, 5, 200):  # the last are more rows than some methods take at a time
        torch.testing.assert_close(program(*qkv(at, rows=size)), operator(*qkv(at, rows=size)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), SETTINGS, ids=IDS)
def test_compiled_operator_gives_the_same_output(name, options):
    at = site(Axis.SPACE, 1, False)
    operator: nn.Module = build_or_skip(name, options, at)
    compiled = torch.compile(operator, fullgraph=True)
    torch.testing.assert_close(compiled(*qkv(at, dtype=torch.float32)), operator(*qkv(at, dtype=torch.float32)))
