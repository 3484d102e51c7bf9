"""Solutions of lecture 01: printed by q1.solution() and so on, executed by the tests."""

# q1
survivors = "ACD"

# q2
import numpy as np


def strict_labels(overlaps, is_truth):
    best, label = overlaps.max(axis=1), overlaps.argmax(axis=1)
    no_object = np.where(best < 0.3, overlaps.shape[1], -1)
    return np.where(is_truth, label, no_object)


# q3
import numpy as np


def with_context(boxes_xywh, size, rim):
    extra = boxes_xywh[:, 2:] * (size / (size - 2 * rim) - 1)
    return np.concatenate([boxes_xywh[:, :2] - extra / 2, boxes_xywh[:, 2:] + extra], axis=1)


# q4
import numpy as np
import torch
from torchvision.ops import batched_nms, box_convert, box_iou


def my_reading(regions_xywh, moved_xywh, scores):
    """As the page, but each winner becomes the mean of the boxes that it suppresses."""
    boxes = box_convert(torch.from_numpy(moved_xywh).reshape(-1, 4), "xywh", "xyxy").clamp(0, 128)
    score = torch.from_numpy(scores).flatten()
    label = torch.arange(scores.shape[1]).repeat(len(scores))
    winners = batched_nms(boxes, score, label, 0.3)[:100]
    friends = (box_iou(boxes[winners], boxes) > 0.6) & (label[winners][:, None] == label)
    votes = friends * score.exp()  # (winners, boxes)
    mean = votes @ boxes / votes.sum(dim=1, keepdim=True)
    return {"boxes": mean, "scores": score[winners], "labels": label[winners]}
