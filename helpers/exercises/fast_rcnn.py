"""The exercises of lecture 02."""

import functools

import torch

from helpers import lessons
from helpers.detectors import to_input
from helpers.evaluation import coco_ap
from helpers.exercises.exercise import Exercise, mistake
from helpers.proposals import benchmark_proposals
from helpers.records import WEIGHTS, load_weights
from helpers.shapes import benchmark
from helpers.training import pick_device


def _gradient(answer) -> str | None:
    known = {
        1: "all 49 bins of a region read the same cell, and it wins every one of them",
        2: "all 49 bins of a region read the same cell, and it wins every one of them",
        49: "the region stands in the batch twice, and what regions send back adds up",
        7: "7 × 7 bins, not 7",
        14: "7 × 7 bins, not 7",
    }
    if answer == 2 * 49:
        return None
    if not isinstance(answer, (int, float)):
        return f"a number is needed, got {type(answer).__name__}"
    return known.get(answer, f"{answer}? Count the bins that this cell wins, over both regions")


q1 = Exercise(
    "fast_rcnn.q1",
    "answer",
    _gradient,
    ["How many bins does a region have, and which cells do they read?", "Sum over both regions."],
    "the cell wins all 49 bins of both regions",
)


def _max_backward(max_backward) -> str | None:
    values = torch.tensor([[0.3, 2.0, -1.0], [5.0, 1.0, 4.0], [-3.0, -2.0, -9.0]])  # (C, n)
    gradient = torch.tensor([0.5, -2.0, 3.0])
    wins = values == values.max(dim=1, keepdim=True).values
    whole = gradient[:, None].expand(3, 3)
    expected = torch.where(wins, gradient[:, None], 0.0)
    slips = {
        "every cell gets a share: that is mean pooling": whole / 3,
        "every cell gets the whole gradient, only the winner should": gradient[:, None].expand(
            3, 3
        ),
        "the winner gets the gradient itself, not its value times the gradient": expected * values,
        "the winner gets the gradient of its channel, not 1": wins.float(),
        "one winner for each channel, not one for all": torch.where(
            values == values.max(), gradient[:, None], 0.0
        ),
    }
    answer = max_backward(values.clone(), gradient.clone())
    wrong = mistake(answer, expected, "the gradient", slips)
    if wrong:
        return wrong
    tie = max_backward(torch.zeros(1, 4), torch.ones(1))  # as a ReLU leaves many
    if (tie > 0).sum() != 1 or tie.sum() != 1:
        return "where cells are equal, one of them wins and gets all, as in max(dim=1)"
    return None


q2 = Exercise(
    "fast_rcnn.q2",
    "max_backward",
    _max_backward,
    [
        "Which cell of each channel won? argmax knows.",
        "Begin with zeros (C, n); in each row one number goes in, at the winner's place.",
    ],
    "that is the whole backward pass of RoI pooling, bin by bin",
)


def _box_loss(box_loss) -> str | None:
    generator = torch.Generator().manual_seed(3)
    deltas, goals = torch.randn(5, 16, generator=generator), torch.randn(5, 4, generator=generator)
    labels = torch.tensor([0, 1, 3, 0, 2])
    table = (deltas.view(5, 4, 4) - goals[:, None]).abs().sum(dim=2)  # (N, K + 1)
    own, inside = table[torch.arange(5), labels], labels > 0
    expected = own[inside].sum() / 5
    slips = {
        "background has no box: leave these regions out": own.sum() / 5,
        "divide by all regions, not by those with an object": own[inside].mean(),
        "divide by the number of regions": own[inside].sum(),
        "only the true class's four numbers count": table[inside].sum() / 5,
        "the classes are shifted by one: column 0 is the background": (
            table[torch.arange(5), labels - 1][inside].sum() / 5
        ),
    }
    answer = torch.as_tensor(box_loss(deltas.clone(), labels.clone(), goals.clone()))
    if answer.numel() != 1:
        return f"one number is needed, got shape {tuple(answer.shape)}: sum over the regions"
    answer = answer.double().reshape(())
    return mistake(answer, expected, "the loss", slips)


q3 = Exercise(
    "fast_rcnn.q3",
    "box_loss",
    _box_loss,
    [
        "view cuts the 4 (K + 1) numbers of a region into one row per class.",
        "The index [arange(N), labels] picks one row for each region; labels > 0 has an object.",
    ],
    "the paper's box loss, with |x| in the place of smooth L1",
)

GAIN, IMAGES = 0.02, 100


@functools.cache
def _answers():
    """Scores, deltas and regions of validation images, and the AP of the lesson's own reading."""
    lesson, data = lessons.load("02_fast_rcnn"), benchmark("val")
    lesson.DEVICE = pick_device()
    model = lesson.FastRCNN().to(lesson.DEVICE).eval()
    model.load_state_dict(load_weights("02_fast_rcnn", WEIGHTS))
    answers = []
    for image, regions in zip(data.images[:IMAGES], benchmark_proposals("val")):
        rois = lesson.as_rois([regions]).to(lesson.DEVICE)
        with torch.no_grad():
            scores, deltas = model(to_input(image[None], lesson.DEVICE), rois)
        answers.append((scores.cpu(), deltas.cpu(), regions))
    return answers, _ap(lesson.read_detections, answers)


def _ap(reading, answers) -> float:
    found = [reading(*(t.clone() for t in answer), (128, 128)) for answer in answers]
    return coco_ap(found, benchmark("val").targets[:IMAGES])["AP"]


def _moves_the_ap(my_reading) -> str | None:
    region = torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    my_reading(torch.zeros(1, 4), torch.zeros(1, 16), region, (128, 128))  # a stub is still to do
    answers, before = _answers()
    after = _ap(my_reading, answers)
    if after >= before + GAIN:
        return None
    return f"AP {after:.3f}; read_detections has {before:.3f}, {before + GAIN:.3f} is wanted"


q4 = Exercise(
    "fast_rcnn.q4",
    "my_reading",
    _moves_the_ap,
    [
        "The AP rewards the right order of all boxes, also of weak ones.",
        "Boxes that are suppressed are not worthless: average them with the winner, by score.",
        "Average over the boxes of its class that overlap the winner by 0.6 or more.",
    ],
    "the same network, read better",
)
