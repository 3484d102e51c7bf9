"""The exercises of helpers.exercises: each page's own, what they answer, and their solutions."""

import ast
import contextlib
import functools
import importlib
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from shared import NONSENSE, imported_exercises, notebook_code, raising
from torchvision.ops import batched_nms, box_convert, box_iou, nms

from helpers import lessons, records
from helpers.detectors import to_input
from helpers.evaluation import coco_ap
from helpers.exercises import boxes, faster_rcnn, fcos, own_data, rcnn, ssd, yolo
from helpers.exercises import exercise as frame
from helpers.exercises.exercise import TO_DO, Exercise
from helpers.proposals import benchmark_proposals
from helpers.shapes import benchmark

FRAME = {"__init__", "exercise"}
MODULES = sorted(p.stem for p in Path(frame.__file__).parent.glob("*.py") if p.stem not in FRAME)
PAGES = {
    module: (path, names)
    for path in lessons.notebooks()
    for module, names in imported_exercises(path).items()
}


def exercises_of(module):
    found = importlib.import_module(f"helpers.exercises.{module}")
    return {name: q for name, q in vars(found).items() if isinstance(q, Exercise)}


EVERY = {f"{module}.{name}": q for module in MODULES for name, q in exercises_of(module).items()}
EVERY_MODULE = pytest.mark.parametrize("module", MODULES)
EVERY_EXERCISE = pytest.mark.parametrize("place", EVERY)


@pytest.fixture(scope="module")
def page():
    """A function from a module's name to the definitions of its page, as a reader has them."""
    plt.switch_backend("agg")
    with contextlib.ExitStack() as stack:

        @functools.cache
        def load(module):
            name = PAGES[module][0].stem
            return stack.enter_context(notebook_code(name, SEED=0, DEVICE=torch.device("cpu")))

        yield lambda module: dict(vars(load(module)))


@pytest.fixture(autouse=True)
def committed_weights(monkeypatch, tmp_path):
    """Not those of the last run on this machine."""
    monkeypatch.setenv("LECTURE_RUNS", str(tmp_path))


def section_of(module):
    """The cells of the page that are tagged as exercises."""
    cells = lessons.read(PAGES[module][0]).cells
    return [cell for cell in cells if "exercise" in cell.metadata.get("tags", [])]


def checks(cell):
    """(q1, answer) of each q1.check(answer) in a cell."""
    calls = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Call)]
    found = []
    for call in calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr == "check":
            found.append((ast.unparse(call.func.value), *map(ast.unparse, call.args)))
    return found


# ---------------------------------------------------------------- the page


def test_every_module_has_one_page():
    assert sorted(PAGES) == MODULES
    used = [module for path in lessons.notebooks() for module in imported_exercises(path)]
    assert len(used) == len(set(used))


@EVERY_MODULE
def test_three_to_five_exercises_each_with_its_task(module):
    qs, section = exercises_of(module), section_of(module)
    code = [i for i, cell in enumerate(section) if cell.cell_type == "code"]
    assert 3 <= len(code) <= 5 and len(section) == 2 * len(code)
    assert sorted(PAGES[module][1]) == list(qs) == [f"q{i}" for i in range(1, len(code) + 1)]
    for number, at in enumerate(code, 1):
        q = qs[f"q{number}"]
        assert q.place == f"{module}.q{number}"
        assert checks(section[at]) == [(f"q{number}", q.answer)]
        task = section[at - 1]
        assert task.cell_type == "markdown" and f"### {number} " in task.source
    kinds = re.findall(r"^### \d (\w+)", "\n".join(c.source for c in section), re.MULTILINE)
    assert kinds.count("Predict") >= 1 and kinds.count("Build") >= 2 and "Move" in kinds


@EVERY_MODULE
def test_the_stubs_of_the_page_are_still_to_do(module, page, capsys):
    space = page(module) | exercises_of(module)
    for cell in section_of(module):
        if cell.cell_type == "code":
            exec(cell.source, space)
            assert capsys.readouterr().out == f"{TO_DO}\n"


def values_set(code):
    """What statements set or return, as text in one form: to compare code with code."""
    kinds = (ast.Assign, ast.Return, ast.AugAssign)
    nodes = [n for n in ast.walk(ast.parse(code)) if isinstance(n, kinds) and n.value is not None]
    return {ast.unparse(node.value) for node in nodes}


@EVERY_EXERCISE
def test_no_cell_of_the_page_holds_the_solution(place, page):
    q, module = EVERY[place], place.split(".")[0]
    solution = values_set(q.solution_code())
    for cell in lessons.read(PAGES[module][0]).cells:
        assert q.solution_code() not in cell.source
        if cell.cell_type == "code" and solution:
            assert not solution <= values_set(cell.source), cell.source
    functions = {n: f for n, f in page(module).items() if callable(f) and hasattr(f, "__code__")}
    assert functions
    if "q4" not in place:  # it takes seconds per answer
        assert [n for n, f in functions.items() if q.verdict(f).startswith("✓")] == []


# ---------------------------------------------------------------- solutions, hints, stubs


def solved(q, space):
    exec(q.solution_code(), space)
    return space[q.answer]


@EVERY_EXERCISE
def test_the_solution_is_right(place, page):
    q = EVERY[place]
    assert q.verdict(solved(q, page(place.split(".")[0]))) == f"✓ {q.praise}"


@EVERY_MODULE
def test_solutions_are_named_like_the_exercises(module):
    text = (frame.SOLUTIONS / f"{module}.py").read_text(encoding="utf-8")
    assert re.findall(r"^# (q\d+)\b", text, re.MULTILINE) == list(exercises_of(module))


@EVERY_EXERCISE
def test_hints_push_and_do_not_tell(place):
    q = EVERY[place]
    assert 1 <= len(q.hints) <= 4 and len(set(q.hints)) == len(q.hints) and q.praise
    for hint in q.hints:
        assert hint.strip() == hint and hint[-1] in ".?!"
        assert not any(value in hint for value in values_set(q.solution_code()))


@EVERY_EXERCISE
def test_the_stub_is_still_to_do(place):
    for answer in (None, ...):
        assert EVERY[place].verdict(answer) == TO_DO
        if asks_for_a_function(place):
            assert EVERY[place].verdict(lambda *_, answer=answer: answer) == TO_DO


def asks_for_a_function(place):
    module = place.split(".")[0]
    trees = [ast.parse(c.source) for c in section_of(module) if c.cell_type == "code"]
    defined = {n.name for tree in trees for n in tree.body if isinstance(n, ast.FunctionDef)}
    return EVERY[place].answer in defined


@EVERY_EXERCISE
def test_nonsense_gets_a_sentence(place):
    q, answers = EVERY[place], [*NONSENSE, raising, lambda: 1, int, torch.nn.Linear(2, 2)]
    if asks_for_a_function(place):
        answers += [lambda *_, value=value: value for value in NONSENSE]
        assert "IndexError: list index out of range; call it yourself" in q.verdict(raising)
    for answer in answers:
        said = q.verdict(answer)
        assert said.startswith("✗ ") and "\n" not in said and "NameError" not in said, said
        assert re.search(r"\w\W*\w", said[2:]) and " at 0x" not in said, said


# ---------------------------------------------------------------- what each mistake is answered

NUMBERS = {
    "the classes belong to the cell, not to each box": 13 * 13 * 3 * 25,
    "that is one cell": 35,
    "the grid has 13 × 13 cells": 13 * 35,
    "each box has a confidence, too": 169 * (3 * 4 + 20),
    "three boxes per cell, not one": 169 * 25,
    "Cells × (boxes × 5 + classes)": 7,
}


