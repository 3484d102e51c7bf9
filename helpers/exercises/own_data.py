"""The exercises of lecture 10."""

import functools
import math

import torch

from helpers import lessons
from helpers.exercises.exercise import Exercise, difference
from helpers.records import WEIGHTS, load_weights
from helpers.training import pick_device


def _tiles(answer) -> str | None:
    known = {
        11 * 8: None,
        8 * 6: "the overlap is missing: tiles begin every 512 - 128 pixels",
        10 * 7: "the last tile of each row and column is missing, the one flush with the border",
        11 + 8: "rows times columns, not plus",
        11: "that is one row",
        8: "that is one column",
    }
    if not isinstance(answer, (int, float)):
        return f"a number is needed, got {type(answer).__name__}"
    return known.get(answer, f"{answer}? Count the corners of a row, and those of a column")


q1 = Exercise(
    "own_data.q1",
    "answer",
    _tiles,
    [
        "How far is it from one tile's beginning to the next?",
        "corners(4000, 512, 384) has as many entries as a row has tiles.",
    ],
    "rows times columns",
)


def _read_line(read_line) -> str | None:
    cases = (("0 0.5 0.5 0.2 0.4", 200, 100), ("3 0.25 0.75 0.1 0.5\n", 640, 480))
    for line, width, height in cases:
        answer = read_line(line, width, height)
        if not isinstance(answer, tuple) or len(answer) != 2:
            got = type(answer).__name__
            return f"two things are wanted, the class and the box, got {got}"
        label, box = answer
        if label != int(line[0]) or isinstance(label, str):
            return f"the class of {line!r} is the number {line[0]}, got {label!r}"
        x, y, w, h = (float(n) for n in line.split()[1:])
        slips = {
            "x and y are the centre: a box begins half its size before": (x, y, x + w, y + h),
            "width and height are no corner: add them": (x - w / 2, y - h / 2, w, h),
            "half of the size on each side": (x - w, y - h, x + w, y + h),
        }
        scale = (width, height, width, height)
        right = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        box = [float(n) for n in box]
        if _same(box, right):
            return "that is in units of the image: multiply x by the width, y by the height"
        if _same(box, [n * s for n, s in zip(right, (height, width) * 2)]):
            return "x goes with the width, y with the height"
        for sentence, slip in slips.items():
            if _same(box, [n * s for n, s in zip(slip, scale)]):
                return sentence
        right = [n * s for n, s in zip(right, scale)]
        if not _same(box, right):
            return f"{line.strip()!r} in {width} × {height} pixels is {right}, got {box}"
    return None


def _same(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(math.isclose(x, y, abs_tol=1e-6) for x, y in zip(a, b))


q2 = Exercise(
    "own_data.q2",
    "read_line",
    _read_line,
    [
        "line.split() makes words; the first is the class, the others are numbers.",
        "x1 = (x - w / 2) * width; and the same three times more.",
    ],
    "that is a YOLO reader but for the files",
)

BOXES = torch.tensor(
    [[0.0, 0, 9, 40], [5, 30, 25, 60], [5, 45, 25, 75], [5, 50, 25, 80], [7, 51, 9, 52]]
)


def _divide(divide) -> str | None:
    answer = divide(BOXES.clone(), 50)
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        return f"two masks are wanted, got {type(answer).__name__}"
    above, below = BOXES[:, 3] <= 50, BOXES[:, 1] >= 50
    middle = (BOXES[:, 1] + BOXES[:, 3]) / 2
    for got, expected, name in zip(answer, (above, below), ("above", "below")):
        wrong = difference(got, expected, f"the mask {name}")
        if wrong and isinstance(got, torch.Tensor) and got.shape == expected.shape:
            if got.tolist() in ((middle <= 50).tolist(), (middle > 50).tolist()):
                return "by their middle: the tree on the line is in both photographs then"
            if got.tolist() in ((BOXES[:, 1] < 50).tolist(), (BOXES[:, 3] > 50).tolist()):
                return f"{name}: the whole tree, its far side as well"
        if wrong:
            return wrong
    return None


q3 = Exercise(
    "own_data.q3",
    "divide",
    _divide,
    ["y grows downwards: y2 is the lower side.", "Above: y2 is at most the row. Below: y1 is."],
    "no pixel of a tested tree was seen in training",
)

GAIN = 0.04  # AP50; NMS over all eight views brings a little more, means of boxes twice as much


@functools.cache
def _trained():
    """Lecture 10 with its trained detector, the strip next door with its trees, and its AP50."""
    device = pick_device()
    lesson = lessons.load("10_your_own_data", DEVICE=device)
    levels = {"STRIDES": lesson.STRIDES, "RANGES": lesson.RANGES}
    lesson.fcos = lessons.load("07_fcos", DEVICE=device, **levels)
    model = lesson.tree_detector().to(device).eval()
    model.load_state_dict(load_weights("10_your_own_data", WEIGHTS))
    image, trees = lesson.place("slope")
    border = lesson.BORDER
    trees = trees[trees[:, 1] >= border] - torch.tensor([0.0, border, 0, border])
    detect = functools.partial(lesson.detect, model)
    once = lesson.average_precision(detect(image[:, border:]), trees)["AP50"]
    return lesson, detect, image[:, border:], trees, once


def _unfit(answer) -> str | None:
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        return f"boxes and scores are wanted, got {type(answer).__name__}"
    shapes = [tuple(part.shape) for part in answer]
    if shapes[0] != (*shapes[1], 4):
        return f"boxes (N, 4) and scores (N,) are wanted, got {shapes[0]} and {shapes[1]}"
    return None


def _moves_the_ap(ask_all) -> str | None:
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    wrong = _unfit(ask_all(lambda image: dict(nothing), lambda *view: view[:2], image))
    if wrong:
        return wrong
    lesson, detect, image, trees, once = _trained()  # after the call above: a stub costs no work
    boxes, scores = ask_all(detect, lesson.turned, image.clone())
    found = {"boxes": boxes, "scores": scores, "labels": torch.zeros(len(boxes)).long()}
    after = lesson.average_precision(found, trees)["AP50"]
    if after >= once + GAIN:
        return None
    said = f"AP50 {after:.3f}; asked once it is {once:.3f}, {once + GAIN:.3f} is wanted"
    if after > once - 0.1:
        return f"{said}. What do two views say of one tree, after NMS?"
    return f"{said}. Are the boxes of a turned view turned back?"


q4 = Exercise(
    "own_data.q4",
    "ask_all",
    _moves_the_ap,
    [
        "turned(view, boxes, turn) once more is the way back; but of 5 it is 6, and of 6 it is 5.",
        "Instead of NMS's best box take the mean of all boxes that overlap it by more than 0.5.",
    ],
    "several answers that err in different ways, and one of them all",
)
