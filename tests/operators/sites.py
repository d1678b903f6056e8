"""Sites on grids whose t, h and w all differ, and the ways in which each operator can be set up on them."""

import itertools
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor

from videoattn.grid import Axis, TokenGrid
from videoattn.kernels.offsets import is_compiled
from videoattn.operators import OPERATORS, AttentionOperator, AttentionSite
from videoattn.operators.options import Option, options_of

HEADS, D = 3, 8
# Options that are put to the tests together. Of an operator that has no entry every choice is tried in turn.
TOGETHER: dict[str, list[dict[str, Any]]] = {
    "fibonacci": [
        {"implementation": "masked"},
        {"implementation": "gather"},
        {"variant": "wythoff", "semantics": "zero_logit", "implementation": "gather"},
        {"geometry": "axial", "order": "hwt", "heads_permutation": "none", "semantics": "zero_logit"},
        {"geometry": "block", "semantics": "mean_logit", "implementation": "gather"},
    ],
    "lisa": [
        {"method": "direct", "num_patterns": 2},
        {"method": "axes", "num_patterns": 3},
        {"method": "axes", "wrap": True},
        {"method": "fft", "num_patterns": 3},
        {"method": "fft", "wrap": True},
    ],
    "focused_linear": [{}, {"power": 4.5, "kernel_size": 0}, {"implementation": "plain"}],
}
if is_compiled():
    TOGETHER["fibonacci"] += [
        {"implementation": "compiled"},
        {"semantics": "mean_logit", "implementation": "compiled"},
        {"geometry": "axial", "semantics": "zero_logit", "implementation": "compiled"},
        {"geometry": "block", "order": "hwt", "semantics": "zero_logit", "implementation": "compiled"},
    ]


def other_values(option: Option) -> list[Any]:
    """Values of an option besides its default: every choice, or one other number."""
    kind = get_args(option.annotation)[0] if get_origin(option.annotation) is Annotated else option.annotation
    if get_origin(kind) is Literal:
        return [value for value in get_args(kind) if value != option.default]
    if kind is bool:
        return [not option.default]
    if kind not in (int, float):
        return []
    near = (option.default + 2, option.default - 2, option.default + 1) if kind is int else (
        option.default + 1.5, option.default / 2, option.default + 0.25
    )  # fmt: skip
    return [next(value for value in near if allows(option, value))]


def allows(option: Option, value: Any) -> bool:
    try:
        option.check(value)
    except ValueError:
        return False
    return True


def settings_of(operator: type[AttentionOperator]) -> list[dict[str, Any]]:
    """The defaults, then settings among which each other value of each option stands once."""
    columns = {name: other_values(option) for name, option in options_of(operator).items()}
    rows = itertools.zip_longest(*columns.values())
    return [{}, *({name: value for name, value in zip(columns, row, strict=True) if value is not None} for row in rows)]


SETTINGS = [(name, options) for name, kind in OPERATORS.items() for options in TOGETHER.get(name, settings_of(kind))]
# axis, prefix tokens, whether keys have a coarser grid than queries
SITES = [(axis, prefix, unequal) for axis in Axis for prefix in (0, 1) for unequal in (False, True)]


def refusal(name: str, options: dict[str, Any], at: AttentionSite) -> str | None:
    """Why an operator can't be built there, in the words of its ValueError; None where it can."""
    try:
        OPERATORS[name](at, **options)
    except ValueError as error:
        return str(error)
    return None


def names_its_reason(reason: str, name: str, at: AttentionSite) -> bool:
    """Return whether a refusal names the grid, bias or option that it is about."""
    about = [str(at.q_grid), str(at.kv_grid), *(option.upper() for option in options_of(OPERATORS[name]))]
    return any(word in reason for word in about) or (at.has_bias and "bias" in reason)


def build_or_skip(name: str, options: dict[str, Any], at: AttentionSite) -> AttentionOperator:
    """The operator, or where it refuses the site, the end of the test: a refusal that names its reason is an answer."""
    try:
        return OPERATORS[name](at, **options)
    except ValueError as error:
        assert names_its_reason(str(error), name, at), error
        pytest.skip(str(error))


def identify(name: str, options: dict[str, Any]) -> str:
    return "-".join([name, *(str(value) for value in options.values())])


def site(axis: Axis, prefix: int, unequal: bool = False, has_bias: bool = False) -> AttentionSite:
    grid = TokenGrid(4, 3, 5, prefix).along(axis)
    kv = TokenGrid(max(grid.t // 2, 1), (grid.h + 1) // 2, (grid.w + 1) // 2, grid.prefix) if unequal else grid
    return AttentionSite(grid, kv, HEADS, D, block=1, has_bias=has_bias)


def qkv(
    at: AttentionSite, rows: int = 2, groups: int = 1, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = (at.q_grid.tokens, at.kv_grid.tokens, at.kv_grid.tokens)
    return [
        torch.randn(rows, groups * HEADS, n, D, dtype=torch.float64, generator=generator).to(dtype) for n in lengths
    ]
