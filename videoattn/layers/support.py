"""Which method works in which attention slot: the table of docs/attention.md as data, which tests build."""

from videoattn.grid import Axis, TokenGrid
from videoattn.operators import OPERATORS, AttentionSite

_CLIP = TokenGrid(4, 3, 5, prefix=1)
_POOLED = TokenGrid(4, 2, 3, prefix=1)


def _along(axis: Axis, grid: TokenGrid = _CLIP) -> AttentionSite:
    return AttentionSite(grid.along(axis), grid.along(axis), num_heads=3, head_dim=8, layer=1)


# An example of each kind of slot.
SLOTS: dict[str, AttentionSite] = {
    "divided, along time": _along(Axis.TIME),
    "divided, along space": _along(Axis.SPACE),
    "joint": _along(Axis.JOINT),
    "space-only": _along(Axis.SPACE, TokenGrid(1, 3, 5, prefix=1)),
    "pooled keys": AttentionSite(_CLIP, _POOLED, num_heads=3, head_dim=8, layer=1),
    "relative positions in logits": AttentionSite(_CLIP, _POOLED, num_heads=3, head_dim=8, layer=1, has_bias=True),
}
_NO_LOGITS = "there are no logits to add relative positions to"
# Why a method is refused in a slot; it works where it has no entry.
REFUSED: dict[str, dict[str, str]] = {
    "lisa": {"relative positions in logits": _NO_LOGITS},
    "focused_linear": {"relative positions in logits": _NO_LOGITS},
}
# The operators whose weights a block can reuse, by Φ; SkipAt needs a block before it on the same grid in any case.
SKIPS_AFTER: dict[str, tuple[str, ...]] = {
    "leff": tuple(OPERATORS),
    "identity": tuple(OPERATORS),
    "weights": tuple(name for name, kind in OPERATORS.items() if kind.forms_weights),
}
_POOLING = ("pooled keys", "relative positions in logits")
_SAME_KEYS = ", which pools its keys to the same grid; residual pooling is left out"


def render_support() -> str:
    """The table as Markdown, with notes below it."""
    notes: list[str] = []

    def noted(cell: str, note: str) -> str:
        if note not in notes:
            notes.append(note)
        return f"{cell} ({notes.index(note) + 1})"

    rows = []
    for name in OPERATORS:
        refused = REFUSED.get(name, {})
        rows.append([name, *(noted("no", refused[slot]) if slot in refused else "yes" for slot in SLOTS)])
    for phi, operators in SKIPS_AFTER.items():
        after = "after a block with any operator"
        if len(operators) < len(OPERATORS):
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
