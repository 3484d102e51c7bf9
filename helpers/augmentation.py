"""Random changes of training images that keep every label right, and move the boxes along."""

import torch
from torch import Tensor


def flip_and_recolour(
    images: Tensor, *boxes: list[Tensor], generator: torch.Generator | None = None
) -> tuple:
    """Mirror half of the images left to right and shuffle the colour channels of each.

    A mirrored circle is a circle, and in the benchmark colour says nothing about the class, so
    labels stay as they are.

    Args:
        images: (B, 3, H, W).
        boxes: any number of lists with one tensor (n, 4) xyxy per image (objects, proposals, ...).
    Returns:
        The new images and the new lists, in the same order; nothing is changed in place.
    Raises:
        ValueError: images or boxes of another shape, or a list of another length.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
    for number, column in enumerate(boxes):
        if len(column) != len(images):
            raise ValueError(
                f"boxes[{number}] must have one tensor per image ({len(images)}), got {len(column)}"
            )
        for i, rows in enumerate(column):
            if rows.ndim != 2 or rows.shape[1] != 4:
                raise ValueError(
                    f"boxes[{number}][{i}] must have shape (n, 4), got {tuple(rows.shape)}"
                )
    width = images.shape[3]
    flipped = torch.rand(len(images), generator=generator) < 0.5  # (B,)
    changed = []
    for image, flip in zip(images, flipped):
        image = image[torch.randperm(3, generator=generator)]  # (3, H, W)
        changed.append(image.flip(2) if flip else image)
    moved = [
        [_mirror(b, width) if flip else b for b, flip in zip(column, flipped)] for column in boxes
    ]
    return torch.stack(changed), *moved


def _mirror(boxes: Tensor, width: int) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)  # (n, 4)
