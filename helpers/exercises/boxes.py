"""The exercises of lecture 00."""

import functools
import math

import numpy as np
import torch

from helpers import lessons
from helpers.evaluation import coco_ap
from helpers.exercises.exercise import Exercise, difference
from helpers.shapes import CLASSES, benchmark


def _named(value, right: float, slips: dict[float, str], name: str) -> str | None:
    """What is wrong with a number, by the numbers that typical slips give."""
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        return f"{name} must be one number, got {type(value).__name__}"
    value = float(value)
    if math.isclose(value, right, abs_tol=1e-3):
        return None
    for slip, sentence in slips.items():
        if math.isclose(value, slip, abs_tol=1e-3):
            return f"{name} is {value:.3f}: {sentence}"
    return f"{name} is {value:.3f}, and it should be something else"


COVERED = "that is the share of the square that is covered; the union is larger than the square"
OVERLAPS = {
    "(a)": (1 / 3, {1 / 2: COVERED}),
    "(b)": (1 / 7, {1 / 4: COVERED, 1 / 3: "now a quarter of the square is shared, not a half"}),
    "(c)": (1 / 2, {1.0: "the square is covered entirely, but the union is twice as large"}),
}


def _overlaps(overlaps) -> str | None:
    if not isinstance(overlaps, (tuple, list)) or len(overlaps) != 3:
        return f"three numbers are needed, (a, b, c), got {type(overlaps).__name__}"
    for value, (name, (right, slips)) in zip(overlaps, OVERLAPS.items()):
        wrong = _named(value, right, slips, name)
        if wrong:
            return wrong
    return None


q1 = Exercise(
    "boxes.q1",
    "overlaps",
    _overlaps,
    [
        "Let the square have the area 1. What is shared, and what is covered together?",
        "The union is the sum of both areas minus what is shared.",
    ],
    "and note how fast IoU falls: half a side in both axes leaves one seventh",
)

SIX = [1, 0, 1, 1, 0, 0]  # the ranking of section 7, of four objects
SLIPS = {
    0.6042: "the envelope is missing: at each recall, take the best precision from there on",
    0.8333: "you divided by the objects that were found; the missed ones count, too",
    0.8056: "no envelope, and you divided by the found objects instead of all",
    0.6136: "that is the mean at 11 recalls, VOC 2007's",
    0.6287: "that is the mean at 101 recalls, COCO's; the exact area is wanted",
    0.75: "that is the last recall, or an envelope that looks back instead of ahead",
    0.5: "that is the precision at the end",
    0.6694: "that is the mean precision of all detections; only hits raise the recall",
    0.4167: "you divided by the number of detections; divide by the number of objects",
}
MORE_RANKINGS = (
    ("without any detection", [], 3, 0.0),
    ("without any hit", [0, 0], 3, 0.0),
    ("of a perfect ranking", [1, 1], 2, 1.0),
    ("of an error before three hits", [0, 1, 1, 1], 3, 0.75),
    ("of one hit, and two objects missed", [1], 3, 1 / 3),
)


def _area(ap_of_ranking) -> str | None:
    wrong = _named(ap_of_ranking(list(SIX), 4), 0.625, SLIPS, "the AP of the six boxes")
    for name, hits, count, right in MORE_RANKINGS:
        wrong = wrong or _named(ap_of_ranking(list(hits), count), right, {}, f"the AP {name}")
    return wrong


q2 = Exercise(
    "boxes.q2",
    "ap_of_ranking",
    _area,
    [
        "Recall rises only at a hit, each time by 1 / count: a staircase of equal steps.",
        "How high is a step? The best precision from that row to the end of the ranking.",
    ],
    "on the six boxes and five more rankings",
)

SOFT_BOXES = [[0.0, 0, 10, 10], [4, 0, 14, 10], [2, 0, 12, 10], [40, 40, 50, 50]]
SOFT_SCORES = [0.9, 0.8, 0.85, 0.3]
SOFT = (
    (0.9, {0.1218: "a box that is taken must keep its own score"}),
    (
        0.5541,
        {
            0.0: "Soft-NMS deletes nothing",
            0.8: "it was not lowered by box 0, which overlaps it and is better",
            0.3395: "the IoU must be squared",
            0.6657: "the square must be divided by sigma",
            0.4571: "that is the linear variant, 1 - IoU; the Gaussian one is wanted",
            0.2278: "after a round the order may change: look for the best again",
        },
    ),
    (0.1436, {0.3494: "it was lowered only once, but two better boxes overlap it"}),
    (0.3, {}),
)


def _soft_nms(soft_nms) -> str | None:
    boxes, scores = torch.tensor(SOFT_BOXES), torch.tensor(SOFT_SCORES)
    new = soft_nms(boxes, scores, 0.5)
    if not torch.equal(scores, torch.tensor(SOFT_SCORES)):
        return "you changed the caller's scores: begin with a copy, scores.clone()"
    right = torch.tensor([value for value, _ in SOFT])
    if not isinstance(new, torch.Tensor) or new.shape != right.shape:
        return difference(new, right, "the scores")
    for i, (value, slips) in enumerate(SOFT):
        wrong = _named(new[i].item(), value, slips, f"score {i} of the boxes {SOFT_BOXES}")
        if wrong:
            return wrong
    return None


q3 = Exercise(
    "boxes.q3",
    "soft_nms",
    _soft_nms,
    [
        "Keep a list of the boxes that are not yet taken, and a copy of the scores.",
        "A loop: the best of the list goes, then the scores of the rest shrink.",
    ],
    "neighbours are demoted, none is deleted",
)

GAIN, IMAGES = 0.15, 100  # AP; images of the validation split


@functools.cache
def _reports():
    """Detections of a detector that repeats itself, and their AP after the lesson's NMS."""
    lesson, targets = lessons.load("00_boxes_and_ap"), benchmark("val").targets[:IMAGES]
    rng, found = np.random.RandomState(11), []
    for target in targets:
        objects = lesson.repeated(target, rng, copies=6, noise=0.1)
        told = torch.from_numpy(rng.rand(len(objects["boxes"])) < 0.8)  # some keep silent
        empty = lesson.empty_places(target, 5, rng)
        junk = {
            "boxes": empty,
            "scores": torch.from_numpy(rng.uniform(0.3, 1, len(empty))).float(),
            "labels": torch.from_numpy(rng.randint(0, len(CLASSES), len(empty))),
        }
        found.append({key: torch.cat([objects[key][told], junk[key]]) for key in junk})
    kept = [lesson.nms_per_class(*d.values(), 0.5) for d in found]
    after = [{key: d[key][k] for key in d} for d, k in zip(found, kept)]
    return found, coco_ap(after, targets)["AP"]


def _moves_the_ap(clean) -> str | None:
    one = {"boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]), "scores": torch.tensor([0.9])}
    clean(one | {"labels": torch.tensor([0])})  # a stub is still to do: before the work
    found, before = _reports()
    better = [clean({key: d[key].clone() for key in d}) for d in found]
    after = coco_ap(better, benchmark("val").targets[:IMAGES])["AP"]
    if after >= before + GAIN:
        return None
    return f"AP {after:.3f}; nms_per_class has {before:.3f}, {before + GAIN:.3f} is wanted"


q4 = Exercise(
    "boxes.q4",
    "clean",
    _moves_the_ap,
    [
        "Six reports that agree are better evidence than one with a high score.",
        "For each box that NMS keeps, find the boxes of its class that overlap it well.",
        "How many are they? That may be a score. And where is their mean?",
    ],
    "the same reports, read together",
)
