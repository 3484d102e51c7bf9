"""The exercises of lecture 06."""

import functools

import torch
from torchvision.ops import batched_nms, box_iou

from helpers import detectors, lessons
from helpers.evaluation import coco_ap
from helpers.exercises.exercise import Exercise, difference, mistake
from helpers.records import WEIGHTS, load_weights
from helpers.shapes import benchmark
from helpers.training import pick_device


def _boxes(answer) -> str | None:
    cells = [n * n for n in (64, 32, 16, 8, 4, 2, 1)]
    right = 4 * cells[0] + 6 * sum(cells[1:5]) + 4 * sum(cells[5:])
    known = {
        sum(cells): "these are the cells: each has several boxes",
        6 * sum(cells): "the first map and the last two have only 4 boxes per cell",
        4 * sum(cells): "the maps in the middle have 6 boxes per cell",
        4 * 64 + 6 * (32 + 16 + 8 + 4) + 4 * 3: "a map of 64 cells a side has 64 × 64 cells",
        8732: "that is SSD300",
    }
    if answer == right:
        return None
    if not isinstance(answer, (int, float)):
        return f"a number is needed, got {type(answer).__name__}"
    return known.get(answer, f"{answer}? For each map cells × cells × boxes per cell, then add")


q1 = Exercise(
    "ssd.q1",
    "answer",
    _boxes,
    ["The first map alone has 64 × 64 × 4.", "Seven products, one sum."],
    "nearly three times as many as SSD300",
)

OVERLAP = torch.tensor(
    [
        [0.10, 0.00, 0.70, 0.60],  # three objects want box 0
        [0.00, 0.50, 0.00, 0.30],
        [0.00, 0.20, 0.00, 0.25],
        [0.00, 0.00, 0.40, 0.00],
        [0.05, 0.00, 0.00, 0.00],
    ]
)


def _own_boxes(own_boxes) -> str | None:
    slips = {
        "objects 0, 2 and 3 share box 0: each needs a box of its own": [0, 1, 0, 0],
        "who loses takes its next best: object 0 box 4, object 3 box 2": [-1, 1, 0, -1],
        "not in the order of the list: object 2 overlaps box 0 most": [0, 1, 3, 2],
        "look again after each pair: box 1 goes to object 1, not to 3": [4, 2, 0, 1],
        "these have the largest sum of IoUs; wanted is the highest first": [4, 1, 3, 0],
    }
    slips = {sentence: torch.tensor(slip) for sentence, slip in slips.items()}
    given = OVERLAP.clone()
    wrong = mistake(own_boxes(given), torch.tensor([4, 1, 0, 2]), "the boxes", slips)
    if wrong:
        return wrong
    if not torch.equal(given, OVERLAP):
        return "you changed the caller's IoUs: strike rows and columns in a copy"
    nobody = {
        "with one box for two objects, one of them has none: -1": [[0.5, 0.6]],
        "an object that no box overlaps (a column of zeros) has none: -1": [[0, 0.6], [0, 0.2]],
    }
    for sentence, overlap in nobody.items():
        if difference(own_boxes(torch.tensor(overlap)), torch.tensor([-1, 0])):
            return sentence
    return None


q2 = Exercise(
    "ssd.q2",
    "own_boxes",
    _own_boxes,
    [
        "The largest number of the whole table names the first pair: its row and its column.",
        "argmax of a table counts through it, row after row; divmod gives row and column.",
        "Strike both in a copy of the table, and look for the largest number again.",
    ],
    "each object has its own box; DETR (lecture 08) seeks the best sum instead",
)


def _mined_sum(mined_sum) -> str | None:
    loss = torch.tensor([1.0, 2, 4, 8, 16, 32, 64])
    positive = torch.tensor([True, False, False, True, False, False, False])
    known = {
        1 + 8 + 64 + 32: "2 negatives for 2 positives: the ratio is 2, so four",
        64 + 32 + 16 + 4: "the positives count, too",
        1 + 8 + 2 + 4 + 16 + 32: "these are the easiest negatives",
        1 + 8 + 2 + 4 + 16 + 32 + 64: "not all negatives: the hardest, `ratio` for each positive",
        (1 + 8 + 4 + 16 + 32 + 64) / 2: "the sum is asked for, nothing divided",
    }
    value = float(mined_sum(loss.clone(), positive.clone(), 2))
    if value != 1 + 8 + 4 + 16 + 32 + 64:
        return known.get(value, f"125 is expected for a ratio of 2, got {value:g}")
    few = float(mined_sum(loss[:3].clone(), positive[:3].clone(), 3))
    if few != 7:
        return f"where fewer negatives are left than wanted, all count: 7 expected, got {few:g}"
    none = float(mined_sum(loss.clone(), positive & False, 3))
    return None if none == 0 else f"without a positive nothing counts: 0 expected, got {none:g}"