def overlaps(sizes, anchors):
    """Shared area and IoU (N, K) of boxes with the same centre."""
    shared = torch.minimum(sizes[:, None], anchors).prod(dim=-1)
    return shared, shared / (sizes.prod(-1)[:, None] + anchors.prod(-1) - shared)


ANCHORS = {  # s: sizes (N, 2), a: anchors (K, 2)
    "that is the worst anchor": lambda s, a: overlaps(s, a)[1].argmin(1),
    "the largest shared area is not the best IoU": lambda s, a: overlaps(s, a)[0].argmax(1),
    "near in pixels is not near in IoU": lambda s, a: torch.cdist(s, a).argmin(1),
    "must have shape (5,), got (5, 4)": lambda s, a: overlaps(s, a)[1],
    "must have shape (5,), got (4,)": lambda s, a: overlaps(s, a)[1].argmax(0),
    "must be a torch tensor, got list": lambda s, a: overlaps(s, a)[1].argmax(1).tolist(),
    "places, first at": lambda s, a: torch.full((len(s),), 3),
}
SPLIT = {
    "yours are interleaved": lambda out, b: out.unflatten(-1, (-1, b)).transpose(3, 4),
    "must have shape (2, 3, 3, 2, 8), got (2, 3, 3, 8, 2)": lambda out, b: out.unflatten(
        -1, (-1, b)
    ),
    "must have shape (2, 3, 3, 2, 8), got (2, 3, 3, 16)": lambda out, b: out,
    "must be a torch tensor, got tuple": lambda out, b: out.chunk(b, -1),
    "places, first at": lambda out, b: out.unflatten(-1, (b, -1)).transpose(1, 2),
    "(2, 3, 3, 2, 8), got (2, 3, 3, 1, 16)": lambda out, b: out.unflatten(-1, (b - 1, -1)),
}
SMALLEST = {
    "it is off both ways: across and down": 22.7,
    "with a centre every 8 pixels it is at most 4 off each way": 86.4,
    "the IoU divides by the union, which is more than one square": 24.5,
    "that is the stride; at this size nearly nothing is shared": 8,
    "a side of 30 pixels has an IoU of 0.601 there, less than 0.7": 30,
    "a side of 43.5 pixels has an IoU of 0.701 there, more than is asked for": 43.5,
    "round up: at 43 pixels the IoU is 0.699, not yet 0.7": 43,
    "a number is needed, got str": "43.24",
}


def anchors_of(stride, templates):
    """The anchors (324, 4) of the grid that the check lays."""
    x, y = (torch.arange(n) * stride + stride / 2 for n in reversed(faster_rcnn.GRID))
    y, x = torch.meshgrid(y, x, indexing="ij")
    return (torch.stack([x, y, x, y], dim=-1)[:, :, None] + templates).reshape(-1, 4)


def labels_without(**rules):
    def grid_labels(size, stride, templates, boxes, image):
        labels = faster_rcnn._labels(anchors_of(stride, templates), boxes, **rules)
        return labels.view(*size, len(templates))

    return grid_labels


def half_as_background(size, stride, templates, boxes, image):
    anchors = anchors_of(stride, templates)
    labels = faster_rcnn._labels(anchors, boxes)
    inside = ((anchors >= 0) & (anchors <= torch.tensor([*image[::-1]] * 2))).all(dim=1)
    return torch.where((labels == -1) & inside, 0, labels).view(*size, len(templates))


GRID_LABELS = {
    "strike the anchors at the border first": labels_without(first=False, after=True),
    "anchors that cross the border must be ignored": labels_without(first=False),
    "the best anchor of each object says yes, too": labels_without(best=False),
    "all anchors that share the best IoU of an object say yes": labels_without(ties=False),
    "between 0.3 and 0.7 an anchor is ignored, it is no background": half_as_background,
    "must have shape (6, 9, 6), got (324,)": lambda size, stride, templates, boxes, image: (
        faster_rcnn._labels(anchors_of(stride, templates), boxes)
    ),
    "places, first at": lambda size, stride, templates, *_: torch.ones(
        *size, len(templates)
    ).long(),
}
ALIGN = {
    "rows and columns are swapped": lambda f, r: faster_rcnn._torchvision(f, r).transpose(2, 3),
    "the image of each box is its first number": lambda f, r: faster_rcnn._torchvision(
        f, r * torch.tensor([0.0, 1, 1, 1, 1])
    ),
    "the centre of cell 0 lies at 0.5": lambda f, r: faster_rcnn._torchvision(f, r, aligned=False),
    "one point per bin is too few": lambda f, r: faster_rcnn._torchvision(f, r, samples=1),
    "with align_corners=True": lambda f, r: faster_rcnn._by_grid(f, r, corners=True),
    "the map continues as it ends": lambda f, r: faster_rcnn._by_grid(f, r, padding="zeros"),
    "must have shape (3, 3, 7, 7), got (2, 3, 8, 12)": lambda f, r: f,
    "places, first at": lambda f, r: torch.zeros(3, 3, 7, 7),
}
MISTAKES = {
    **{"yolo.q1": NUMBERS, "yolo.q2": ANCHORS, "yolo.q3": SPLIT},
    **{"faster_rcnn.q1": SMALLEST, "faster_rcnn.q2": GRID_LABELS, "faster_rcnn.q3": ALIGN},
}


def backward(of):
    """`of` the winners (C, n) as a mask, the values (C, n) and the gradient (C, 1)."""

    def max_backward(values, gradient):
        wins = F.one_hot(values.argmax(dim=1), values.shape[1])
        return of(wins, values, gradient[:, None]).float()

    return max_backward


WINNERS = {
    "all 49 bins of a region read the same cell": 1,
    "what regions send back adds up": 49,
    "7 × 7 bins, not 7": 14,
    "Count the bins that this cell wins": 50,
    "a number is needed, got str": "many",
}
BACKWARD = {
    "that is mean pooling": backward(lambda w, v, g: g.expand_as(v) / v.shape[1]),
    "every cell gets the whole gradient": backward(lambda w, v, g: g.expand_as(v)),
    "not its value times the gradient": backward(lambda w, v, g: w * v * g),
    "the gradient of its channel, not 1": backward(lambda w, v, g: w),
    "one winner for each channel": backward(lambda w, v, g: (v == v.max()) * g),
    "one of them wins and gets all": backward(lambda w, v, g: (v == v.amax(1, True)) * g),
    "must have shape (3, 3), got (3,)": lambda values, gradient: gradient,
    "places, first at": backward(lambda w, v, g: 2 * w * g),
}


def box_loss(of):
    """`of` the errors (N, K + 1), the labels (N,) and the row numbers (N,)."""

    def loss(deltas, labels, targets):
        table = (deltas.view(len(labels), -1, 4) - targets[:, None]).abs().sum(dim=2)
        return of(table, labels, torch.arange(len(labels)))

    return loss


LOSSES = {
    "background has no box": box_loss(lambda t, k, n: t[n, k].sum() / len(k)),
    "not by those with an object": box_loss(lambda t, k, n: t[n, k][k > 0].mean()),
    "divide by the number of regions": box_loss(lambda t, k, n: t[n, k][k > 0].sum()),
    "only the true class's four": box_loss(lambda t, k, n: t[k > 0].sum() / len(k)),
    "shifted by one": box_loss(lambda t, k, n: t[n, k - 1][k > 0].sum() / len(k)),
    "one number is needed, got shape (5,)": box_loss(lambda t, k, n: t[n, k]),
    "the loss differs": box_loss(lambda t, k, n: t.sum()),
}
MISTAKES |= {"fast_rcnn.q1": WINNERS, "fast_rcnn.q2": BACKWARD, "fast_rcnn.q3": LOSSES}
SURVIVORS = {
    "nothing is suppressed? The IoU of A and B is above 0.3": "ABCD",
    "what is suppressed suppresses nothing any more: who is left to remove C?": "AD",
    "D is a square: a triangle never suppresses it": ["C", "A"],
    "only boxes of A's class that overlap A go": "a",
    "B overlaps A by more than 0.3": ("A", "B", "D"),
    "B overlaps A by more than 0.3, and D is of another class": "ABC",
    "Take A first, strike what it suppresses, and repeat": "BC",
    "letters are needed, such as 'AB', got int": 3,
}


