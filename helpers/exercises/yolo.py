"""The exercises of lecture 05."""

import functools

import torch

from helpers import detectors, lessons
from helpers.evaluation import coco_ap
from helpers.exercises.exercise import Exercise, difference
from helpers.records import WEIGHTS, load_weights
from helpers.shapes import benchmark
from helpers.training import pick_device


def _numbers(answer) -> str | None:
    known = {
        13 * 13 * 3 * (5 + 20): "the classes belong to the cell, not to each box",
        3 * 5 + 20: "that is one cell",
        13 * (3 * 5 + 20): "the grid has 13 × 13 cells",
        13 * 13 * (3 * 4 + 20): "each box has a confidence, too",
        13 * 13 * (5 + 20): "three boxes per cell, not one",
    }
    if answer == 13 * 13 * (3 * 5 + 20):
        return None
    if not isinstance(answer, (int, float)):
        return f"a number is needed, got {type(answer).__name__}"
    return known.get(answer, f"{answer}? Cells × (boxes × 5 + classes)")


q1 = Exercise(
    "yolo.q1",
    "answer",
    _numbers,
    ["Write down the form of one cell first.", "Five numbers per box; the classes only once."],
    "five per box, and the classes once per cell",
)

SIZES = torch.tensor([[10.0, 10.0], [30.0, 12.0], [12.0, 33.0], [60.0, 50.0], [22.0, 20.0]])
ANCHORS = torch.tensor([[14.0, 14.0], [35.0, 14.0], [14.0, 35.0], [55.0, 55.0]])


def _best_anchor(best_anchor) -> str | None:
    shared = torch.minimum(SIZES[:, None], ANCHORS).prod(dim=-1)  # (N, K)
    union = SIZES.prod(dim=-1)[:, None] + ANCHORS.prod(dim=-1) - shared
    expected = (shared / union).argmax(dim=1)
    slips = {
        "that is the worst anchor": (shared / union).argmin(dim=1),
        "the largest shared area is not the best IoU: divide by the union": shared.argmax(dim=1),
        "near in pixels is not near in IoU": torch.cdist(SIZES, ANCHORS).argmin(dim=1),
    }
    index = best_anchor(SIZES.clone(), ANCHORS.clone())
    for sentence, slip in slips.items():
        same = isinstance(index, torch.Tensor) and torch.equal(index.long(), slip)
        if same and not torch.equal(slip, expected):
            return sentence
    return difference(index, expected, "the index")


q2 = Exercise(
    "yolo.q2",
    "best_anchor",
    _best_anchor,
    [
        "Two boxes with the same centre share min(w, w') × min(h, h').",
        "An axis for the anchors, sizes[:, None], compares all with all; then IoU and argmax.",
    ],
    "the mean of each anchor's sizes is the next anchor: that is k-means",
)


def _split_box(split_box) -> str | None:
    for count, numbers in ((2, 8), (3, 6)):  # boxes per cell, numbers per box
        output = torch.arange(2 * 3 * 3 * count * numbers).view(2, 3, 3, -1)
        boxes = split_box(output.clone(), count)
        interleaved = output.unflatten(-1, (numbers, count)).transpose(3, 4)
        if isinstance(boxes, torch.Tensor) and torch.equal(boxes, interleaved):
            return "box after box: a cell's first numbers are all box 0's, yours are interleaved"
        wrong = difference(boxes, output.unflatten(-1, (count, numbers)), "the boxes")
        if wrong:
            return wrong
    return None


q3 = Exercise(
    "yolo.q3",
    "split_box",
    _split_box,
    ["How many numbers does one box have now?", "unflatten cuts one axis into two."],
    "with classes per box the reshape exists",
)

GAIN = 0.01  # AP


@functools.cache
def _forms():
    """Forms (100, S, S, B, 5 + C) of validation images, and the AP of the lesson's own reading."""
    lesson, data = lessons.load("05_yolo"), benchmark("val")
    lesson.DEVICE = pick_device()
    model = lesson.YOLODetector().to(lesson.DEVICE).eval()
    model.load_state_dict(load_weights("05_yolo", WEIGHTS))
    with torch.no_grad():
        forms = model(detectors.to_input(data.images[:100], lesson.DEVICE)).cpu()
    found = lesson.decode_predictions(forms, (128, 128))
    return forms, coco_ap(found, data.targets[:100])["AP"]


def _moves_the_ap(my_decode) -> str | None:
    my_decode(torch.zeros(1, 16, 16, 2, 8), (128, 128))  # a stub is still to do: before the work
    forms, before = _forms()
    found = my_decode(forms.clone(), (128, 128))
    after = coco_ap(found, benchmark("val").targets[: len(forms)])["AP"]
    if after >= before + GAIN:
        return None
    return f"AP {after:.3f}; decode_predictions has {before:.3f}, {before + GAIN:.3f} is wanted"


q4 = Exercise(
    "yolo.q4",
    "my_decode",
    _moves_the_ap,
    [
        "The AP rewards the right order of all boxes, also of weak ones.",
        "How many boxes does the threshold of 0.02 cut off? And which IoU should suppress?",
        "Boxes that are suppressed are not worthless: average them with the winner, by score.",
    ],
    "the same network, read better",
)
