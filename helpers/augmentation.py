"""Random changes of training images that keep every label right, and move the boxes along."""

import torch
from torch import Tensor

from helpers.boxes import check_boxes, check_count
from helpers.datasets import check_images


def flip_and_recolour(images: Tensor, *boxes: list[Tensor]) -> tuple:
    """Mirror half of `images` (B, 3, H, W) left to right and shuffle the colour channels of each.

    `boxes` are any number of lists with one tensor (n, 4) xyxy per image (objects, proposals, ...).
    Returns new images and new lists, in the same order. Labels stay as they are: a mirrored circle
    is a circle, and in the benchmark colour says nothing about the class.
    """
    check_images(images, of_bytes=False)
    moved = []
    for number, column in enumerate(boxes):
        check_count(column, len(images), f"boxes[{number}] must have one tensor per image")
        moved.append([check_boxes(b, f"boxes[{number}][{i}]") for i, b in enumerate(column)])
    flipped = torch.rand(len(images)) < 0.5  # (B,)
    changed = images.new_empty(images.shape)
    for i, flip in enumerate(flipped):
        image = images[i][torch.randperm(3)]  # (3, H, W)
        changed[i] = image.flip(2) if flip else image
        if flip:
            for column in moved:
                x1, y1, x2, y2 = column[i].unbind(1)
                x1, x2 = images.shape[3] - x2, images.shape[3] - x1
                column[i] = torch.stack([x1, y1, x2, y2], dim=1)  # (n, 4)
    return changed, *moved
