"""The exercises of lecture 06."""

import functools

import torch
from torchvision.ops import batched_nms

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

GAIN = 0.012  # AP
KEYS = ("boxes", "scores", "labels")


@functools.cache
def _trained():
    """A function that detects, 100 validation images as input, and the AP it has on them."""
    lesson, data = lessons.load("06_ssd"), benchmark("val")
    device = pick_device()
    model = lesson.SSD().to(device).eval()
    model.load_state_dict(load_weights("06_ssd", WEIGHTS))
    detect = torch.no_grad()(lesson.detector_of(model, iou=1.0, top=1000))  # nothing suppressed
    images = detectors.to_input(data.images[:100], device)
    return detect, images, _ap(detect(images))


def _ap(found) -> dict[str, float]:
    kept = []
    for one in found:
        boxes, scores, labels = (one[key].cpu() for key in KEYS)
        rows = batched_nms(boxes, scores, labels, 0.5)[:100]
        kept.append({"boxes": boxes[rows], "scores": scores[rows], "labels": labels[rows]})
    return coco_ap(kept, benchmark("val").targets[: len(kept)])


def _bright(images):
    """Detections of the bright rectangle of each image, if it has one: surer in narrow images."""
    found = []
    for image in images:
        channel, y, x = torch.where(image > 0.5)
        corners = [[x.min(), y.min(), x.max() + 1, y.max() + 1]] if len(x) else []
        boxes = torch.tensor(corners, dtype=torch.float).view(-1, 4)
        scores = torch.full((len(boxes),), 1 - image.shape[2] / 200)
        found.append({"boxes": boxes, "scores": scores, "labels": channel[: len(boxes)]})
    return found


def _joined(ask_twice, factor) -> str | None:
    """What is wrong with the answers about two images of one rectangle and one of none."""
    images, asked = torch.zeros(3, 3, 64, 96), []
    images[0, 1, 20:40, 8:28] = images[1, 2, 12:32, 40:80] = 1

    def detect(batch):
        asked.append(batch.clone())
        return _bright(batch)

    found = ask_twice(detect, images.clone(), factor)
    is_list = isinstance(found, list) and all(isinstance(one, dict) for one in found)
    if not is_list or len(found) != len(images):
        return "a list with one dictionary per image is wanted"
    missing = [key for one in found for key in KEYS if key not in one]
    if missing:
        return f"each dictionary needs boxes, scores and labels; {missing[0]} is missing"
    here, wanted = images.shape[2:], torch.Size(int(side * factor) for side in images.shape[2:])
    sizes = {batch.shape[2:] for batch in asked} - {here}
    if not sizes:
        return "the second question is missing: ask about the enlarged image, too"
    for size in sizes - {wanted}:
        text = ["{} × {}".format(*pixels) for pixels in (wanted, here, size)]
        return f"a factor of {factor} makes {text[0]} pixels of {text[1]}, not {text[2]}"
    for one, first in zip(found, _bright(images)):
        wrong = _both(one, first, factor)
        if wrong:
            return wrong
    if not any(((batch > 0.01) & (batch < 0.99)).any() for batch in asked):
        return 'enlarge by blending pixels, not by repeating them (mode="nearest") or by a margin'
    return None


def _both(one, first, factor) -> str | None:
    """What is wrong with one image's dictionary; `first`: the answer about the original."""
    for key in KEYS:
        if not isinstance(one[key], torch.Tensor):
            return f"{key} must be a torch tensor, got {type(one[key]).__name__}"
    counts = [len(one[key]) for key in KEYS]
    if len(set(counts)) > 1:
        got = "{}, {} and {}".format(*counts)
        return f"as many boxes as scores and labels are needed, got {got}"
    boxes, scores, labels = (first[key] for key in KEYS)
    second = 1 - (1 - scores) * factor  # the scores
    if counts[0] == len(second) > 0 and difference(one["scores"], second) is None:
        return "this is the answer about the enlarged image alone: join it to the first"
    if counts[0] != 2 * len(boxes):
        expected = f"{2 * len(boxes)} detections, {len(boxes)} of each answer"
        return f"{expected}, were expected before any suppression, got {counts[0]}"
    wrong = difference(one["labels"], labels.repeat(2), "the labels")
    wrong = wrong or difference(
        one["scores"].sort(descending=True).values, torch.cat([scores, second]), "the scores"
    )
    slips = {
        "the second boxes still lie in the pixels of the enlarged image": (1, factor),
        "multiplied, the second boxes grow once more: enlarged they are already": (1, factor**2),
        "the first boxes lie in the pixels of the original: leave them": (1 / factor, 1),
        "these are the pixels of the enlarged image: the original's are wanted": (factor, factor),
    }
    slips = {sentence: torch.cat([boxes * s for s in slip]) for sentence, slip in slips.items()}
    order = one["scores"].argsort(descending=True)
    return wrong or mistake(one["boxes"][order], boxes.repeat(2, 1), "the boxes", slips)


def _moves_the_ap(ask_twice) -> str | None:
    wrong = _joined(ask_twice, 1.25) or _joined(ask_twice, 1.5)
    if wrong:
        return wrong
    detect, images, before = _trained()
    after = _ap(ask_twice(detect, images.clone()))
    once, twice, least = before["AP"], after["AP"], before["AP"] + GAIN
    if twice < least:
        return f"AP {twice:.3f}; asked once it is {once:.3f}, {least:.3f} is wanted"
    sizes = ("small", "medium", "large")
    small, medium, large = (after[f"AP_{size}"] - before[f"AP_{size}"] for size in sizes)
    by_size = f"small objects {small:+.3f}, medium {medium:+.3f}, large {large:+.3f}"
    q4.praise = f"AP {once:.3f} → {twice:.3f}: {by_size}"
    return None


q4 = Exercise(
    "ssd.q4",
    "ask_twice",
    _moves_the_ap,
    [
        "F.interpolate enlarges a batch; look up which of its modes blend pixels.",
        "In the enlarged image all corners lie `factor` times as far from the left and the top.",
        "torch.cat the boxes, scores and labels of both, image by image.",
    ],
    "asked at two sizes",  # the check says how much that gained
)
