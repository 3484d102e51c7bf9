"""Images with boxes, grids of images and curves, readable from the last row."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.shapes import CLASSES

# Okabe-Ito, safe for colour-blind readers; a second cue (line style, label) always goes with it.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")


def use_lecture_style() -> None:
    """Large type, safe colours and PNG figures without version stamps, for the whole notebook."""
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 80,
            "font.size": 13,
            "axes.titlesize": 14,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "lines.linewidth": 2.2,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "image.interpolation": "nearest",
        }
    )
    try:
        from matplotlib_inline.config import InlineBackend

        InlineBackend.instance().print_figure_kwargs = {
            "bbox_inches": "tight",
            "metadata": {"Software": None},
        }
    except ImportError:
        pass  # outside of IPython there is no inline backend to set up


def as_image(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """(H, W, 3) array of a (3, H, W) tensor or an (H, W, 3) array; grey images (H, W) stay grey.

    Raises:
        ValueError: any other shape.
    """
    channels_first = isinstance(image, torch.Tensor)
    if channels_first:
        image = image.detach().cpu().numpy()
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[0] == 3 and (channels_first or image.shape[2] != 3):
        image = image.transpose(1, 2, 0)
    if image.ndim not in (2, 3) or image.ndim == 3 and image.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"image must be (H, W), (H, W, 3) or a tensor (3, H, W), got shape {image.shape}"
        )
    return image


def draw_boxes(
    ax: Axes,
    boxes: torch.Tensor | np.ndarray | Sequence[Sequence[float]],
    texts: Sequence[str] | None = None,
    colours: Sequence[str] | str = COLOURS[0],
    line_style: str = "-",
) -> None:
    """Draw `boxes` (N, 4) xyxy pixels on `ax`, each with an optional text above its corner.

    A box edge at pixel coordinate 0 is the left edge of the first pixel, where imshow has -0.5.
    """
    boxes = torch.as_tensor(boxes)
    if len(boxes) and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise ValueError(f"boxes must have shape (N, 4), got {tuple(boxes.shape)}")
    if texts is not None and len(texts) != len(boxes):
        raise ValueError(f"texts must have one entry per box ({len(boxes)}), got {len(texts)}")
    colours = [colours] if isinstance(colours, str) else colours
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        colour = colours[i % len(colours)] if len(colours) else COLOURS[0]
        corner, size = (x1 - 0.5, y1 - 0.5), (x2 - x1, y2 - y1)
        for width, edge in ((4, "white"), (2, colour)):  # a white rim: visible on any background
            ax.add_patch(plt.Rectangle(corner, *size, fill=False, ec=edge, lw=width, ls=line_style))
        if texts is not None and texts[i]:
            label = {"facecolor": colour, "edgecolor": "none", "pad": 1.5, "alpha": 0.9}
            ax.text(
                *corner, texts[i], color="white", fontsize=12, va="bottom", bbox=label, clip_on=True
            )


def show_image(ax: Axes, image: np.ndarray | torch.Tensor, title: str = "") -> Axes:
    """Show `image` ((H, W, 3) or (3, H, W), uint8 or 0..1) on `ax` without ticks."""
    ax.imshow(as_image(image))
    ax.set_title(title)
    ax.axis("off")
    return ax


def show_detections(
    ax: Axes,
    image: np.ndarray | torch.Tensor,
    detection: dict[str, torch.Tensor] | None = None,
    target: dict[str, torch.Tensor] | None = None,
    classes: Sequence[str] = CLASSES,
    score_threshold: float = 0.5,
    title: str = "",
) -> Axes:
    """An image with ground truth (dashed black) and detections (coloured by class, with scores).

    Raises:
        ValueError: a detection without boxes, scores or labels, or with a label of no class.
    """
    show_image(ax, image, title)
    if target is not None:
        draw_boxes(ax, target["boxes"], colours="black", line_style="--")
    if detection is not None:
        if not {"boxes", "scores", "labels"} <= set(detection):
            raise ValueError(
                f"detection must have 'boxes', 'scores' and 'labels', got {sorted(detection)}"
            )
        keep = detection["scores"] >= score_threshold
        labels = detection["labels"][keep].tolist()
        scores = detection["scores"][keep].tolist()
        if not all(0 <= c < len(classes) for c in labels):
            raise ValueError(f"labels must lie in 0..{len(classes) - 1}, got {labels}")
        texts = [f"{classes[c]} {s:.2f}" for c, s in zip(labels, scores)]
        draw_boxes(ax, detection["boxes"][keep], texts, [COLOURS[c % 6] for c in labels])
    return ax


def image_grid(count: int, columns: int = 4, size: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure of `count` square axes; unused ones are switched off."""
    if count < 1 or columns < 1:
        raise ValueError(f"count and columns must be at least 1, got {count} and {columns}")
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(size * columns, size * rows), squeeze=False, layout="constrained"
    )
    for ax in axes.flat[count:]:
        ax.axis("off")
    return figure, list(axes.flat[:count])


def plot_curves(
    ax: Axes,
    curves: dict[str, Sequence[float]],
    x: Sequence[float] | None = None,
    xlabel: str = "step",
    ylabel: str = "loss",
    smooth: int = 1,
) -> Axes:
    """One line per entry of `curves`, told apart by colour and line style.

    `smooth` averages over that many neighbours (the curve gets shorter by `smooth - 1`).

    Raises:
        ValueError: `x` of another length than a curve, or `smooth` below 1.
    """
    if smooth < 1:
        raise ValueError(f"smooth must be at least 1, got {smooth}")
    for i, (name, values) in enumerate(curves.items()):
        values = np.asarray(values, float)
        at = np.arange(len(values)) if x is None else np.asarray(x)
        if len(at) != len(values):
            raise ValueError(
                f"x must have one entry per value of {name!r}, {len(values)}, got {len(at)}"
            )
        if 1 < smooth <= len(values):
            values = np.convolve(values, np.ones(smooth) / smooth, mode="valid")
            at = at[smooth - 1 :]
        ax.plot(at, values, label=name, ls=LINE_STYLES[i % 4], color=COLOURS[i % len(COLOURS)])
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if len(curves) > 1:
        ax.legend()
    return ax