def strict(overlaps, is_truth, background=2, ignored=-1, below=np.less, least=np.max, own=None):
    """The SVMs' labels for a softmax, with what a mistake exchanges."""
    own = is_truth if own is None else own(overlaps)
    no_object = np.where(below(least(overlaps, axis=1), 0.3), background, ignored)
    return np.where(own, overlaps.argmax(axis=1), no_object)


STRICT = {
    "background is K, here 2, and what is ignored is -1": lambda o, t: strict(o, t, -1, 2),
    "background is K, here 2: 0 is a class": lambda o, t: strict(o, t, 0),
    "a proposal that fits an object perfectly is no true box": lambda o, t: strict(
        o, t, own=lambda o: o.max(axis=1) > 0.99
    ),
    "the grey zone is ignored, not a positive": lambda o, t: strict(
        o, t, own=lambda o: t | ((o.max(axis=1) >= 0.3) & (o.max(axis=1) < 0.99))
    ),
    "the grey zone is ignored, not background": lambda o, t: strict(o, t, ignored=2),
    "background must overlap every object by less than 0.3, not just one": lambda o, t: np.where(
        o[:, 0] == 0.7, -1, strict(o, t, least=np.min)
    ),
    "an IoU of exactly 0.3 is not below 0.3": lambda o, t: strict(
        o, t, below=lambda a, b: a <= np.float32(b)
    ),
    "a true box belongs to the class that it overlaps most": lambda o, t: np.where(
        t, (o > 0.3).argmax(axis=1), strict(o, t)
    ),
    "places, first at": lambda o, t: np.full(len(o), 5),
    "must have shape (9,), got (9, 2)": lambda o, t: o,
    "must be a torch tensor, got list": lambda o, t: strict(o, t).tolist(),
}


def grown(boxes, factor):
    extra = (factor - 1) * boxes[:, 2:]
    return np.concatenate([boxes[:, :2] - extra / 2, boxes[:, 2:] + extra], axis=1)


RIM = {
    "the rim is measured in the warped region, not in the image": lambda b, s, r: (
        b + np.array([-r, -r, 2 * r, 2 * r])
    ),
    "the object fills S - 2p of the warped pixels, not all S": lambda b, s, r: grown(
        b, (s + 2 * r) / s
    ),
    "there is a rim on both sides: this leaves room for one": lambda b, s, r: grown(b, s / (s - r)),
    "the corner moves, too: the box grows to all sides": lambda b, s, r: np.concatenate(
        [b[:, :2], b[:, 2:] * s / (s - 2 * r)], axis=1
    ),
    "places, first at": lambda b, s, r: b,
    "must have shape (2, 4), got (2, 2)": lambda b, s, r: b[:, 2:],
}


def precisions(hits):
    return [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits))]


def at_hits(hits, values, divisor):
    return sum(value for hit, value in zip(hits, values) if hit) / divisor


def at_recalls(hits, count, points):
    recalls = [sum(hits[: k + 1]) / count for k in range(len(hits))]
    rows, levels = list(zip(recalls, precisions(hits))), np.linspace(0, 1, points)
    return np.mean([max((p for r, p in rows if r >= level), default=0) for level in levels])


def ahead(hits, steps=99):
    return [max(precisions(hits)[k : k + steps]) for k in range(len(hits))]


def looking_back(hits):
    return [max(precisions(hits)[: k + 1]) for k in range(len(hits))]


THREE = {
    "(a) is 0.500: that is the share of the square that is covered": (1 / 2, 1 / 7, 1 / 2),
    "(b) is 0.250: that is the share of the square that is covered": (1 / 3, 1 / 4, 1 / 2),
    "now a quarter of the square is shared, not a half": (1 / 3, 1 / 3, 1 / 2),
    "the square is covered entirely, but the union is twice as large": (1 / 3, 1 / 7, 1),
    "(a) is 0.900, and it should be something else": (0.9, 1 / 7, 1 / 2),
    "(a) must be one number, got str": ("a third", 1 / 7, 1 / 2),
    "three numbers are needed, (a, b, c), got tuple": (1 / 3, 1 / 7),
    "three numbers are needed, (a, b, c), got float": 0.5,
}
RANKED = {  # h: hits, n: objects
    "the envelope is missing: at each": lambda h, n: at_hits(h, precisions(h), n),
    "divided by the objects that were found; the": lambda h, n: at_hits(h, ahead(h), sum(h)),
    "no envelope, and you divided by": lambda h, n: at_hits(h, precisions(h), sum(h)),
    "that is the mean at 11 recalls, VOC 2007's": lambda h, n: at_recalls(h, n, 11),
    "that is the mean at 101 recalls, COCO's": lambda h, n: at_recalls(h, n, 101),
    "an envelope that looks back instead of": lambda h, n: at_hits(h, looking_back(h), n),
    "that is the last recall, or": lambda h, n: sum(h) / n,
    "that is the precision at the end": lambda h, n: sum(h) / len(h),
    "that is the mean precision of all detections": lambda h, n: sum(precisions(h)) / len(h),
    "you divided by the number of detections; divide": lambda h, n: at_hits(h, ahead(h), len(h)),
    "the AP without any detection is 1.000": lambda h, n: at_hits(h, ahead(h), n) if h else 1,
    "the AP of a perfect ranking is 0.500": lambda h, n: at_hits(h[:-1], ahead(h), n),
    "the AP of an error before three hits is 0.722": lambda h, n: at_hits(h, ahead(h, 2), n),
    "the AP without any hit is nan": lambda h, n: (
        at_hits(h, ahead(h), n) if sum(h or [1]) else np.nan
    ),
    "the AP of the six boxes must be one number, got list": lambda h, n: ahead(h),
}


def softened(boxes, scores, factor, again=True, self_too=False, once=False):
    """Soft-NMS with a `factor` of the IoU, and with the mistakes that the keywords name."""
    scores, rest = scores.clone(), scores.argsort(descending=True).tolist()
    while rest:
        best = max(rest, key=lambda i: scores[i].item()) if again else rest[0]
        rest.remove(best)
        hit = [best, *rest] if self_too else rest
        scores[hit] *= factor(box_iou(boxes[best][None], boxes[hit])[0])
        if once:
            break
    return scores


def gauss(overlap):
    return torch.exp(-(overlap**2) / 0.5)


def deleting(boxes, scores, _):
    kept = nms(boxes, scores, 0.3)
    return torch.zeros_like(scores).index_copy(0, kept, scores[kept])


def in_place(boxes, scores, _):
    scores *= 0.5
    return scores


