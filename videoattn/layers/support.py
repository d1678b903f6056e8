"""The methods that support each type of attention slot, found by constructing them: the table of docs/attention.md."""

import re
from collections.abc import Iterable, Sequence
from typing import get_args

from videoattn.grid import Axis, TokenGrid
from videoattn.layers.attention import BuildOperator
from videoattn.layers.skip import Phi
from videoattn.operators import OPERATORS, AttentionSite

_CLIP = TokenGrid(4, 3, 5, prefix=1)
_POOLED = TokenGrid(4, 2, 3, prefix=1)


def _along(axis: Axis, grid: TokenGrid = _CLIP) -> AttentionSite:
    return AttentionSite(grid.along(axis), grid.along(axis), num_heads=3, head_dim=8, block=1)


# An example of each type of slot.
SLOTS: dict[str, AttentionSite] = {
    "divided, along time": _along(Axis.TIME),
    "divided, along space": _along(Axis.SPACE),
    "joint": _along(Axis.JOINT),
    "space-only": _along(Axis.SPACE, TokenGrid(1, 3, 5, prefix=1)),
    "pooled keys": AttentionSite(_CLIP, _POOLED, num_heads=3, head_dim=8, block=1),
    "relative positions in logits": AttentionSite(_CLIP, _POOLED, num_heads=3, head_dim=8, block=1, has_bias=True),
}
# Where a refusal goes on to say what was given, here an example's, or what to do.
_DETAIL = re.compile(r", got |; ")
_POOLING = ("pooled keys", "relative positions in logits")
_SAME_KEYS = ", which pools its keys to the same grid; residual pooling is left out"


def refusal(operator: BuildOperator, site: AttentionSite) -> str | None:
    """Return why an operator can't be built at a site, in the words of its ValueError, or None where it can."""
    try:
        operator(site)
    except ValueError as error:
        return str(error)
    return None


def operators_before(phi: str, names: Iterable[str] = OPERATORS) -> list[str]:
    """Return the operators after whose block another can skip attention by `phi`, which may need their weights."""
    return [name for name in names if phi != "weights" or OPERATORS[name].forms_weights]


def render_support(names: Sequence[str] = tuple(OPERATORS)) -> str:
    """Return the table as Markdown, with notes below it: each operator is tried in each type of slot."""
    notes: list[str] = []

    def noted(cell: str, note: str) -> str:
        if note not in notes:
            notes.append(note)
        return f"{cell} ({notes.index(note) + 1})"

    rows = []
    for name in names:
        reasons = [refusal(OPERATORS[name], site) for site in SLOTS.values()]
        rows.append([name, *("yes" if text is None else noted("no", _DETAIL.split(text)[0]) for text in reasons)])
    for phi in get_args(Phi):
        operators = operators_before(phi, names)
        after = "after a block with any operator"
        if len(operators) < len(names):
            after = f"after a block with {', '.join(operators[:-1])} or {operators[-1]}"
        rows.append(
            [
                f"skipat, {phi}",
                *(
                    noted("yes", f"{after}; not block 0")
                    if slot not in _POOLING
                    else noted("yes", f"{after} of the same stage" + (_SAME_KEYS if phi == "weights" else ""))
                    for slot in SLOTS
                ),
            ]
        )
    lines = [["method", *SLOTS], ["---"] * (len(SLOTS) + 1), *rows]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*table, "", *(f"({i}) {note}." for i, note in enumerate(notes, start=1))])
