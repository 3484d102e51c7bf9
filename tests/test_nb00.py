"""The code of notebook 00 against its oracles, on random and on nasty input."""

import math

import numpy as np
import pytest
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder

import helpers.boxes
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
    torch.testing.assert_close(nb.giou(a, b), torchvision.ops.generalized_box_iou(a, b))
    torch.testing.assert_close(nb.area(a), torchvision.ops.box_area(a))


@pytest.mark.parametrize("other", [*SETS, pytest.param(FLAT, id="without area")])
def test_boxes_without_area_have_the_helpers_iou_and_no_nan(nb, other):
    for measure, ready in ((nb.iou, helpers.boxes.box_iou), (nb.giou, helpers.boxes.box_giou)):
        assert torch.isfinite(measure(FLAT, other)).all()
        torch.testing.assert_close(measure(FLAT, other), ready(FLAT, other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int32])
def test_overlaps_of_half_and_whole_numbers(nb, dtype):
    boxes = torch.tensor([[0, 0, 250, 250], [200, 0, 250, 128], [0, 0, 100, 50]]).to(dtype)
    boxes = torch.cat([boxes, 4 * boxes]) if dtype != torch.uint8 else boxes  # sides up to 1,000
    exact = boxes.double()
    for measure in (nb.iou, nb.giou):
        assert (
            measure(boxes, boxes).dtype == torch.float32
            and measure(exact, exact).dtype == torch.double
        )
        torch.testing.assert_close(measure(boxes, boxes).double(), measure(exact, exact))
        torch.testing.assert_close(measure(boxes, exact), measure(exact, exact))
    assert torch.equal(nb.area(boxes).double(), nb.area(exact))
    assert torch.equal(nb.iou(boxes, boxes), torchvision.ops.box_iou(boxes.float(), boxes.float()))
    scores, labels = torch.linspace(0, 1, len(boxes)), torch.arange(len(boxes)).to(torch.uint8)
    for b in (boxes, boxes.flip(0)):
        expected = nb.nms_per_class(b.double(), scores, labels.long(), 0.1)
        assert torch.equal(nb.nms_per_class(b, scores, labels, 0.1), expected)
        assert len(expected) == len(boxes)  # of classes of their own


def test_only_giou_and_l1_find_a_box_that_they_do_not_touch(nb):
    start, goal = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[40.0, 40.0, 60.0, 60.0]])

    def last_iou(loss):
        path = nb.descend(loss, start, goal)
        assert path.shape == (250, 4)
        return nb.iou(path, goal)[-1].item()

    assert nb.iou(nb.descend(lambda a, b: 1 - nb.iou(a, b), start, goal), goal).max() == 0
    assert last_iou(lambda a, b: 1 - nb.giou(a, b)) > 0.8
    assert last_iou(lambda a, b: (a - b).abs()) > 0.8
    assert start.tolist() == [[0, 0, 10, 10]]  # the caller's box has not moved


def test_encode_and_decode_are_torchvisions_and_invert_each_other(nb):
    boxes, anchors = random_boxes(60, seed=1), random_boxes(60, seed=2)
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    deltas = nb.encode(boxes, anchors)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors))
    torch.testing.assert_close(nb.decode(deltas, anchors), boxes, atol=1e-3, rtol=1e-4)
    wild = torch.full((60, 4), 1000.0)
    assert torch.isfinite(nb.decode(wild, anchors)).all()
    torch.testing.assert_close(nb.decode(wild, anchors), coder.decode_single(wild, anchors))


def test_encoding_nothing_gives_nothing(nb):
    assert nb.encode(NASTY["no box"], NASTY["no box"]).shape == (0, 4)
    assert nb.decode(NASTY["no box"], NASTY["no box"]).shape == (0, 4)


# ---------------------------------------------------------------- NMS


@pytest.mark.parametrize("boxes", [*SETS, pytest.param(random_boxes(300, 3), id="many")])
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