SOFT = {
    "the IoU must be squared": lambda b, s, _: softened(b, s, lambda o: torch.exp(-o / 0.5)),
    "the square must be divided by sigma": lambda b, s, _: softened(
        b, s, lambda o: torch.exp(-(o**2))
    ),
    "that is the linear variant, 1 - IoU": lambda b, s, _: softened(b, s, lambda o: 1 - o),
    "after a round the order may change": lambda b, s, _: softened(b, s, gauss, again=False),
    "a box that is taken must keep its": lambda b, s, _: softened(b, s, gauss, self_too=True),
    "it was lowered only once, but two": lambda b, s, _: softened(b, s, gauss, once=True),
    "it was not lowered by box 0, which": lambda b, s, _: s.clone(),
    "Soft-NMS deletes nothing": deleting,
    "you changed the caller's scores: begin with a copy, scores.clone()": in_place,
    "must have shape (4,), got (2,)": lambda b, s, _: s[:2],
    "must be a torch tensor, got list": lambda b, s, _: s.tolist(),
    "score 0 of the boxes": lambda b, s, _: s * 0,
    "ZeroDivisionError": lambda b, s, _: 1 / 0,
}
MISTAKES |= {"boxes.q1": THREE, "boxes.q2": RANKED, "boxes.q3": SOFT}
MISTAKES |= {"rcnn.q1": SURVIVORS, "rcnn.q2": STRICT, "rcnn.q3": RIM}


def root_levels(of, bounds=(2, 5)):
    """`of` the root of the area (N,) and the sides (N, 2) of boxes, between bounds."""

    def level(boxes, lowest=2, highest=5):
        sides = boxes[:, 2:] - boxes[:, :2]
        low, high = bounds or (lowest, highest)
        return of(sides.prod(dim=1).sqrt(), sides).clamp(low, high)

    return level


ANCHOR_COUNTS = {
    "these are the cells: each has nine anchors": 8160,
    "P6 is missing: a stride of 64": 72576,
    "P7 is not among them": 73656,
    "that is P3 alone": 55296,
    "the levels are not equally large: strides 8, 16, 32, 64": 221184.0,
    "For each level cells down": 7,
    "a number is needed, got str": "73,440",
}
FPN_LEVELS = {
    "a level is a whole number: round down": root_levels(lambda r, _: 4 + (r / 224).log2()),
    "round down, not to the nearest": root_levels(lambda r, _: (4 + (r / 224).log2()).round()),
    "some levels do not exist: clamp": root_levels(
        lambda r, _: (4 + (r / 224).log2()).floor(), (-99, 99)
    ),
    "take the root of the area": root_levels(lambda r, _: (4 + (r**2 / 224).log2()).floor()),
    "log2, not the natural logarithm": root_levels(lambda r, _: (4 + (r / 224).log()).floor()),
    "not the width alone": root_levels(lambda _, s: (4 + (s[:, 0] / 224).log2()).floor()),
    "with lowest=3 no region may go to level 2": root_levels(
        lambda r, _: (4 + (r / 224).log2()).floor()
    ),
    "the level must have shape (8,), got (8, 4)": lambda boxes, **_: boxes,
}
EXTRA = {
    "two maps are wanted, [P6, P7]": lambda c5, a, b: a(c5),
    "P6 itself has no ReLU: only what goes on to P7 has": lambda c5, a, b: [
        a(c5).relu(),
        b(a(c5).relu()),
    ],
    "the ReLU between P6 and P7 is missing": lambda c5, a, b: [a(c5), b(a(c5))],
    "no ReLU after P7: it is the last": lambda c5, a, b: [a(c5), b(a(c5).relu()).relu()],
    "P6 must have shape (2, 4, 7, 4), got (2, 8, 13, 7)": lambda c5, a, b: [c5, c5],
    "P7 must be a torch tensor, got NoneType": lambda c5, a, b: [a(c5), None],
}


def voting(may):
    """Box voting with the weights (n, m) that `may` gives."""

    def vote(kept, everything):
        weights = may(kept, everything).float()
        return weights @ everything["boxes"] / weights.sum(dim=1, keepdim=True)

    return vote


def near(kept, everything):
    return box_iou(kept["boxes"], everything["boxes"]) >= 0.65


def same_class(kept, everything):
    return kept["labels"][:, None] == everything["labels"]


VOTES = {
    "only boxes of the same class may vote": voting(lambda k, e: near(k, e) * e["scores"]),
    "weigh each box by its score": voting(lambda k, e: near(k, e) & same_class(k, e)),
    "the boxes differs in": voting(lambda k, e: same_class(k, e) * e["scores"]),
    "the boxes must have shape (3, 4), got (5, 4)": lambda k, e: e["boxes"],
}
MISTAKES |= {"fpn_retinanet.q1": ANCHOR_COUNTS, "fpn_retinanet.q2": FPN_LEVELS}
MISTAKES |= {"fpn_retinanet.q3": EXTRA, "fpn_retinanet.q4": VOTES}


def paired(overlap, least=0.0, copy=True):
    """Each object's own box, the highest IoU first, with what a mistake exchanges."""
    left = overlap.clone() if copy else overlap
    chosen = torch.full((left.shape[1],), -1)
    while left.max() > least:
        at = int(left.argmax())
        box, thing = at // left.shape[1], at % left.shape[1]
        chosen[thing] = box
        left[box] = -1
        left[:, thing] = -1
    return chosen


def in_turn(order):
    """Each object takes its best free box when its turn comes."""

    def own_boxes(overlap):
        left, chosen = overlap.clone(), torch.full((overlap.shape[1],), -1)
        for thing in order(overlap):
            chosen[thing] = left[:, thing].argmax()
            left[chosen[thing]] = -1
        return chosen

    return own_boxes


def largest_sum(overlap):
    chosen = torch.full((overlap.shape[1],), -1)
    boxes, things = linear_sum_assignment(overlap, maximize=True)
    chosen[torch.from_numpy(things)] = torch.from_numpy(boxes)
    return chosen


OWN_BOXES = {
    "each needs a box of its own": lambda o: o.argmax(dim=0),
    "who loses takes its next best": lambda o: paired(o, least=0.3),
    "not in the order of the list": in_turn(lambda o: range(o.shape[1])),
    "look again after each pair": in_turn(lambda o: o.amax(dim=0).argsort().flip(0)),
    "these have the largest sum of IoUs": largest_sum,
    "you changed the caller's IoUs": lambda o: paired(o, copy=False),
    "with one box for two objects": lambda o: paired(o).clamp(min=0),
    "(a column of zeros) has none: -1": lambda o: paired(o, least=-0.5),
    "the boxes must have shape (4,), got (5,)": lambda o: o.argmax(dim=1),
    "the boxes must be a torch tensor, got list": lambda o: paired(o).tolist(),
    "places, first at": lambda o: torch.full((o.shape[1],), 3),
}


def summed(which, division=1):
    """The losses of the positives and of those of the negatives, sorted, that `which` takes."""

    def mined(loss, positive, ratio=3):
        negatives = loss[~positive].sort(descending=True).values
        return (
            loss[positive].sum() + which(negatives, ratio, int(positive.sum())).sum()
        ) / division

    return mined


MINED = {
    "2 negatives for 2 positives": summed(lambda v, r, n: v[:n]),
    "the positives count, too": lambda v, p, ratio: (
        v[~p].sort(descending=True).values[: ratio * int(p.sum())].sum()
    ),
    "these are the easiest negatives": summed(lambda v, r, n: v.flip(0)[: r * n]),
    "not all negatives": summed(lambda v, r, n: v),
    "the sum is asked for, nothing divided": summed(lambda v, r, n: v[: r * n], 2),
    "125 is expected": lambda v, p, ratio: 3.0,
    "where fewer negatives are left": summed(lambda v, r, n: v[: r * n] * (len(v) >= r * n)),
    "without a positive nothing counts": summed(lambda v, r, n: v[: max(1, r * n)]),
}
BOX_COUNTS = {
    "these are the cells: each has several boxes": 5461,
    "the first map and the last two have only 4": 32766,
    "the maps in the middle have 6": 21844,
    "a map of 64 cells a side has 64 × 64 cells": 628,
    "that is SSD300": 8732,
    "For each map cells": 3,
    "a number is needed, got str": "24,564",
}