q3 = Exercise(
    "ssd.q3",
    "mined_sum",
    _mined_sum,
    [
        "Positives and negatives are two pieces of the loss; the hardest negatives cost most.",
        "Sort the negatives and cut: a slice beyond the end takes what there is.",
    ],
    "three for each, and no more than there are",
)

GAIN = 0.01  # AP


@functools.cache
def _trained():
    """A function that detects, 100 validation images as input, and the AP it has on them."""
    lesson, data = lessons.load("06_ssd"), benchmark("val")
    device = pick_device()
    model = lesson.SSD().to(device).eval()
    model.load_state_dict(load_weights("06_ssd", WEIGHTS))
    images = detectors.to_input(data.images[:100], device)

    @torch.no_grad()
    def detect(images, iou=1.0):
        return lesson.detector_of(model, iou=iou, top=1000)(images)

    return detect, images, _ap(detect(images))


def _ap(found) -> float:
    """After suppression and a vote on the boxes: else a second answer only adds boxes."""
    kept = []
    for one in found:
        boxes, scores, labels = (one[key].cpu() for key in ("boxes", "scores", "labels"))
        rows = batched_nms(boxes, scores, labels, 0.5)[:100]
        may = (box_iou(boxes[rows], boxes) >= 0.65) & (labels[rows, None] == labels)
        weights = may * scores  # (n, m)
        voted = weights @ boxes / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
        kept.append({"boxes": voted, "scores": scores[rows], "labels": labels[rows]})
    return coco_ap(kept, benchmark("val").targets[: len(kept)])["AP"]


def _ask_twice(ask_twice) -> str | None:
    truth = torch.tensor([[10.0, 20, 30, 50]])

    def detect(images, iou=1.0):  # finds one box where the first image's bright column is
        column = images.mean(dim=(1, 2)).argmax(dim=1).float()  # (N,)
        boxes = [truth + torch.tensor([1.0, 0, 1, 0]) * (c - 10) for c in column]
        one = {"scores": torch.ones(1), "labels": torch.zeros(1, dtype=torch.long)}
        return [{"boxes": b, **one} for b in boxes]

    images = torch.zeros(2, 3, 64, 100)
    images[:, :, :, 10] = 1
    found = ask_twice(detect, images)
    if not isinstance(found, list) or len(found) != 2:
        return "a list with one dictionary per image is wanted"
    missing = [key for key in ("boxes", "scores", "labels") if key not in found[0]]
    if missing:
        return f"each dictionary needs boxes, scores and labels; {missing[0]} is missing"
    if len(found[0]["boxes"]) != 2:
        got = len(found[0]["boxes"])
        return f"one detection of the image and one of its mirror image are 2, not {got}"
    mirrored = torch.tensor([[100.0 - 109, 20, 100 - 89, 50]])
    if not torch.allclose(found[0]["boxes"], torch.cat([truth, mirrored])):
        return (
            "a box from x1 to x2 of the mirror image lies from width - x2 to width - x1; "
            f"[-9, 20, 11, 50] was expected second, got {found[0]['boxes'][1].tolist()}"
        )
    detect, images, before = _trained()
    after = _ap(ask_twice(detect, images.clone()))
    if after >= before + GAIN:
        return None
    said = f"AP {after:.3f}; asked once it is {before:.3f}, {before + GAIN:.3f} is wanted"
    return f"{said} (all with suppression and the vote of lecture 04)"


q4 = Exercise(
    "ssd.q4",
    "ask_twice",
    _ask_twice,
    [
        "images.flip(3) is the mirror image; its boxes need new x1 and x2.",
        "torch.cat the boxes, scores and labels of both, image by image.",
    ],
    "two answers that err in different ways",
)
