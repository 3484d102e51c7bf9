"""The code of lecture 00 against its oracles, on random and on nasty input."""

import math

import numpy as np
import pytest
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder

from helpers.evaluation import coco_ap, error_counts
from helpers.lessons import load
from helpers.shapes import ShapesDataset

NASTY = {
    "no box": torch.zeros(0, 4),
    "one box": torch.tensor([[3.0, 4.0, 20.0, 10.0]]),
    "partly outside the image": torch.tensor([[-30.0, -5.0, 20.0, 500.0]]),
    "disjoint": torch.tensor([[0.0, 0.0, 5.0, 5.0], [50.0, 50.0, 60.0, 61.0]]),
    "touching": torch.tensor([[0.0, 0.0, 5.0, 5.0], [5.0, 0.0, 10.0, 5.0]]),
    "equal": torch.tensor([[1.0, 2.0, 5.0, 7.0]]).repeat(3, 1),
    "nested": torch.tensor([[0.0, 0.0, 90.0, 90.0], [40.0, 40.0, 41.0, 41.0]]),
}
FLAT = torch.tensor([[5.0, 5.0, 5.0, 5.0], [2.0, 3.0, 2.0, 9.0]])


@pytest.fixture(scope="module")
def nb():
    return load("00_boxes_and_ap")


@pytest.fixture(scope="module")
def targets():
    return ShapesDataset(40, seed=77).targets


def random_boxes(count, seed=0):
    rng = np.random.RandomState(seed)
    corner, size = rng.uniform(0, 100, (count, 2)), rng.uniform(1, 40, (count, 2))
    return torch.from_numpy(np.concatenate([corner, corner + size], axis=1)).float()


SETS = [pytest.param(boxes, id=name) for name, boxes in NASTY.items()]
SETS.append(pytest.param(random_boxes(50), id="random"))


# ---------------------------------------------------------------- boxes


@pytest.mark.parametrize("boxes", [*SETS, pytest.param(FLAT, id="without area")])
@pytest.mark.parametrize("name", ["xywh", "cxcywh"])
def test_formats_are_torchvisions_and_invertible(nb, boxes, name):
    converted = getattr(nb, f"xyxy_to_{name}")(boxes)
    expected = torchvision.ops.box_convert(boxes, "xyxy", name)
    torch.testing.assert_close(converted, expected)
    torch.testing.assert_close(getattr(nb, f"{name}_to_xyxy")(converted), boxes)


@pytest.mark.parametrize("b", SETS)
@pytest.mark.parametrize("a", SETS)
def test_iou_and_giou_are_torchvisions(nb, a, b):
    torch.testing.assert_close(nb.iou(a, b), torchvision.ops.box_iou(a, b))
    torch.testing.assert_close(
        nb.giou(a, b), torchvision.ops.generalized_box_iou(a, b), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(nb.area(a), torchvision.ops.box_area(a))


@pytest.mark.parametrize("other", [*SETS, pytest.param(FLAT, id="without area")])
def test_boxes_without_area_have_iou_0_and_a_finite_slope(nb, other):
    flat = FLAT.clone().requires_grad_()
    overlap = nb.iou(flat, other)
    assert overlap.shape == (2, len(other)) and (overlap == 0).all()
    overlap.sum().backward()
    assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int32])
def test_overlaps_of_half_and_whole_numbers(nb, dtype):
    boxes = torch.tensor([[0, 0, 250, 250], [200, 0, 250, 128], [0, 0, 100, 50]]).to(dtype)
    boxes = torch.cat([boxes, 4 * boxes]) if dtype != torch.uint8 else boxes  # sides up to 1,000
    assert torch.equal(nb.iou(boxes, boxes), torchvision.ops.box_iou(boxes.float(), boxes.float()))
    scores, labels = torch.linspace(0, 1, len(boxes)), torch.arange(len(boxes))
    assert len(nb.nms_per_class(boxes, scores, labels, 0.1)) == len(boxes)  # classes of their own


def test_giou_goes_towards_the_goal_before_it_lets_go(nb):
    """The loss's own way, by plain gradient descent: the far edges hardly move outwards."""
    start, goal = torch.tensor([[5.0, 5.0, 25.0, 25.0]]), torch.tensor([[70.0, 70.0, 110.0, 110.0]])
    path = nb.descend(lambda a, b: 1 - nb.giou(a, b), start, goal, 1600, 20)
    assert path.shape == (1601, 4) and torch.equal(path[:1], start)
    assert start.tolist() == [[5, 5, 25, 25]]  # the caller's box has not moved
    touching = int((path[:, 2] >= 70).nonzero()[0])
    assert path[:touching, :2].min() > -8 and path[touching, 2] - 25 > 4 * (5 - path[touching, 0])
    assert nb.iou(path, goal)[-1] > nb.iou(path, goal)[1000] > 0
    still = nb.descend(lambda a, b: 1 - nb.iou(a, b), start, goal, 20, 20)
    assert torch.equal(still, start.expand(21, 4))
    straight = nb.descend(lambda a, b: (a - b).abs(), start, goal, 100, 1)
    torch.testing.assert_close(straight[-1:], goal)