def enlarged(images, factor, mode="bilinear"):
    return F.interpolate(images, scale_factor=factor, mode=mode)


def with_margin(images, factor):
    height, width = images.shape[2:]
    return F.pad(images, (0, int(width * factor) - width, 0, int(height * factor) - height))


def both(here, there):
    """One dictionary of two."""
    return {key: torch.cat([here[key], there[key]]) for key in here}


def joined(back=lambda boxes, f: boxes / f, first=lambda boxes, f: boxes, ask=enlarged, join=both):
    """Detections of images and of the same enlarged, with what a mistake exchanges."""

    def ask_twice(detect, images, factor=1.25):
        found = []
        for here, there in zip(detect(images), detect(ask(images, factor))):
            here = here | {"boxes": first(here["boxes"], factor)}
            there = there | {"boxes": back(there["boxes"], factor)}
            found.append(join(here, there))
        return found

    return ask_twice


def suppressed(here, there):
    one = both(here, there)
    return {key: one[key][batched_nms(*one.values(), 0.5)] for key in one}


TWICE = {
    "a list with one dictionary per image is wanted": lambda d, x, f: d(x)[0],
    "scores is missing": joined(join=lambda a, b: {"boxes": a["boxes"]}),
    "labels must be a torch tensor, got list": joined(
        join=lambda a, b: both(a, b) | {"labels": [0, 0]}
    ),
    "ask about the enlarged image, too": lambda d, x, f: [both(one, one) for one in d(x)],
    "makes 80 × 120 pixels of 64 × 96, not 51 × 76": joined(ask=lambda x, f: enlarged(x, 1 / f)),
    "makes 80 × 120 pixels of 64 × 96, not 64 × 120": joined(ask=lambda x, f: enlarged(x, (1, f))),
    "a factor of 1.5 makes 96 × 144": joined(ask=lambda x, f: enlarged(x, 1.25)),
    "the answer about the enlarged image alone": joined(join=lambda a, b: b),
    "are needed, got 2, 1 and 1": joined(join=lambda a, b: a | {"boxes": both(a, b)["boxes"]}),
    "1 of each answer, were expected before any suppression, got 1": joined(join=suppressed),
    "the scores differs": joined(join=lambda a, b: both(a, b | {"scores": a["scores"]})),
    "the labels differs": joined(join=lambda a, b: both(a, b | {"labels": a["labels"] - 1})),
    "still lie in the pixels of the enlarged image": joined(lambda boxes, f: boxes),
    "the second boxes grow once more": joined(lambda boxes, f: boxes * f),
    "the first boxes lie in the pixels of the original": joined(first=lambda boxes, f: boxes / f),
    "these are the pixels of the enlarged image": joined(
        lambda boxes, f: boxes, lambda boxes, f: boxes * f
    ),
    "the boxes differs": joined(lambda boxes, f: boxes / f - 8),
    'not by repeating them (mode="nearest")': joined(ask=lambda x, f: enlarged(x, f, "nearest")),
    "enlarge by blending pixels": joined(lambda boxes, f: boxes, ask=with_margin),
}
MISTAKES |= {"ssd.q1": BOX_COUNTS, "ssd.q2": OWN_BOXES, "ssd.q3": MINED, "ssd.q4": TWICE}

CENTERNESS = {
    "the square root is missing": 0.2,
    "both directions count: left and right, top and bottom": 0.6,
    "compare left with right and top with bottom, not all four": 0.25,
    "divide by the longer distance, not by the side of the box": 0.3062,
    "opposite sides belong together: left with right": 0.559,
    "the shorter distance is divided by the longer one": 2.236,
    "First l, t, r, b; then two ratios and a root": 0.9,
    "a number is needed, got str": "0.447",
}


def level_without(**rules):
    """Exercise 2 with what a mistake exchanges; bounds may be exchanged, too."""
    bounds = {key: rules.pop(key) for key in ("low", "high") if key in rules}

    def assign_level(at, boxes, low, high):
        if len(boxes) == 0:
            return torch.full((len(at),), -1)
        return fcos._match(bounds.get("low", low), bounds.get("high", high), boxes, **rules)

    return assign_level


def fails_on_nothing(at, boxes, low, high):
    answer = fcos._match(low, high, boxes) if len(boxes) else torch.zeros(len(at)).long()
    return answer


ASSIGNED = {
    "the one with the smallest area is meant": level_without(order="first"),
    "the smallest is meant, not the last": level_without(order="last"),
    "a negative distance means outside: all four must be positive": level_without(
        inside="anywhere"
    ),
    "a location on the border is not inside: all four must be above 0": level_without(
        inside="closed"
    ),
    "it is the size of the object that must lie in the range": level_without(of="amax"),
    "the size is the root of the area": level_without(of="area"),
    "the range has an upper end, too": level_without(high=math.inf),
    "the range has a lower end, too": level_without(low=-1.0),
    "the range does not contain its upper end": level_without(closed=True),
    "in an image without objects the object differs in 48 of 48": fails_on_nothing,
    "the object must have shape (48,), got (48, 2)": lambda at, *_: at,
    "must be a torch tensor, got list": lambda at, b, low, high: fcos._match(low, high).tolist(),
}


def generalised(of, pick=torch.maximum):
    """`of` the intersection, the areas' sum and the hull of distances (P, 4)."""

    def giou(pred, target):
        shared, hull = fcos._area(torch.minimum(pred, target)), fcos._area(pick(pred, target))
        return of(shared, fcos._area(pred) + fcos._area(target), hull)

    return giou


GIOU = {
    "that is the IoU: the hull is missing": generalised(lambda i, a, h: i / (a - i)),
    "divide by the hull, not by the union": generalised(
        lambda i, a, h: i / (a - i) - (h - a + i) / (a - i)
    ),
    "that is the loss, 1 - GIoU": generalised(lambda i, a, h: 1 - i / (a - i) + (h - a + i) / h),
    "subtract what neither covers, not what is outside the intersection": generalised(
        lambda i, a, h: i / (a - i) - (h - i) / h
    ),
    "the union counts the intersection once": generalised(lambda i, a, h: i / a - (h - a) / h),
    "the hull takes the longer distance of each side": generalised(
        lambda i, a, h: i / (a - i) - (h - a + i) / h, torch.minimum
    ),
    "the GIoU must have shape (50,), got (50, 4)": lambda pred, target: pred,
}
MIRRORED = dict(fcos.SLIPS) | {
    "three lists are wanted: logits, distances, centre-ness": lambda model, x: model(x)[0][0],
    "each of the three lists has three maps, one per level": lambda model, x: [
        maps[0] for maps in model(x)
    ],
    "the logits of level 2 must have shape (2, 3, 8, 12), got (2, 3, 4, 6)": lambda model, x: [
        maps[::-1][1:] + maps[:1] for maps in model(x)
    ],
}
MISTAKES |= {"fcos.q1": CENTERNESS, "fcos.q2": ASSIGNED, "fcos.q3": GIOU, "fcos.q4": MIRRORED}
PAIRS_OF_COSTS = {
    "the other way round": (15, 12),
    "each row and each column only once": (9, 15),
    "two objects must not share a query": (7.0, 15.0),
    "the first is what greed pays": (15, 15),
    "the first is right; greed takes the cheapest cell": (12, 16),
    "There are only six pairings": (13, 15),
    "a pair (optimal, greedy) is needed, got int": 12,
}


def attend_by(root=6**0.5, mask=lambda z, inside: z.masked_fill(~inside, -math.inf), mix=None):
    """Attention of one query with what a mistake exchanges."""

    def attend(query, keys, values, inside):
        weights = mask(keys @ query / root, inside)
        return mix(weights, inside) @ values if mix else weights.softmax(dim=0) @ values

    return attend


