"""Images with boxes, grids of images and curves, readable from the last row."""

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib_inline.config import InlineBackend
from torch import Tensor

from helpers.boxes import check_count
from helpers.datasets import checked_objects
from helpers.photos import as_rgb
from helpers.shapes import CLASSES

# Okabe-Ito, safe for colour-blind readers; a second cue (line style, label) always goes with it.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":", (0, (8, 1, 1, 1, 1, 1)))
Image = np.ndarray | Tensor | PIL.Image.Image


def use_lecture_style() -> None:
    """Large type, safe colours and PNG figures without version stamps, for the whole notebook."""
    plt.rc(("figure", "savefig"), dpi=80)
    plt.rc("font", size=13)
    plt.rc("axes", titlesize=14, grid=True, prop_cycle=plt.cycler(color=COLOURS))
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("grid", alpha=0.3)
    plt.rc("lines", linewidth=2.2)
    plt.rc("image", interpolation="nearest")
    backend = InlineBackend.instance()
    backend.print_figure_kwargs = {"bbox_inches": "tight", "metadata": {"Software": None}}


def as_image(image: Image) -> np.ndarray:
    """`image` as (H, W, 3) uint8 RGB, as by `as_rgb`; tensors, too, and with channels in front."""
    is_tensor = isinstance(image, Tensor)
    if is_tensor:
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()  # no bfloat16 there
    if isinstance(image, np.ndarray) and image.ndim == 3:
        in_front = image.shape[0] in ((1, 3, 4) if is_tensor else (1, 3))
        if in_front and (is_tensor or image.shape[2] not in (1, 3, 4)):
            image = image.transpose(1, 2, 0)
    return as_rgb(image)


def _numbers(values: Iterable, name: str, width: int = 1) -> np.ndarray:
    """Rows of `width` numbers as float64, from any device, precision and graph."""
    try:
        rows = np.array([v.tolist() if hasattr(v, "tolist") else v for v in values], float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold numbers: {error}") from None
    if width == 1 and rows.ndim == 1:
        rows = rows[:, None]
    if len(rows) and rows.shape[1:] != (width,):
        raise ValueError(f"{name} must have shape (N, {width}), got {rows.shape}")
    return rows.reshape(-1, width)


def draw_boxes(
    ax: Axes,
    boxes: Iterable,
    texts: Sequence[str] | None = None,
    colours: Sequence[str] | str = COLOURS[0],
    line_style: str = "-",
) -> None:
    """Draw `boxes` (N, 4) xyxy pixels on `ax`, each with an optional text above its corner.

    A box edge at pixel coordinate 0 is the left edge of the first pixel, where imshow has -0.5.
    """
    boxes = _numbers(boxes, "boxes", 4)
    if texts is not None:
        check_count(texts, len(boxes), "texts must have one entry per box")
    colours = [colours] if isinstance(colours, str) else colours
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        colour = colours[i % len(colours)] if len(colours) else COLOURS[0]
        corner, size = (x1 - 0.5, y1 - 0.5), (x2 - x1, y2 - y1)
        for width, edge in ((4, "white"), (2, colour)):  # a white rim: visible on any background
            ax.add_patch(plt.Rectangle(corner, *size, fill=False, ec=edge, lw=width, ls=line_style))
        if texts is not None and texts[i]:
            label = {"facecolor": colour, "edgecolor": "none", "pad": 1.5, "alpha": 0.9}
            look = {"color": "white", "fontsize": 12, "va": "bottom", "clip_on": True}
            ax.text(*corner, texts[i], bbox=label, **look)


def show_image(ax: Axes, image: Image, title: str = "") -> Axes:
    """Show `image`, anything that `as_image` takes, on `ax` without ticks; grey stays grey."""
    ax.imshow(as_image(image))
    ax.set_title(title)
    ax.axis("off")
    return ax


def show_detections(
    ax: Axes,
    image: Image,
    detection: dict[str, Tensor] | None = None,
    target: dict[str, Tensor] | None = None,
    classes: Sequence[str] = CLASSES,
    score_threshold: float = 0.5,
    title: str = "",
) -> Axes:
    """An image with ground truth (dashed black) and detections (coloured by class, with scores)."""
    show_image(ax, image, title)
    if target is not None:
        draw_boxes(ax, target["boxes"], colours="black", line_style="--")
    if detection is not None:
        keys = ("boxes", "scores", "labels")
        found = checked_objects(detection, "detection", len(classes), keys)
        keep = found["scores"] >= score_threshold
        boxes, scores, labels = (found[key][keep].tolist() for key in keys)
        texts = [f"{classes[c]} {s:.2f}" for c, s in zip(labels, scores)]
        draw_boxes(ax, boxes, texts, [COLOURS[c % 6] for c in labels])
    return ax


def image_grid(count: int, columns: int = 4, size: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure of `count` square axes; unused ones are switched off."""
    if count < 1 or columns < 1:
        raise ValueError(f"count and columns must be at least 1, got {count} and {columns}")
    columns = min(columns, count)
    rows = -(-count // columns)
    shape = {"figsize": (size * columns, size * rows), "squeeze": False}
    figure, axes = plt.subplots(rows, columns, layout="constrained", **shape)
    for ax in axes.flat[count:]:
        ax.axis("off")
    return figure, list(axes.flat[:count])


def plot_curves(
    ax: Axes,
    curves: dict[str, Iterable[float]],
    x: Iterable[float] | None = None,
    xlabel: str = "step",
    ylabel: str = "loss",
    smooth: int = 1,
) -> Axes:
    """One line per entry of `curves`, told apart by colour and line style.

    `smooth` averages over that many neighbours (the curve gets shorter by `smooth - 1`).
    """
    if smooth < 1:
        raise ValueError(f"smooth must be at least 1, got {smooth}")
    for i, (name, values) in enumerate(curves.items()):
        values = _numbers(values, repr(name))[:, 0]
        at = np.arange(len(values)) if x is None else _numbers(x, "x")[:, 0]
        check_count(at, len(values), f"x must have one entry per value of {name!r}")
        if 1 < smooth <= len(values):
            values = np.convolve(values, np.ones(smooth) / smooth, mode="valid")
            at = at[smooth - 1 :]
        ax.plot(at, values, label=name, ls=LINE_STYLES[i % 5], color=COLOURS[i % len(COLOURS)])
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if len(curves) > 1:
        ax.legend()
    return ax
