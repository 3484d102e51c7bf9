"""Random changes of training images that keep every label right, and move the boxes along."""

import torch
from torch import Tensor

from helpers.boxes import check_boxes


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
        The new images and the new lists, in the same order; nothing is changed in place. Boxes are
        floats, as helpers.boxes.check_boxes makes them. No image gives no image.
    Raises:
        ValueError: images or boxes that are none, or a list of another length.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a torch tensor, got {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
    moved = []
    for number, column in enumerate(boxes):
        if len(column) != len(images):
            raise ValueError(
                f"boxes[{number}] must have one tensor per image ({len(images)}), got {len(column)}"
            )
        moved.append([check_boxes(b, f"boxes[{number}][{i}]") for i, b in enumerate(column)])
    flipped = torch.rand(len(images), generator=generator) < 0.5  # (B,)
    changed = images.new_empty(images.shape)
    for i, flip in enumerate(flipped):
        image = images[i][torch.randperm(3, generator=generator)]  # (3, H, W)
        changed[i] = image.flip(2) if flip else image
        if flip:
            for column in moved:
                column[i] = _mirror(column[i], images.shape[3])
    return changed, *moved


def _mirror(boxes: Tensor, width: int) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)  # (n, 4)