ATTENDED = {
    "padding still counts: the mask was not used": attend_by(mask=lambda z, inside: z),
    "a score of 0 is not a weight of 0": attend_by(mask=lambda z, inside: z * inside),
    "mask before the softmax": attend_by(
        mask=lambda z, inside: z, mix=lambda z, inside: z.softmax(dim=0) * inside
    ),
    "the wrong way round: True is image": attend_by(
        mask=lambda z, inside: z.masked_fill(inside, -math.inf)
    ),
    "divide the products by the root of d": attend_by(root=1.0),
    "divide by the root of d, not by d": attend_by(root=6.0),
    "the root of the keys' width, not of their number": attend_by(root=5**0.5),
    "the softmax is missing": attend_by(mask=lambda z, inside: z * inside, mix=lambda z, inside: z),
    "the answer must have shape (3,), got (5,)": lambda q, k, v, inside: (k @ q).softmax(dim=0),
    "the answer differs in": lambda q, k, v, inside: v.mean(dim=0),
}


def many_by(spread=lambda cost, k: cost.repeat(1, k), name=lambda copies, cost, k: copies % 3):
    """Many-to-one matching with what a mistake exchanges."""

    def many_to_one(cost, k):
        queries, copies = linear_sum_assignment(spread(cost, k))
        return queries, name(copies, cost, k)

    return many_to_one


MANY = {
    "two lists are wanted, queries and objects": lambda cost, k: cost,
    "9 pairs are wanted for k = 3, got 3 and 3": many_by(lambda cost, k: cost),
    "there are 3 objects, numbered from 0, and you name object 8": many_by(
        name=lambda copies, cost, k: copies
    ),
    "each object must come k = 1 times, and you have [0, 0, 0]": many_by(
        name=lambda copies, cost, k: copies * 0
    ),
    "a query can be taught one object only: some query comes twice": lambda cost, k: (
        list(linear_sum_assignment(cost)[0]) * k,
        list(linear_sum_assignment(cost)[1]) * k,
    ),
    "and 0.": lambda cost, k: (list(range(3 * k)), [i % 3 for i in range(3 * k)]),
}


def merged_by(pairs=True, mean_boxes=True, mean_said=True):
    """The mean of two looks with what a mistake leaves out."""

    def merge(boxes, said, other, theirs):
        if pairs:
            order = linear_sum_assignment(torch.cdist(boxes, other, p=1))[1]
            other, theirs = other[order], theirs[order]
        return (
            (boxes + other) / 2 if mean_boxes else boxes,
            (said + theirs) / 2 if mean_said else said,
        )

    return merge


LOOKS = {
    "two tensors are wanted, boxes and probabilities": lambda boxes, *_: boxes,
    "query i of the mirror image is not query i here: match the boxes first": merged_by(False),
    "the mean of both looks, not the first": merged_by(mean_boxes=False),
    "the probabilities want a mean, too": merged_by(mean_said=False),
}
MISTAKES |= {
    "detr.q1": PAIRS_OF_COSTS,
    "detr.q2": ATTENDED,
    "detr.q3": MANY,
    "detr.q4": LOOKS,
}
TILES = {
    "the overlap is missing: tiles begin every 512 - 128 pixels": 48,
    "the last tile of each row and column is missing": 70,
    "rows times columns, not plus": 19,
    "that is one row": 11,
    "that is one column": 8,
    "Count the corners of a row, and those of a column": 7,
}


def as_line(box, integer=int):
    """A reader of YOLO's lines whose box comes from (x, y, w, h, width, height)."""

    def read(line, width, height):
        label, *numbers = line.split()
        return integer(label), box(*map(float, numbers), width, height)

    return read


def corners_of(x, y, w, h, width, height):
    left, top = (x - w / 2) * width, (y - h / 2) * height
    return left, top, left + w * width, top + h * height


LINES = {
    "two things are wanted, the class and the box": lambda line, w, h: [1, 2],
    "the class of '0 0.5 0.5 0.2 0.4' is the number 0, got '0'": as_line(corners_of, str),
    "that is in units of the image": as_line(lambda x, y, w, h, *_: corners_of(x, y, w, h, 1, 1)),
    "x goes with the width, y with the height": as_line(
        lambda x, y, w, h, width, height: corners_of(x, y, w, h, height, width)
    ),
    "x and y are the centre: a box begins half its size before": as_line(
        lambda x, y, w, h, *size: corners_of(x + w / 2, y + h / 2, w, h, *size)
    ),
    "width and height are no corner: add them": as_line(
        lambda x, y, w, h, width, height: (
            *corners_of(x, y, w, h, width, height)[:2],
            w * width,
            h * height,
        )
    ),
    "half of the size on each side": as_line(
        lambda x, y, w, h, *size: corners_of(x, y, 2 * w, 2 * h, *size)
    ),
    "in 200 × 100 pixels is [80.0, 30.0, 120.0, 70.0], got": as_line(lambda *_: (1, 2, 3, 4)),
}
DIVIDED = {  # b: boxes (M, 4), r: row
    "two masks are wanted, got Tensor": lambda b, r: b[:, 3] <= r,
    "by their middle: the tree on the line is in both photographs then": lambda b, r: (
        b[:, 1] + b[:, 3] <= 2 * r,
        b[:, 1] + b[:, 3] > 2 * r,
    ),
    "above: the whole tree, its far side as well": lambda b, r: (b[:, 1] < r, b[:, 1] >= r),
    "below: the whole tree, its far side as well": lambda b, r: (b[:, 3] <= r, b[:, 3] > r),
    "the mask above must have shape (5,), got (1,)": lambda b, r: (b[:1, 3] <= r, b[:, 1] >= r),
    "the mask below must be of type bool": lambda b, r: (b[:, 3] <= r, (b[:, 1] >= r).float()),
}
MISTAKES |= {"own_data.q1": TILES, "own_data.q2": LINES, "own_data.q3": DIVIDED}
CASES = [(place, said) for place, mistakes in MISTAKES.items() for said in mistakes]


@pytest.mark.parametrize("place, said", CASES)
def test_a_check_names_the_mistake(place, said):
    message = EVERY[place].verdict(MISTAKES[place][said])
    assert message.startswith("✗") and said in message


def mined_by_topk(loss, positive, ratio):
    negatives = loss[~positive]
    return (
        loss[positive].sum() + negatives.topk(min(len(negatives), ratio * positive.sum()))[0].sum()
    )


def one_by_one(detect, images, factor=1.25):
    return [joined()(detect, image[None], factor)[0] for image in images]


