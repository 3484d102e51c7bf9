"""The exercises of lecture 07."""

import functools
import math

import torch
from torch import nn
from torchvision.ops import generalized_box_iou

from helpers import detectors, lessons
from helpers.evaluation import coco_ap
from helpers.exercises.exercise import Exercise, difference, mistake
from helpers.records import WEIGHTS, load_weights
from helpers.shapes import benchmark
from helpers.training import pick_device


def _centerness(answer) -> str | None:
    right = math.sqrt(15 / 25 * 20 / 60)
    known = {
        right**2: "the square root is missing",
        15 / 25: "both directions count: left and right, top and bottom",
        15 / 60: "compare left with right and top with bottom, not all four",
        math.sqrt(15 / 40 * 20 / 80): "divide by the longer distance, not by the side of the box",
        math.sqrt(15 / 20 * 25 / 60): "opposite sides belong together: left with right",
        math.sqrt(25 / 15 * 60 / 20): "the shorter distance is divided by the longer one",
    }
    if not isinstance(answer, (int, float)) or isinstance(answer, bool):
        return f"a number is needed, got {type(answer).__name__}"
    if math.isclose(answer, right, abs_tol=6e-4):
        return None
    near = [sentence for value, sentence in known.items() if abs(answer - value) < 6e-4]
    return near[0] if near else f"{answer}? First l, t, r, b; then two ratios and a root"


q1 = Exercise(
    "fcos.q1",
    "answer",
    _centerness,
    ["l, t, r, b = 15, 20, 25, 60.", "The root of 15 / 25 times 20 / 60."],
    "already less than a half, a quarter of the way down",
)

# A level of stride 8 on 48 x 64 pixels: objects in objects, sides on locations, one very flat.
GRID = torch.tensor([[8.0 * j + 4, 8.0 * i + 4] for i in range(6) for j in range(8)])
BOXES = torch.tensor(
    [
        [2.0, 2, 40, 40],
        [10, 10, 34, 30],
        [14, 12, 26, 22],
        [40, 20, 62, 46],
        [42, 22, 62, 44],
        [44, 0, 60, 16],
        [4, 20, 62, 36],
    ]
)
RANGES = ((0.0, 16.0), (16.0, 32.0), (12.0, 30.0), (0.0, math.inf))


def _match(low, high, boxes=BOXES, inside="open", of="size", order="area", closed=False):
    """The object of each location of GRID, with what a mistake exchanges."""
    ltrb = torch.cat([GRID[:, None] - boxes[:, :2], boxes[:, 2:] - GRID[:, None]], dim=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    reach = {"size": area.sqrt().expand(len(GRID), -1), "area": area.expand(len(GRID), -1)}
    reach = reach[of] if of in reach else getattr(ltrb, of)(dim=2)
    nearest = ltrb.amin(dim=2)
    within = {"open": nearest > 0, "closed": nearest >= 0, "anywhere": nearest > -math.inf}[inside]
    may = within & (reach >= low) & ((reach <= high) if closed else (reach < high))
    place = torch.arange(len(boxes)).float()
    cost = {"area": area, "first": place, "last": -place}[order]
    least, match = torch.where(may, cost, math.inf).min(dim=1)
    return torch.where(least < math.inf, match, -1)


SLIPPED = {
    "of several objects the one with the smallest area is meant": {"order": "first"},
    "of several objects the smallest is meant, not the last": {"order": "last"},
    "a negative distance means outside: all four must be positive": {"inside": "anywhere"},
    "a location on the border is not inside: all four must be above 0": {"inside": "closed"},
    "it is the size of the object that must lie in the range, not the longest distance": {
        "of": "amax"
    },
    "the size is the root of the area": {"of": "area"},
    "the range has an upper end, too": {"high": math.inf},
    "the range has a lower end, too": {"low": -1.0},
    "the range does not contain its upper end": {"closed": True},
}


def _assign_level(assign_level) -> str | None:
    for low, high in RANGES:
        limits = {"low": low, "high": high}
        slips = {sentence: _match(**limits | slip) for sentence, slip in SLIPPED.items()}
        answer = assign_level(GRID.clone(), BOXES.clone(), low, high)
        wrong = mistake(answer, _match(low, high), "the object", slips)
        if wrong:
            return wrong
    nothing = assign_level(GRID.clone(), torch.zeros(0, 4), 0.0, 64.0)
    wrong = difference(nothing, torch.full((len(GRID),), -1), "the object")
    return f"in an image without objects {wrong}" if wrong else None


q2 = Exercise(
    "fcos.q2",
    "assign_level",
    _assign_level,
    [
        "All distances at once have shape (n, M, 4): at[:, None] against boxes.",
        "Where an object may not be chosen, let its area be infinite; then take the minimum.",
    ],
    "no template, no IoU, no threshold",
)


def _area(ltrb):
    return (ltrb[:, 0] + ltrb[:, 2]) * (ltrb[:, 1] + ltrb[:, 3])


def _giou(giou) -> str | None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(50, 4, generator=generator) * 20 + 0.5 for _ in range(2))
    around = [torch.cat([-d[:, :2], d[:, 2:]], dim=1) for d in (a, b)]
    expected = generalized_box_iou(*around).diagonal()
    both, hull = _area(torch.minimum(a, b)), _area(torch.maximum(a, b))
    union = _area(a) + _area(b) - both
    iou = both / union
    slips = {
        "that is the IoU: the hull is missing": iou,
        "divide by the hull, not by the union": iou - (hull - union) / union,
        "that is the loss, 1 - GIoU": 1 - expected,
        "subtract what neither covers, not what is outside the intersection": (
            iou - (hull - both) / hull
        ),
        "the union counts the intersection once": (
            both / (_area(a) + _area(b)) - (hull - _area(a) - _area(b)) / hull
        ),
        "the hull takes the longer distance of each side": iou - (both - union) / both,
    }
    return mistake(giou(a.clone(), b.clone()), expected, "the GIoU", slips)


