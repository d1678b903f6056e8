"""Attention with some dense heads: each head gives what it gives in the whole operator, or in dense attention."""

import copy

import pytest
import torch

from tests.operators.sites import HEADS, qkv, site
from videoattn.grid import Axis, TokenGrid
from videoattn.operators import (
    OPERATORS,
    AttentionSite,
    DenseAttention,
    DenseHeadsAttention,
    FibonacciAttention,
    keep_heads_dense,
)
from videoattn.operators.dense_heads import outer_operators, share_site

KEPT = [(0,), (1,), (0, 2), (1, 2)]


@pytest.mark.parametrize("semantics", ["exclude", "mean_logit"])
@pytest.mark.parametrize("heads", KEPT)
@pytest.mark.parametrize("axis", list(Axis))
def test_each_head_is_that_of_the_dense_or_of_the_sparse_operator(axis, heads, semantics):
    at, groups = site(axis, prefix=0 if axis is Axis.TIME else 1), 4 if axis is Axis.TIME else 1
    mixed = keep_heads_dense(lambda s: FibonacciAttention(s, semantics=semantics), [(1, h) for h in heads])(at)
    dense, sparse = DenseAttention(at), FibonacciAttention(at, semantics=semantics)
    tensors = [x.requires_grad_() for x in qkv(at, groups=groups)]
    kept = torch.tensor([head in heads for head in range(HEADS)]).repeat(groups)[None, :, None, None]
    expected = torch.where(kept, dense(*tensors), sparse(*tensors))
    found = mixed(*tensors)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1))
    for x, y in zip(*(torch.autograd.grad(out, tensors, cotangent) for out in (found, expected)), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
    q, k, _ = tensors
    torch.testing.assert_close(
        mixed.weights(q, k), torch.where(kept, dense.weights(q, k), sparse.weights(q, k)), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "dense"])
def test_packed_and_separate_tensors_give_the_same(name):
    at = site(Axis.JOINT, 1)
    mixed = keep_heads_dense(OPERATORS[name], [(1, 1)])(at).double()
    q, k, v = qkv(at)
    expected = mixed(q, k, v)
    torch.testing.assert_close(expected[:, 1:2], DenseAttention(share_site(at, (1,)))(*(x[:, 1:2] for x in (q, k, v))))
    if mixed.accepts_packed:
        packed = torch.stack([q, k, v], dim=3).transpose(1, 2).contiguous().transpose(1, 2)
        torch.testing.assert_close(mixed(packed), expected, rtol=0, atol=1e-12)


def test_a_tokens_heads_lie_side_by_side():
    at = site(Axis.JOINT, 0)
    out = keep_heads_dense(FibonacciAttention, [(1, 1)])(at)(*qkv(at))
    assert out.transpose(1, 2).is_contiguous()


def test_a_bias_reaches_the_heads_it_is_for():
    at = AttentionSite(TokenGrid(1, 3, 5, 1), TokenGrid(1, 3, 5, 1), HEADS, 8, block=0, has_bias=True)
    q, k, v = qkv(at)
    bias = torch.randn(2, HEADS, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for given in (bias, bias[0], bias[:1, :1]):
        mixed = keep_heads_dense(FibonacciAttention, [(0, 2)])(at)
        expected = FibonacciAttention(at)(q, k, v, given).clone()
        expected[:, 2] = DenseAttention(at)(q, k, v, given)[:, 2]
        torch.testing.assert_close(mixed(q, k, v, given), expected, rtol=0, atol=1e-12)


def test_multiply_accumulates_are_those_of_the_parts():
    at = site(Axis.JOINT, 1)
    mixed = keep_heads_dense(FibonacciAttention, [(1, 0)])(at)
    assert mixed.macs() == DenseAttention(at).macs() // HEADS + FibonacciAttention(share_site(at, (1, 2))).macs()
    assert DenseAttention(at).macs() > mixed.macs() > FibonacciAttention(at).macs()


def test_blocks_without_dense_heads_and_with_dense_heads_alone_are_plain_operators():
    at = site(Axis.JOINT, 1)
    build = keep_heads_dense(FibonacciAttention, [*((1, head) for head in range(HEADS)), (2, 0)])
    assert type(build(at)) is DenseAttention
    other = AttentionSite(at.q_grid, at.kv_grid, HEADS, 8, block=0)
    assert type(build(other)) is FibonacciAttention


@pytest.mark.parametrize("head", [-1, HEADS])
def test_heads_that_a_block_lacks_are_refused(head):
    with pytest.raises(ValueError, match=f"DENSE_HEADS expects heads 0 to {HEADS - 1} in block 1, got {head}"):
        keep_heads_dense(FibonacciAttention, [(1, head)])(site(Axis.JOINT, 1))


def test_shares_of_shares_keep_the_numbers_of_heads():
    at = share_site(share_site(site(Axis.JOINT, 1), (0, 2)), (1,))
    assert (at.head_numbers, at.all_heads, at.num_heads) == ((2,), HEADS, 1)
    whole, one = FibonacciAttention(site(Axis.JOINT, 1)), FibonacciAttention(at)
    tensors = qkv(site(Axis.JOINT, 1))
    torch.testing.assert_close(one(*(x[:, 2:] for x in tensors)), whole(*tensors)[:, 2:], rtol=0, atol=1e-12)


def test_parts_are_counted_once():
    model = torch.nn.ModuleDict({"a": keep_heads_dense(FibonacciAttention, [(1, 0)])(site(Axis.JOINT, 1))})
    assert list(outer_operators([*model.named_modules()])) == ["a"]
    assert [type(x) for x in outer_operators([*model.named_modules()]).values()] == [DenseHeadsAttention]


def test_copies_compile_and_export_alike():
    at = site(Axis.JOINT, 1)
    mixed = keep_heads_dense(FibonacciAttention, [(1, 1)])(at)
    tensors = [x.float() for x in qkv(at)]
    expected = mixed(*tensors)
    assert torch.equal(copy.deepcopy(mixed)(*tensors), expected)
    program = torch.export.export(
        mixed, tuple(tensors), dynamic_shapes=tuple({0: torch.export.Dim("rows")} for _ in "qkv")
    )
    for rows in (2, 3):
        more = [x.repeat(2, 1, 1, 1)[:rows] for x in tensors]
        torch.testing.assert_close(program.module()(*more), mixed(*more))


def test_maps_and_forward_derivatives_pass():
    at = site(Axis.JOINT, 1)
    mixed = keep_heads_dense(FibonacciAttention, [(1, 1)])(at)
    q, k, v = qkv(at)
    mapped = torch.vmap(mixed)(*(x[:, None] for x in (q, k, v)))
    torch.testing.assert_close(mapped[:, 0], mixed(q, k, v), rtol=0, atol=1e-12)
    _, slope = torch.func.jvp(lambda value: mixed(q, k, value), (v,), (v,))
    torch.testing.assert_close(slope, mixed(q, k, v), rtol=0, atol=1e-12)


def test_another_grid_is_planned_with_the_same_heads() -> None:
    at, grid = site(Axis.JOINT, 1), TokenGrid(2, 5, 3, 1)
    other = AttentionSite(grid, grid, HEADS, 8, block=1)
    build = keep_heads_dense(FibonacciAttention, [(1, 1)])
    tensors = qkv(other)
    torch.testing.assert_close(build(at).planned_for(other)(*tensors), build(other)(*tensors), rtol=0, atol=0)
    with pytest.raises(ValueError, match="LisaAttention serves no other grid"):
        keep_heads_dense(OPERATORS["lisa"], [(1, 1)])(at).planned_for(other)
