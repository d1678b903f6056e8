"""Pictures of attention weights in rows: what a row shows, its matrix, and one query's weights frame by frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from videoattn.grid import TokenGrid

GRID = TokenGrid(4, 6, 8)
QUERY = (1, 2, 3)  # (t, h, w) of the token whose weights are drawn
STEP = 2  # columns that the made-up content moves from frame to frame
VERMILION = "#d55e00"  # told apart from blue and orange with any common colour blindness (Okabe and Ito)


def token_index(token: tuple[int, int, int]) -> int:
    return int(np.ravel_multi_index(token, (GRID.t, GRID.h, GRID.w)))


@dataclass(frozen=True)
class Row:
    """Weights [N, N], those of `query` drawn frame by frame; `reach` outlines the cells up to so far in t, h, w."""

    text: str
    weights: np.ndarray
    query: tuple[int, int, int] = QUERY
    reach: tuple[int, int, int] | None = None


def draw_rows(rows: Sequence[Row], title: str, signed: bool = False) -> Figure:
    figure = Figure(figsize=(10, 1.42 * len(rows) + 1.05), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    axes = figure.subplots(len(rows), 2 + GRID.t, width_ratios=[1.25, 1.0] + [1.2] * GRID.t, squeeze=False)
    norm, colours = colour_scale(rows, signed)
    for i, row in enumerate(rows):
        axes[i, 0].axis("off")
        axes[i, 0].text(0, 0.5, row.text, va="center", linespacing=1.35, transform=axes[i, 0].transAxes)
        draw_matrix(axes[i, 1], row, norm, colours, labelled=i == len(rows) - 1)
        draw_frames(axes[i, 2:], row, norm, colours)
    for ax, name in zip(axes[0, 1:], ["all weights", *(f"frame {t}" for t in range(GRID.t))], strict=True):
        ax.set_title(name)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, shrink=min(0.9, 1.5 / len(rows)),
                          aspect=14, pad=0.01, extend="both" if signed else "max")  # fmt: skip
    bar.set_label("weight")
    none = "white: no weight; " if any((row.weights == 0).any() for row in rows) else ""
    note = f"frames: weights of one query (outlined), the marked row of all weights; {none}"
    note += f"content moves {STEP} columns a frame"
    figure.supxlabel(note, fontsize=8.5, x=0.99, ha="right", color="#444444")
    return figure


def colour_scale(rows: Sequence[Row], signed: bool) -> tuple[Normalize, Colormap]:
    """One scale for a picture: up to the largest weight that a drawn query has for another token, rounded up."""
    drawn = [np.delete(row.weights[token_index(row.query)], token_index(row.query)) for row in rows]
    top = np.ceil(max(float(np.abs(weights).max()) for weights in drawn) * 50) / 50
    if signed:
        return Normalize(-top, top), matplotlib.colormaps["PuOr_r"]
    palest = 0.22 if any((row.weights == 0).any() for row in rows) else 0.04  # to stand out against white
    pale_to_dark = matplotlib.colormaps["YlGnBu"](np.linspace(palest, 1, 256))
    return Normalize(0, top), ListedColormap(pale_to_dark).with_extremes(bad="white")


def draw_matrix(axes: Axes, row: Row, norm: Normalize, colours: Colormap, labelled: bool) -> None:
    n, marked = len(row.weights), token_index(row.query)
    axes.imshow(np.ma.masked_equal(row.weights, 0), norm=norm, cmap=colours, interpolation="antialiased",
                interpolation_stage="rgba")  # fmt: skip
    for frame in range(1, GRID.t):
        for line in (axes.axhline, axes.axvline):
            line(frame * n / GRID.t - 0.5, color="#888888", linewidth=0.4)
    axes.annotate("", (-1, marked), (-18, marked), annotation_clip=False,
                  arrowprops={"arrowstyle": "-|>", "color": VERMILION, "shrinkA": 0, "shrinkB": 0})  # fmt: skip
    axes.set_xticks([(i + 0.5) * n / GRID.t - 0.5 for i in range(GRID.t)], [str(i) for i in range(GRID.t)])
    axes.set_yticks([])
    axes.tick_params(length=0, labelsize=7, pad=2, labelbottom=labelled)
    axes.set_ylabel("query", labelpad=9, fontsize=8)
    if labelled:
        axes.set_xlabel("key, by frame", fontsize=8)


def draw_frames(axes: Sequence[Axes], row: Row, norm: Normalize, colours: Colormap) -> None:
    maps = np.ma.masked_equal(row.weights[token_index(row.query)].reshape(GRID.t, GRID.h, GRID.w), 0)
    t, h, w = row.query
    for frame, ax in enumerate(axes):
        ax.imshow(maps[frame], norm=norm, cmap=colours, interpolation="nearest")
        ax.set_xticks(np.arange(GRID.w + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(GRID.h + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="#bbbbbb", linewidth=0.6)
        ax.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
        if frame == t:
            outline(ax, h, w, edgecolor=VERMILION, linewidth=2.2)
        if row.reach is not None and abs(frame - t) <= row.reach[0]:
            outline(ax, h, w, row.reach[1:], edgecolor="black", linewidth=1.2, linestyle=(0, (3, 2)))


def outline(axes: Axes, h: int, w: int, reach: Sequence[int] = (0, 0), **look: Any) -> None:
    """A box around the cells up to `reach` from (h, w), cut at the frame's border."""
    top, bottom = max(h - reach[0], 0) - 0.5, min(h + reach[0], GRID.h - 1) + 0.5
    left, right = max(w - reach[1], 0) - 0.5, min(w + reach[1], GRID.w - 1) + 0.5
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, zorder=3, clip_on=False, **look))
