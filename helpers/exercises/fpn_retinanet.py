"""The exercises of lecture 04."""

import functools
import math

import torch
from torch import nn
from torchvision.ops import batched_nms

from helpers import detectors, lessons
from helpers.evaluation import coco_ap
from helpers.exercises.exercise import Exercise, difference, mistake
from helpers.records import WEIGHTS, load_weights
from helpers.shapes import benchmark
from helpers.training import pick_device


def _anchors(answer) -> str | None:
    cells = [(512 // 2**level) * (768 // 2**level) for level in range(3, 8)]
    known = {
        sum(cells[:4]): "these are the cells: each has nine anchors",
        9 * sum(cells[:3]): "P6 is missing: a stride of 64",
        9 * sum(cells): "P7 is not among them",
        9 * cells[0]: "that is P3 alone",
        9 * cells[0] * 4: "the levels are not equally large: strides 8, 16, 32, 64",
    }
    if answer == 9 * sum(cells[:4]):
        return None
    if not isinstance(answer, (int, float)):
        return f"a number is needed, got {type(answer).__name__}"
    return known.get(answer, f"{answer}? For each level cells down × cells across × 9, then add")


q1 = Exercise(
    "fpn_retinanet.q1",
    "answer",
    _anchors,
    ["P3 has a stride of 8: 64 × 96 cells.", "Each level has a quarter of the cells before."],
    "every level has a quarter of the cells of the one before",
)


def _squares(*sides: float) -> torch.Tensor:
    return torch.tensor([[10.0, 20.0, 10.0 + side, 20.0 + side] for side in sides])


def _fpn_level(fpn_level) -> str | None:
    boxes = torch.cat([_squares(30, 60, 111, 113, 230, 515, 2000), torch.zeros(1, 4)])
    boxes[-1] = torch.tensor([0.0, 0.0, 448.0, 112.0])  # wide: the root of its area is 224
    root = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    exact = 4 + (root / 224).log2()
    expected = exact.floor().clamp(2, 5)
    slips = {
        "a level is a whole number: round down": exact.clamp(2, 5),
        "round down, not to the nearest": exact.round().clamp(2, 5),
        "some levels do not exist: clamp between lowest and highest": exact.floor(),
        "take the root of the area, not the area": (4 + (root**2 / 224).log2()).floor().clamp(2, 5),
        "log2, not the natural logarithm": (4 + (root / 224).log()).floor().clamp(2, 5),
        "not the width alone: the root of width times height": (
            (4 + ((boxes[:, 2] - boxes[:, 0]) / 224).log2()).floor().clamp(2, 5)
        ),
    }
    wrong = mistake(fpn_level(boxes.clone()), expected, "the level", slips)
    if wrong:
        return wrong
    if (fpn_level(boxes[:2].clone(), lowest=3) != 3).any():
        return "lowest must be obeyed: with lowest=3 no region may go to level 2"
    return None


q2 = Exercise(
    "fpn_retinanet.q2",
    "fpn_level",
    _fpn_level,
    ["Widths and heights are boxes[:, 2:] - boxes[:, :2].", "log2, floor, clamp, in this order."],
    "twice the side, one level further",
)


def _extra_levels(extra_levels) -> str | None:
    torch.manual_seed(0)
    conv6, conv7 = nn.Conv2d(8, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
    c5 = torch.randn(2, 8, 13, 7)
    with torch.no_grad():
        p6 = conv6(c5)
        right, bare = conv7(p6.relu()), conv7(p6)
        answer = extra_levels(c5.clone(), conv6, conv7)
    if not isinstance(answer, (list, tuple)) or len(answer) != 2:
        return "two maps are wanted, [P6, P7]"
    first, second = answer
    if isinstance(first, torch.Tensor) and torch.equal(first, p6.relu()):
        return "P6 itself has no ReLU: only what goes on to P7 has"
    for name, map_, expected in (("P6", first, p6), ("P7", second, right)):
        slips = {"the ReLU between P6 and P7 is missing": bare}
        slips |= {"no ReLU after P7: it is the last": right.relu()}
        for sentence, slip in slips.items() if name == "P7" else ():
            if isinstance(map_, torch.Tensor) and torch.equal(map_, slip):
                return sentence
        wrong = difference(map_, expected, name)
        if wrong:
            return wrong
    return None


q3 = Exercise(
    "fpn_retinanet.q3",
    "extra_levels",
    _extra_levels,
    ["P6 is conv6 of C5, as it is.", "P7 is conv7 of what a ReLU makes of P6."],
    "strides 64 and 128, for objects as large as half a photograph",
)

GAIN = 0.008  # AP


@functools.cache
def _trained():
    """Of 100 validation images, what NMS keeps, all boxes before it, and the AP of the kept."""
    lesson, data, device = lessons.load("04_fpn_retinanet"), benchmark("val"), pick_device()
    model = lesson.RetinaNet().to(device).eval()
    model.load_state_dict(load_weights("04_fpn_retinanet", WEIGHTS))
    everything = detectors.detect_all(
        lambda images: model.detect(images, iou=1.0, top=1000), data.images[:100], device
    )
    kept = []
    for all_of_it in everything:
        rows = batched_nms(*(all_of_it[key] for key in ("boxes", "scores", "labels")), 0.5)[:100]
        kept.append({key: values[rows] for key, values in all_of_it.items()})
    return kept, everything, coco_ap(kept, data.targets[:100])["AP"]


def _vote(vote) -> str | None:
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [2, 0, 12, 10], [0, 0, 10, 10], [50, 50, 60, 60], [8, 0, 18, 10]]
    )
    everything = {
        "boxes": boxes,
        "scores": torch.tensor([0.9, 0.3, 0.8, 0.7, 0.6]),
        "labels": torch.tensor([0, 0, 1, 0, 0]),
    }
    kept = {key: values[[0, 2, 3]] for key, values in everything.items()}
    expected = torch.tensor([[0.5, 0, 10.5, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    slips = {
        "only boxes of the same class may vote": torch.tensor(
            [[0.3, 0, 10.3, 10], [0.3, 0, 10.3, 10], [50, 50, 60, 60]]
        ),
        "weigh each box by its score": torch.tensor(
            [[1.0, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60]]
        ),
    }
    voted = vote({k: v.clone() for k, v in kept.items()}, everything)
    wrong = mistake(voted, expected, "the boxes", slips)
    if wrong:
        return wrong
    kept, everything, before = _trained()
    voted = [
        k | {"boxes": vote(k, e) if len(k["boxes"]) else k["boxes"]}
        for k, e in zip(kept, everything)
    ]
    after = coco_ap(voted, benchmark("val").targets[: len(voted)])["AP"]
    if math.isnan(after) or after < before + GAIN:
        return f"AP {after:.3f}; without a vote it is {before:.3f}, {before + GAIN:.3f} is wanted"
    return None


q4 = Exercise(
    "fpn_retinanet.q4",
    "vote",
    _vote,
    [
        "Who may vote for whom is a table (n, m): box_iou of all with all, and the labels.",
        "Times the scores it is a table of weights: a weighted mean is a matrix product.",
    ],
    "the neighbours know something about the edges",
)