RIGHT = {
    "fpn_retinanet.q1": [73440, 73440.0, np.int64(73440)],
    "fpn_retinanet.q2": [
        lambda boxes, lowest=2, highest=5: torch.tensor(
            [
                min(max(int(4 + np.log2(np.sqrt((c - a) * (d - b)) / 224) // 1), lowest), highest)
                for a, b, c, d in boxes.tolist()
            ]
        ),
    ],
    "fpn_retinanet.q3": [lambda c5, a, b: (a(c5), b(torch.relu(a(c5))))],
    "ssd.q1": [24564, 24564.0],
    "ssd.q2": [paired, lambda o: paired(o.double()).float()],
    "ssd.q3": [summed(lambda v, r, n: v[: r * n]), lambda v, p, ratio: mined_by_topk(v, p, ratio)],
    "ssd.q4": [joined(), joined(join=lambda here, there: both(there, here)), one_by_one],
    "fcos.q1": [0.447, 0.4472, math.sqrt(0.2), np.float64(0.447)],
    "fcos.q2": [level_without(), lambda at, b, *range_: level_without()(at.double(), b, *range_)],
    "fcos.q3": [generalised(lambda i, a, h: i / (a - i) - (h - a + i) / h)],
    "detr.q1": [(12, 15), [12.0, 15.0], (np.float64(12), 15)],
    "detr.q2": [attend_by(), lambda q, k, v, i: attend_by()(q, k[i], v[i], i[i])],
    "detr.q3": [many_by(), many_by(lambda c, k: c.repeat_interleave(k, 1), lambda j, c, k: j // k)],
    "faster_rcnn.q1": [43.24, 43.2, 43.3, 44, 44.0, np.float32(43.24), torch.tensor(43.24)],
    "faster_rcnn.q3": [faster_rcnn._torchvision, faster_rcnn._by_grid],
    "yolo.q1": [5915, 5915.0, np.int64(5915), torch.tensor(5915)],
    "yolo.q2": [
        lambda s, a: overlaps(s, a)[1].argmax(1),
        lambda s, a: overlaps(s, a)[1].max(dim=1).indices,
        lambda s, a: torch.stack([overlaps(row[None], a)[1][0].argmax() for row in s]),
    ],
    "fast_rcnn.q1": [98, 98.0, torch.tensor(98)],
    "fast_rcnn.q2": [backward(lambda w, v, g: w * g)],
    "fast_rcnn.q3": [
        box_loss(lambda t, k, n: t[n, k][k > 0].sum() / len(k)),
        box_loss(lambda t, k, n: (t * F.one_hot(k, t.shape[1]))[:, 1:].sum().item() / len(k)),
    ],
    "rcnn.q1": ["ACD", "dca", ["A", "C", "D"], {"A", "C", "D"}],
    "rcnn.q2": [
        strict,
        lambda o, t: torch.from_numpy(strict(o, t)),
        lambda o, t: strict(o, t) + 0.0,
    ],
    "rcnn.q3": [lambda b, s, r: torch.from_numpy(grown(b, s / (s - 2 * r)))],
    "yolo.q3": [
        lambda out, b: out.view(*out.shape[:3], b, -1),
        lambda out, b: torch.stack(out.chunk(b, -1), -2),
    ],
    "boxes.q1": [
        (1 / 3, 1 / 7, 1 / 2),
        [0.3333, 0.1429, 0.5],
        tuple(torch.tensor([1 / 3, 1 / 7, 0.5])),
    ],
    "boxes.q2": [
        lambda h, n: at_hits(h, ahead(h), n),
        lambda h, n: np.float64(
            sum(
                max(p for k, p in enumerate(precisions(h)) if sum(h[: k + 1]) >= i)
                for i in range(1, sum(h) + 1)
            )
            / n
        ),
    ],
    "boxes.q3": [lambda b, s, sigma: softened(b, s, lambda o: torch.exp(-(o**2) / sigma))],
    "own_data.q1": [88, 88.0],
    "own_data.q2": [as_line(corners_of), as_line(lambda *a: torch.tensor(corners_of(*a)), float)],
    "own_data.q3": [
        lambda b, r: [b[:, 3] <= r, b[:, 1] >= r],
        lambda b, r: (r >= b[:, 3], ~(b[:, 1] < r)),
    ],
}


@pytest.mark.parametrize("place", RIGHT)
def test_there_is_more_than_one_right_answer(place):
    q = EVERY[place]
    assert [q.verdict(answer) for answer in RIGHT[place]] == [f"✓ {q.praise}"] * len(RIGHT[place])


@EVERY_MODULE
def test_every_sentence_of_a_module_is_fed_with_its_mistake(module):
    """Sentences are the texts that a diagnosis returns or that stand in a table of mistakes."""
    source = importlib.import_module(f"helpers.exercises.{module}").__file__
    tree = ast.parse(Path(source).read_text(encoding="utf-8"))
    nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.Dict, ast.Return))]
    sentences = {text for node in nodes for text in texts_in(node) if len(text.split()) > 2}
    heard = [
        EVERY[place].verdict(answer)
        for place, mistakes in MISTAKES.items()
        if place.startswith(f"{module}.")
        for answer in mistakes.values()
    ]
    assert len(sentences) > 6
    assert [text for text in sentences if not any(text in said for said in heard)] == []


def texts_in(node):
    """The plain texts in a piece of code; those with numbers in them are tested on their own."""
    inside = list(ast.walk(node))
    parts = {id(v) for n in inside if isinstance(n, ast.JoinedStr) for v in n.values}
    return [
        n.value
        for n in inside
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in parts
    ]


def test_the_worst_place_is_not_the_usual_one():
    """Each training object against an anchor of its own size in the nearest cell centre."""
    objects = torch.cat([t["boxes"] for t in benchmark("train").targets])
    centre, size = (objects[:, :2] + objects[:, 2:]) / 2, objects[:, 2:] - objects[:, :2]
    near = (centre / 8).floor().clamp(0, 15) * 8 + 4
    fit = torch.cat([near - size / 2, near + size / 2], dim=1)
    iou = torch.stack([box_iou(a[None], b[None])[0, 0] for a, b in zip(fit, objects)])
    assert (iou >= 0.7).float().mean().item() == pytest.approx(faster_rcnn.FITTING, abs=0.005)
    assert (size.amax(dim=1) < faster_rcnn.SIDE).float().mean() > 0.5  # although most are smaller


# ---------------------------------------------------------------- the one that moves the AP


def test_more_proposals_are_no_cheat(page):
    """The page's own way gains nothing, and no more proposals than are allowed are read."""
    space = page("faster_rcnn")
    said = EVERY["faster_rcnn.q4"].verdict(space["decode_proposals"])
    after, before, wanted = map(
        float, re.fullmatch(r"✗ AP (.+); decode_proposals has (.+), (.+) is wanted", said).groups()
    )
    assert after == before > 0.6 and wanted == pytest.approx(before + faster_rcnn.GAIN, abs=1e-3)
    tasks = [c.source for c in section_of("faster_rcnn") if c.cell_type == "markdown"]
    assert f" {faster_rcnn.GAIN:g} " in tasks[3] and f" {faster_rcnn.MOST} " in tasks[3]


def flipped(model, images):
    return model(images.flip(3))


def flipped_back(model, images):
    return flipped(model, images).flip(2)


def once(model, images):
    return model(images)


def test_no_gain_is_told_in_numbers():
    found = {}
    for answer in (once, flipped, flipped_back):
        said = EVERY["yolo.q4"].verdict(answer)
        numbers = re.match(r"✗ AP (.+); asked once it is (.+), (.+) is wanted(\. Do)?", said)
        assert numbers, said
        found[answer.__name__] = list(map(float, numbers.groups()[:3]))
        assert bool(numbers[4]) == (answer is not once), said
    after, before, wanted = found["once"]
    assert after == before > 0.5 and wanted == pytest.approx(before + yolo.GAIN, abs=1e-3)


@pytest.mark.parametrize("answer", [torch.zeros(3), "forms", [torch.zeros(100, 16, 16, 2, 8)]])
def test_forms_are_asked_for(answer):
    assert "forms of shape" in EVERY["yolo.q4"].verdict(lambda model, images: answer)


def test_the_page_names_the_gain_that_is_wanted():
    tasks = [cell.source for cell in section_of("yolo") if cell.cell_type == "markdown"]
    assert f" {yolo.GAIN:g} " in tasks[3]


def test_the_gain_is_that_of_the_official_ap(page):
    """The check's numbers, by another way: the network and the images, without the check."""
    space = page("yolo")
    model = space["YOLODetector"]()
    model.load_state_dict(records.load_weights("05_yolo", records.WEIGHTS))
    images, targets = benchmark("val").images[:100], benchmark("val").targets[:100]
    images = to_input(images, torch.device("cpu"))
    ways = (once, solved(EVERY["yolo.q4"], space))
    with torch.no_grad():
        forms = [way(model.eval(), images) for way in ways]
    before, after = (
        coco_ap(space["decode_predictions"](f, (128, 128)), targets)["AP"] for f in forms
    )
    assert after >= before + yolo.GAIN


def test_reports_that_are_read_together_move_the_ap():
    q = EVERY["boxes.q4"]
    said = {
        "as they are": q.verdict(lambda d: d),
        "another threshold": q.verdict(
            lambda d: {k: d[k][batched_nms(*d.values(), 0.3)] for k in d}
        ),
        "nothing": q.verdict(lambda d: {k: d[k][:0] for k in d}),
    }
    rows = {}
    for name, sentence in said.items():
        numbers = re.fullmatch(r"✗ AP (.+); nms_per_class has (.+), (.+) is wanted", sentence)
        assert numbers, sentence
        rows[name] = list(map(float, numbers.groups()))
    assert rows["nothing"][0] == 0 and rows["as they are"][0] < rows["nothing"][1]
    for after, before, wanted in rows.values():
        assert after < wanted == pytest.approx(before + boxes.GAIN, abs=1e-3)
    tasks = [cell.source for cell in section_of("boxes") if cell.cell_type == "markdown"]
    assert f" {boxes.GAIN:g} " in tasks[3] and f" {boxes.IMAGES} images" in tasks[3]


def test_the_same_answer_twice_is_no_gain():
    """What moves the AP is the question about the enlarged image."""

    def ask_twice(detect, images, factor=None):
        if factor:  # the check's own small images: as asked
            return joined()(detect, images, factor)
        return [both(one, one) for one in detect(images)]

    said = EVERY["ssd.q4"].verdict(ask_twice)
    numbers = re.fullmatch(r"✗ AP (.+); asked once it is (.+), (.+) is wanted", said)
    assert numbers, said
    after, before, wanted = map(float, numbers.groups())
    assert after == before > 0.5 and wanted == pytest.approx(before + ssd.GAIN, abs=1e-3)
    tasks = [cell.source for cell in section_of("ssd") if cell.cell_type == "markdown"]
    assert f" {ssd.GAIN:g} " in tasks[3]


def test_the_gain_is_told_by_size(page):
    """The check's numbers, by another way: the page's network, read at two sizes."""
    q, space = EVERY["ssd.q4"], page("ssd")
    said = q.verdict(solved(q, dict(space)))
    model = space["SSD"]().eval()
    model.load_state_dict(records.load_weights("06_ssd", records.WEIGHTS))
    images, targets = benchmark("val").images[:100], benchmark("val").targets[:100]
    images, found = to_input(images, torch.device("cpu")), []
    with torch.no_grad():
        for batch in (images, enlarged(images, 1.25)):
            size = tuple(batch.shape[2:])
            found.append(space["decode"](model(batch), size, iou=1.0, top=1000))
    for there in found[1]:
        there["boxes"] /= 1.25
    joint = [suppressed(here, there) for here, there in zip(*found)]
    once = space["decode"](model(images), (128, 128))
    before, after = (coco_ap(answer, targets) for answer in (once, joint))
    small, medium, large = (
        after[name] - before[name] for name in ("AP_small", "AP_medium", "AP_large")
    )
    by_size = f"small objects {small:+.3f}, medium {medium:+.3f}, large {large:+.3f}"
    assert said == f"✓ AP {before['AP']:.3f} → {after['AP']:.3f}: {by_size}"


def test_asked_once_is_no_gain_for_fcos(page):
    """The trained network's own answers: as good as they are, and told in numbers."""
    space, asked = page("fcos"), []

    def ask_twice(model, images):
        asked.append(images.shape)
        is_check = images.shape[2:] == (32, 48)  # the check's own small images: as asked
        return fcos._mirrored()(model, images) if is_check else model(images)

    said = EVERY["fcos.q4"].verdict(ask_twice)
    numbers = re.fullmatch(r"✗ AP (.+); asked once it is (.+), (.+) is wanted", said)
    assert numbers and len(asked) == 2, said
    after, before, wanted = map(float, numbers.groups())
    assert after == before > 0.5 and wanted == pytest.approx(before + fcos.GAIN, abs=1e-3)
    tasks = [cell.source for cell in section_of("fcos") if cell.cell_type == "markdown"]
    assert f" {fcos.GAIN:g} " in tasks[3]
    assert EVERY["fcos.q4"].verdict(solved(EVERY["fcos.q4"], dict(space))).startswith("✓ AP 0.")


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda detect, turned, image: detect(image), "boxes and scores are wanted, got dict"),
        (
            lambda detect, turned, image: (torch.zeros(2, 4), torch.zeros(3)),
            "boxes (N, 4) and scores (N,) are wanted, got (2, 4) and (3,)",
        ),
    ],
)
def test_boxes_and_scores_are_asked_for(answer, said):
    assert said in EVERY["own_data.q4"].verdict(answer)


