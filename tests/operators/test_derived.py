"""Cached transforms of LiSA's tables always agree with the current tables."""

import copy
import pickle
from itertools import count

import pytest
import torch
from torch import nn

from tests.operators.lisa_cases import METHODS, build, qkv, with_prefix
from tests.samples import first_quick
from videoattn.grid import TokenGrid
from videoattn.operators.derived import Derived
from videoattn.operators.lisa import operator as lisa

GRID = TokenGrid(2, 3, 5, 1)


def set_values(operator, change):
    """Each of the ways in which r1 and r2 come to have other values; returns the operator that then has them."""
    tables = [operator.r1, operator.r2]
    if change == "optimizer step":
        for table in tables:
            table.grad = torch.ones_like(table)
        torch.optim.SGD(tables, lr=0.1).step()
    elif change == "load_state_dict":
        operator.load_state_dict({name: x + 1 for name, x in operator.state_dict().items()})
    elif change == "in place through data":
        for table in tables:
            table.data.mul_(2)
    elif change == "swapped data":
        for table in tables:
            table.data = table.data + 1
    elif change == "new parameters":
        operator.r1, operator.r2 = (nn.Parameter(table.detach() + 1) for table in tables)
    elif change == "another type and back":
        operator.to(torch.float32).to(torch.float64)
    elif change == "a copy, changed":
        operator = copy.deepcopy(operator)
        with torch.no_grad():
            operator.r1 += 1
    return operator


CHANGES = (
    "none", "optimizer step", "load_state_dict", "in place through data", "swapped data", "new parameters",
    "another type and back", "a copy, changed",
)  # fmt: skip


@pytest.mark.parametrize("kept_bytes", [0, 5000, 10**6])  # nothing, what is begun, what is finished
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", CHANGES)
def test_an_evaluation_sees_every_change_of_the_tables(monkeypatch, change, method, kept_bytes):
    monkeypatch.setattr(lisa, "KEPT_BYTES", kept_bytes)
    operator = build(GRID, method=method, start=False)
    inputs = qkv(operator)
    with torch.no_grad():
        operator(*inputs)
    operator = set_values(operator, change)
    with torch.no_grad():
        evaluated, again = operator(*inputs), operator(*inputs)
    trained = operator(*inputs)
    assert trained.requires_grad and not evaluated.requires_grad
    torch.testing.assert_close(evaluated, trained.detach(), rtol=0, atol=1e-12)
    assert torch.equal(evaluated, again)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_is_computed_once_and_stays_out_of_checkpoints_and_copies(monkeypatch, method):
    operator = build(GRID, method=method, start=False)
    names, steps = set(operator.state_dict()), count()
    begin = type(operator.form).begin
    monkeypatch.setattr(type(operator.form), "begin", lambda *args: (next(steps), begin(*args))[1])
    with torch.no_grad():
        outputs = [operator(*qkv(operator)) for _ in range(3)]
    assert next(steps) == 2 and torch.equal(outputs[0], outputs[2])
    assert set(operator.state_dict()) == names == {"r1", "r2", "P", "g"}
    for twin in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert all(kept._kept is None for kept in twin._kept)
        with torch.no_grad():
            assert torch.equal(twin(*qkv(operator)), outputs[0])


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_tables_after_an_evaluation(method):
    operator = build(*with_prefix((TokenGrid(2, 2, 3), TokenGrid(2, 2, 3)), 1), d=3, method=method, start=False)
    inputs = [x.requires_grad_() for x in qkv(operator, rows=1)]
    with torch.no_grad():
        operator(*inputs)
    assert torch.autograd.gradcheck(
        lambda q, k, v, *_: operator(q, k, v), [*inputs, *operator.parameters()], fast_mode=True
    )


@pytest.mark.parametrize(("max_bytes", "computed"), [(800, 1), (799, 3)])
def test_nothing_larger_than_the_bound_is_kept(max_bytes, computed):
    table, derived, steps = nn.Parameter(torch.ones(10)), Derived(max_bytes), count()
    with torch.no_grad():
        for _ in range(3):
            derived(table, (), lambda: (next(steps), table.repeat(20))[1])
    assert next(steps) == computed


def test_another_signature_is_another_tensor():
    table, derived = nn.Parameter(torch.ones(3)), Derived(1000)
    with torch.no_grad():
        doubled = derived(table, ("doubled",), lambda: 2 * table)
        tripled = derived(table, ("tripled",), lambda: 3 * table)
    assert torch.equal(doubled, torch.full((3,), 2.0)) and torch.equal(tripled, torch.full((3,), 3.0))


@pytest.mark.parametrize("method", first_quick(METHODS))
def test_a_graph_is_made_of_the_parameters_not_of_what_is_kept(method):
    operator = build(GRID, method=method, start=False)
    inputs = qkv(operator)
    with torch.inference_mode():
        evaluated = operator(*inputs)
    with torch.no_grad():
        program = torch.export.export(operator, tuple(inputs)).module()
        torch.testing.assert_close(program(*inputs), evaluated.clone())
        for target in (program, operator):
            target.r1 *= 2
        torch.testing.assert_close(program(*inputs), operator(*inputs))
        assert not torch.allclose(program(*inputs), evaluated)
