"""Anchors on the grid of a feature map, as lecture 03 builds them by hand."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def grid_anchors(
    feature_size: tuple[int, int],
    stride: float,
    sizes: Sequence[float],
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> Tensor:
    """Anchors (H * W * A, 4) xyxy in pixels, row by row, column by column, template by template.

    A template has the area size**2 and the ratio height / width; the ratios of one size follow
    each other, so that A = len(sizes) * len(aspect_ratios). Centres are those of the cells, of
    `stride` pixels each; nothing is clipped (Ren et al. 2015, section 3.1).
    """
    if len(feature_size) != 2 or not all(n >= 1 and n % 1 == 0 for n in feature_size):
        expected = "(height, width), whole numbers of 1 or more"
        raise ValueError(f"feature_size must be {expected}, got {feature_size}")
    for name, values in (("stride", (stride,)), ("sizes", sizes), ("aspect_ratios", aspect_ratios)):
        if len(values) == 0 or not all(0 < value < math.inf for value in values):
            raise ValueError(f"{name} must be positive and finite, got {values}")
    size = torch.as_tensor(sizes, dtype=torch.float32)[:, None]  # (S, 1)
    ratio = torch.as_tensor(aspect_ratios, dtype=torch.float32)[None]  # (1, R)
    half = torch.stack([size / ratio.sqrt(), size * ratio.sqrt()], dim=-1).reshape(-1, 2) / 2
    y, x = ((torch.arange(n) + 0.5) * stride for n in feature_size)
    y, x = torch.meshgrid(y, x, indexing="ij")  # (H, W) each
    centre = torch.stack([x, y], dim=-1).reshape(-1, 1, 2)  # (H*W, 1, 2)
    return torch.cat([centre - half, centre + half], dim=-1).reshape(-1, 4)  # (H*W*A, 4)
