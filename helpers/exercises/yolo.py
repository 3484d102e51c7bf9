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

GAIN = 0.015  # AP


@functools.cache
def _trained():
    """The lesson, its trained model, 100 validation images as input, and the AP it has on them."""
    lesson, data = lessons.load("05_yolo"), benchmark("val")
    lesson.DEVICE = pick_device()
    model = lesson.YOLODetector().to(lesson.DEVICE).eval()
    model.load_state_dict(load_weights("05_yolo", WEIGHTS))
    images = detectors.to_input(data.images[:100], lesson.DEVICE)
    with torch.no_grad():
        return lesson, model, images, _ap(lesson, model(images))


def _ap(lesson, forms) -> float:
    found = lesson.decode_predictions(forms.cpu(), (128, 128))
    return coco_ap(found, benchmark("val").targets[: len(forms)])["AP"]


def _moves_the_ap(ask_twice) -> str | None:
    ask_twice(lambda images: torch.zeros(len(images), 16, 16, 2, 8), torch.zeros(1, 3, 128, 128))
    lesson, model, images, before = _trained()  # after the call above: a stub costs no work
    with torch.no_grad():
        forms = ask_twice(model, images.clone())
    if not isinstance(forms, torch.Tensor) or forms.shape[:3] != (len(images), 16, 16):
        got = getattr(forms, "shape", type(forms).__name__)
        return f"forms of shape (N, 16, 16, B, 8) are wanted, got {got}"
    after = _ap(lesson, forms)
    if after >= before + GAIN:
        return None
    said = f"AP {after:.3f}; asked once it is {before:.3f}, {before + GAIN:.3f} is wanted"
    if after > before - 0.02:
        return said
    return (
        f"{said}. Do the mirrored answers lie in the right cells? And which way does x run there?"
    )


q4 = Exercise(
    "yolo.q4",
    "ask_twice",
    _moves_the_ap,
    [
        "The forms of the mirrored image come in mirrored columns: turn that axis back.",
        "x runs from the cell's left side, which was its right side in the mirror.",
    ],
    "two answers that err in different ways, and one mean",
)
