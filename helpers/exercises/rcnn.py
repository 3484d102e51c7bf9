"""The exercises of lecture 01."""

import functools

import torch
from torch import Tensor

from helpers import lessons
from helpers.evaluation import coco_ap
from helpers.exercises.exercise import Exercise, difference, mistake
from helpers.records import WEIGHTS, load_weights
from helpers.shapes import benchmark


def _survivors(answer) -> str | None:
    if not isinstance(answer, (str, list, tuple, set)):
        return f"letters are needed, such as 'AB', got {type(answer).__name__}"
    letters = "".join(sorted(str(letter).strip().upper() for letter in answer))
    known = {
        "ABCD": "nothing is suppressed? The IoU of A and B is above 0.3",
        "AD": "what is suppressed suppresses nothing any more: who is left to remove C?",
        "AC": "D is a square: a triangle never suppresses it",
        "A": "only boxes of A's class that overlap A go",
        "ABD": "B overlaps A by more than 0.3",
        "ABC": "B overlaps A by more than 0.3, and D is of another class",
    }
    if letters == "ACD":
        return None
    return known.get(letters, f"{letters}? Take A first, strike what it suppresses, and repeat")


q1 = Exercise(
    "rcnn.q1",
    "survivors",
    _survivors,
    ["The best box stays. Which of its class overlap it too much?", "Then the best of the rest."],
    "C stays: B, which would suppress it, is gone",
)

# IoU with the best object of each of two classes, and whether the region is a true box.
OVERLAPS = [[1.0, 0.0], [0.1, 1.0], [0.7, 0.0], [0.2, 0.1], [0.2, 0.6], [0.0, 0.0]]
OVERLAPS += [[0.3, 0.0], [1.0, 0.0], [0.4, 1.0]]
IS_TRUTH = [True, True, False, False, False, False, False, False, True]


def _strict_labels(strict_labels) -> str | None:
    overlaps, is_truth = torch.tensor(OVERLAPS), torch.tensor(IS_TRUTH)
    expected = torch.tensor([0, 1, -1, 2, -1, 2, -1, -1, 1])
    answer = strict_labels(overlaps.numpy().copy(), is_truth.numpy().copy())
    labels = torch.as_tensor(answer) if hasattr(answer, "__array__") else answer
    wrong = difference(labels, expected, "the labels")
    if wrong is None or not isinstance(labels, Tensor) or labels.shape != expected.shape:
        return wrong
    slips = {
        "background is K, here 2, and what is ignored is -1": (labels[5] == -1, labels[2] == 2),
        "background is K, here 2: 0 is a class": (labels[5] == 0,),
        "a proposal that fits an object perfectly is no true box: is_truth says so": (
            labels[7] == 0,
        ),
        "the grey zone is ignored, not a positive": (labels[2] == 0,),
        "the grey zone is ignored, not background": (labels[2] == 2,),
        "background must overlap every object by less than 0.3, not just one": (labels[4] == 2,),
        "an IoU of exactly 0.3 is not below 0.3": (labels[6] == 2,),
        "a true box belongs to the class that it overlaps most": (labels[8] == 0,),
    }
    return next((said for said, signs in slips.items() if all(signs)), wrong)


q2 = Exercise(
    "rcnn.q2",
    "strict_labels",
    _strict_labels,
    [
        "Begin with -1 everywhere, then write over it.",
        "What is the largest overlap of each region, and with which class?",
    ],
    "few and exact examples, as the SVMs have them",
)


def _with_context(with_context) -> str | None:
    boxes = torch.tensor([[50.0, 40.0, 65.0, 130.0], [0.0, 10.0, 200.0, 20.0]])
    size, rim = 227, 16
    answer = with_context(boxes.numpy().copy(), size, rim)
    grown = torch.as_tensor(answer) if hasattr(answer, "__array__") else answer

    def larger(factor: float) -> Tensor:
        extra = (factor - 1) * boxes[:, 2:]
        return torch.cat([boxes[:, :2] - extra / 2, boxes[:, 2:] + extra], dim=1)

    expected = larger(size / (size - 2 * rim))
    slips = {
        "the rim is measured in the warped region, not in the image": torch.cat(
            [boxes[:, :2] - rim, boxes[:, 2:] + 2 * rim], dim=1
        ),
        "the object fills S - 2p of the warped pixels, not all S": larger((size + 2 * rim) / size),
        "there is a rim on both sides: this leaves room for one": larger(size / (size - rim)),
        "the corner moves, too: the box grows to all sides": torch.cat(
            [boxes[:, :2], expected[:, 2:]], dim=1
        ),
    }
    return mistake(grown, expected, "the boxes", slips)


q3 = Exercise(
    "rcnn.q3",
    "with_context",
    _with_context,
    ["How many image pixels is one warped pixel?", "Both sides grow; the centre stays."],
    "16 of 227 on each side: the box grows by a sixth",
)

GAIN = 0.01  # AP


@functools.cache
def _answers() -> tuple[list[tuple], list[dict], float]:
    """Per validation image regions, moved boxes and scores; the targets; the AP of the page."""
    known = {name: value.float() for name, value in load_weights("01_rcnn", WEIGHTS).items()}
    counts = known["counts"].int().tolist()
    moved = known["moved"].unflatten(1, (known["scores"].shape[1], 4))  # (R, K, 4)
    parts = [
        p.numpy() for part in (known["regions"], moved, known["scores"]) for p in part.split(counts)
    ]
    images = [parts[i :: len(counts)] for i in range(len(counts))]
    targets = benchmark("val").targets[: len(counts)]
    return images, targets, coco_ap([_as_the_page(*image) for image in images], targets)["AP"]


def _as_the_page(regions_xywh, moved_xywh, scores) -> dict[str, Tensor]:
    """Every region for every class, moved, then the suppression of the page."""
    lesson = _lesson()
    n, classes = scores.shape
    label = torch.arange(classes).repeat(n).numpy()
    return lesson.as_detections(moved_xywh.reshape(-1, 4), scores.ravel(), label, (128, 128), 0.3)


@functools.cache
def _lesson():
    return lessons.load("01_rcnn")


def _moves_the_ap(my_reading) -> str | None:
    images, targets, before = _answers()
    found = [my_reading(*(part.copy() for part in image)) for image in images]
    after = coco_ap(found, targets)["AP"]
    if after >= before + GAIN:
        return None
    return f"AP {after:.3f}; this page's way has {before:.3f}, {before + GAIN:.3f} is wanted"


q4 = Exercise(
    "rcnn.q4",
    "my_reading",
    _moves_the_ap,
    [
        "Suppression keeps the box of the best score. Is that the best of its neighbours?",
        "Boxes that are suppressed are not worthless: average them with the winner, by score.",
    ],
    "the same detector, read better",
)
