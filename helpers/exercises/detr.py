"""The exercises of lecture 08."""

import functools
import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from helpers import detectors, lessons
from helpers.evaluation import coco_ap
from helpers.exercises.exercise import Exercise, mistake
from helpers.records import WEIGHTS, load_weights
from helpers.shapes import benchmark
from helpers.training import pick_device

TABLE = np.array([[1.0, 2, 6], [2, 7, 9], [4, 5, 8]])


def _costs(answer) -> str | None:
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        return f"a pair (optimal, greedy) is needed, got {type(answer).__name__}"
    optimal, greedy = TABLE[linear_sum_assignment(TABLE)].sum(), 1.0 + 5 + 9
    if tuple(answer) == (optimal, greedy):
        return None
    if tuple(answer) == (greedy, optimal):
        return "the other way round: the optimal pairing cannot be dearer than the greedy one"
    if answer[0] in (TABLE.min(axis=0).sum(), TABLE.min(axis=1).sum()):
        return "each row and each column only once: two objects must not share a query"
    if answer[0] == greedy:
        return "the first is what greed pays: try pairings without the cheapest cell"
    if answer[0] == optimal:
        return (
            "the first is right; greed takes the cheapest cell, strikes its row and column, goes on"
        )
    return f"{tuple(answer)}? There are only six pairings: write them down"


q1 = Exercise(
    "detr.q1",
    "costs",
    _costs,
    ["Greed begins with the 1: which rows and columns are left?", "Six pairings, six sums."],
    "greed takes the 1 first, and pays for it",
)


def _attend(attend) -> str | None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*shape, generator=g) for shape in ((6,), (5, 6), (5, 3)))
    inside = torch.tensor([True, True, False, True, False])
    dots, root = k @ q, math.sqrt(6)

    def answer_of(scores):
        return scores.softmax(dim=0) @ v

    def hidden(scores, by=-math.inf):
        return scores.masked_fill(~inside, by)

    weights = (dots / root).softmax(dim=0) * inside
    slips = {
        "padding still counts: the mask was not used": answer_of(dots / root),
        "a score of 0 is not a weight of 0: exp(0) is 1": answer_of(hidden(dots / root, 0.0)),
        "the weights of what is left must sum to 1: mask before the softmax": weights @ v,
        "the wrong way round: True is image": answer_of(
            (dots / root).masked_fill(inside, -math.inf)
        ),
        "divide the products by the root of d": answer_of(hidden(dots)),
        "divide by the root of d, not by d": answer_of(hidden(dots / 6)),
        "the root of the keys' width, not of their number": answer_of(hidden(dots / math.sqrt(5))),
        "the softmax is missing": (dots / root * inside) @ v,
    }
    answer = attend(q.clone(), k.clone(), v.clone(), inside.clone())
    return mistake(answer, answer_of(hidden(dots / root)), "the answer", slips)


q2 = Exercise(
    "detr.q2",
    "attend",
    _attend,
    [
        "First one score per key, then what padding may not have, then the weights.",
        "What must a score be so that its exponential is 0?",
    ],
    "padding gets the weight 0, and the others sum to 1",
)


def _many_to_one(many_to_one) -> str | None:
    cost = torch.rand(9, 3, generator=torch.Generator().manual_seed(1))
    for k in (1, 3, 2):
        pairs = many_to_one(cost.clone(), k)
        if not isinstance(pairs, (tuple, list)) or len(pairs) != 2:
            return "two lists are wanted, queries and objects"
        queries, objects = (torch.as_tensor(side).flatten().tolist() for side in pairs)
        if len(queries) != 3 * k or len(objects) != 3 * k:
            return f"{3 * k} pairs are wanted for k = {k}, got {len(queries)} and {len(objects)}"
        if max(objects) > 2:
            return f"there are 3 objects, numbered from 0, and you name object {max(objects)}"
        if sorted(objects) != sorted([*range(3)] * k):
            return f"each object must come k = {k} times, and you have {sorted(objects)}"
        if len(set(queries)) < len(queries):
            return "a query can be taught one object only: some query comes twice"
        table = np.tile(cost.numpy(), (1, k))
        least = table[linear_sum_assignment(table)].sum()
        total = float(cost[queries, objects].sum())
        if total > least + 1e-5:
            return f"for k = {k} it costs {total:.3f}, and {least:.3f} is the least"
    return None


q3 = Exercise(
    "detr.q3",
    "many_to_one",
    _many_to_one,
    [
        "Pretend that each object is there k times.",
        "Put k copies of the table side by side; which object does column M stand for?",
    ],
    "k copies of each object, and the matching does the rest",
)

GAIN = 0.005  # AP


@functools.cache
@torch.no_grad()
def _trained():
    """Of 100 validation images boxes and probabilities, seen as they are and in a mirror."""
    lesson, data, device = lessons.load("08_detr"), benchmark("val"), pick_device()
    lesson.DEVICE = device
    model = lesson.slim_detr().to(device).eval()
    model.load_state_dict(load_weights("08_detr", WEIGHTS))
    images = detectors.to_input(data.images[:100], device)
    (here, boxes), (there, mirrored) = (
        [side.float().cpu() for side in model(seen)[-1]] for seen in (images, images.flip(3))
    )
    mirrored = torch.cat([1 - mirrored[..., :1], mirrored[..., 1:]], dim=-1)
    looks = boxes, here.softmax(dim=2), mirrored, there.softmax(dim=2)
    return looks, _ap(*looks[:2])


def _ap(boxes, probabilities) -> float:
    """AP of answers (100, 16, 4) and (100, 16, K + 1)."""
    sizes = torch.full((len(boxes), 2), 128.0)
    found = lessons.load("08_detr").read_answers(probabilities.clamp(min=1e-9).log(), boxes, sizes)
    return coco_ap(found, benchmark("val").targets[: len(found)])["AP"]


def _merge(merge) -> str | None:
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.6, 0.6, 0.2, 0.2], [0.9, 0.3, 0.1, 0.3]])
    said = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    order = torch.tensor([2, 0, 1])  # the other look has the same answers elsewhere
    other, theirs = boxes[order] + 0.02, said[order].roll(1, dims=1)
    back = order.argsort()
    expected = (boxes + other[back]) / 2, (said + theirs[back]) / 2
    answer = merge(boxes.clone(), said.clone(), other.clone(), theirs.clone())
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        return "two tensors are wanted, boxes and probabilities"
    unmatched = "query i of the mirror image is not query i here: match the boxes first"
    slips = [
        {unmatched: (boxes + other) / 2, "the mean of both looks, not the first": boxes},
        {unmatched: (said + theirs) / 2, "the probabilities want a mean, too": said},
    ]
    for name, got, want, slip in zip(("boxes", "probabilities"), answer, expected, slips):
        wrong = mistake(got, want, name, slip)
        if wrong:
            return wrong
    looks, before = _trained()
    merged = [torch.stack(side) for side in zip(*(merge(*look) for look in zip(*looks)))]
    after = _ap(*merged)
    if math.isnan(after) or after < before + GAIN:
        return f"AP {after:.3f}; with one look it is {before:.3f}, {before + GAIN:.3f} is wanted"
    return None


q4 = Exercise(
    "detr.q4",
    "merge",
    _merge,
    [
        "A table of distances (16, 16) is torch.cdist with p=1.",
        "linear_sum_assignment gives each row its column: take the other answers in that order.",
    ],
    "two looks err in different ways, and their mean errs less",
)
