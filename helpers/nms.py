"""Greedy non-maximum suppression, readable, with the results of `torchvision.ops`.

One rounding differs: an IoU of exactly 0.3 is not above a threshold of 0.3 here, but it is in
torchvision on a CPU, which compares the float32 IoU with the float64 threshold.
"""

import torch
from torch import Tensor

from helpers.boxes import box_iou, check_boxes, check_column


def _check(boxes: Tensor, iou_threshold: float, **columns: Tensor) -> Tensor:
    boxes = check_boxes(boxes)
    for name, column in columns.items():
        check_column(column, name, len(boxes))
        if column.is_floating_point() and torch.isnan(column).any():
            raise ValueError(f"{name} must not be NaN, got {column.tolist()}")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in [0, 1], got {iou_threshold}")
    return boxes


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the kept boxes, best score first.

    Args:
        boxes: (N, 4) xyxy pixels, of any precision.
        scores: (N,), of any real type; among equal scores the earlier box wins.
        iou_threshold: a box goes if its IoU with a kept, better one is *above* this.
    """
    boxes = _check(boxes, iou_threshold, scores=scores)
    queue = torch.argsort(scores, descending=True, stable=True)  # (N,)
    keep = []
    while len(queue):
        best, queue = queue[0], queue[1:]
        keep.append(best)
        overlap = box_iou(boxes[best][None], boxes[queue])[0]  # (remaining,)
        queue = queue[overlap <= iou_threshold]
    return torch.stack(keep) if keep else queue


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """`nms` for each label on its own: boxes of different classes never suppress each other.

    Args:
        labels: (N,) integers; the rest as in `nms`.
    """
    boxes = _check(boxes, iou_threshold, scores=scores, labels=labels)
    keep = [
        of_label[nms(boxes[of_label], scores[of_label], iou_threshold)]
        for of_label in (torch.where(labels == label)[0] for label in labels.unique())
    ]
    if not keep:
        return torch.zeros(0, dtype=torch.long, device=boxes.device)
    kept = torch.cat(keep).sort().values
    return kept[torch.argsort(scores[kept], descending=True, stable=True)]
