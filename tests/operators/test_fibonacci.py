import itertools
import math

import pytest
import torch

from tests.shared_files import GOLDEN, needs_golden
from videoattn.grid import TokenGrid
from videoattn.kernels.offsets import is_compiled
from videoattn.operators import AttentionSite, FibonacciAttention
from videoattn.operators.fibonacci import operator as module
from videoattn.operators.fibonacci.sets import offset_sets, permute_heads, published_rows


def golden(name):
    return torch.load(GOLDEN / f"{name}.pt", weights_only=True)


def variant(modified):
    return "modified" if modified else "wythoff"


def site(q, kv=None, heads=3, d=8, block=0):
    return AttentionSite(q, kv or q, heads, d, block)


def weights(operator, seed=0):
    """The weight matrix [heads, Nq, Nk]: what comes out when the values are the identity."""
    at = operator.site
    generator = torch.Generator().manual_seed(seed)
    nq, nk = at.q_grid.tokens, at.kv_grid.tokens
    q, k = (torch.randn(1, at.num_heads, n, at.head_dim, dtype=torch.float64, generator=generator) for n in (nq, nk))
    return operator(q, k, torch.eye(nk, dtype=torch.float64).expand(1, at.num_heads, -1, -1))[0]


# ---- the published tables


def test_offsets_at_196_tokens_are_the_papers():
    rows = published_rows(196, 12, "wythoff")
    assert rows[:3] == [[1, 2, 3, 5], [4, 7], [6, 10]] and rows[-1] == [30, 49]
    assert published_rows(196, 12, "modified")[:2] == [[0, 1, 1, 2, 3, 5], [1, 3, 4, 7]]


@needs_golden
def test_offsets_and_permutations_equal_the_official_tables():
    tables = golden("fibottention_tables")
    for (n, heads, modified), rows in tables["head_offsets_wmin5"].items():
        assert published_rows(n, heads, variant(modified)) == rows
    for (heads, block), order in tables["head_permutation"].items():
        assert permute_heads(heads, block, "per_layer") == order


@needs_golden
def test_masks_equal_the_official_masks():
    for (n, heads, modified, shuffled, block), mask in golden("fibottention_tables")["masks_with_cls"].items():
        operator = FibonacciAttention(
            site(TokenGrid(1, 1, n, 1), heads=heads, block=block),
            variant=variant(modified),
            keep_self=False,
            heads_permutation="per_layer" if shuffled else "none",
            implementation="masked",
        )
        assert torch.equal(operator.keep, mask)


@needs_golden
@pytest.mark.parametrize("implementation", ["masked", "gather", *(["compiled"] if is_compiled() else [])])
@pytest.mark.parametrize(("name", "semantics"), [("inf", "exclude"), ("mult", "zero_logit")])
def test_layer_equals_the_official_layer(name, semantics, implementation):
    case = golden(f"fibottention_attn_{name}_n36_d32_h4_depth0_f64")
    state, x = case["state_dict"], case["x"].clone().requires_grad_()
    operator = FibonacciAttention(
        site(TokenGrid(1, 6, 6, 1), heads=4),
        variant="wythoff",
        semantics=semantics,
        keep_self=False,
        implementation=implementation,
    )
    q, k, v = (x @ state["qkv.weight"].T + state["qkv.bias"]).unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    y = operator(q, k, v).transpose(1, 2).flatten(2) @ state["proj.weight"].T + state["proj.bias"]
    torch.testing.assert_close(y, case["y"], rtol=0, atol=1e-12)
    if "grad_x" in case:
        (y * case["cotangent"]).sum().backward()
        torch.testing.assert_close(x.grad, case["grad_x"], rtol=0, atol=1e-12)


