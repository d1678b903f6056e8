"""Sums over listed keys: against dense products under a mask, by numerical derivatives, traced and counted."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from videoattn.kernels.gather import GatherPlan, gather_products, gather_sums, gather_sums_by_key

HEADS, NQ, NK, SLOTS, D = 2, 5, 4, 3, 6


def plan_and_mask():
    """A plan with rows of different lengths, a key that nobody asks for, and the listed pairs as a mask."""
    generator = np.random.default_rng(0)
    counts = generator.integers(1, SLOTS + 1, (HEADS, NQ))
    counts[0, 0] = SLOTS
    keys = np.stack([[generator.permutation(NK - 1)[:SLOTS] for _ in range(NQ)] for _ in range(HEADS)])
    mask = torch.zeros(HEADS, NQ, NK, dtype=torch.bool)
    for head, query in np.ndindex(HEADS, NQ):
        mask[head, query, keys[head, query, : counts[head, query]]] = True
    return GatherPlan(keys, counts, NK), mask


def tensors(*lengths, sequences=(3,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*sequences, HEADS, n, m, dtype=torch.float64, generator=generator, requires_grad=True)
        for n, m in lengths
    ]


def tables(plan):
    return plan.keys, plan.slots, plan.starts


def dense(plan, weights):
    """Weights [sequences, heads, Nq, K] as a matrix over all keys."""
    matrix = weights.new_zeros(*weights.shape[:-1], NK)
    return matrix.scatter_add(-1, plan.keys.long().expand(weights.shape), weights.masked_fill(plan.unused(), 0.0))


def test_the_key_that_nobody_asks_for_has_no_slot():
    plan, mask = plan_and_mask()
    assert len(plan.slots) == int(mask.sum()) and not mask[:, :, -1].any()


@pytest.mark.parametrize("sequences", [(3,), (2, 3)])
def test_products_and_sums_equal_the_dense_ones(sequences):
    plan, mask = plan_and_mask()
    a, b = tensors((NQ, D), (NK, D), sequences=sequences)
    (weights,) = (w.masked_fill(plan.unused(), 0.0) for w in tensors((NQ, SLOTS), sequences=sequences, seed=1))
    torch.testing.assert_close(dense(plan, plan.products(a, b)), (a @ b.transpose(-2, -1)).masked_fill(~mask, 0.0))
    torch.testing.assert_close(plan.sums(weights, b), dense(plan, weights) @ b)
    flat = [x.flatten(0, -4) for x in (weights, a)]
    by_key = gather_sums_by_key(*flat, *tables(plan))
    torch.testing.assert_close(by_key, dense(plan, flat[0]).transpose(-2, -1) @ flat[1])


def test_strided_inputs_give_the_same_as_copies():
    plan, _ = plan_and_mask()
    a, b = (x.detach() for x in tensors((NQ, D), (NK, D)))
    strided = [torch.stack([x, x], dim=-1)[..., 0] for x in (a, b)]
    assert not strided[0].is_contiguous()
    assert torch.equal(plan.products(*strided), plan.products(a, b))


def test_first_and_second_derivatives_equal_numerical_ones():
    plan, _ = plan_and_mask()
    a, b, weights = tensors((NQ, D), (NK, D), (NQ, SLOTS), sequences=(2,))

    def products(a, b):
        return plan.products(a, b).masked_fill(plan.unused(), 0.0)

    def sums(weights, b):
        return plan.sums(weights.masked_fill(plan.unused(), 0.0), b)

    def sums_by_key(weights, a):
        return gather_sums_by_key(weights.masked_fill(plan.unused(), 0.0), a, *tables(plan))

    for function, inputs in ((products, (a, b)), (sums, (weights, b)), (sums_by_key, (weights, a))):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("operation", [gather_products, gather_sums, gather_sums_by_key], ids=lambda op: op._qualname)
def test_operations_keep_the_rules_of_tracing(operation):
    plan, _ = plan_and_mask()
    a, b, weights = tensors((NQ, D), (NK, D), (NQ, SLOTS))
    weights = weights.detach().masked_fill(plan.unused(), 0.0).requires_grad_()
    inputs = {gather_products: (a, b), gather_sums: (weights, b), gather_sums_by_key: (weights, a)}[operation]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operation, (*inputs, *tables(plan)), test_utils=checks)


def test_torch_counts_slots_forward_and_listed_pairs_in_gradients_of_keys():
    plan, mask = plan_and_mask()
    a, b = tensors((NQ, D), (NK, D))
    with FlopCounterMode(display=False) as counter:
        plan.products(a, b).masked_fill(plan.unused(), 0.0).sum().backward()
    sequences, slots, pairs = 3, HEADS * NQ * SLOTS, int(mask.sum())
    counts = counter.get_flop_counts()["Global"]
    assert (
        counts[torch.ops.videoattn.gather_products]
        == counts[torch.ops.videoattn.gather_sums]
        == 2 * sequences * slots * D
    )
    assert counts[torch.ops.videoattn.gather_sums_by_key] == 2 * sequences * pairs * D


def test_a_batch_beyond_int32_is_refused():
    plan, _ = plan_and_mask()
    sequences = 2**31 // plan.keys.numel() + 1
    a, b = (torch.zeros(()).expand(sequences, HEADS, n, D) for n in (NQ, NK))
    with pytest.raises(ValueError, match=f"{sequences} sequences of 30 slots; split the batch"):
        plan.products(a, b)
