"""Diagrams of the lecture text that take many lines to draw; they compute nothing themselves."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from helpers.plotting import COLOURS, show_image

Edges = tuple[list[int], list[int]]  # start and end (exclusive) cell of each bin


def roi_pooling_figure(
    feature: Tensor, pooled: Tensor, roi: tuple[float, ...], rows: Edges, columns: Edges
) -> Figure:
    """One channel of a feature map, the bins of one RoI on it, and the pooled grid.

    feature: (H, W); pooled: (bins, bins); roi: x1, y1, x2, y2 in cells (fractions allowed);
    rows, columns: the cells of each bin, start and end.
    """
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.9), layout="constrained")
    low, high = (float(limit) for limit in feature.detach().aminmax())
    limits = {"vmin": low, "vmax": high + 0.2 * (high - low)}  # never quite dark
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
    ax.imshow(values.detach().cpu().numpy(), cmap="Greys", **limits)
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


def time_shares_figure(milliseconds: dict[str, Sequence[float]], stages: Sequence[str]) -> Figure:
    """One bar of length 1 per entry, top to bottom, split by stage (colour and hatching)."""
    figure, ax = plt.subplots(figsize=(9, 1.0 + 0.75 * len(milliseconds)), layout="constrained")
    for row, spent in enumerate(milliseconds.values()):
        shares = np.asarray(spent) / np.sum(spent)
        for i, (share, left) in enumerate(zip(shares, np.cumsum(shares) - shares)):
            label = stages[i] if row == 0 else None
            look = {"color": COLOURS[i], "hatch": ("", "//", "..")[i % 3], "edgecolor": "white"}
            ax.barh(row, share, left=left, label=label, **look)
    ax.set_yticks(range(len(milliseconds)), list(milliseconds))
    ax.invert_yaxis()
    ax.set_xlabel("share of the time per image")
    ax.legend(ncols=len(stages), loc="lower center", bbox_to_anchor=(0.4, 1))
    return figure


def base_anchors_figure(boxes: np.ndarray, names: list[str]) -> Figure:
    """Template boxes (A, 4) around the origin, one colour each, and their names in a legend."""
    figure, ax = plt.subplots(figsize=(8.2, 5.6), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(boxes)))
    for (x1, y1, x2, y2), name, colour, style in zip(boxes, names, colours, ("--", "-", ":") * 99):
        box = plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=2.5, ls=style)
        ax.add_patch(box).set_label(name)
    ax.plot(0, 0, "*", color="red", ms=16)
    reach = 1.08 * np.abs(boxes).max()
    ax.set(xlim=(-reach, reach), ylim=(reach, -reach), aspect="equal", xlabel="x", ylabel="y")
    ax.axhline(0, color="black", lw=0.6)
    ax.axvline(0, color="black", lw=0.6)
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def anchors_on_image_figure(image: Tensor, anchors: np.ndarray, which: int) -> Figure:
    """Left: all anchors of the middle cell; right: all centres, template `which` at every other.

    image: (3, H, W); anchors: (rows, columns, A, 4) xyxy pixels.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 5.6), layout="constrained")
    rows, columns = anchors.shape[:2]
    middle = anchors[rows // 2, columns // 2]  # (A, 4)
    show_image(axes[0], image, f"the {len(middle)} anchors of the middle cell")
    for x1, y1, x2, y2 in middle:
        axes[0].add_patch(
            plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=COLOURS[0], lw=2)
        )
    axes[0].plot(*(middle[0, :2] + middle[0, 2:]) / 2, "*", color="red", ms=14)
    show_image(axes[1], image, "centres, and one template at every other cell")
    centres = ((anchors[..., :2] + anchors[..., 2:]) / 2)[:, :, which].reshape(-1, 2)
    axes[1].plot(*centres.T, ".", color=COLOURS[1], ms=5)
    for x1, y1, x2, y2 in anchors[::2, ::2, which].reshape(-1, 4):
        axes[1].add_patch(
            plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=COLOURS[4], lw=1)
        )
    for ax, boxes in zip(axes, (middle, anchors[::2, ::2, which].reshape(-1, 4))):
        height, width = image.shape[1:]
        ax.set_xlim(min(boxes[:, 0].min(), 0) - 5, max(boxes[:, 2].max(), width) + 5)
        ax.set_ylim(max(boxes[:, 3].max(), height) + 5, min(boxes[:, 1].min(), 0) - 5)
    return figure
