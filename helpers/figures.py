"""Diagrams that take many lines to draw; they compute nothing themselves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.ops import box_iou

from helpers.datasets import PhotoDataset
from helpers.plotting import COLOURS, draw_boxes, image_grid, show_image
from helpers.shapes import CLASSES

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
    limits = {"vmin": low, "vmax": high + (high - low)}  # never so dark that a letter is lost
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
                    axes[1].text(
                        *middle, name, ha="center", va="center", fontsize=13, weight="bold"
                    )
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
    corner, inset = (left - 0.36, top - 0.36), 0.28
    size = (right - left - inset, bottom - top - inset)
    ax.add_patch(plt.Rectangle(corner, *size, fill=False, ec=colour, lw=3))


def base_anchors_figure(boxes: np.ndarray, names: list[str]) -> Figure:
    """Template boxes (A, 4) around the origin, one colour each, and their names in a legend."""
    figure, ax = plt.subplots(figsize=(13.5, 7.2), layout="constrained")
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
    figure, axes = plt.subplots(1, 2, figsize=(14.5, 7.2), layout="constrained")
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


def fpn_figure(
    channels: Sequence[int], sizes: Sequence[int], width: int, c5_on_top: bool = False
) -> Figure:
    """Backbone, lateral convolutions, top-down path, 3 x 3 convolutions, pyramid and heads.

    channels, sizes: of C3, C4 and C5; width: channels of the pyramid.
    """
    figure, ax = plt.subplots(figsize=(14.5, 7.8), layout="constrained")
    columns = {"C": 1.5, "lat": 4.2, "sum": 6.7, "conv": 9.2, "P": 11.6, "head": 14.2}
    rows = (0, 2.6, 5.2) if c5_on_top else (5.2, 2.6, 0)
    titles = ("backbone", "1 × 1", "top-down", "3 × 3", "pyramid", "heads")
    for x, title in zip(columns.values(), titles):
        ax.text(x, 6.9, title, ha="center", va="center", fontsize=17, weight="bold")
    for i, (c, size, y) in enumerate(zip(channels, sizes, rows)):
        level, scale = i + 3, (2.5, 2.2, 1.9)[i]
        text = f"C{level}\n{c} channels\n{size} × {size}, stride {2**level}"
        _box(
            ax, columns["C"], y, scale, 0.65 * scale, text, (COLOURS[5], COLOURS[2], COLOURS[3])[i]
        )
        _box(ax, columns["lat"], y, 0.9, 0.8, "1 × 1", "#F0E442")
        _box(ax, columns["sum"], y, 1.5, 0.9, f"lat_{level}" if i == 2 else "sum", "#B9A3D9")
        _box(ax, columns["conv"], y, 1.0, 0.8, "3 × 3", "#BBBBBB")
        _box(ax, columns["P"], y, 2.0, 1.1, f"P{level}\n{width} channels", COLOURS[4])
        _box(ax, columns["head"], y, 1.7, 0.9, "detection\nhead", "white")
        stops = [(1.5, scale), (4.2, 0.9), (6.7, 1.5), (9.2, 1.0), (11.6, 2.0), (14.2, 1.7)]
        for (x1, w1), (x2, w2) in zip(stops, stops[1:]):
            _arrow(ax, (x1 + w1 / 2, y), (x2 - w2 / 2, y), "black")
    for i in (0, 1):  # from each level to the next deeper one, and back down the pyramid
        sign = 1 if rows[i + 1] > rows[i] else -1
        deeper, finer = 0.325 * (2.2, 1.9)[i], 0.325 * (2.5, 2.2)[i]
        _arrow(ax, (1.5, rows[i] + sign * finer), (1.5, rows[i + 1] - sign * deeper), "black")
        up = (6.7, rows[i + 1] - sign * 0.45), (6.7, rows[i] + sign * 0.45)
        _arrow(ax, *up, "red", "--")
        ax.text(
            6.85, (rows[i] + rows[i + 1]) / 2, "upsample", color="red", va="center", fontsize=15
        )
    good = (
        "resolution and semantics together · many scales from one image · one width for all levels"
    )
    ax.text(7.9, -1.35, good, ha="center", va="center", fontsize=16, style="italic")
    ax.set(xlim=(0, 15.3), ylim=(-1.8, 7.3))
    ax.axis("off")
    return figure


def _box(ax: Axes, x: float, y: float, w: float, h: float, text: str, colour: str) -> None:
    ax.add_patch(plt.Rectangle((x - w / 2, y - h / 2), w, h, fc=colour, ec="black", lw=1.5))
    size = 14 if "stride" in text else 15
    ax.text(x, y, text, ha="center", va="center", fontsize=size, color="black")


def _arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, style: str = "-"
) -> None:
    look = {
        "arrowstyle": "-|>",
        "color": colour,
        "lw": 2.2,
        "ls": style,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    ax.annotate("", end, start, arrowprops=look)


def focal_loss_figure(p: Tensor, losses: dict[float, Tensor], easy: float) -> Figure:
    """Left loss against p by gamma; right the factor of an `easy` answer against gamma.

    losses: {gamma: loss at each p}.
    """
    figure, axes = plt.subplots(1, 2, figsize=(13.5, 4.8), layout="constrained")
    ax = axes[0]
    for i, (gamma, loss) in enumerate(losses.items()):
        name = "cross-entropy (γ = 0)" if gamma == 0 else f"γ = {gamma:g}"
        ax.plot(p, loss, ls=("-", "--", "-.", ":", (0, (5, 1, 1, 1)))[i % 5], label=name)
    ax.axvspan(0.8, 1, color=COLOURS[5], alpha=0.25)
    ax.axvspan(0, 0.5, color=COLOURS[4], alpha=0.2)
    ax.text(0.9, 2.2, "easy", ha="center", fontsize=15)
    ax.text(0.25, 4.6, "hard", ha="center", fontsize=15)
    ax.set(ylim=(0, 5), xlim=(0, 1), xlabel="probability of the truth, $p_t$", ylabel="loss")
    ax.legend(fontsize=12)
    gammas = np.linspace(0, 5, 51)
    axes[1].plot(gammas, (1 - easy) ** gammas)
    left = (1 - easy) ** 2
    axes[1].plot(2, left, "o", ms=10)
    axes[1].annotate(f"γ = 2 leaves {left:.0%}", (2, left), (2.3, 4 * left), fontsize=15)
    axes[1].set(yscale="log", xlabel="γ", ylabel=f"factor at $p_t$ = {easy:g}")
    return figure


def crowd_figure(crowd: dict[str, tuple[float, float]]) -> Figure:
    """Who contributes how much: summed loss of the easy negatives and of the hard positives."""
    figure, ax = plt.subplots(figsize=(13.5, 4.8), layout="constrained")
    _crowd_bars(ax, crowd)
    return figure


def _crowd_bars(ax: Axes, crowd: dict[str, tuple[float, float]]) -> None:
    verdicts = {
        "CE": ("CE: Easy negatives\ndominate training!", "CE: Hard examples lead"),
        "FL": ("FL: Easy negatives still lead", "FL: Hard examples get\nmore focus!"),
    }
    groups = (("easy negatives", COLOURS[5], ""), ("hard positives", COLOURS[4], "//"))
    for x, (name, values) in enumerate(crowd.items()):
        for k, (value, (label, colour, hatch)) in enumerate(zip(values, groups)):
            at = x + 0.4 * k - 0.2
            look = {"color": colour, "hatch": hatch, "edgecolor": "black"}
            ax.bar(at, value, 0.38, label=label if x == 0 else None, **look)
            ax.text(at, value * 1.1, f"{value:,.1f}", ha="center", fontsize=14)
        top = 6 * max(max(v) for v in crowd.values()) if name == "CE" else 4 * max(values)
        ax.text(x, top, verdicts[name][values[1] > values[0]], ha="center", fontsize=13)
    ax.set_xticks(range(len(crowd)), ["cross-entropy", "focal loss"])
    values = [value for pair in crowd.values() for value in pair]
    limits = (min(1, min(values) / 3), 60 * max(values))
    ax.set(yscale="log", ylabel="summed loss", ylim=limits)
    ax.legend(fontsize=12, loc="upper right")


# ---------------------------------------------------------------- the diagrams of whole detectors

KINDS = {"learnt": "#CDE3F5", "fixed": "#EEEEEE", "map": "#FFFFFF"}  # fixed: has no weights
ADDED = COLOURS[0]  # outlines what a lecture adds to the one before
LETTER = 0.1  # width of a letter, in units of the diagram


@dataclass(frozen=True)
class Part:
    """A layer or a feature map of a diagram.

    Attributes:
        kind: "learnt", "fixed" (no weights) or "map".
        under: the part below which it stands, and how many rows; None: next in the main row.
        size: of a map: channels, height, width.
        added: whether this lecture adds it to the one before.
        training: whether it exists only in training (dashed).
    """

    kind: str
    under: tuple[str, int] | None = None
    size: tuple[int, int, int] = (0, 0, 0)
    added: bool = False
    training: bool = False

    def half(self, text: str) -> tuple[float, float]:
        """Half its width and half its height."""
        if self.kind == "map":
            side, depth = _slab(self.size)
            return side + depth / 2, side + depth / 2
        lines = text.split("\n")
        return 0.15 + LETTER * max(map(len, lines)) / 2, 0.2 + 0.13 * len(lines)


def detector_figure(parts: Mapping[str, Part], arrows: Mapping[tuple[str, str], str]) -> Figure:
    """A whole detector: feature maps as slabs, layers as boxes with the name of their class.

    parts: by the text that they carry, in the order of the main row. arrows: (from, to): the shape
    of what flows, or words. An arrow that touches a part of the training is dashed.
    """
    halves = {name: part.half(name) for name, part in parts.items()}
    middles = _layout(parts, halves, arrows)
    left, right = (
        f(middles[n][0] + s * halves[n][0] for n in parts) for f, s in ((min, -1), (max, 1))
    )
    bottom = max(y for _, y in middles.values()) + 1
    top = -max(half[1] for half in halves.values()) - 0.15
    scale = 15 / (right - left + 0.2)  # inches per unit: it fills the page
    figure, ax = plt.subplots(figsize=(15, (bottom - top) * scale), layout="constrained")
    ax.set(xlim=(left - 0.1, right + 0.1), ylim=(bottom, top), aspect="equal")
    ax.axis("off")
    for name, part in parts.items():
        _draw_part(ax, name, part, middles[name], halves[name])
    for (start, end), text in arrows.items():
        style = "--" if parts[start].training or parts[end].training else "-"
        below = parts[start].kind == "map" and middles[end][1] > middles[start][1]
        half = (halves[start][0], halves[start][1] + 0.4 * below)  # from under the map's name
        _connect(ax, (middles[start], half), (middles[end], halves[end]), text, style)
    return figure


def _layout(parts: Mapping[str, Part], halves: dict, arrows: Mapping) -> dict:
    """Middles of the parts: the main row from left to right, the others under theirs."""
    middles, last = {}, None
    for name, part in parts.items():
        if part.under is not None:
            x, y = middles[part.under[0]]
            middles[name] = (x, y + 1.9 * part.under[1])
            continue
        gap = 0.3 + LETTER * len(arrows.get((last, name), ""))
        x = 0.0 if last is None else middles[last][0] + halves[last][0] + gap + halves[name][0]
        middles[name], last = (x, 0.0), name
    return middles


def _slab(size: tuple[int, int, int]) -> tuple[float, float]:
    """Half the side and the thickness of a map's slab: they follow its height and channels."""
    channels, height, _ = size
    return 0.12 + 0.045 * math.sqrt(height), 0.06 * math.log2(1 + channels)