def test_envelope_is_the_best_precision_still_to_come(nb):
    precision = torch.rand(30, generator=torch.Generator().manual_seed(1))
    expected = [precision[k:].max().item() for k in range(30)]
    assert nb.envelope(precision).tolist() == expected
    assert nb.envelope(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_ap_definitions_against_brute_force(nb, seed):
    hits = np.random.RandomState(seed).rand(12) < 0.6
    count = int(hits.sum()) + seed
    precision, recall = nb.precision_recall(torch.from_numpy(hits), count)

    def best(level):
        rows = [hits[: k + 1].mean() for k in range(12) if hits[: k + 1].sum() / count >= level]
        return max(rows, default=0.0)

    for points in (11, 101):
        expected = np.mean([best(level) for level in np.linspace(0, 1, points)])
        assert math.isclose(nb.ap_at_recalls(precision, recall, points), expected)
    expected = sum(best(k / count) for k in range(1, count + 1)) / count
    assert math.isclose(nb.ap_all_points(precision, recall), expected)


def test_ap_without_detections_is_zero(nb):
    precision, recall = nb.precision_recall(torch.zeros(0, dtype=torch.bool), 3)
    assert nb.ap_at_recalls(precision, recall, 101) == 0
    assert nb.ap_all_points(precision, recall) == 0


def noisy(nb, targets, seed):
    rng = np.random.RandomState(seed)
    rates = {kind: 0.2 for kind in nb.KINDS}
    found = [nb.spoil(target, rng, **rates) for target in targets]
    return [{**d, "boxes": nb.jittered(d["boxes"], 0.1, rng)} for d in found]


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_pycocotools(nb, targets, seed):
    detections = noisy(nb, targets, seed)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    detections[0] = nothing | {"scores": torch.zeros(0)}  # an image without detections
    truth = [*targets[:1], nothing, *targets[2:]]  # and one without objects
    table, official = nb.average_precision(detections, truth, 3), coco_ap(detections, truth)
    assert table.shape == (10, 3)
    assert abs(table.mean() - official["AP"]) < 1e-6
    assert abs(table[0].mean() - official["AP50"]) < 1e-6
    assert abs(table[5].mean() - official["AP75"]) < 1e-6


def test_average_precision_with_equal_scores_is_pycocotools(nb, targets):
    detections = [{**d, "scores": torch.ones(len(d["scores"]))} for d in noisy(nb, targets, 9)]
    official = coco_ap(detections, targets)["AP"]
    assert abs(nb.average_precision(detections, targets, 3).mean() - official) < 1e-6


def test_a_class_without_objects_does_not_count(nb):
    target = {"boxes": NASTY["one box"], "labels": torch.tensor([0])}
    table = nb.average_precision([target | {"scores": torch.ones(1)}], [target], 3)
    assert (table[:, 0] == 1).all() and np.isnan(table[:, 1:]).all()


# ---------------------------------------------------------------- the synthetic detectors


def test_spoil_without_errors_is_the_truth(nb, targets):
    detections = [nb.spoil(target, np.random.RandomState(0)) for target in targets]
    assert all(torch.equal(d["boxes"], t["boxes"]) for d, t in zip(detections, targets))
    assert coco_ap(detections, targets)["AP"] == 1


@pytest.mark.parametrize("kind", ["classification", "localisation", "duplicate", "background"])
def test_spoil_makes_the_error_that_it_names(nb, kind):
    target = {"boxes": torch.tensor([[10.0, 10.0, 40.0, 60.0]]), "labels": torch.tensor([1])}
    counts = error_counts(nb.spoil(target, np.random.RandomState(0), **{kind: 1.0}), target)
    assert counts[kind] == 1
    assert counts["missed"] == (kind in ("classification", "localisation"))


def test_spoil_misses_and_copes_with_an_empty_image(nb, targets):
    everything = nb.spoil(targets[0], np.random.RandomState(0), miss=1.0, duplicate=1.0)
    assert len(everything["boxes"]) == len(everything["scores"]) == len(everything["labels"]) == 0
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    assert nb.spoil(empty, np.random.RandomState(0), background=1.0)["boxes"].shape == (0, 4)


def test_empty_places_are_empty_and_inside(nb, targets):
    for target in targets:
        boxes = nb.empty_places(target, 50, np.random.RandomState(1))
        assert boxes.shape == (50, 4) and boxes.min() >= 0 and boxes.max() <= 128
        assert nb.iou(boxes, target["boxes"]).max() < 0.1


def test_carpet_is_made_of_boxes_inside_the_image(nb):
    boxes = nb.carpet()
    assert len(boxes) > 2000 and boxes.min() >= 0 and boxes.max() <= 128
    assert (boxes[:, 2:] > boxes[:, :2]).all()


# ---------------------------------------------------------------- the exercises


def test_the_stubs_are_still_to_do_and_the_solutions_right(nb):
    assert nb.check_predictions((None, None, None)).startswith("…")
    assert nb.check_predictions((..., ..., ...)).startswith("…")
    assert nb.check_predictions((1 / 3, 1 / 7, 1 / 2)).startswith("✓")
    for name, check in (
        ("iou_xywh", nb.check_iou_xywh),
        ("ap_of_ranking", nb.check_ap),
        ("soft_nms", nb.check_soft_nms),
    ):
        assert check(getattr(nb, name)).startswith("…")
        assert check(getattr(nb, f"{name}_solution")).startswith("✓")


@pytest.mark.parametrize(
    "answer, says",
    [
        ((1 / 2, 1 / 7, 1 / 2), "(a) is 0.500: that is the share of the square that is covered"),
        ((1 / 3, 1 / 4, 1 / 2), "(b) is 0.250: that is the share"),
        ((1 / 3, 1 / 3, 1 / 2), "that is (a)"),
        ((1 / 3, 1 / 7, 1), "the union is twice as large"),
        ((0.9, 1 / 7, 1 / 2), "should be 0.333"),
        (("a third", 1 / 7, 1 / 2), "should be one number"),
        ((1 / 3, 1 / 7), "three numbers"),
        (0.5, "three numbers"),
    ],
)
def test_check_predictions_names_the_mistake(nb, answer, says):
    message = nb.check_predictions(answer)
    assert message.startswith("✗") and says in message


def iou_xywh(a, b, clamp=max, subtract=True, guard=True, added=0):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]) + added
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]) + added
    shared = clamp(0, width) * clamp(0, height)
    total = (a[2] + added) * (a[3] + added) + (b[2] + added) * (b[3] + added)
    union = total - (shared if subtract else 0)
    return shared / union if union or not guard else 0.0


