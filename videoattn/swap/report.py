"""The points of a swap, by how many heads stay dense: what each costs and keeps, as a table and as a picture."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from videoattn.files import atomic_write

logger = logging.getLogger("videoattn")


@dataclass(frozen=True)
class Point:
    """A swapped model: the share of heads that stay dense, and its predictions before and after calibration.

    Divergences are mean Kullback-Leibler divergences from the dense model's predictions, in nats. `top1` is None
    without labels. `milliseconds` is the median time of a forward pass of one clip, `macs` its multiply-accumulates.
    """

    budget: float
    dense_heads: dict[str, list[tuple[int, int]]]
    divergence_uncalibrated: float
    divergence: float
    top1_uncalibrated: float | None
    top1: float | None
    milliseconds: float
    macs: int

    @property
    def num_dense(self) -> int:
        return sum(map(len, self.dense_heads.values()))


@dataclass(frozen=True)
class DensePoint:
    """The dense model that is swapped: its accuracy, and the cost of a clip."""

    top1: float | None
    milliseconds: float
    macs: int
    num_heads: int


def format_points(dense: DensePoint, points: Sequence[Point], chosen: float) -> str:
    """Return a table, one line a point; an asterisk marks the point that is saved."""
    head = ["dense heads", "KL, swapped", "calibrated", "top-1, swapped", "calibrated", "GMACs", "ms a clip", "speed"]
    rows = [["all", "0", "0", *[_percent(dense.top1)] * 2, f"{dense.macs / 1e9:.4g}", _ms(dense.milliseconds), "1.00x"]]
    for point in points:
        mark = "*" if point.budget == chosen else ""
        rows.append(
            [
                f"{point.num_dense} of {dense.num_heads}{mark}",
                f"{point.divergence_uncalibrated:.3f}",
                f"{point.divergence:.3f}",
                _percent(point.top1_uncalibrated),
                _percent(point.top1),
                f"{point.macs / 1e9:.4g}",
                _ms(point.milliseconds),
                f"{dense.milliseconds / point.milliseconds:.2f}x",
            ]
        )
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:.0f}"


def draw_points(path: Path, dense: DensePoint, points: Sequence[Point], title: str) -> None:
    """Draw accuracy, or without labels the divergence, against the time of a clip. Needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("%s is not drawn: matplotlib is not installed", path.name)
        return
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    times = [point.milliseconds for point in points]
    if dense.top1 is not None:
        lines = {"swapped": [100 * (point.top1_uncalibrated or 0) for point in points],
                 "swapped and calibrated": [100 * (point.top1 or 0) for point in points]}  # fmt: skip
        axes.plot([dense.milliseconds], [100 * dense.top1], "k*", markersize=11, label="dense")
        axes.set_ylabel("top-1, %")
    else:
        lines = {"swapped": [point.divergence_uncalibrated for point in points],
                 "swapped and calibrated": [point.divergence for point in points]}  # fmt: skip
        axes.plot([dense.milliseconds], [0], "k*", markersize=11, label="dense")
        axes.set_ylabel("divergence from the dense predictions, nats")
    for (name, values), style in zip(lines.items(), ("o--", "o-"), strict=True):
        axes.plot(times, values, style, label=name)
    for point, value in zip(points, lines["swapped and calibrated"], strict=True):
        text = f"{point.num_dense}/{dense.num_heads}"
        axes.annotate(text, (point.milliseconds, value), textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set_xlabel("milliseconds of a forward pass of one clip (numbers: heads that stay dense)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.3)
    axes.margins(x=0.1)  # room for the numbers
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