def _draw_part(ax: Axes, text: str, part: Part, middle: tuple, half: tuple) -> None:
    edge = {"ec": ADDED, "lw": 3.0} if part.added else {"ec": "black", "lw": 1.4}
    look = {
        "fc": KINDS[part.kind],
        "ls": "--" if part.training else "-",
        "joinstyle": "round",
        **edge,
    }
    x, y = middle
    if part.kind != "map":
        ax.add_patch(plt.Rectangle((x - half[0], y - half[1]), 2 * half[0], 2 * half[1], **look))
        ax.text(x, y, text, ha="center", va="center", fontsize=13)
        return
    side, depth = _slab(part.size)
    left, top = x - half[0], y - half[1] + depth
    for corners in (
        [(0, 0), (depth, -depth), (2 * side + depth, -depth), (2 * side, 0)],
        [
            (2 * side, 0),
            (2 * side + depth, -depth),
            (2 * side + depth, 2 * side - depth),
            (2 * side, 2 * side),
        ],
        [(0, 0), (2 * side, 0), (2 * side, 2 * side), (0, 2 * side)],
    ):
        ax.add_patch(plt.Polygon([(left + a, top + b) for a, b in corners], **look))
    behind = {"fc": "white", "ec": "none", "pad": 1}  # an arrow downwards passes here
    ax.text(x, y + half[1] + 0.08, text, ha="center", va="top", fontsize=13, bbox=behind, zorder=5)


def _connect(ax: Axes, start: tuple, end: tuple, text: str, style: str) -> None:
    """An arrow from edge to edge: along the row, or from one row to another."""
    ((x1, y1), (w1, h1)), ((x2, y2), (w2, h2)) = start, end
    if y1 == y2:
        sign = math.copysign(1, x2 - x1)
        tail, head = (x1 + sign * w1, y1), (x2 - sign * w2, y2)
        ax.text((tail[0] + head[0]) / 2, y1 - 0.08, text, ha="center", va="bottom", fontsize=12)
    else:
        sign = math.copysign(1, y2 - y1)
        tail, head = (x1, y1 + sign * h1), (x2, y2 - sign * h2)
        place = ((x1 + x2) / 2 + 0.08, (tail[1] + head[1]) / 2)
        ax.text(*place, text, ha="left", va="center", fontsize=12)
    _arrow(ax, tail, head, "black", style)


# ---------------------------------------------------------------- lecture 05


def yolo_figure() -> Figure:
    """YOLO from the image to its boxes, and what teaches it."""
    parts = {
        "image": Part("map", size=(3, 128, 128)),
        "SimpleBackbone": Part("learnt"),
        "features": Part("map", size=(96, 16, 16)),
        "head": Part("learnt", added=True),
        "forms": Part("map", size=(13, 16, 16), added=True),
        "split_cell": Part("fixed", added=True),
        "decode_\npredictions": Part("fixed", added=True),
        "YOLOLoss": Part("fixed", under=("split_cell", 1), added=True, training=True),
        "encode_target": Part("fixed", under=("head", 1), added=True, training=True),
    }
    arrows = {
        ("image", "SimpleBackbone"): "(3, 128, 128)",
        ("SimpleBackbone", "features"): "(96, 16, 16)",
        ("features", "head"): "",
        ("head", "forms"): "(13, 16, 16)",
        ("forms", "split_cell"): "",
        ("split_cell", "decode_\npredictions"): "(16, 16, 2, 8)",
        ("split_cell", "YOLOLoss"): "(16, 16, 2, 8)",
        ("encode_target", "YOLOLoss"): "(16, 16, 8)",
    }
    return detector_figure(parts, arrows)


def grid_figure(image: Tensor, target: Mapping[str, Tensor], cells: int) -> Figure:
    """Left the objects of an image (3, H, W) with their centres, right the cells that answer."""
    figure, axes = plt.subplots(1, 2, figsize=(13.5, 6.6), layout="constrained")
    height, width = image.shape[1:]
    centres = (target["boxes"][:, :2] + target["boxes"][:, 2:]) / 2  # (M, 2)
    for ax in axes:
        show_image(ax, image)
        draw_boxes(ax, target["boxes"], colours="black", line_style="--")
        ax.plot(*(centres - 0.5).T, "o", color="white", mec="black", ms=9)
    for x, y in centres.tolist():
        column, row = (
            min(max(int(v), 0), cells - 1) for v in (x * cells / width, y * cells / height)
        )
        corner = (column * width / cells - 0.5, row * height / cells - 0.5)
        size = (width / cells, height / cells)
        axes[1].add_patch(plt.Rectangle(corner, *size, fc="#F0E442", ec="black", lw=2))
    for i in range(cells + 1):
        axes[1].axvline(i * width / cells - 0.5, color="black", lw=0.6)
        axes[1].axhline(i * height / cells - 0.5, color="black", lw=0.6)
    axes[0].set_title("objects and their centres")
    axes[1].set_title(f"{cells} × {cells} cells; filled: must answer")
    return figure


def responsibility_figure(truth: Tensor, boxes: Tensor, iou: Sequence[float]) -> Figure:
    """One object (4,), centre and size in pixels, its cell, and the cell's boxes (2, 4)."""
    figure, ax = plt.subplots(figsize=(13.5, 5.2), layout="constrained")
    x, y, *_ = truth.tolist()
    corner = (x // 8 * 8, y // 8 * 8)  # of the cell
    ax.add_patch(plt.Rectangle(corner, 8, 8, color=COLOURS[4], alpha=0.6))
    ax.plot(x, y, "ko", ms=6)
    _centred(ax, truth, ec="black", ls="--", lw=2.5)
    for i, (box, value) in enumerate(zip(boxes, iou)):
        best = value == max(iou)
        colour = COLOURS[1] if best else "grey"
        _centred(ax, box, ec=colour, lw=5 if best else 3)
        says = (
            "responsible:\nit learns the object" if best else "not responsible:\nit learns to say 0"
        )
        side = 1 if best else -1
        edge = (box[0] + side * box[2] / 2, box[1] + (0 if best else box[3] / 2 - 4))
        arrow = {"arrowstyle": "-", "color": colour, "lw": 1.5}
        place = {"xytext": (x + side * 48, edge[1]), "ha": "left" if best else "right"}
        words = f"box {i}, IoU {value:.2f}, {says}"
        ax.annotate(words, edge, va="center", fontsize=15, arrowprops=arrow, **place)
    ax.set(xlim=(x - 104, x + 104), ylim=(y + 32, y - 32), aspect="equal")
    ax.axis("off")
    return figure


def _centred(ax: Axes, box: Tensor, **look) -> None:
    """The outline of a box (4,), centre and size."""
    x, y, w, h = box.tolist()
    ax.add_patch(plt.Rectangle((x - w / 2, y - h / 2), w, h, fill=False, **look))


def class_map_figure(image: Tensor, target: Mapping[str, Tensor], forms: Tensor) -> Figure:
    """An image (3, H, W), the confidence of its forms (S, S, B, 5 + C), and the class of each cell.

    A cell's class has its colour and letter; the surer it is, the stronger.
    """
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.4), layout="constrained")
    height, width = image.shape[1:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    show_image(axes[0], image, "the image and its objects")
    confidence, classes = forms[..., 4].amax(dim=-1), forms[..., 0, 5:]  # (S, S), (S, S, C)
    axes[1].imshow(confidence.numpy(), cmap="Greys", vmin=0, vmax=1, extent=extent)
    axes[1].set_title("confidence of each cell")
    probability, label = classes.max(dim=-1)  # (S, S)
    colours = np.array([to_rgb(c) for c in COLOURS[: classes.shape[-1]]])
    strength = ((probability - 1 / classes.shape[-1]) / (1 - 1 / classes.shape[-1])).numpy()
    mixed = 1 - strength[..., None] * (1 - colours[label.numpy()])
    axes[2].imshow(mixed, extent=extent)
    axes[2].set_title("class that each cell would name")
    step_x, step_y = width / forms.shape[1], height / forms.shape[0]
    for row, column in np.ndindex(label.shape[0], label.shape[1]):
        if strength[row, column] > 0.5:
            letter = CLASSES[label[row, column]][0].upper()
            place = ((column + 0.5) * step_x - 0.5, (row + 0.5) * step_y - 0.5)
            axes[2].text(*place, letter, ha="center", va="center", fontsize=12)
    for ax in axes:
        draw_boxes(ax, target["boxes"], colours="black", line_style="--")
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    return figure


def specialists_figure(sizes: Tensor, answering: Tensor) -> Figure:
    """Width against height of objects (M, 2), one panel for each box that answers (M,) for them."""
    count = int(answering.max()) + 1
    look = {"figsize": (14.5, 6.4), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, count, sharex=True, sharey=True, **look)
    for i, ax in enumerate(axes[0]):
        dots = {"marker": "os^v"[i % 4], "color": COLOURS[i % 7], "ms": 5, "alpha": 0.5}
        ax.plot(*sizes[answering == i].T.numpy(), ls="", **dots)
        ax.axline((0, 0), slope=1, color="black", lw=1)
        ax.set(xlabel="width, pixels", title=f"objects of box {i}", aspect="equal")
    axes[0, 0].set_ylabel("height, pixels")
    return figure


# ---------------------------------------------------------------- lecture 00


def ap_figure() -> Figure:
    """From an image and what a detector answers to one number."""
    parts = {
        "image": Part("map", size=(3, 128, 128)),
        "detector": Part("learnt"),
        "decode": Part("fixed", added=True),
        "nms_\nper_class": Part("fixed", added=True),
        "match": Part("fixed", added=True),
        "ranking": Part("fixed", added=True),
        "precision_\nrecall": Part("fixed", added=True),
        "average_\nprecision": Part("fixed", added=True),
        "AP": Part("fixed"),
        "iou": Part("fixed", under=("nms_\nper_class", 1), added=True),
        "true boxes\nand classes": Part("fixed", under=("match", 1)),
    }
    arrows = {
        ("image", "detector"): "(3, H, W)",
        ("detector", "decode"): "(N, 4)",
        ("decode", "nms_\nper_class"): "(N, 4)",
        ("nms_\nper_class", "match"): "(n, 4)",
        ("match", "ranking"): "(n,)",
        ("ranking", "precision_\nrecall"): "(K,)",
        ("precision_\nrecall", "average_\nprecision"): "2 × (K,)",
        ("average_\nprecision", "AP"): "",
        ("iou", "nms_\nper_class"): "",
        ("iou", "match"): "",
        ("true boxes\nand classes", "match"): "(M, 4)",
    }
    return detector_figure(parts, arrows)


def overlap_figure(a: Tensor, b: Tensor) -> Figure:
    """Two boxes (4,) in pixels: left what they share, right what they cover together."""
    a, b = a.numpy(), b.numpy()
    figure, axes = plt.subplots(1, 2, figsize=(13.5, 4.8), layout="constrained")
    both = np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])])  # what they share
    shared = np.prod(np.maximum(both[2:] - both[:2], 0))
    total = sum(np.prod(box[2:] - box[:2]) for box in (a, b))
    fill = {"fc": COLOURS[5], "ec": "none"}
    for ax, boxes in ((axes[0], [both] if shared else []), (axes[1], [a, b])):
        for box in boxes:
            ax.add_patch(plt.Rectangle(box[:2], *(box[2:] - box[:2]), **fill))
    axes[0].set_title(f"shared: {shared:,.0f} square pixels")
    axes[1].set_title(f"together: {total:,.0f} - {shared:,.0f} = {total - shared:,.0f}")
    for ax in axes:
        for box, style in ((a, "--"), (b, "-")):
            edge = {"fill": False, "ec": "black", "lw": 2.5, "ls": style}
            ax.add_patch(plt.Rectangle(box[:2], *(box[2:] - box[:2]), **edge))
        ax.text(*(a[:2] + 2), "A", ha="left", va="top", fontsize=18)
        ax.text(*(b[2:] - 2), "B", ha="right", va="bottom", fontsize=18)
        (left, top), (right, bottom) = np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])
        ax.set(xlim=(left - 15, right + 15), ylim=(bottom + 4, top - 4), aspect="equal")
        ax.axis("off")
    return figure


