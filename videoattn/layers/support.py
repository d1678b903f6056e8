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
# SkipAt needs a block before it on the same grid, and weights that can be used again.
SKIP_NEEDS: dict[str, str] = {
    "leff": "any operator before it",
    "identity": "any operator before it",
    "weights": f"{' or '.join(name for name, kind in OPERATORS.items() if kind.forms_weights)} before it",
}


def render_support() -> str:
    """The table as Markdown, with the reasons for refusals below it."""
    reasons = sorted({reason for row in REFUSED.values() for reason in row.values()})
    lines = ["| method | " + " | ".join(SLOTS) + " |", "|---" * (len(SLOTS) + 1) + "|"]
    for name in OPERATORS:
        refused = REFUSED.get(name, {})
        cells = [f"no ({reasons.index(refused[slot]) + 1})" if slot in refused else "yes" for slot in SLOTS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        f"| skipat, {phi} | " + " | ".join([f"yes, {need}"] * 4 + ["not yet"] * 2) + " |"
        for phi, need in SKIP_NEEDS.items()
    ]
    lines += ["", *(f"({i}) {reason}." for i, reason in enumerate(reasons, start=1))]
    return "\n".join(lines)
