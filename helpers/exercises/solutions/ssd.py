"""Solutions of lecture 06: printed by q1.solution() and so on, executed by the tests."""

# q1
maps = ((64, 4), (32, 6), (16, 6), (8, 6), (4, 6), (2, 4), (1, 4))  # cells a side, boxes per cell
answer = sum(cells * cells * boxes for cells, boxes in maps)

# q2
import torch


def match(overlap):
    best, matches = overlap.max(dim=1)
    matches = torch.where(best < 0.5, -1, matches)
    highest, own = overlap.max(dim=0)
    for i in torch.where(highest > 0)[0]:
        matches[own[i]] = i
    return matches


# q3
def mined_sum(loss, positive, ratio=3):
    hardest = loss[~positive].sort(descending=True).values[: ratio * int(positive.sum())]
    return loss[positive].sum() + hardest.sum()


# q4
import torch


def ask_twice(detect, images):
    found = []
    for here, there in zip(detect(images), detect(images.flip(3))):
        x1, y1, x2, y2 = there["boxes"].T
        back = there | {
            "boxes": torch.stack([images.shape[3] - x2, y1, images.shape[3] - x1, y2], 1)
        }
        found.append({key: torch.cat([here[key], back[key]]) for key in here})
    return found