def shifted_iou_figure(shifts: Tensor, heat: Tensor) -> Figure:
    """IoU of a square with its shifted copy: a map (S, S) over shifts (S,), and two lines of it."""
    figure, axes = plt.subplots(1, 2, figsize=(13.5, 4.9), layout="constrained")
    shifts, heat = shifts.numpy(), heat.numpy()
    low, high = shifts[0] - 0.5, shifts[-1] + 0.5
    picture = axes[0].imshow(heat, extent=(low, high, high, low), cmap="viridis")
    look = {"levels": [0.5, 0.75], "colors": "white", "linestyles": ["--", "-"]}
    lines = axes[0].contour(shifts, shifts, heat, **look)
    axes[0].clabel(lines, fontsize=12)
    axes[0].grid(False)
    axes[0].set(xlabel="shift in x, pixels", ylabel="shift in y, pixels")
    figure.colorbar(picture, label="IoU")
    middle = len(shifts) // 2
    curves = {"along one axis": heat[middle, middle:], "along both": heat.diagonal()[middle:]}
    for (name, values), style in zip(curves.items(), ("-", "--")):
        axes[1].plot(shifts[middle:], values, ls=style, label=name)
    axes[1].axhline(0.5, color="black", lw=1)
    axes[1].set(xlabel="shift, pixels", ylabel="IoU")
    axes[1].legend()
    return figure


def nms_figure(
    image: Tensor, found: Mapping[str, Tensor], rounds: Sequence[tuple[int, list[int]]]
) -> Figure:
    """The detections of an image before NMS and after each round (kept, deleted) of it.

    Waiting boxes are dotted, kept ones solid with number and score, just deleted ones grey.
    """
    width = 13.8 / (len(rounds) + 1)
    look = {"figsize": (13.8, width + 0.4), "layout": "constrained", "squeeze": False}
    figure, ((*axes,),) = plt.subplots(1, len(rounds) + 1, **look)
    waiting, kept = list(range(len(found["boxes"]))), []
    for number, (ax, (best, deleted)) in enumerate(zip(axes, [(None, []), *rounds])):
        kept += [] if best is None else [best]
        waiting = [i for i in waiting if i not in (best, *deleted)]
        title = "before" if best is None else f"round {number}: keep {best}"
        show_image(ax, image, title)
        colours = [COLOURS[label] for label in found["labels"].tolist()]
        draw_boxes(ax, found["boxes"][waiting], None, [colours[i] for i in waiting], ":")
        draw_boxes(ax, found["boxes"][deleted], None, "dimgrey", "--")
        texts = [f"{i}: {found['scores'][i]:.2f}" for i in kept]
        draw_boxes(ax, found["boxes"][kept], texts, [colours[i] for i in kept])
    return figure


# ---------------------------------------------------------------- lecture 01


def rcnn_figure() -> Figure:
    """R-CNN from the image to its boxes, and the examples of its three trainings.

    Nothing is outlined: it is the first detector of the course.
    """
    parts = {
        "image": Part("map", size=(3, 128, 128)),
        "Selective\nSearch\nProposals": Part("fixed"),
        "warp": Part("fixed"),
        "N regions": Part("map", size=(3, 96, 96)),
        "trunk": Part("learnt"),
        "tail": Part("learnt"),
        "Bounding\nBox\nRegressor": Part("learnt"),
        "apply_\nnms": Part("fixed"),
        "stage 1:\nstage1_labels": Part("fixed", under=("trunk", 1), training=True),
        "SVMs:\n(N, K) scores": Part("learnt", under=("tail", 1)),
        "stage 2:\nsvm_labels": Part("fixed", under=("tail", 2), training=True),
        "stage 3:\nregression\ntargets": Part(
            "fixed", under=("Bounding\nBox\nRegressor", 2), training=True
        ),
    }
    arrows = {
        ("image", "Selective\nSearch\nProposals"): "",
        ("Selective\nSearch\nProposals", "warp"): "(N, 4)",
        ("warp", "N regions"): "",
        ("N regions", "trunk"): "(N, 3, 96, 96)",
        ("trunk", "tail"): "(N, 192, 3, 3)",
        ("tail", "Bounding\nBox\nRegressor"): "grids (N, 2880)",
        ("tail", "SVMs:\n(N, K) scores"): "vectors (N, 1280)",
        ("Bounding\nBox\nRegressor", "apply_\nnms"): "boxes (n, 4)",
        ("SVMs:\n(N, K) scores", "apply_\nnms"): "",
        ("stage 1:\nstage1_labels", "tail"): "",
        ("stage 2:\nsvm_labels", "SVMs:\n(N, K) scores"): "",
        ("stage 3:\nregression\ntargets", "Bounding\nBox\nRegressor"): "",
    }
    return detector_figure(parts, arrows)


def bands_figure(overlaps: np.ndarray, limits: Mapping[float, str]) -> Figure:
    """Proposals by their IoU (N,) with the best object; what begins where, and its share."""
    figure, ax = plt.subplots(figsize=(13.5, 2.3), layout="constrained")
    counts, _, _ = ax.hist(overlaps, np.linspace(0, 1, 41), color="#BBBBBB", ec="white")
    top = 1.4 * max(counts.max(), 1)
    for row, (limit, text) in enumerate(limits.items()):
        height = 0.92 - 0.15 * row  # of the label, and of the line: none crosses another's label
        ax.axvline(limit, ymax=height + 0.05, color="black", lw=1.5, ls="--")
        share = f"{text}: {(overlaps >= limit).sum() / max(1, len(overlaps)):.0%}"
        look = {"fontsize": 14, "va": "center", "backgroundcolor": "white"}
        ax.text(limit + 0.012, top * height, share, **look)
    ax.set(xlabel="IoU of a proposal with its best object", ylabel="proposals", ylim=(0, top))
    return figure