def test_views_that_are_not_turned_back_are_noticed():
    def asked_once(detect, turned, image):
        return tuple(detect(image)[key] for key in ("boxes", "scores"))

    def not_back(detect, turned, image):
        return asked_once(detect, turned, turned(image, torch.zeros(0, 4), 1)[0])

    said = [EVERY["own_data.q4"].verdict(answer) for answer in (asked_once, not_back)]
    assert "What do two views say of one tree" in said[0] and "turned back?" in said[1]
    once, wanted = re.search(r"asked once it is (\S+), (\S+) is wanted", said[0]).groups()
    assert float(wanted) == pytest.approx(float(once) + own_data.GAIN, abs=1e-3)
    tasks = [cell.source for cell in section_of("own_data") if cell.cell_type == "markdown"]
    assert f" {own_data.GAIN:g} " in tasks[3]


def test_weights_for_the_exercise_are_those_of_the_page(page):
    model = page("yolo")["YOLODetector"]()
    weights = records.load_weights("05_yolo", records.WEIGHTS)
    assert {k: v.shape for k, v in weights.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def as_the_page(space):
    """Every region for every class, moved, and the suppression of lecture 01."""

    def reading(regions_xywh, moved_xywh, scores):
        label = np.tile(np.arange(scores.shape[1]), len(scores))
        boxes = moved_xywh.reshape(-1, 4)
        return space["as_detections"](boxes, scores.ravel(), label, (128, 128), 0.3)

    return reading


def test_no_gain_of_another_reading_is_told_in_numbers(page):
    said = EVERY["rcnn.q4"].verdict(as_the_page(page("rcnn")))
    numbers = re.fullmatch(r"✗ AP (.+); this page's way has (.+), (.+) is wanted", said)
    assert numbers, said
    after, before, wanted = map(float, numbers.groups())
    assert after == before > 0.6 and wanted == pytest.approx(before + rcnn.GAIN, abs=1e-3)
    tasks = [cell.source for cell in section_of("rcnn") if cell.cell_type == "markdown"]
    assert f" {rcnn.GAIN:g} " in tasks[3]


def test_answers_for_the_exercise_are_those_of_the_page():
    kept = records.load_weights("01_rcnn", records.WEIGHTS)
    total = int(kept["counts"].sum())
    shapes = {"counts": (100,), "regions": (total, 4), "moved": (total, 12), "scores": (total, 3)}
    assert {name: tuple(value.shape) for name, value in kept.items()} == shapes
    known = torch.cat(benchmark_proposals("val")[:100])
    boxes = box_convert(kept["regions"], "xywh", "xyxy")
    assert sorted(boxes.tolist()) == sorted(known.tolist())
