"""Solutions of lecture 00: printed by q1.solution() and so on, executed by the tests."""

# q1
overlaps = (1 / 3, 1 / 7, 1 / 2)


# q2
def ap_of_ranking(hits, count):
    precisions = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits))]
    return sum(max(precisions[k:]) for k, hit in enumerate(hits) if hit) / count


# q3
import torch
from torchvision.ops import box_iou


def soft_nms(boxes, scores, sigma):
    lowered, rest = scores.clone(), list(range(len(scores)))
    while rest:
        best = max(rest, key=lambda i: lowered[i].item())
        rest.remove(best)
        overlap = box_iou(boxes[best][None], boxes[rest])[0]  # (remaining,)
        lowered[rest] *= torch.exp(-(overlap**2) / sigma)
    return lowered


# q4
from torchvision.ops import batched_nms, box_iou


def clean(found):
    """Each winner of NMS becomes the mean of the boxes that agree; their sum of scores its own."""
    boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
    winners = batched_nms(boxes, scores, labels, 0.4)
    friends = (box_iou(boxes[winners], boxes) > 0.4) & (labels[winners][:, None] == labels)
    votes = friends * scores  # (winners, N)
    mean = votes @ boxes / votes.sum(dim=1, keepdim=True)
    return {"boxes": mean, "scores": votes.sum(dim=1), "labels": labels[winners]}