def no_clamp(zero, value):
    return value


def as_corners(a, b):
    a, b = ([x1, y1, max(0, x2 - x1), max(0, y2 - y1)] for x1, y1, x2, y2 in (a, b))
    return iou_xywh(a, b)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda a, b: iou_xywh(a, b, subtract=False), "forgot to subtract the intersection"),
        (lambda a, b: iou_xywh(a, b, clamp=no_clamp), "clamp"),
        (lambda a, b: iou_xywh(a, b, guard=False), "0 / 0"),
        (lambda a, b: iou_xywh(a, b, added=1), "added a pixel"),
        (as_corners, "for the right and bottom edge"),
        (lambda a, b: 32, "that is the intersection"),
        (lambda a, b: 32 / 100, "you divided by one area"),
        (lambda a, b: iou_xywh(a, b) or math.nan, "apart in x and y is nan, but should be 0.000"),
        (lambda a, b: math.nan if a == b == [3, 3, 0, 0] else iou_xywh(a, b), "0 / 0"),
        (lambda a, b: iou_xywh(a, b) % 1, "IoU of equal boxes is 0.000, but should be 1.000"),
        (lambda a: 1.0, "TypeError"),
    ],
)
def test_check_iou_names_the_mistake(nb, wrong, says):
    message = nb.check_iou_xywh(wrong)
    assert message.startswith("✗") and says in message


def test_check_iou_names_a_clamp_that_is_missing_on_one_axis(nb):
    def on_one_axis(a, b):
        apart = b[0] >= a[0] + a[2] and b[1] >= a[1] + a[3]
        return 0.0 if apart else iou_xywh(a, b, clamp=no_clamp)

    assert "clamp it at 0" in nb.check_iou_xywh(on_one_axis)


def test_check_iou_names_a_clamp_that_is_only_in_the_union(nb):
    def in_the_union(a, b):
        width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
        height = max(0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
        union = a[2] * a[3] + b[2] * b[3] - max(0, width) * height
        return width * height / union if union else 0.0

    assert "clamp them at 0" in nb.check_iou_xywh(in_the_union)


def precisions(hits):
    return [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits))]


def at_hits(hits, values, divisor):
    return sum(value for hit, value in zip(hits, values) if hit) / divisor


