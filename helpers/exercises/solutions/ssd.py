"""Solutions of lecture 06: printed by q1.solution() and so on, executed by the tests."""

# q1
maps = ((64, 4), (32, 6), (16, 6), (8, 6), (4, 6), (2, 4), (1, 4))  # cells a side, boxes per cell
answer = sum(cells * cells * boxes for cells, boxes in maps)

# q2
import torch


def own_boxes(overlap):
    left = overlap.clone()
    chosen = torch.full((overlap.shape[1],), -1)
    while left.max() > 0:
        box, thing = divmod(int(left.argmax()), left.shape[1])
        chosen[thing] = box
        left[box], left[:, thing] = 0, 0
    return chosen


# q3
def mined_sum(loss, positive, ratio=3):
    hardest = loss[~positive].sort(descending=True).values[: ratio * int(positive.sum())]
    return loss[positive].sum() + hardest.sum()


# q4
import torch
import torch.nn.functional as F


def ask_twice(detect, images, factor=1.25):
    larger = F.interpolate(images, scale_factor=factor, mode="bilinear")
    found = []
    for here, there in zip(detect(images), detect(larger)):
        back = there | {"boxes": there["boxes"] / factor}
        found.append({key: torch.cat([here[key], back[key]]) for key in here})
    return found
