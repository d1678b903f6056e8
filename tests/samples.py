"""Choices of quick cases among many: the others are marked as slow, so that `make test-slow` runs every one."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def first_quick(values: Iterable[Any], number: int = 1) -> list[Any]:
    """Return the values as parameters of which the first `number` are quick."""
    return [value if at < number else pytest.param(value, marks=pytest.mark.slow) for at, value in enumerate(values)]


def sampled(*columns: Sequence[Any], every: int) -> list[Any]:
    """Return all combinations of the columns' values as parameters, of which every n-th is quick.

    `every` shares no factor with the length of a column, so each value of each column is among the quick ones.
    """
    assert all(len(column) % every for column in columns if len(column) > 1)
    combinations = itertools.product(*columns)
    return [
        pytest.param(*values, marks=[pytest.mark.slow] * (at % every > 0)) for at, values in enumerate(combinations)
    ]