def shift_figure(shifts: Mapping[str, np.ndarray], growth: np.ndarray) -> Figure:
    """Growth against each kind of shift, (N,) each, with their correlation."""
    look = {"figsize": (13.5, 3.5), "sharey": True, "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, len(shifts), **look)
    for ax, (name, shift) in zip(axes[0], shifts.items()):
        ax.plot(shift, growth, "o", ms=5, alpha=0.4, color="black")
        together = np.corrcoef(shift, growth)[0, 1]
        ax.set(xlabel=f"shift of the {name}", title=f"correlation {together:+.2f}")
    axes[0, 0].set_ylabel("growth of the width, $t_w$")
    return figure


def top_regions_figure(rows: Mapping[str, Sequence[tuple[np.ndarray, float]]]) -> Figure:
    """A row of pictures for each name, with a number above each."""
    columns = max(len(row) for row in rows.values())
    look = {"figsize": (15, 1.6 * len(rows)), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(len(rows), columns, **look)
    for ax_row, (name, row) in zip(axes, rows.items()):
        for ax, (picture, value) in zip(ax_row, row):
            show_image(ax, picture, f"{value:.1f}")
        place = {"rotation": 90, "ha": "right", "va": "center", "fontsize": 13}
        ax_row[0].text(-0.08, 0.5, name, transform=ax_row[0].transAxes, **place)
    return figure


def scores_figure(overlaps: np.ndarray, scores: np.ndarray) -> Figure:
    """Score against IoU with the best object of the class, (N, K) each: a panel for each class."""
    classes = scores.shape[1]
    look = {"figsize": (15, 4.0), "sharey": True, "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, classes, **look)
    for c, ax in enumerate(axes[0]):
        ax.axvspan(0.3, 1, color="#EEEEEE")
        ax.plot(overlaps[:, c], scores[:, c], ".", ms=3, alpha=0.4, color=COLOURS[c])
        ax.axhline(0, color="black", lw=1)
        ax.set(title=CLASSES[c], xlabel="IoU with the best of the class")
    low, high = np.percentile(scores, [0.1, 99.95])  # a handful lie outside
    axes[0, 0].set(ylabel="score of its SVM", ylim=(low - 1, high + 1))
    return figure


def regression_figure(before: np.ndarray, after: np.ndarray) -> Figure:
    """IoU (N,) of regions before and after they are moved, and the mean gain by IoU before."""
    figure, axes = plt.subplots(1, 2, figsize=(13.5, 3.2), layout="constrained")
    axes[0].plot(before, after, ".", ms=4, alpha=0.4, color="black")
    axes[0].axline((0.5, 0.5), slope=1, color="black", lw=1)
    means = f"mean {before.mean():.3f} before, {after.mean():.3f} after"
    axes[0].set(xlabel="IoU before", ylabel="IoU after", title=means)
    edges = np.linspace(0.5, 1, 11)
    place = np.digitize(before, edges[1:-1])
    gain = [(after - before)[place == i].mean() if (place == i).any() else 0 for i in range(10)]
    axes[1].bar(edges[:-1] + 0.025, gain, 0.045, color="#BBBBBB", ec="black")
    axes[1].axhline(0, color="black", lw=1)
    axes[1].set(xlabel="IoU before", ylabel="mean gain")
    return figure


# ---------------------------------------------------------------- lecture 02


def fast_rcnn_figure() -> Figure:
    """Fast R-CNN from the image and its regions to boxes, and what teaches it."""
    parts = {
        "image": Part("map", size=(3, 128, 128)),
        "Small\nBackbone": Part("learnt"),
        "features": Part("map", size=(96, 16, 16), added=True),
        "RoIPooling": Part("fixed", added=True),
        "pooled": Part("map", size=(96, 7, 7), added=True),
        "FastRCNN\nHead": Part("learnt", added=True),
        "read_\ndetections": Part("fixed"),
        "selective\nsearch": Part("fixed", under=("image", 1)),
        "regions\n(R, 4)": Part("fixed", under=("RoIPooling", 1)),
        "sample_\nregions,\nobjects": Part("fixed", under=("pooled", 1), added=True, training=True),
        "FastRCNN\nLoss": Part("fixed", under=("FastRCNN\nHead", 1), added=True, training=True),
    }
    arrows = {
        ("image", "Small\nBackbone"): "(3, 128, 128)",
        ("Small\nBackbone", "features"): "(96, 16, 16)",
        ("features", "RoIPooling"): "once",
        ("RoIPooling", "pooled"): "(R, 96, 7, 7)",
        ("pooled", "FastRCNN\nHead"): "",
        ("FastRCNN\nHead", "read_\ndetections"): "(R, 4), (R, 16)",
        ("image", "selective\nsearch"): "",
        ("selective\nsearch", "regions\n(R, 4)"): "",
        ("regions\n(R, 4)", "RoIPooling"): "in training:\nthe sample",
        ("regions\n(R, 4)", "sample_\nregions,\nobjects"): "",
        ("sample_\nregions,\nobjects", "FastRCNN\nLoss"): "",
        ("FastRCNN\nHead", "FastRCNN\nLoss"): "",
    }
    return detector_figure(parts, arrows)


def bill_figure(
    bills: Mapping[str, Mapping[str, Sequence[float]]], stages: Sequence[str]
) -> Figure:
    """Milliseconds per image: one panel per setting, one bar per detector, split by stage."""
    rows = max(len(bars) for bars in bills.values())
    look = {"figsize": (14, 1.9 + 0.75 * rows), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, len(bills), **look)
    for ax, (setting, bars) in zip(axes[0], bills.items()):
        for row, spent in enumerate(bars.values()):
            left = 0.0
            for i, part in enumerate(spent):
                style = {"color": COLOURS[i], "hatch": ("", "//", "..")[i % 3], "ec": "white"}
                label = stages[i] if row == 0 else None
                ax.barh(row, part, left=left, height=0.65, label=label, **style)
                left += part
            ax.text(left, row, f" {left:,.0f}", va="center", fontsize=13)
        longest = max(sum(spent) for spent in bars.values())
        ax.set(xlim=(0, 1.18 * longest), title=setting, xlabel="milliseconds per image")
        ax.set_yticks(range(len(bars)), list(bars))
        ax.invert_yaxis()
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(stages))
    return figure


def coverage_figure(image: Tensor, regions: Tensor) -> Figure:
    """The regions (R, 4) of an image (3, H, W), and how many of them contain each pixel."""
    figure, axes = plt.subplots(1, 2, figsize=(13.5, 6.2), layout="constrained")
    counts = np.zeros(image.shape[1:])
    for x1, y1, x2, y2 in regions.int().tolist():
        counts[y1:y2, x1:x2] += 1
    show_image(axes[0], image, f"{len(regions)} regions")
    draw_boxes(axes[0], regions, colours="#555555")
    shown = axes[1].imshow(counts, cmap="Greys")
    axes[1].set_title("regions that contain each pixel")
    axes[1].axis("off")
    figure.colorbar(shown, ax=axes[1], shrink=0.8)
    return figure


def routing_figure(
    feature: Tensor, boxes: Sequence[tuple[float, ...]], gradients: Sequence[Tensor]
) -> Figure:
    """A map (H, W) with two regions in cells, and the gradient (H, W) that each set of bins sends.

    gradients: by the first region alone, the second alone, and both.
    """
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.8), layout="constrained")
    low, high = (float(limit) for limit in feature.detach().aminmax())
    _cells(axes[0], feature, "the map and two regions", {"vmin": low, "vmax": 2 * high - low})
    titles = ("from region A", "from region B", "from both: they add up")
    shown = ((0, 1), (0,), (1,), (0, 1))
    most = max(float(gradient.max()) for gradient in gradients)
    for ax, gradient, title in zip(axes[1:], gradients, titles):
        _cells(ax, gradient, title, {"vmin": 0, "vmax": 2.5 * most})
        for row, column in gradient.nonzero().tolist():
            count = f"{gradient[row, column]:g}"
            ax.text(column, row, count, ha="center", va="center", fontsize=13)
    for ax, which in zip(axes, shown):
        for i in which:
            x1, y1, x2, y2 = boxes[i]
            look = {"ec": COLOURS[i], "lw": 3, "ls": ("-", "--")[i], "fill": False}
            ax.add_patch(plt.Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, **look))
            if ax is axes[0]:
                place = (x1 - 0.3, y1 - 0.6)
                ax.text(*place, "AB"[i], color=COLOURS[i], fontsize=16, weight="bold", va="bottom")
    return figure