def sampled(hits, count, points):
    recalls = [sum(hits[: k + 1]) / count for k in range(len(hits))]
    rows = list(zip(recalls, precisions(hits)))
    levels = np.linspace(0, 1, points)
    return np.mean([max((p for r, p in rows if r >= level), default=0) for level in levels])


def ahead(hits):
    return [max(precisions(hits)[k:]) for k in range(len(hits))]


def back(hits):
    return [max(precisions(hits)[: k + 1]) for k in range(len(hits))]


def next_only(hits):
    """An envelope that looks one step ahead, not to the end."""
    return [max(precisions(hits)[k : k + 2]) for k in range(len(hits))]


def mean_at_hits(hits, count):
    return at_hits(hits, ahead(hits), sum(hits)) * sum(hits) / count if hits else 0.0


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda h, n: at_hits(h, precisions(h), n), "left out the envelope"),
        (lambda h, n: at_hits(h, ahead(h), sum(h)), "divided by the objects that were found"),
        (lambda h, n: at_hits(h, precisions(h), sum(h)), "found objects instead of all"),
        (lambda h, n: at_hits(h, ahead(h), len(h)), "divided by the number of detections"),
        (lambda h, n: at_hits(h, back(h), n), "looks back"),
        (lambda h, n: sum(precisions(h)) / len(h), "mean precision"),
        (lambda h, n: sampled(h, n, 11), "11-point"),
        (lambda h, n: sampled(h, n, 101), "101-point"),
        (lambda h, n: sum(h) / n, "last recall"),
        (lambda h, n: sum(h) / len(h), "precision at the end"),
        (lambda h, n: at_hits(h, ahead(h), n) if h else 1.0, "AP without any detection"),
        (mean_at_hits, "AP without any hit should be one number, but it is 'ZeroDivisionError"),
        (lambda h, n: at_hits(h[:-1], ahead(h), n), "AP of a perfect ranking is 0.500"),
        (lambda h, n: at_hits(h, next_only(h), n), "AP of an error before three hits is 0.722"),
    ],
)
def test_check_ap_names_the_mistake(nb, wrong, says):
    message = nb.check_ap(wrong)
    assert message.startswith("✗") and says in message


def decayed(nb, boxes, scores, factor, again=True, self_too=False, once=False):
    """Soft-NMS with a `factor` of the IoU, and with the mistakes that the keywords name."""
    scores, rest = scores.clone(), scores.argsort(descending=True).tolist()
    while rest:
        best = max(rest, key=lambda i: scores[i].item()) if again else rest[0]
        rest.remove(best)
        hit = [best, *rest] if self_too else rest
        scores[hit] *= factor(nb.iou(boxes[best][None], boxes[hit])[0])
        if once:
            break
    return scores


def gauss(overlap):
    return torch.exp(-(overlap**2) / 0.5)


def deleting(nb, boxes, scores):
    kept = nb.greedy_nms(boxes, scores, 0.3)
    return torch.zeros_like(scores).index_copy(0, kept, scores[kept])


def in_place(nb, boxes, scores):
    scores *= 0.5
    return scores


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda nb, b, s: decayed(nb, b, s, lambda o: torch.exp(-o / 0.5)), "square the IoU"),
        (lambda nb, b, s: decayed(nb, b, s, lambda o: torch.exp(-(o**2))), "divide by sigma"),
        (lambda nb, b, s: decayed(nb, b, s, lambda o: 1 - o), "linear variant"),
        (lambda nb, b, s: decayed(nb, b, s, gauss, again=False), "look for the best again"),
        (lambda nb, b, s: decayed(nb, b, s, gauss, self_too=True), "lowers its own score"),
        (lambda nb, b, s: decayed(nb, b, s, gauss, once=True), "lowered only once"),
        (lambda nb, b, s: s.clone(), "not lowered by box 0"),
        (deleting, "deletes nothing"),
        (in_place, "changed the caller's scores"),
        (lambda nb, b, s: s[:2], "expected four scores"),
        (lambda nb, b, s: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_check_soft_nms_names_the_mistake(nb, wrong, says):
    message = nb.check_soft_nms(lambda boxes, scores, sigma: wrong(nb, boxes, scores))
    assert message.startswith("✗") and says in message
