import itertools

import pytest
import torch
import torch.nn.functional as F

from tests.operators.lisa_cases import EQUAL, HEADS, METHODS, POOLED, L, build, qkv, with_prefix
from tests.samples import first_quick
from tests.shared_files import GOLDEN, needs_golden
from videoattn.grid import TokenGrid
from videoattn.operators import DenseAttention
from videoattn.operators.crossovers import LISA_TIME_OF_MAC

GRIDS = [(8, 1, 1), (1, 1, 13), (1, 7, 1), (1, 5, 7), (3, 1, 11), (1, 14, 9), (4, 3, 5), (2, 7, 11), (1, 1, 1)]


def defined(operator, q, k, v):
    """Compute one row token by token, straight from the definition: [heads, Nq, d]."""
    q_grid, kv, prefix = operator.site.q_grid, operator.site.kv_grid, operator.site.kv_grid.prefix
    lengths = (kv.t, kv.h, kv.w)
    keys = list(itertools.product(*map(range, lengths)))
    queries = itertools.product(range(q_grid.t), range(q_grid.h), range(q_grid.w))
    under = [
        tuple(c * n // m for c, n, m in zip(cell, lengths, (q_grid.t, q_grid.h, q_grid.w), strict=True))
        for cell in queries
    ]
    out = torch.zeros_like(q)
    for head in range(operator.site.num_heads):
        unit_q, unit_k = (x[head] / x[head].norm(dim=-1, keepdim=True) for x in (q, k))
        for c in range(prefix):
            out[head, c] = (k[head] @ q[head, c] / operator.site.head_dim**0.5).softmax(0) @ v[head]
        for i, cell in enumerate(under):
            for pattern in range(operator.num_patterns):
                k_sum, v_sum = operator.P[head, pattern].clone(), torch.zeros(v.shape[-1], dtype=v.dtype)
                for j, key in enumerate(keys):
                    delta = [x - y for x, y in zip(cell, key, strict=True)]
                    if operator.wrap:
                        at = tuple(x % n for x, n in zip(delta, lengths, strict=True))
                    else:
                        at = tuple(x + n - 1 for x, n in zip(delta, lengths, strict=True))
                    k_sum += operator.r1[(head, pattern, *at)] * unit_k[prefix + j]
                    v_sum += operator.r2[(head, pattern, *at)] * v[head, prefix + j]
                out[head, prefix + i] += (unit_q[prefix + i] @ k_sum) * v_sum
            for c in range(prefix):
                out[head, prefix + i] += operator.g[head] * (unit_q[prefix + i] @ unit_k[c]) * v[head, c]
    return out


# ---- the definition


@pytest.mark.parametrize("prefix", first_quick([2, 0]))
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("grids", [EQUAL, POOLED], ids=["equal", "pooled"])
def test_every_form_equals_the_definition_token_by_token(grids, wrap, prefix):
    expected = None
    for method in METHODS:
        operator = build(*with_prefix(grids, prefix), num_patterns=L, wrap=wrap, method=method, start=False)
        q, k, v = qkv(operator, rows=1)
        with torch.no_grad():
            expected = defined(operator, q[0], k[0], v[0]) if expected is None else expected
            torch.testing.assert_close(operator(q, k, v)[0], expected, rtol=0, atol=1e-12, msg=method)


@needs_golden
@pytest.mark.parametrize("method", METHODS)
def test_patches_equal_the_reference_reconstruction(method):
    golden = torch.load(GOLDEN / "lisa_reconstruction_f64.pt", weights_only=True)
    for (sizes, circular), case in golden["cases"].items():
        grid = TokenGrid(*(1,) * (3 - len(sizes)), *sizes)
        operator = build(grid, heads=3, d=8, wrap=circular, method=method)
        for name, values in (("r1", "H1"), ("r2", "H2"), ("P", "P")):
            parameter = getattr(operator, name)
            parameter.data = case["B"][values].reshape(parameter.shape[1:]).expand_as(parameter).contiguous()
        y = operator.mix_patches(case["q"], case["k"], case["v"], normalize=False)
        torch.testing.assert_close(y, case["B"]["y"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("sizes", GRIDS, ids=str)
def test_all_methods_agree_with_their_gradients(sizes, wrap):
    results = []
    for method in METHODS:
        operator = build(TokenGrid(*sizes, prefix=1), wrap=wrap, method=method, start=False)
        inputs = [x.requires_grad_() for x in qkv(operator)]
        out = operator(*inputs)
        grads = torch.autograd.grad(out.sin().sum(), [*inputs, *operator.parameters()])
        results.append([out, *grads])
    for direct, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(other, direct, rtol=0, atol=1e-10)


@pytest.mark.parametrize("wrap", [False, True])
def test_all_methods_are_exact_for_every_length(wrap):
    for n in (*range(1, 13), 16, 17, 25, 30, 31, 32):  # primes, powers of primes and products
        for grid in (TokenGrid(n, 1, 1), TokenGrid(1, n, 1), TokenGrid(1, 1, n)):
            operators = [build(grid, wrap=wrap, method=method, start=False) for method in METHODS]
            direct, *others = (operator(*qkv(operator)) for operator in operators)
            for other in others:
                torch.testing.assert_close(other, direct, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_shifting_all_tokens_around_shifts_the_output_only_where_axes_wrap(method):
    def shift(x):
        return x.unflatten(2, (4, 3, 5)).roll((1, 2, 3), (2, 3, 4)).flatten(2, 4)

    for wrap in (False, True):
        operator = build(TokenGrid(4, 3, 5), wrap=wrap, method=method, start=False)
        q, k, v = qkv(operator)
        error = (operator(shift(q), shift(k), shift(v)) - shift(operator(q, k, v))).abs().max()
        assert error < 1e-12 if wrap else error > 0.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grids", [EQUAL, POOLED], ids=["equal", "pooled"])
def test_weights_are_the_matrix_that_values_are_multiplied_by(grids, method):
    operator = build(*with_prefix(grids, 2), method=method, start=False)
    q, k, v = qkv(operator, groups=3)
    weights = operator.weights(q, k)
    torch.testing.assert_close(weights @ v, operator(q, k, v), rtol=0, atol=1e-11)
    torch.testing.assert_close(weights[:, :, :2].sum(-1), torch.ones_like(weights[:, :, :2, 0]))


def test_auto_takes_the_method_that_should_be_done_first(monkeypatch):
    grids = with_prefix(EQUAL, 1)
    macs = {method: build(*grids, method=method).macs() for method in METHODS}
    for method in METHODS:
        times = {other: (1.0 if other == method else 1.1) / macs[other] for other in METHODS}
        monkeypatch.setitem(LISA_TIME_OF_MAC, "cpu", times)
        assert build(*grids).macs() == macs[method]


def test_tables_have_one_entry_per_relative_position():
    shapes = {name: tuple(p.shape) for name, p in build(TokenGrid(4, 1, 5, 1), num_patterns=L).named_parameters()}
    assert shapes == {"r1": (2, 3, 7, 1, 9), "r2": (2, 3, 7, 1, 9), "P": (2, 3, 4), "g": (2,)}
    shapes = {name: tuple(p.shape) for name, p in build(TokenGrid(4, 1, 5), wrap=True).named_parameters()}
    assert shapes == {"r1": (2, 4, 4, 1, 5), "r2": (2, 4, 4, 1, 5), "P": (2, 4, 4)}


# ---- class tokens


@pytest.mark.parametrize("method", METHODS)
def test_a_class_query_attends_to_all_tokens_by_softmax(method):
    operator = build(TokenGrid(2, 3, 5, 2), method=method, start=False)
    q, k, v = qkv(operator)
    expected = DenseAttention(operator.site)(q, k, v)[:, :, :2]
    torch.testing.assert_close(operator(q, k, v)[:, :, :2], expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_class_key_adds_its_value_by_the_cosine_with_each_patch_query(method):
    grid = TokenGrid(2, 3, 5, 2)
    operator = build(grid, method=method)
    torch.testing.assert_close(operator.g.data, torch.full((HEADS,), 1 / 30, dtype=torch.float64))
    q, k, v = qkv(operator)
    torch.nn.init.uniform_(operator.g, 1, 2, generator=torch.Generator().manual_seed(0))
    without = build(TokenGrid(2, 3, 5), method=method)
    without.load_state_dict({name: x for name, x in operator.state_dict().items() if name != "g"})
    added = operator(q, k, v)[:, :, 2:] - without(q[:, :, 2:], k[:, :, 2:], v[:, :, 2:])
    cosines = F.cosine_similarity(q[:, :, 2:, None], k[:, :, None, :2], dim=-1)
    torch.testing.assert_close(added, operator.g[:, None, None] * cosines @ v[:, :, :2])


# ---- the start


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("sizes", [(4, 1, 1), (8, 1, 1), (1, 6, 9), (1, 14, 14), (4, 5, 6)], ids=str)
def test_initial_variance_is_within_a_factor_of_two_of_softmax_attentions(sizes, wrap):
    grid = TokenGrid(*sizes)
    operator = build(grid, heads=4, d=32, wrap=wrap)
    q, k, v = qkv(operator, rows=1 + 1000 // grid.patches, dtype=torch.float32)
    with torch.no_grad():
        ours = operator(q, k, v).var()
        for size in (0.01, 1):  # logits near 0, and of variance 1
            assert 0.5 < ours / DenseAttention(operator.site)(size * q, size * k, v).var() < 2


@pytest.mark.parametrize(("num_patterns", "d"), [(1, 16), (4, 16), (4, 64)])
def test_strengths_start_uncorrelated_with_a_sum_of_mean_square_one(num_patterns, d):
    operator = build(TokenGrid(1, 6, 9), heads=6, d=d, num_patterns=num_patterns)
    q, k, _ = qkv(operator, rows=50)
    # with the values all one and each r2_l a delta at 0 in turn, the output is a_l
    strengths = []
    for pattern in range(num_patterns):
        operator.r2.data.zero_()
        operator.r2.data[:, pattern, 0, 5, 8] = 1
        strengths.append(operator(q, k, torch.ones_like(k))[..., 0].detach())
    a = torch.stack(strengths)
    correlations = torch.einsum("l...,m...->lm", a, a) / a[0].numel()
    torch.testing.assert_close(correlations, torch.eye(num_patterns).double() / num_patterns, rtol=0, atol=0.04)
    assert 0.9 < a.sum(0).square().mean() < 1.1


def test_patterns_start_as_a_delta_and_wider_and_wider_gaussians():
    operator = build(TokenGrid(1, 1, 40))
    r2 = operator.r2.detach()[:, :, 0, 0]
    middle = r2[:, :, 39]
    assert (r2[:, 0, :39].abs() < 0.2 * middle[:, :1]).all() and (r2[:, 0, :39] != 0).any()
    for pattern in (1, 2, 3):
        one_deviation_away = r2[:, pattern, 39 + pattern] / middle[:, pattern]
        torch.testing.assert_close(one_deviation_away, torch.full_like(one_deviation_away, -0.5).exp())
