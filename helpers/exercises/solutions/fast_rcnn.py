"""Solutions of lecture 02: printed by q1.solution() and so on, executed by the tests."""

# q1
answer = 2 * 7 * 7

# q2
import torch


def max_backward(values, gradient):
    winner = values.argmax(dim=1)  # (C,)
    back = torch.zeros_like(values)
    back[torch.arange(len(values)), winner] = gradient
    return back


# q3
import torch


def box_loss(deltas, labels, targets):
    own = deltas.view(len(labels), -1, 4)[torch.arange(len(labels)), labels]  # (N, 4)
    return (own - targets).abs()[labels > 0].sum() / len(labels)


# q4
import torch
from torchvision.ops import batched_nms, box_convert, box_iou, clip_boxes_to_image


def my_reading(scores, deltas, regions, image_size):
    """As read_detections, but each winner becomes the mean of the boxes that it suppresses."""
    p = scores.softmax(dim=1)[:, 1:]
    t = deltas.view(len(regions), -1, 4)[:, 1:] / torch.tensor([10.0, 10.0, 5.0, 5.0])
    region, label = torch.where(p > 0.01)
    old, t, score = (
        box_convert(regions[region], "xyxy", "cxcywh"),
        t[region, label],
        p[region, label],
    )
    centre = old[:, :2] + t[:, :2] * old[:, 2:]
    new = torch.cat([centre, old[:, 2:] * t[:, 2:].clamp(max=4).exp()], dim=1)
    boxes = clip_boxes_to_image(box_convert(new, "cxcywh", "xyxy"), image_size)
    keep = batched_nms(boxes, score, label, 0.5)[:100]
    friends = (box_iou(boxes[keep], boxes) > 0.6) & (label[keep][:, None] == label)
    votes = friends * score  # (winners, boxes)
    mean = votes @ boxes / votes.sum(dim=1, keepdim=True)
    return {"boxes": mean, "scores": score[keep], "labels": label[keep]}