def evidence_figure(
    image: Tensor, regions: Sequence[Tensor], evidence: Sequence[Tensor], titles: Sequence[str]
) -> Figure:
    """An image (3, H, W), once per region (4,), and how much each cell (h, w) counts for it."""
    look = {"figsize": (4.9 * len(regions), 5.3), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, len(regions), **look)
    height, width = image.shape[1:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for ax, region, weight, title in zip(axes[0], regions, evidence, titles):
        show_image(ax, image.float().mean(dim=0).byte(), title)
        strength = (weight / weight.max().clamp(min=1e-9)).numpy()
        colour = np.broadcast_to(to_rgb(COLOURS[0]), (*strength.shape, 3))
        ax.imshow(np.dstack([colour, 0.85 * strength]), extent=extent)
        draw_boxes(ax, region[None], colours="black")
    return figure


# ---------------------------------------------------------------- lecture 03


def faster_rcnn_figure() -> Figure:
    """Faster R-CNN from the image to its boxes, and what teaches it."""
    parts = {
        "image": Part("map", size=(3, 128, 128)),
        "Small\nBackbone": Part("learnt"),
        "features": Part("map", size=(96, 16, 16)),
        "RoIAlign": Part("fixed", added=True),
        "FastRCNN\nHead": Part("learnt"),
        "decode_\ndetections": Part("fixed"),
        "RPN": Part("learnt", under=("features", 1), added=True),
        "decode_\nproposals": Part("fixed", under=("RoIAlign", 1), added=True),
        "RPNLoss,\ntrue boxes": Part("fixed", under=("features", 2), added=True, training=True),
        "sample_\nregions,\ntrue boxes": Part("fixed", under=("RoIAlign", 2), training=True),
        "head_cls +\nhead_box": Part("fixed", under=("FastRCNN\nHead", 2), training=True),
    }
    arrows = {
        ("image", "Small\nBackbone"): "(3, 128, 128)",
        ("Small\nBackbone", "features"): "(96, 16, 16)",
        ("features", "RoIAlign"): "        (96, 16, 16)        ",
        ("RoIAlign", "FastRCNN\nHead"): "(50, 96, 7, 7)",
        ("FastRCNN\nHead", "decode_\ndetections"): "(50, 4), (50, 4, 4)",
        ("features", "RPN"): "",
        ("RPN", "decode_\nproposals"): "(16, 16, 9), (16, 16, 36)",
        ("decode_\nproposals", "RoIAlign"): "(50, 4), in training\nthe sample, (32, 4)",
        ("RPN", "RPNLoss,\ntrue boxes"): "",
        ("decode_\nproposals", "sample_\nregions,\ntrue boxes"): "(64, 4)",
        ("sample_\nregions,\ntrue boxes", "head_cls +\nhead_box"): "",
        ("FastRCNN\nHead", "head_cls +\nhead_box"): "(32, 4), (32, 4, 4)",
    }
    return _label_over_arrows(detector_figure(parts, arrows))


def _label_over_arrows(figure: Figure) -> Figure:
    """The same figure; where an arrow leaves a map downwards, the map's name stays readable."""
    for text in figure.axes[0].texts:
        if text.get_text().strip() == "features":
            text.set(zorder=5, bbox={"fc": "white", "ec": "none", "pad": 1.5})
    return figure


def family_figure() -> Figure:
    """The three detectors of lectures 01 to 03, one below the other."""
    search, crops, cnn, each = "selective search", "crops", "CNN\n2,000 times", "features of\neach"
    parts = {
        "image": Part("map", size=(3, 128, 128)),
        search: Part("fixed"),
        crops: Part("map", size=(3, 56, 56)),
        cnn: Part("learnt"),
        each: Part("map", size=(96, 7, 7)),
        "classifiers": Part("learnt"),
    }
    arrows = {
        ("image", search): "",
        (search, crops): "2,000 boxes",
        (crops, cnn): "",
        (cnn, each): "",
        (each, "classifiers"): "",
    }
    rows = {"R-CNN": 0, "Fast R-CNN": 1.2, "Faster R-CNN": 3.0}
    for mark, (name, row) in enumerate(rows.items()):
        if row == 0:
            continue
        first, space = name == "Fast R-CNN", " " * mark  # a space tells the names apart
        image, once, features, head = (
            word + space for word in ("image", "CNN\nonce", "features", "head")
        )
        source, pool = search + space if first else "RPN", "RoI pooling" + space
        under = search if first else crops  # below the image, or below the map that it reads
        parts |= {
            image: Part("map", under=("image", row), size=(3, 128, 128)),
            once: Part("learnt", under=(search, row), added=first),
            features: Part("map", under=(crops, row), size=(96, 16, 16), added=first),
            source: Part("fixed" if first else "learnt", (under, row + 0.85), added=not first),
            pool: Part("fixed", under=(cnn, row + 0.85), added=first),
            head: Part("learnt", under=(each, row + 0.85), added=first),
        }
        arrows |= {
            (image, once): "",
            (once, features): "",
            (image if first else features, source): "",
            (source, pool): "2,000 boxes" if first else "300",
            (features, pool): "",
            (pool, head): "",
        }
    figure = _label_over_arrows(detector_figure(parts, arrows))
    (ax,) = figure.axes
    left, right = ax.get_xlim()
    ax.set_xlim(left - 2.0, right)
    ax.set_ylim(ax.get_ylim()[0] - 0.4, ax.get_ylim()[1])
    for name, row in rows.items():
        ax.text(left - 1.9, 1.9 * row, name, va="center", fontsize=16, weight="bold")
    return figure


def sizes_figure(boxes: Tensor, templates: Mapping[str, Tensor]) -> Figure:
    """Width against height of objects (M, 4) and of templates (A, 4), one panel for each set."""
    look = {"figsize": (13.5, 5.2), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, len(templates), sharex=True, sharey=True, **look)
    sizes = (boxes[:, 2:] - boxes[:, :2]).numpy()
    for ax, (name, own) in zip(axes[0], templates.items()):
        ax.plot(*sizes.T, ".", color=COLOURS[5], ms=4, alpha=0.5, label="objects")
        ax.plot(*(own[:, 2:] - own[:, :2]).numpy().T, "X", color=COLOURS[0], ms=11, label=name)
        ax.set(xscale="log", yscale="log", xlabel="width, pixels", aspect="equal")
        ax.set_xticks([8, 16, 32, 64, 128, 256], [8, 16, 32, 64, 128, 256])
        ax.set_yticks([8, 16, 32, 64, 128, 256], [8, 16, 32, 64, 128, 256])
        ax.minorticks_off()
        ax.set_title(name)
    axes[0, 0].set_ylabel("height, pixels")
    return figure


def objectness_figure(
    image: Tensor, target: Mapping[str, Tensor], maps: Tensor, sizes: Sequence[float]
) -> Figure:
    """An image (3, H, W) and the objectness (h, w, S) of its cells, one map for each size."""
    figure, axes = plt.subplots(1, 1 + len(sizes), figsize=(15, 4.3), layout="constrained")
    height, width = image.shape[1:]
    show_image(axes[0], image, "the image and its objects")
    for ax, size, values in zip(axes[1:], sizes, maps.permute(2, 0, 1)):
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        ax.imshow(values.numpy(), cmap="Greys", vmin=0, vmax=1, extent=extent)
        ax.set_title(f"templates of {size} px")
    for ax in axes:
        draw_boxes(ax, target["boxes"], colours="black", line_style="--")
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    return figure


def roi_align_figure(
    roi: tuple[float, ...], cells: tuple[int, int], bins: int, samples: int = 2
) -> Figure:
    """A box (x1, y1, x2, y2), in cells, as RoI pooling rounds it and as RoIAlign reads it."""
    figure, axes = plt.subplots(1, 2, figsize=(13.5, 5.4), layout="constrained")
    rounded = [round(v) for v in roi[:2]] + [round(v) + 1 for v in roi[2:]]
    for ax, box, title in zip(axes, (rounded, roi), ("RoI pooling: whole cells", "RoIAlign")):
        ax.set(xlim=(0, cells[1]), ylim=(cells[0], 0), aspect="equal", title=title)
        ax.set_xticks(range(cells[1] + 1), [])
        ax.set_yticks(range(cells[0] + 1), [])
        y, x = np.mgrid[: cells[0], : cells[1]] + 0.5
        ax.plot(x.ravel(), y.ravel(), ".", color="black", ms=5)
        (x1, y1, x2, y2), exact = box, box is roi
        edges = [np.linspace(a, b, bins + 1) for a, b in ((x1, x2), (y1, y2))]
        for i in range(bins):
            for j in range(bins):
                low = [e[k] if exact else math.floor(e[k]) for e, k in zip(edges, (j, i))]
                high = [e[k + 1] if exact else math.ceil(e[k + 1]) for e, k in zip(edges, (j, i))]
                size = (high[0] - low[0], high[1] - low[1])
                ax.add_patch(plt.Rectangle(low, *size, fill=False, ec=COLOURS[1], lw=2.5))
        if exact:
            step = (np.arange(bins * samples) + 0.5) / (bins * samples)
            px, py = np.meshgrid(x1 + step * (x2 - x1), y1 + step * (y2 - y1))
            ax.plot(px.ravel(), py.ravel(), "x", color=COLOURS[0], ms=9, mew=2.5)
        size = (roi[2] - roi[0], roi[3] - roi[1])
        ax.add_patch(plt.Rectangle(roi[:2], *size, fill=False, ec="black", lw=3, ls="--"))
    return figure


# ---------------------------------------------------------------- lecture 04


def retinanet_figure() -> Figure:
    """RetinaNet from the image to its boxes, and what teaches it."""
    parts = {
        "image": Part("map", size=(3, 128, 128)),
        "Simple\nBackbone": Part("learnt"),
        "C2": Part("map", size=(32, 32, 32)),
        "Simple\nFPN": Part("learnt", added=True),
        "P2": Part("map", size=(48, 32, 32), added=True),
        "Simple\nRetinaNet": Part("learnt", added=True),
        "detect": Part("fixed"),
        "C3": Part("map", under=("C2", 1), size=(64, 16, 16)),
        "C4": Part("map", under=("C2", 2), size=(128, 8, 8)),
        "Simple\nFPN ": Part("learnt", under=("Simple\nFPN", 1), added=True),
        "Simple\nFPN  ": Part("learnt", under=("Simple\nFPN", 2), added=True),
        "P3": Part("map", under=("P2", 1), size=(48, 16, 16), added=True),
        "P4": Part("map", under=("P2", 2), size=(48, 8, 8), added=True),
        "DenseLoss": Part("fixed", under=("detect", 1), added=True, training=True),
        "FocalLoss,\nmatch_anchors": Part("fixed", under=("detect", 2), added=True, training=True),
    }
    arrows = {
        ("image", "Simple\nBackbone"): "(3, 128, 128)",
        ("Simple\nBackbone", "C2"): "(32, 32, 32)",
        ("C2", "Simple\nFPN"): "",
        ("Simple\nFPN", "P2"): "(48, 32, 32)",
        ("P2", "Simple\nRetinaNet"): "",
        ("Simple\nRetinaNet", "detect"): "(8064, 7)",
        ("C2", "C3"): "",
        ("C3", "C4"): "",
        ("C3", "Simple\nFPN "): "",
        ("C4", "Simple\nFPN  "): "",
        ("Simple\nFPN  ", "Simple\nFPN "): "top-down",
        ("Simple\nFPN ", "Simple\nFPN"): "top-down",
        ("Simple\nFPN ", "P3"): "(48, 16, 16)",
        ("Simple\nFPN  ", "P4"): "(48, 8, 8)",
        ("P3", "Simple\nRetinaNet"): "",
        ("P4", "Simple\nRetinaNet"): "",
        ("Simple\nRetinaNet", "DenseLoss"): "",
        ("FocalLoss,\nmatch_anchors", "DenseLoss"): "",
    }
    return detector_figure(parts, arrows)


def receptive_fields_figure(
    image: Tensor, target: Mapping[str, Tensor], names: Sequence[str], sides: Sequence[int]
) -> Figure:
    """An image (3, H, W) with its objects, once per map, and what the map's middle cell sees."""
    figure, axes = plt.subplots(1, len(names), figsize=(13.8, 5), layout="constrained")
    height, width = image.shape[1:]
    for ax, name, side in zip(axes, names, sides):
        show_image(ax, image, f"a cell of {name} sees {side} × {side} pixels")
        draw_boxes(ax, target["boxes"], colours="black", line_style="--")
        corner = ((width - side) / 2 - 0.5, (height - side) / 2 - 0.5)
        for colour, line in (("white", 7), (COLOURS[0], 4)):
            ax.add_patch(plt.Rectangle(corner, side, side, fill=False, ec=colour, lw=line))
        ax.plot(width / 2 - 0.5, height / 2 - 0.5, "o", color="black", mec="white", ms=9)
        ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return figure


def score_maps_figure(
    image: Tensor, target: Mapping[str, Tensor], maps: Sequence[Tensor], names: Sequence[str]
) -> Figure:
    """An image (3, H, W) with its objects, and the scores (h, w) of each map over it."""
    figure, axes = plt.subplots(1, len(maps) + 1, figsize=(14.5, 4.1), layout="constrained")
    height, width = image.shape[1:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    show_image(axes[0], image, "the image and its objects")
    for ax, scores, name in zip(axes[1:], maps, names):
        ax.imshow(scores.numpy(), cmap="Greys", vmin=0, vmax=1, extent=extent)
        rows, columns = scores.shape
        ax.set_title(f"{name}: {rows} × {columns} cells")
    for ax in axes:
        draw_boxes(ax, target["boxes"], colours="black", line_style="--")
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    return figure


# ---------------------------------------------------------------- lecture 06


def ssd_figure() -> Figure:
    """SSD from the image to its boxes, and what teaches it."""
    parts = {
        "image": Part("map", size=(3, 128, 128)),
        "SSD\nBackbone": Part("learnt"),
        "stride 4": Part("map", size=(48, 32, 32)),
        "3 × 3 class\n3 × 3 box": Part("learnt", added=True),
        "answers": Part("map", size=(48, 32, 32), added=True),
        "8064\nanswers": Part("fixed"),
        "decode": Part("fixed"),
        "stride 8": Part("map", under=("stride 4", 1), size=(96, 16, 16)),
        "stride 16": Part("map", under=("stride 4", 2), size=(128, 8, 8)),
        "3 × 3 class\n3 × 3 box ": Part("learnt", under=("3 × 3 class\n3 × 3 box", 1), added=True),
        "3 × 3 class\n3 × 3 box  ": Part("learnt", under=("3 × 3 class\n3 × 3 box", 2), added=True),
        "answers ": Part("map", under=("answers", 1), size=(48, 16, 16), added=True),
        "answers  ": Part("map", under=("answers", 2), size=(48, 8, 8), added=True),
        "MultiBox\nLoss": Part("fixed", under=("decode", 1), added=True, training=True),
        "default_boxes,\nmatch_boxes,\nmine_hard_\nnegatives": Part(
            "fixed", under=("decode", 2), added=True, training=True
        ),
    }
    arrows = {
        ("image", "SSD\nBackbone"): "(3, 128, 128)",
        ("SSD\nBackbone", "stride 4"): "(48, 32, 32)",
        ("stride 4", "3 × 3 class\n3 × 3 box"): "",
        ("3 × 3 class\n3 × 3 box", "answers"): "(48, 32, 32)",
        ("answers", "8064\nanswers"): "",
        ("8064\nanswers", "decode"): "(8064, 8)",
        ("stride 4", "stride 8"): "",
        ("stride 8", "stride 16"): "",
        ("stride 8", "3 × 3 class\n3 × 3 box "): "",
        ("stride 16", "3 × 3 class\n3 × 3 box  "): "",
        ("3 × 3 class\n3 × 3 box ", "answers "): "(48, 16, 16)",
        ("3 × 3 class\n3 × 3 box  ", "answers  "): "(48, 8, 8)",
        ("answers ", "8064\nanswers"): "",
        ("answers  ", "8064\nanswers"): "",
        ("8064\nanswers", "MultiBox\nLoss"): "",
        ("default_boxes,\nmatch_boxes,\nmine_hard_\nnegatives", "MultiBox\nLoss"): "",
    }
    return detector_figure(parts, arrows)


# ---------------------------------------------------------------- lecture 07


def fcos_figure() -> Figure:
    """FCOS from the image to its boxes, and what teaches it."""
    parts = {
        "image": Part("map", size=(3, 128, 128)),
        "Simple\nBackbone": Part("learnt"),
        "C2": Part("map", size=(32, 32, 32)),
        "FPN": Part("learnt"),
        "P2": Part("map", size=(48, 32, 32)),
        "FCOSHead": Part("learnt", added=True),
        "decode_predictions,\nNMS": Part("fixed", added=True),
        "C3": Part("map", under=("C2", 1), size=(64, 16, 16)),
        "C4": Part("map", under=("C2", 2), size=(128, 8, 8)),
        "FPN ": Part("learnt", under=("FPN", 1)),
        "FPN  ": Part("learnt", under=("FPN", 2)),
        "P3": Part("map", under=("P2", 1), size=(48, 16, 16)),
        "P4": Part("map", under=("P2", 2), size=(48, 8, 8)),
        "FCOSLoss": Part("fixed", under=("decode_predictions,\nNMS", 1), added=True, training=True),
        "true boxes:\nassign, targets_of": Part(
            "fixed", under=("decode_predictions,\nNMS", 2), added=True, training=True
        ),
    }
    arrows = {
        ("image", "Simple\nBackbone"): "(3, 128, 128)",
        ("Simple\nBackbone", "C2"): "(32, 32, 32)",
        ("C2", "FPN"): "",
        ("FPN", "P2"): "(48, 32, 32)",
        ("P2", "FCOSHead"): "",
        ("FCOSHead", "decode_predictions,\nNMS"): "(1344, 3 + 4 + 1)",
        ("C2", "C3"): "",
        ("C3", "C4"): "",
        ("C3", "FPN "): "",
        ("C4", "FPN  "): "",
        ("FPN  ", "FPN "): "top-down",
        ("FPN ", "FPN"): "top-down",
        ("FPN ", "P3"): "(48, 16, 16)",
        ("FPN  ", "P4"): "(48, 8, 8)",
        ("P3", "FCOSHead"): "",
        ("P4", "FCOSHead"): "",
        ("FCOSHead", "FCOSLoss"): "",
        ("true boxes:\nassign, targets_of", "FCOSLoss"): "",
    }
    return detector_figure(parts, arrows)


def fcos_head_figure() -> Figure:
    """FCOS's head on one level, P2: two towers, three answers."""
    parts = {
        "P2": Part("map", size=(48, 32, 32)),
        "reg_tower": Part("learnt", added=True),
        "reg_pred": Part("learnt", added=True),
        "Scale of P2": Part("learnt", added=True),
        "exp,\n× stride": Part("fixed", added=True),
        "l, t, r, b": Part("map", size=(4, 32, 32), added=True),
        "centerness": Part("learnt", under=("reg_pred", 1), added=True),
        "centre-ness": Part("map", under=("l, t, r, b", 1), size=(1, 32, 32), added=True),
        "cls_tower": Part("learnt", under=("reg_tower", 2), added=True),
        "cls_logits": Part("learnt", under=("reg_pred", 2), added=True),
        "logits": Part("map", under=("l, t, r, b", 2), size=(3, 32, 32), added=True),
    }
    arrows = {
        ("P2", "reg_tower"): "(48, 32, 32)",
        ("reg_tower", "reg_pred"): "(48, 32, 32)",
        ("reg_pred", "Scale of P2"): "(4, 32, 32)",
        ("Scale of P2", "exp,\n× stride"): "",
        ("exp,\n× stride", "l, t, r, b"): "(4, 32, 32)",
        ("reg_tower", "centerness"): "",
        ("centerness", "centre-ness"): "(1, 32, 32)",
        ("P2", "cls_tower"): "",
        ("cls_tower", "cls_logits"): "(48, 32, 32)",
        ("cls_logits", "logits"): "(3, 32, 32)",
    }
    return detector_figure(parts, arrows)


def level_maps_figure(
    image: Tensor, target: Mapping[str, Tensor], upper: Sequence[Tensor], lower: Sequence[Tensor]
) -> Figure:
    """An image (3, H, W) with its objects, and two rows of maps (h, w), a column per level."""
    figure, axes = plt.subplots(2, 1 + len(upper), figsize=(14.5, 7.6), layout="constrained")
    height, width = image.shape[1:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for row, maps, what in zip(axes, (upper, lower), ("class", "centre-ness")):
        show_image(row[0], image, "the image and its objects" if what == "class" else "")
        for level, (ax, values) in enumerate(zip(row[1:], maps), 2):
            ax.imshow(values.numpy(), cmap="Greys", vmin=0, vmax=1, extent=extent)
            ax.set_title(f"P{level}: {what}")
        for ax in row:
            draw_boxes(ax, target["boxes"], colours="black", line_style="--")
            ax.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
            ax.grid(False)
    return figure


def location_figure(
    box: Tensor, at: Tensor, ltrb: Tensor, title: str, answers: Tensor, strides: Tensor
) -> Figure:
    """Left a box (4,) on 128 x 128 pixels and a location (2,) with its distances (4,), if inside.

    Right the locations (n, 2) that answer for the box, and the stride (n,) of each.
    """
    figure, axes = plt.subplots(1, 2, figsize=(13.5, 6.6), layout="constrained")
    x1, y1, x2, y2 = box.tolist()
    x, y = at.tolist()
    for ax in axes:
        ax.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="black", lw=3))
        ax.set(xlim=(0, 128), ylim=(128, 0), aspect="equal")
    if min(ltrb.tolist()) > 0:
        ends = ((x1, y), (x, y1), (x2, y), (x, y2))
        for name, end, value in zip("ltrb", ends, ltrb.tolist()):
            axes[0].plot([x, end[0]], [y, end[1]], ls="--", color=COLOURS[0])
            look = {"ha": "left", "va": "center"} if name in "tb" else {"ha": "center"}
            place = ((x + end[0]) / 2 + (name in "tb"), (y + end[1]) / 2 - (name in "lr"))
            axes[0].text(*place, f"{name} = {value:g}", fontsize=14, **look)
    axes[0].plot(x, y, "o", color="black", ms=11)
    axes[0].set_title(title)
    for level, stride in enumerate((4, 8, 16)):
        mine = answers[strides == stride]
        look = {"color": COLOURS[level], "s": 12 * stride**0.9, "marker": "os^"[level]}
        axes[1].scatter(*mine.T, label=f"P{2 + level}: {len(mine)}", **look)
    axes[1].legend(fontsize=13)
    axes[1].set_title("who answers for this box")
    return figure


def atss_figure(
    image: Tensor,
    boxes: Tensor,
    candidates: Tensor,
    overlap: Tensor,
    match: Tensor,
    stride: Tensor,
) -> Figure:
    """An image (3, H, W) with objects (M, 4), and for each the IoUs of its candidates by level.

    candidates, overlap: (L, M), which locations they are, and their IoUs; match, stride: (L,).
    """
    count = len(boxes)
    figure, axes = plt.subplots(1, 1 + count, figsize=(4.6 + 3 * count, 4.6), layout="constrained")
    show_image(axes[0], image, "three objects")
    draw_boxes(axes[0], boxes, list("abcdef"[:count]), "black", "--")
    levels = stride.unique().tolist()
    for m, ax in enumerate(axes[1:]):
        mine = candidates[:, m] > 0
        values = overlap[mine, m]
        ax.axhline(float(values.mean() + values.std()), color="black", lw=1.5, ls="--")
        for level, s in enumerate(levels):
            here = overlap[mine & (stride == s), m]
            chosen = (match == m)[mine & (stride == s)].numpy()
            spots = level + np.linspace(-0.25, 0.25, len(here))
            ax.scatter(spots, here, s=70, fc="white", ec=COLOURS[1], lw=1.6)
            ax.scatter(spots[chosen], here[chosen], s=70, color=COLOURS[1])
        ax.set_xticks(range(len(levels)), [f"P{2 + level}" for level in range(len(levels))])
        ax.set(title=f"object {'abcdef'[m]}", ylim=(-0.03, 1))
    axes[1].set_ylabel("IoU of the candidate's square")
    return figure


# ---------------------------------------------------------------- lecture 08


def detr_figure() -> Figure:
    """DETR from the image to its set of boxes, and what teaches it."""
    parts = {
        "image": Part("map", size=(3, 128, 128)),
        "Simple\n Backbone ": Part("learnt"),
        "features": Part("map", size=(96, 16, 16)),
        " Transformer \nEncoder": Part("learnt", added=True),
        "memory": Part("map", size=(96, 16, 16), added=True),
        " Transformer \nDecoder": Part("learnt", added=True),
        " class_embed \nbbox_embed": Part("learnt", added=True),
        "read_\nanswers": Part("fixed"),
        "Positional\n Encoding2D ": Part("fixed", under=(" Transformer \nEncoder", 1), added=True),
        " query_embed ": Part("learnt", under=(" Transformer \nDecoder", 1), added=True),
        " DETRLoss, \ntrue objects": Part(
            "fixed", under=(" class_embed \nbbox_embed", 1), added=True, training=True
        ),
        " Hungarian \nMatcher": Part(
            "fixed", under=("read_\nanswers", 1), added=True, training=True
        ),
    }
    arrows = {
        ("image", "Simple\n Backbone "): "(3, 128, 128)",
        ("Simple\n Backbone ", "features"): "",
        ("features", " Transformer \nEncoder"): "(256, 96)",
        (" Transformer \nEncoder", "memory"): "",
        ("memory", " Transformer \nDecoder"): "(256, 96)",
        (" Transformer \nDecoder", " class_embed \nbbox_embed"): "3 × (16, 96)",
        (" class_embed \nbbox_embed", "read_\nanswers"): "(16, 4), (16, 4)",
        ("Positional\n Encoding2D ", " Transformer \nEncoder"): "(256, 96)",
        ("Positional\n Encoding2D ", " Transformer \nDecoder"): "",
        (" query_embed ", " Transformer \nDecoder"): "(16, 96)",
        (" class_embed \nbbox_embed", " DETRLoss, \ntrue objects"): "all 3 layers",
        (" Hungarian \nMatcher", " DETRLoss, \ntrue objects"): "pairs",
    }
    return _label_over_arrows(detector_figure(parts, arrows))


def transformer_figure() -> Figure:
    """One layer of DETR's encoder, above, and one of its decoder, below, with every shape."""
    attend, cross = "attend:\n4 heads, 256 × 256", "cross_attend:\n4 heads, 16 × 256"
    among = "self_attend:\n4 heads, 16 × 16"
    think, again = "think:\n96 → 192 → 96", "think: \n96 → 192 → 96"
    parts = {
        "features": Part("map", size=(96, 16, 16)),
        "flatten": Part("fixed"),
        attend: Part("learnt", added=True),
        think: Part("learnt", added=True),
        "memory": Part("map", size=(96, 16, 16), added=True),
        " Positional \nEncoding2D": Part("fixed", under=(attend, 1), added=True),
        " zeros ": Part("fixed", under=("features", 2)),
        among: Part("learnt", under=("flatten", 2), added=True),
        cross: Part("learnt", under=(attend, 2), added=True),
        again: Part("learnt", under=(think, 2), added=True),
        " class_embed \nbbox_embed": Part("learnt", under=("memory", 2), added=True),
        " query_embed ": Part("learnt", under=("features", 1), added=True),
    }
    arrows = {
        ("features", "flatten"): "(96, 16, 16)      ",
        ("flatten", attend): "        (256, 96)        ",
        (attend, think): "      (256, 96)      ",
        (think, "memory"): "    (256, 96)    ",
        (" Positional \nEncoding2D", attend): "+",
        (" Positional \nEncoding2D", "memory"): "",
        (" zeros ", among): "(16, 96)",
        (among, cross): "(16, 96)",
        (cross, again): "(16, 96)",
        ("memory", cross): "",
        (again, " class_embed \nbbox_embed"): "(16, 96)",
        (" query_embed ", among): "",
        (" query_embed ", cross): "",
    }
    return detector_figure(parts, arrows)


def placed_figure() -> Figure:
    """A decoder layer whose queries stand at places: from one box of a query to its next."""
    parts = {
        " box ": Part("fixed"),
        " Positional \nEncoding2D": Part("fixed"),
        "self_attend": Part("learnt"),
        "cross_attend": Part("learnt"),
        " think ": Part("learnt"),
        " bbox_embed ": Part("learnt"),
        " next box ": Part("fixed", added=True),
        " query_embed: \nfirst state": Part("learnt", under=(" Positional \nEncoding2D", 1)),
        " nearness ": Part("learnt", under=("cross_attend", 1), added=True),
        " places \n(16, 4)": Part("learnt", under=(" bbox_embed ", 1), added=True),
    }
    arrows = {
        (" box ", " Positional \nEncoding2D"): "x, y",
        (" Positional \nEncoding2D", "self_attend"): "(16, 96)",
        ("self_attend", "cross_attend"): "(16, 96)",
        ("cross_attend", " think "): "(16, 96)",
        (" think ", " bbox_embed "): "(16, 96)",
        (" bbox_embed ", " next box "): "offset",
        (" query_embed: \nfirst state", "self_attend"): "",
        (" nearness ", "cross_attend"): "+ scores",
        (" places \n(16, 4)", " next box "): "",
    }
    return detector_figure(parts, arrows)


def queries_figure(centres: Tensor, owners: Mapping[str, Tensor], places: Tensor) -> Figure:
    """Centres (B, 2), shares of the image: a panel for each way to say whose (B,) they are.

    places: (Q, 2), a number each.
    """
    look = {"figsize": (13.5, 5.2), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, len(owners), **look)
    for ax, (name, owner) in zip(axes[0], owners.items()):
        for q in range(len(places)):
            dots = {"marker": "os^vDP"[q % 6], "color": COLOURS[q % 7], "ms": 5, "alpha": 0.6}
            ax.plot(*centres[owner == q].T.numpy(), ls="", **dots)
        for q, place in enumerate(places.tolist()):
            pale = {"fc": "white", "ec": "black", "pad": 2, "alpha": 0.85}
            ax.text(*place, str(q), ha="center", va="center", fontsize=14, bbox=pale)
        ax.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal", title=name)
    return figure


def matching_figure(
    objects: Tensor, answers: Tensor, pairs: Sequence[tuple[int, int]], title: str
) -> Figure:
    """Objects (M, 4) dashed and answers (Q, 4) solid, centre and size, and who takes which."""
    figure, ax = plt.subplots(figsize=(13.5, 4.0), layout="constrained")
    for boxes, look in ((objects, {"ec": "black", "ls": "--"}), (answers, {"ec": COLOURS[1]})):
        for i, box in enumerate(boxes):
            _centred(ax, box, lw=3, **look)
            name = f"{'object' if boxes is objects else 'answer'} {i}"
            corner = (box[:2] - box[2:] / 2).tolist()
            ax.text(*corner, name, color=look["ec"], fontsize=14, va="bottom")
    for i, j in pairs:
        ends = np.array([answers[i, :2].tolist(), objects[j, :2].tolist()])
        ax.plot(*ends.T, "o-", color=COLOURS[0], lw=3)
    ax.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal", title=title)
    return figure


# ---------------------------------------------------------------- lecture 10


def forest_figure() -> Figure:
    """From a photograph of any size to a count of trees, and what teaches the detector."""
    parts = {
        "photograph": Part("map", size=(3, 400, 400)),
        "corners,\ncut": Part("fixed", added=True),
        "tile": Part("map", size=(3, 256, 256)),
        "Pretrained-\nStages": Part("learnt", added=True),
        "FPN\n(04)": Part("learnt"),
        "FCOSHead\n(07)": Part("learnt"),
        "decode_\npredictions\n(07)": Part("fixed"),
        "detect:\nseams, NMS": Part("fixed", added=True),
        "turned:\n8 views": Part("fixed", under=("corners,\ncut", 1), added=True, training=True),
        "FCOSLoss\n(07)": Part("fixed", under=("FCOSHead\n(07)", 1), training=True),
    }
    arrows = {
        ("photograph", "corners,\ncut"): "",
        ("corners,\ncut", "tile"): "",
        ("tile", "Pretrained-\nStages"): "",
        ("Pretrained-\nStages", "FPN\n(04)"): "C3 C4 C5",
        ("FPN\n(04)", "FCOSHead\n(07)"): "P3 P4 P5",
        ("FCOSHead\n(07)", "decode_\npredictions\n(07)"): "",
        ("decode_\npredictions\n(07)", "detect:\nseams, NMS"): "",
        ("turned:\n8 views", "corners,\ncut"): "",
        ("FCOSHead\n(07)", "FCOSLoss\n(07)"): "",
    }
    return detector_figure(parts, arrows)


def look_at(dataset: PhotoDataset, shown: int = 4) -> Figure:
    """Any data set at a glance: its first photographs, its boxes, their number and its classes."""
    if len(dataset) == 0:
        raise ValueError("dataset must hold a photograph, got none")
    figure = plt.figure(figsize=(13.8, 6.2), layout="constrained")
    grid = figure.add_gridspec(2, 12)
    shown = min(shown, len(dataset))
    for i in range(shown):
        ax = figure.add_subplot(grid[0, i * 12 // shown : (i + 1) * 12 // shown])
        image, target = dataset[i]
        step = max(1, max(image.shape[1:]) // 600)  # thousands of pixels would not be seen
        title = f"{image.shape[2]} × {image.shape[1]} px, {len(target['labels'])} objects"
        show_image(ax, image[:, ::step, ::step], title)
        colours = [COLOURS[label % len(COLOURS)] for label in target["labels"].tolist()]
        for box, colour in zip((target["boxes"] / step).tolist(), colours):
            corner, size = box[:2], (box[2] - box[0], box[3] - box[1])
            ax.add_patch(plt.Rectangle(corner, *size, fill=False, ec=colour, lw=1))
    boxes = torch.cat([target["boxes"] for target in dataset.targets])
    labels = torch.cat([target["labels"] for target in dataset.targets])
    sizes, kinds, crowds = (figure.add_subplot(grid[1, 4 * k : 4 * k + 4]) for k in range(3))
    for label, name in enumerate(dataset.classes):
        width, height = (boxes[labels == label][:, 2:] - boxes[labels == label][:, :2]).T
        sizes.scatter(width, height, s=9, color=COLOURS[label % len(COLOURS)], label=name)
        kinds.barh(name, int((labels == label).sum()), color=COLOURS[label % len(COLOURS)])
    sizes.set(xlabel="width of a box, px", ylabel="height, px", title="how large?")
    for bars in kinds.containers:
        kinds.bar_label(bars, padding=4)
    kinds.set(xlabel="boxes", title="of which class?")
    kinds.margins(x=0.15)
    together = [
        (box_iou(t["boxes"], t["boxes"]) - torch.eye(len(t["boxes"]))).amax(dim=1)
        for t in dataset.targets
        if len(t["boxes"])
    ]
    overlap = torch.cat(together) if together else torch.zeros(0)
    crowds.hist(overlap.clamp(min=0).numpy(), bins=np.linspace(0, 1, 21), color=COLOURS[1])
    crowds.set(xlabel="IoU with the nearest other box", ylabel="boxes", title="how crowded?")
    return figure


def pieces_figure(
    image: Tensor, spots: Mapping[str, tuple[int, int]], side: int, boxes: Tensor
) -> Figure:
    """Square pieces of `image` (3, H, W) at (x, y), by title, with those of `boxes` (N, 4)."""
    figure, axes = plt.subplots(1, len(spots), figsize=(13.8, 3.6), layout="constrained")
    for ax, (title, (x, y)) in zip(np.atleast_1d(axes), spots.items()):
        show_image(ax, image[:, y : y + side, x : x + side], title)
        draw_boxes(ax, _near(boxes, x, y, side))
    return figure


def _near(boxes: Tensor, x: int, y: int, side: int) -> Tensor:
    """Boxes (N, 4) in a square at (x, y), cut at its sides; slivers are left out."""
    near = (boxes - boxes.new_tensor([x, y, x, y])).clamp(0, side)
    return near[((near[:, 2:] - near[:, :2]) > 8).all(dim=1)]


def places_figure(places: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Of (image, boxes) by name of a place: sizes of the boxes, brightness of the pixels."""
    figure, axes = plt.subplots(1, 2, figsize=(13.5, 2.9), layout="constrained")
    look = {"density": True, "histtype": "step", "linewidth": 2.5}
    for name, (image, boxes) in places.items():
        side = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
        axes[0].hist(side.numpy(), bins=range(5, 110, 5), label=name, **look)
        brightness = image[:, ::4, ::4].float().mean(dim=0).flatten()
        axes[1].hist(brightness.numpy(), bins=range(0, 256, 8), label=name, **look)
    axes[0].set(xlabel="root of a box's area, px", ylabel="density")
    axes[1].set(xlabel="brightness of a pixel", ylabel="density")
    axes[0].legend()
    return figure


def show_hits(ax: Axes, image: Tensor, boxes: Tensor, right: Tensor, missed: Tensor) -> None:
    """Boxes (N, 4) on an image, green where they are `right` (N,), else orange; missed: dashed."""
    show_image(ax, image)
    draw_boxes(ax, missed, colours="black", line_style="--")
    draw_boxes(ax, boxes[right], colours=COLOURS[2])
    draw_boxes(ax, boxes[~right], colours=COLOURS[0])


def count_figure(
    missing: Tensor, known: Tensor, ways: Mapping[str, tuple], counted: int, truth: int
) -> Figure:
    """Trees missing (rows, columns) by block, `known` ones (n,) framed; and intervals of draws.

    ways: by name the middles (D,) of the intervals of D draws, and their halves (D,).
    """
    figure, axes = plt.subplots(1, 2, figsize=(13.5, 4.4), layout="constrained")
    most = max(1, int(missing.abs().max()))
    axes[0].imshow(missing.numpy(), cmap="RdBu_r", vmin=-2 * most, vmax=2 * most)
    for number, ((row, column), value) in enumerate(np.ndenumerate(missing.numpy())):
        framed = number in known.tolist()
        weight = "bold" if framed else "normal"
        axes[0].text(column, row, f"{value:+.0f}", ha="center", va="center", weight=weight)
        if framed:
            corner = (column - 0.46, row - 0.46)
            axes[0].add_patch(plt.Rectangle(corner, 0.92, 0.92, fill=False, ec="black", lw=3))
    axes[0].set(title="trees missing in the count, by block", xticks=[], yticks=[])
    axes[0].grid(False)
    for number, (name, (middle, half)) in enumerate(ways.items()):
        look = {"color": COLOURS[2 - number], "fmt": "os"[number], "lw": 3 - number, "capsize": 4}
        heights = np.arange(len(middle)) + 0.3 * number
        axes[1].errorbar(middle.numpy(), heights, xerr=half.numpy(), label=name, **look)
    axes[1].axvline(counted, color=COLOURS[0], ls=":", lw=3, label="detector alone")
    axes[1].axvline(truth, color="black", ls="--", label="drawn by people")
    axes[1].set(xlabel="trees", yticks=[], title="intervals of some draws")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def closeups_figure(
    image: Tensor, boxes: Tensor, found: Tensor, drawn: Tensor, titles: Mapping[int, str]
) -> Figure:
    """A square of 120 pixels around each of `boxes` (N, 4), in blue.

    What the detector `found` (F, 4) near it is grey, what people have `drawn` (M, 4) dashed.
    titles: by number of the box.
    """
    figure, axes = image_grid(len(boxes), columns=4, size=2.5)
    (height, width), side = image.shape[1:], 120
    for number, (ax, box) in enumerate(zip(axes, boxes)):
        x, y = ((box[:2] + box[2:] - side) / 2).round().long().tolist()
        x, y = min(max(0, x), width - side), min(max(0, y), height - side)
        show_image(ax, image[:, y : y + side, x : x + side], titles.get(number, ""))
        draw_boxes(ax, _near(found, x, y, side), colours="grey")
        draw_boxes(ax, _near(drawn, x, y, side), colours="black", line_style="--")
        corner, size = box[:2] - box.new_tensor([x, y]) - 0.5, box[2:] - box[:2]
        frame = {"fill": False, "ec": COLOURS[5], "lw": 5, "alpha": 0.8}
        ax.add_patch(plt.Rectangle(corner.tolist(), *size.tolist(), **frame))
    return figure


def transfer_figure(rows: Sequence[Mapping], variants: Mapping[str, str]) -> Figure:
    """AP50 of recorded rows next door, on the road and elsewhere: means, and from least to most.

    variants: names of the record, and what the figure calls them.
    """
    places = ("next door", "road", "Florida", "California")
    figure, ax = plt.subplots(figsize=(13.5, 3.0), layout="constrained")
    for number, ((name, label), colour, marker) in enumerate(
        zip(variants.items(), COLOURS, "os^Dv")
    ):
        own = [{**r["extra"], "AP50 road": r["AP50"]} for r in rows if r["variant"] == name]
        values = np.array([[row[f"AP50 {place}"] for place in places] for row in own])  # (S, 4)
        at = np.arange(len(places)) + 0.13 * (number - (len(variants) - 1) / 2)
        ax.plot(at, values.mean(axis=0), ls="", color=colour, marker=marker, ms=11, label=label)
        ax.vlines(at, values.min(axis=0), values.max(axis=0), color=colour, lw=3)
    ax.set_xticks(range(len(places)), places)
    ax.set(ylabel="AP50", ylim=(0, None))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def views_figure(rows: Sequence[Mapping], eight: Sequence[float]) -> Figure:
    """AP50 on the road by view: of recorded rows trained with one view, and of one with `eight`."""
    own = [row["extra"] for row in rows if row["variant"] == "one view"]
    values = np.array([[e[f"AP50 road, view {turn}"] for turn in range(8)] for e in own])  # (S, 8)
    figure, ax = plt.subplots(figsize=(13.5, 3.4), layout="constrained")
    at = np.arange(8)
    ax.bar(at - 0.2, values.mean(axis=0), 0.36, color=COLOURS[1], hatch="//", label="one view")
    ax.vlines(at - 0.2, values.min(axis=0), values.max(axis=0), color="black", lw=2)
    ax.bar(at + 0.2, eight, 0.36, color=COLOURS[0], label="eight views")
    ax.set_xticks(at, ["as it is", "mirrored", *(f"view {turn}" for turn in range(2, 8))])
    ax.set(ylabel="AP50 at the road")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="trained with")
    return figure
