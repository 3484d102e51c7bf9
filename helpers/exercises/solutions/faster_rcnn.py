"""Solutions of lecture 03: printed by q1.solution() and so on, executed by the tests."""

# q1
answer = 4 / (1 - (2 * 0.7 / 1.7) ** 0.5)  # 43.24, or 44 whole pixels

# q2
import torch
from torchvision.ops import box_iou


def grid_labels(feature_size, stride, templates, boxes, image_size):
    rows, columns = ((torch.arange(n) + 0.5) * stride for n in feature_size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    centres = torch.stack([x, y, x, y], dim=-1)[:, :, None]  # (h, w, 1, 4)
    anchors = (centres + templates).reshape(-1, 4)
    height, width = image_size
    limit = torch.tensor([width, height])
    inside = (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2:] <= limit).all(dim=1)
    answers = torch.zeros(int(inside.sum())).long()
    if len(boxes):
        iou = box_iou(anchors[inside], boxes)
        highest = iou.amax(dim=1)
        answers[highest >= 0.3] = -1
        answers[((iou == iou.amax(dim=0)) & (iou > 0)).any(dim=1) | (highest >= 0.7)] = 1
    labels = torch.full((len(anchors),), -1)
    labels[inside] = answers
    return labels.view(*feature_size, len(templates))


# q3
import torch
from torch.nn import functional


def align(features, rois):
    height, width = features.shape[2:]
    step = (torch.arange(14) + 0.5) / 14  # two points in each of seven bins
    pooled = []
    for image, *box in rois.tolist():
        x1, y1, x2, y2 = (v / 8 for v in box)
        x, y = (x1 + step * (x2 - x1)) / width, (y1 + step * (y2 - y1)) / height
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (14, 14, 2)
        points = functional.grid_sample(
            features[int(image)][None],
            2 * grid[None] - 1,
            align_corners=False,
            padding_mode="border",
        )
        pooled.append(functional.avg_pool2d(points, 2)[0])
    return torch.stack(pooled)


# q4
from torchvision.ops import clip_boxes_to_image, nms

from helpers.boxes import decode_boxes


def my_proposals(objectness, bbox_deltas, anchors, image_size):
    """Six times as many, and near-copies are struck at a higher IoU only."""
    proposals = []
    for scores, deltas in zip(objectness.flatten(1), bbox_deltas.flatten(1)):
        scores, best = scores.topk(min(1000, len(anchors)))
        boxes = decode_boxes(deltas.view(-1, 4)[best], anchors[best])
        boxes = clip_boxes_to_image(boxes, image_size)
        proposals.append(boxes[nms(boxes, scores, 0.9)[:300]])
    return proposals
