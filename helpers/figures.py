"""Diagrams of the lecture text that take many lines to draw; they compute nothing themselves."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from helpers.plotting import COLOURS

Edges = tuple[list[int], list[int]]  # start and end (exclusive) cell of each bin


def roi_pooling_figure(
    feature: Tensor, pooled: Tensor, roi: tuple[float, ...], rows: Edges, columns: Edges
) -> Figure:
    """One channel of a feature map, the bins of one RoI on it, and the pooled grid.

    feature: (H, W); pooled: (bins, bins); roi: x1, y1, x2, y2 in cells (fractions allowed);
    rows, columns: the cells of each bin, start and end.
    """
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.9), layout="constrained")
    limits = {"vmin": float(feature.min()), "vmax": float(feature.max()) * 1.2}  # never quite dark
    _cells(axes[0], feature, "feature map; # = a cell that a bin reads", limits)
    for y, x in np.argwhere(_cells_inside(rows, columns, feature.shape)):
        axes[0].text(x, y, "#", ha="center", va="center", fontsize=12)
    _outline(axes[0], roi)
    _cells(axes[1], feature, "the bins; neighbours may share cells", limits)
    for i, (top, bottom) in enumerate(zip(*rows)):
        for j, (left, right) in enumerate(zip(*columns)):
            if bottom > top and right > left:
                _bin(axes[1], top, bottom, left, right, COLOURS[(i + j) % 2])
                if i == 0 or j == 0:
                    name = f"{chr(ord('a') + i)}{j + 1}"
                    middle = ((left + right - 1) / 2, (top + bottom - 1) / 2)
                    axes[1].text(*middle, name, ha="center", va="center", fontsize=11)
    _outline(axes[1], roi)
    _cells(axes[2], pooled, "pooled: the largest value of each bin", limits)
    return figure


def _cells_inside(rows: Edges, columns: Edges, shape: tuple[int, ...]) -> np.ndarray:
    inside = np.zeros(shape, bool)
    for top, bottom in zip(*rows):
        for left, right in zip(*columns):
            inside[top:bottom, left:right] = True
    return inside


def _cells(ax: Axes, values: Tensor, title: str, limits: dict[str, float]) -> None:
    ax.imshow(values.detach().cpu(), cmap="Greys", **limits)
    ax.set_title(title)
    ax.set_xticks(np.arange(-0.5, values.shape[1]), [])
    ax.set_yticks(np.arange(-0.5, values.shape[0]), [])
    ax.grid(color="black", linewidth=0.4, alpha=0.3)
    ax.tick_params(length=0)


def _outline(ax: Axes, roi: tuple[float, ...]) -> None:
    x1, y1, x2, y2 = roi
    corner = (x1 - 0.5, y1 - 0.5)  # cell 0 begins at -0.5 for imshow
    ax.add_patch(
        plt.Rectangle(corner, x2 - x1, y2 - y1, fill=False, ec=COLOURS[2], lw=3.5, ls="--")
    )


def _bin(ax: Axes, top: int, bottom: int, left: int, right: int, colour: str) -> None:
    corner, inset = (left - 0.42, top - 0.42), 0.16
    size = (right - left - inset, bottom - top - inset)
    ax.add_patch(plt.Rectangle(corner, *size, fill=False, ec=colour, lw=2))