# ---- laws


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize(
    ("geometry", "name", "keep_self"),
    [
        ("block", "modified", True),
        *((g, *sets) for g in ("raster", "axial") for sets in (("modified", True), ("wythoff", False))),
    ],
)
@pytest.mark.parametrize("order", ["thw", "hwt"])
@pytest.mark.parametrize(
    ("q_grid", "kv"), [(TokenGrid(4, 3, 5), TokenGrid(4, 3, 5)), (TokenGrid(3, 4, 10), TokenGrid(3, 2, 5))],
    ids=["equal", "pooled"],
)  # fmt: skip
def test_weights_lie_exactly_where_the_definition_says(prefix, geometry, order, name, keep_self, q_grid, kv):
    """The definition, pair by pair, in plain Python."""
    q_grid, grid = (TokenGrid(g.t, g.h, g.w, prefix) for g in (q_grid, kv))
    options = {"variant": name, "keep_self": keep_self, "geometry": geometry, "order": order}
    masked, pairs = (
        FibonacciAttention(site(q_grid, grid), **options, heads_permutation="none", implementation=form)
        for form in ("masked", "gather")
    )
    sizes = {"t": kv.t, "h": kv.h, "w": kv.w}
    raster_sets = offset_sets(kv.patches, 3, name, keep_self)
    block_sets = offset_sets(math.ceil(kv.patches / 16), 3, name, keep_self)
    axis_sets = {a: offset_sets(n, 3, name, keep_self) for a, n in sizes.items()}

    def position(cell):
        t, h, w = cell
        return (t * kv.h + h) * kv.w + w if order == "thw" else (h * kv.w + w) * kv.t + t

    def cells(grid):
        return list(itertools.product(range(grid.t), range(grid.h), range(grid.w)))

    expected = torch.ones(3, q_grid.tokens, grid.tokens, dtype=torch.bool)
    for (i, cell), (j, key), head in itertools.product(enumerate(cells(q_grid)), enumerate(cells(kv)), range(3)):
        under = tuple(c * n // m for c, n, m in zip(cell, sizes.values(), (q_grid.t, q_grid.h, q_grid.w), strict=True))
        if geometry == "raster":
            sees = abs(position(under) - position(key)) in raster_sets[head]
        elif geometry == "block":
            sees = abs(position(under) // 16 - position(key) // 16) in block_sets[head]
        elif under == key:
            sees = keep_self
        else:
            moved = [(a, abs(x - y)) for a, x, y in zip("thw", under, key, strict=True) if x != y]
            sees = len(moved) == 1 and moved[0][1] in axis_sets[moved[0][0]][head]
        expected[head, prefix + i, prefix + j] = sees
    assert torch.equal(weights(masked) > 0, expected) and torch.equal(weights(pairs) != 0, expected)
    assert masked.macs() == pairs.macs() == 2 * 8 * int(expected.sum())
    assert len(pairs.gather.slots) == int(expected[:, prefix:].sum())


@pytest.mark.parametrize("form", ["masked", "gather"])
def test_excluded_keys_have_zero_weight_and_zero_logits_do_not(form):
    grid = TokenGrid(1, 5, 7, 1)
    excluded, clamped = (
        FibonacciAttention(site(grid), semantics=s, implementation=form) for s in ("exclude", "zero_logit")
    )
    outside = ~FibonacciAttention(site(grid), implementation="masked").keep
    assert (weights(excluded)[outside] == 0).all()
    rows = weights(clamped)
    background = torch.where(outside, rows, math.inf).amin(-1)
    patch_rows = background[:, 1:]
    assert (patch_rows > 0).all() and patch_rows.isfinite().all()
    # all keys outside the pattern share one weight, e^0 / Z
    spread = torch.where(outside, rows, background[..., None])[:, 1:] - patch_rows[..., None]
    assert spread.abs().max() < 1e-15


def test_large_grids_are_computed_in_slices_with_the_same_result(monkeypatch):
    grid = TokenGrid(2, 4, 7, 1)
    whole = FibonacciAttention(site(grid), implementation="masked")
    monkeypatch.setattr(module, "MASK_ELEMENTS", 3 * 57 * 5)
    sliced = FibonacciAttention(site(grid), implementation="masked")
    assert sliced.keep is None
    generator = torch.Generator().manual_seed(0)
    q, k, v, bias = (torch.randn(2, 3, 57, n, dtype=torch.float64, generator=generator) for n in (8, 8, 8, 57))
    torch.testing.assert_close(sliced(q, k, v, bias), whole(q, k, v, bias))
    assert torch.equal(sliced.weights(q, k, bias), whole.weights(q, k, bias))


def test_a_mask_that_kernels_may_do_without_is_formed_when_it_is_needed(monkeypatch):
    monkeypatch.setattr(module, "has_kernel", lambda device_type: device_type == "cpu")
    operator = FibonacciAttention(site(TokenGrid(1, 3, 5, 1)))
    masked = FibonacciAttention(site(TokenGrid(1, 3, 5, 1)), implementation="masked")
    assert operator.keep is None and masked.keep is not None
    q, k = torch.randn(2, 2, 3, 16, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    with torch.inference_mode():
        torch.testing.assert_close(operator.weights(q, k), masked.weights(q, k), rtol=0, atol=0)
    assert torch.equal(operator.keep, masked.keep) and not operator.keep.is_inference()
    assert not operator.state_dict()


def test_a_pattern_that_leaves_out_no_pair_is_said_once_and_others_are_not(caplog):
    module.warn_of_full_pattern.cache_clear()
    for _ in range(2):
        FibonacciAttention(site(TokenGrid(8, 1, 1)), geometry="block")
        FibonacciAttention(site(TokenGrid(8, 1, 1)))
        FibonacciAttention(site(TokenGrid(1, 6, 8, 1)), geometry="block")
    (said,) = caplog.messages
    assert "GEOMETRY: block" in said and "t=8" in said and "all pairs" in said


@pytest.mark.parametrize("form", ["masked", "gather"])
@pytest.mark.parametrize("semantics", ["exclude", "zero_logit", "mean_logit"])
def test_bias_is_added_to_the_logits_of_the_pattern(semantics, form):
    operator = FibonacciAttention(site(TokenGrid(1, 3, 5, 1)), semantics=semantics, implementation=form)
    keep = FibonacciAttention(site(TokenGrid(1, 3, 5, 1)), implementation="masked").keep
    generator = torch.Generator().manual_seed(0)
    q, k, v, bias = (torch.randn(2, 3, 16, n, dtype=torch.float64, generator=generator) for n in (8, 8, 8, 16))
    logits = q @ k.transpose(-2, -1) / math.sqrt(8) + bias
    mean = q @ k.mean(dim=2, keepdim=True).transpose(-2, -1) / math.sqrt(8)  # no bias is added to it
    others = {"exclude": torch.tensor(-math.inf), "zero_logit": torch.tensor(0.0), "mean_logit": mean}[semantics]
    expected = torch.where(keep, logits, others).softmax(-1)
    torch.testing.assert_close(operator(q, k, v, bias), expected @ v, rtol=0, atol=1e-12)
    torch.testing.assert_close(operator.weights(q, k, bias), expected, rtol=0, atol=1e-12)


# ---- short axes


@pytest.mark.parametrize("heads", [1, 3, 12])
@pytest.mark.parametrize("name", ["modified", "wythoff"])
@pytest.mark.parametrize("num_frames", [2, 4, 8, 16])
def test_every_head_reaches_another_frame_on_short_axes(heads, name, num_frames):
    for offsets in offset_sets(num_frames, heads, name, keep_self=True):
        assert offsets[0] == 0 and 0 < offsets[1] and offsets[-1] < num_frames


def test_heads_without_an_offset_repeat_the_rows_that_have_one():
    rows = offset_sets(8, 6, "wythoff", keep_self=False)
    assert rows == [[1, 2, 3, 5], [4], [6], [1, 2, 3, 5], [4], [6]]


def test_one_frame_attends_to_itself():
    operator = FibonacciAttention(site(TokenGrid(1, 1, 1)))
    assert torch.equal(weights(operator), torch.ones(3, 1, 1, dtype=torch.float64))


@pytest.mark.parametrize("kv", [TokenGrid(8, 1, 1), TokenGrid(6, 1, 1)])
def test_a_query_without_keys_is_refused_with_the_grids(kv):
    with pytest.raises(ValueError, match=rf"query \d of head \d without a key on .*t=8,.* over .*t={kv.t},.*KEEP_SELF"):
        FibonacciAttention(site(TokenGrid(8, 1, 1), kv, heads=6), variant="wythoff", keep_self=False)


@pytest.mark.parametrize("option", ["variant", "semantics", "heads_permutation", "order", "geometry", "implementation"])
def test_unknown_options_are_refused_by_name(option):
    with pytest.raises(ValueError, match=f"{option.upper()} expects one of .*'nonsense'"):
        FibonacciAttention(site(TokenGrid(2, 3, 5)), **{option: "nonsense"})