def test_encode_and_decode_are_torchvisions_and_invert_each_other(nb):
    boxes, anchors = random_boxes(60, seed=1), random_boxes(60, seed=2)
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    deltas = nb.encode(boxes, anchors)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors))
    torch.testing.assert_close(nb.decode(deltas, anchors), boxes, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(nb.encode(7 * boxes, 7 * anchors), deltas, atol=1e-5, rtol=1e-4)
    wild = torch.full((60, 4), 1000.0)
    assert torch.isfinite(nb.decode(wild, anchors)).all()
    torch.testing.assert_close(nb.decode(wild, anchors), coder.decode_single(wild, anchors))


def test_encoding_nothing_gives_nothing(nb):
    assert nb.encode(NASTY["no box"], NASTY["no box"]).shape == (0, 4)
    assert nb.decode(NASTY["no box"], NASTY["no box"]).shape == (0, 4)


# ---------------------------------------------------------------- NMS


@pytest.mark.parametrize("boxes", [*SETS, pytest.param(random_boxes(200, 3), id="many")])
@pytest.mark.parametrize("threshold", [0.0, 0.31, 0.77, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_nms_is_torchvisions(nb, boxes, threshold, ties):
    rng = np.random.RandomState(4)
    scores = torch.from_numpy(rng.rand(len(boxes))).float()
    scores = scores.round(decimals=1) if ties else scores
    labels = torch.from_numpy(rng.randint(0, 3, len(boxes)))
    expected = torchvision.ops.nms(boxes, scores, threshold)
    assert nb.greedy_nms(boxes, scores, threshold).tolist() == expected.tolist()
    expected = torchvision.ops.batched_nms(boxes, scores, labels, threshold)
    per_class = nb.nms_per_class(boxes, scores, labels, threshold)
    if ties:  # torchvision sorts equal scores of different classes as it likes
        assert set(per_class.tolist()) == set(expected.tolist())
    else:
        assert per_class.tolist() == expected.tolist()


def test_nms_rounds_decide_every_box_once(nb):
    boxes, scores = random_boxes(80, 5), torch.rand(80, generator=torch.Generator().manual_seed(0))
    seen = [i for best, gone in nb.nms_rounds(boxes, scores, 0.2) for i in [best, *gone]]
    assert sorted(seen) == list(range(80))


# ---------------------------------------------------------------- AP


def test_match_with_nothing_to_match(nb):
    none, one = NASTY["no box"], NASTY["one box"]
    assert nb.match(none, torch.zeros(0), one, 0.5).shape == (0,)
    assert nb.match(one, torch.ones(1), none, 0.5).tolist() == [False]
    assert nb.match(one, torch.ones(1), one, 0.5).tolist() == [True]
    assert nb.match(FLAT, torch.ones(2), one, 0.5).tolist() == [False, False]


def test_match_takes_an_object_once_and_the_better_score_first(nb):
    boxes, target = NASTY["equal"], NASTY["equal"][:1]
    assert nb.match(boxes, torch.tensor([0.2, 0.9, 0.5]), target, 0.5).tolist() == [0, 1, 0]
    assert nb.match(boxes, torch.ones(3), target, 0.5).tolist() == [1, 0, 0]  # a tie: the first


@pytest.mark.parametrize("seed", range(5))
def test_the_envelope_and_its_mean_against_brute_force(nb, seed):
    hits = np.random.RandomState(seed).rand(12) < 0.6
    count = int(hits.sum()) + seed
    precision, recall = nb.precision_recall(torch.from_numpy(hits), count)

    def best(level):
        rows = [hits[: k + 1].mean() for k in range(12) if hits[: k + 1].sum() / count >= level]
        return max(rows, default=0.0)

    for points in (11, 101):
        expected = [best(level) for level in np.linspace(0, 1, points)]
        found = nb.envelope(precision, recall, np.linspace(0, 1, points))
        np.testing.assert_allclose(found, expected)
        assert math.isclose(nb.average_precision(precision, recall, points), np.mean(expected))
    area = sum(best(k / count) for k in range(1, count + 1)) / count
    assert abs(nb.average_precision(precision, recall, 100_001) - area) < 1e-4


def test_ap_without_detections_is_zero(nb):
    precision, recall = nb.precision_recall(torch.zeros(0, dtype=torch.bool), 3)
    assert nb.average_precision(precision, recall) == 0


def noisy(nb, targets, seed):
    rng = np.random.RandomState(seed)
    return [nb.ordinary_detector(target, rng, rate=0.2) for target in targets]


@pytest.mark.parametrize("seed", range(4))
def test_ap_is_pycocotools(nb, targets, seed):
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    detections = noisy(nb, targets, seed)
    detections[0] = nothing | {"scores": torch.zeros(0)}  # an image without detections
    truth = [*targets[:1], nothing, *targets[2:]]  # and one without objects
    table, official = nb.ap_by_threshold(detections, truth, 3), coco_ap(detections, truth)
    assert table.shape == (10, 3)
    assert abs(table.mean() - official["AP"]) < 1e-6
    assert abs(table[0].mean() - official["AP50"]) < 1e-6
    assert abs(table[5].mean() - official["AP75"]) < 1e-6


def test_ap_with_equal_scores_is_pycocotools(nb, targets):
    detections = [{**d, "scores": torch.ones(len(d["scores"]))} for d in noisy(nb, targets, 9)]
    official = coco_ap(detections, targets)["AP"]
    assert abs(nb.ap_by_threshold(detections, targets, 3).mean() - official) < 1e-6


def test_ap_shares_the_float_grid_of_pycocotools(nb):
    """7 of 20 objects: the grid's 0.35 is larger than 7 / 20, in pycocotools as on the page."""
    places = torch.arange(20.0)[:, None] * 30 + torch.tensor([0.0, 0.0, 20.0, 20.0])
    target = {"boxes": places, "labels": torch.zeros(20, dtype=torch.long)}
    found = {key: value[:7] for key, value in target.items()} | {"scores": torch.ones(7)}
    ours, official = nb.ap_by_threshold([found], [target], 1), coco_ap([found], [target], 1)
    assert math.isclose(ours.mean(), official["AP"]) and math.isclose(ours.mean(), 35 / 101)


def test_a_class_without_objects_does_not_count(nb):
    target = {"boxes": NASTY["one box"], "labels": torch.tensor([0])}
    table = nb.ap_by_threshold([target | {"scores": torch.ones(1)}], [target], 3)
    assert (table[:, 0] == 1).all() and np.isnan(table[:, 1:]).all()


# ---------------------------------------------------------------- the imitated detectors


def test_no_errors_are_the_truth(nb, targets):
    for kind in nb.KINDS:
        for target in targets:
            found = nb.with_errors(target, kind, 0.0, np.random.RandomState(0))
            assert torch.equal(found["boxes"], target["boxes"])
            assert torch.equal(found["labels"], target["labels"])


@pytest.mark.parametrize("kind", ["classification", "localisation", "duplicate", "background"])
def test_an_error_is_of_the_kind_that_it_is_called(nb, kind):
    target = {"boxes": torch.tensor([[10.0, 10.0, 40.0, 60.0]]), "labels": torch.tensor([1])}
    before = {key: value.clone() for key, value in target.items()}
    found = nb.with_errors(target, kind, 1.0, np.random.RandomState(0))
    scores = torch.linspace(1, 0.9, len(found["labels"]))
    counts = error_counts(found | {"scores": scores}, target)
    assert counts[kind] == 1
    assert counts["missed"] == (kind in ("classification", "localisation"))
    assert all(torch.equal(before[key], target[key]) for key in target)


@pytest.mark.parametrize("kind", ["classification", "localisation", "miss", "duplicate"])
def test_errors_on_the_benchmark_are_counted_as_such(nb, targets, kind):
    rng, counts, objects = np.random.RandomState(5), [], sum(len(t["labels"]) for t in targets)
    for target in targets:
        found = nb.with_errors(target, kind, 0.3, rng)
        counts.append(error_counts(found | {"scores": torch.ones(len(found["labels"]))}, target))
    total = {name: sum(count[name] for count in counts) for name in counts[0]}
    made = {n for n, number in total.items() if n != "correct" and number > 0.02 * objects}
    both = kind in ("classification", "localisation")
    assert made == ({kind, "missed"} if both else {"missed" if kind == "miss" else kind})


def test_nothing_to_miss_and_nothing_to_repeat(nb, targets):
    rng = np.random.RandomState(0)
    assert len(nb.with_errors(targets[0], "miss", 1.0, rng)["boxes"]) == 0
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    for kind in nb.KINDS:
        assert nb.with_errors(empty, kind, 1.0, rng)["boxes"].shape == (0, 4)
    one = {"boxes": torch.tensor([[0.0, 0.0, 128.0, 128.0]]), "labels": torch.tensor([2])}
    full = nb.with_errors(one, "background", 1.0, rng)  # there may be no empty place left
    assert len(full["boxes"]) == len(full["labels"])


def test_empty_places_are_empty_and_inside(nb, targets):
    for target in targets:
        boxes = nb.empty_places(target, 50, np.random.RandomState(1))
        assert boxes.shape == (50, 4) and boxes.min() >= 0 and boxes.max() <= 128
        assert nb.iou(boxes, target["boxes"]).max() < 0.1


def test_repeated_reports_are_near_their_objects(nb, targets):
    for target in targets:
        found = nb.repeated(target, np.random.RandomState(0), copies=4, noise=0.0)
        assert torch.equal(found["boxes"], target["boxes"].repeat_interleave(4, dim=0))
        assert torch.equal(found["labels"], target["labels"].repeat_interleave(4))
        assert found["scores"].shape == (4 * len(target["labels"]),)
        assert found["scores"].min() >= 0.7 - 1e-6 and found["scores"].max() <= 1


def test_carpet_is_made_of_boxes_inside_the_image(nb):
    boxes = nb.carpet()
    assert len(boxes) > 2000 and boxes.min() >= 0 and boxes.max() <= 128
    assert (boxes[:, 2:] > boxes[:, :2]).all()