q3 = Exercise(
    "fcos.q3",
    "giou",
    _giou,
    [
        "The intersection takes the shorter distance of each side, the hull the longer one.",
        "An area is (l + r) * (t + b), of either.",
    ],
    "a flat and a narrow box around one location overlap, and yet come near -1",
)

GAIN = 0.005  # AP


class _Network(nn.Module):
    """Answers that depend on every pixel and on nothing else, for images of any size."""

    def forward(self, images):
        maps = [images[:, :1, ::s, ::s] for s in (4, 8, 16)]
        logits = [torch.cat([m, 2 * m, 3 * m], dim=1) for m in maps]
        ltrb = [torch.cat([m + 1, m + 2, 3 * m + 3, m + 4], dim=1) for m in maps]
        return logits, ltrb, [m - 1 for m in maps]


def _mirrored(order=(2, 1, 0, 3), axis=3, back=True):
    """A solution of exercise 4, with what a mistake exchanges."""

    def ask(model, images):
        first, second = model(images), model(images.flip(axis))
        lists = []
        for i, pair in enumerate(zip(first, second)):
            maps = []
            for here, there in zip(*pair):
                there = there.flip(axis) if back else there
                maps.append((here + (there[:, list(order)] if i == 1 else there)) / 2)
            lists.append(maps)
        return lists

    return ask


SLIPS = {
    "in the mirror left is right: the distances l and r change places": _mirrored((0, 1, 2, 3)),
    "a mirror does not exchange top and bottom": _mirrored((2, 3, 0, 1)),
    "turn the maps of the mirror image back before the mean": _mirrored(back=False),
    "mirrored is the axis of the columns, the last one": _mirrored((0, 3, 2, 1), axis=2),
    "that is the answer about the image alone": lambda model, images: model(images),
}


def _right_form(answer) -> str | None:
    if not isinstance(answer, (list, tuple)) or len(answer) != 3:
        return "three lists are wanted: logits, distances, centre-ness"
    for maps in answer:
        if not isinstance(maps, (list, tuple)) or len(maps) != 3:
            return "each of the three lists has three maps, one per level"
    return None


def _joined(ask_twice) -> str | None:
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    network, names = _Network(), ("the logits", "the distances", "the centre-ness")
    answer = ask_twice(network, images.clone())
    wrong = _right_form(answer)
    if wrong:
        return wrong
    expected = _mirrored()(network, images)
    for i, name in enumerate(names):
        for level in range(3):
            slips = {}
            for sentence, slip in SLIPS.items():
                slips[sentence] = slip(network, images)[i][level]
            said = mistake(
                answer[i][level], expected[i][level], f"{name} of level {level + 2}", slips
            )
            wrong = wrong or said
    return wrong


@functools.cache
def _trained():
    """The trained network, 100 validation images as input, and the AP of asking once."""
    lesson, data, device = lessons.load("07_fcos"), benchmark("val"), pick_device()
    model = lesson.FCOSDetector().to(device).eval()
    model.load_state_dict(load_weights("07_fcos", WEIGHTS))
    images = detectors.to_input(data.images[:100], device)
    return lesson, model, images, _ap(lesson, model, images, lambda model, images: model(images))


@torch.no_grad()
def _ap(lesson, model, images, ask) -> float:
    found = lesson.decode_predictions(ask(model, images), images.shape[2:])
    found = [{key: values.cpu() for key, values in one.items()} for one in found]
    return coco_ap(found, benchmark("val").targets[: len(found)])["AP"]


def _moves_the_ap(ask_twice) -> str | None:
    wrong = _joined(ask_twice)
    if wrong:
        return wrong
    lesson, model, images, before = _trained()
    after = _ap(lesson, model, images.clone(), ask_twice)
    if math.isnan(after) or after < before + GAIN:
        return f"AP {after:.3f}; asked once it is {before:.3f}, {before + GAIN:.3f} is wanted"
    q4.praise = f"AP {before:.3f} → {after:.3f}"
    return None


q4 = Exercise(
    "fcos.q4",
    "ask_twice",
    _moves_the_ap,
    [
        "images.flip(3) is the mirror image, and a map is turned back in the same way.",
        "Of the distances (N, 4, h, w) the channels 0 and 2 must change places.",
    ],
    "two views, one answer",  # the check says how much that gained
)
