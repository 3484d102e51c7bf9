"""COCO AP against a brute-force implementation, and the error types on hand-made cases."""

import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert, box_iou

from helpers.evaluation import (
    AREA_RANGES,
    coco_ap,
    coco_eval,
    error_counts,
)
from helpers.shapes import ShapesDataset

KEYS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
THRESHOLDS = [0.5 + 0.05 * i for i in range(10)]


def entry(boxes, labels, scores=None):
    """A target, or with `scores` a detection."""
    result = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
    }
    if scores is not None:
        result["scores"] = torch.tensor(scores, dtype=torch.float32)
    return result


def nothing_found(count):
    return [entry([], [], []) for _ in range(count)]


@pytest.fixture(scope="module")
def targets():
    return ShapesDataset(25, seed=7).targets


def perfect(targets):
    return [t | {"scores": torch.ones(len(t["labels"]))} for t in targets]


def random_detections(targets, seed):
    """Each object found up to three times, shaken, with wrong labels now and then; and clutter."""
    rng = torch.Generator().manual_seed(seed)
    detections = []
    for target in targets:
        boxes = target["boxes"].repeat_interleave(3, dim=0)
        labels = target["labels"].repeat_interleave(3)
        size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        boxes = boxes + size * 0.08 * torch.randn(boxes.shape, generator=rng)
        corners = torch.rand(4, 2, 2, generator=rng) * 128
        boxes = torch.cat([boxes, corners.flatten(1)])
        corners = boxes.reshape(-1, 2, 2)
        boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
        labels = torch.cat([labels, torch.randint(3, (4,), generator=rng)])
        wrong = torch.rand(len(labels), generator=rng) < 0.15
        labels = torch.where(wrong, (labels + 1) % 3, labels)
        scores = (torch.rand(len(labels), generator=rng) * 20).round() / 20  # with ties
        keep = torch.rand(len(labels), generator=rng) < 0.7
        detections.append({"boxes": boxes[keep], "labels": labels[keep], "scores": scores[keep]})
    return detections


# The brute force: one class, one IoU threshold, one range of areas at a time.


def areas(boxes):
    boxes = boxes.double()
    return ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()


def match_image(detection, target, label, threshold, bounds, most):
    """(score, hit) of each detection that counts, best first, and the number of objects to find."""
    low, high = bounds
    wanted = target["boxes"][target["labels"] == label]
    ignored = [not low <= area <= high for area in areas(wanted)]
    mine = detection["labels"] == label
    order = detection["scores"][mine].sort(descending=True, stable=True).indices[:most]
    found, scores = detection["boxes"][mine][order], detection["scores"][mine][order].tolist()
    iou = box_iou(found.double(), wanted.double()).tolist()
    taken, rows = set(), []
    for overlaps, score, area in zip(iou, scores, areas(found)):
        free = [j for j in range(len(wanted)) if j not in taken and overlaps[j] >= threshold]
        best = max(free, key=lambda j: (not ignored[j], overlaps[j]), default=None)
        if best is not None:
            taken.add(best)
            if not ignored[best]:
                rows.append((score, True))
        elif low <= area <= high:
            rows.append((score, False))
    return rows, ignored.count(False)


def brute_precision(detections, targets, label, threshold, bounds, most=100):
    """Precision at 101 recall levels; None where there is no object to find."""
    rows, objects = [], 0
    for detection, target in zip(detections, targets):
        image_rows, count = match_image(detection, target, label, threshold, bounds, most)
        rows += image_rows
        objects += count
    if objects == 0:
        return None
    rows.sort(key=lambda row: -row[0])  # stable
    hits, curve = 0, []
    for seen, (_, hit) in enumerate(rows, 1):
        hits += hit
        curve.append((hits / objects, hits / seen))
    levels = np.linspace(0, 1, 101)
    return [max((p for r, p in curve if r >= level), default=0.0) for level in levels]


def brute_ap(detections, targets, thresholds=THRESHOLDS, bounds=(0, 1e10), most=100):
    curves = [
        brute_precision(detections, targets, label, threshold, bounds, most)
        for label in range(3)
        for threshold in thresholds
    ]
    curves = [curve for curve in curves if curve is not None]
    return float(np.mean(curves)) if curves else math.nan


@pytest.mark.parametrize("seed", range(4))
def test_ap_is_what_brute_force_finds(targets, seed):
    detections = random_detections(targets, seed)
    ap = coco_ap(detections, targets)
    assert tuple(ap) == KEYS
    expected = {
        "AP": brute_ap(detections, targets),
        "AP50": brute_ap(detections, targets, [0.5]),
        "AP75": brute_ap(detections, targets, [0.75]),
        **{
            f"AP_{name}": brute_ap(detections, targets, bounds=AREA_RANGES[name])
            for name in ("small", "medium", "large")
        },
    }
    assert ap == pytest.approx(expected, abs=1e-6)
    assert 0.1 < ap["AP"] < ap["AP50"] < 0.95  # not a trivial case


def test_the_precision_table_is_what_brute_force_finds(targets):
    detections = random_detections(targets, 9)
    precision = coco_eval(detections, targets).eval["precision"]
    assert precision.shape == (10, 101, 3, 4, 1)
    for t, label, (a, bounds) in [(0, 0, (0, (0, 1e10))), (4, 2, (2, AREA_RANGES["medium"]))]:
        expected = brute_precision(detections, targets, label, THRESHOLDS[t], bounds)
        assert precision[t, :, label, a, 0] == pytest.approx(expected, abs=1e-6)


def test_perfect_detections_have_ap_1(targets):
    assert coco_ap(perfect(targets), targets) == dict.fromkeys(KEYS, pytest.approx(1))


def test_no_detections_have_ap_0(targets):
    assert coco_ap(nothing_found(len(targets)), targets) == dict.fromkeys(KEYS, 0)


def test_sizes_that_are_absent_are_nan():
    target = entry([[0, 0, 12, 12], [40, 40, 80, 80]], [0, 1])
    ap = coco_ap(perfect([target]), [target])
    assert math.isnan(ap["AP_medium"])
    assert ap["AP_small"] == ap["AP_large"] == ap["AP"] == pytest.approx(1)


def test_an_object_on_a_bound_counts_on_both_sides():
    target = entry([[0, 0, 18, 18]], [0])
    ap = coco_ap(perfect([target]), [target])
    assert ap["AP_small"] == ap["AP_medium"] == pytest.approx(1)


@pytest.mark.parametrize("found", [entry([], [], []), entry([[0, 0, 9, 9]], [1], [0.5])])
def test_without_any_object_everything_is_nan(found):
    ap = coco_ap([found], [entry([], [])])
    assert tuple(ap) == KEYS and all(math.isnan(value) for value in ap.values())


def test_without_any_image_everything_is_nan():
    assert all(math.isnan(value) for value in coco_ap([], []).values())


def test_classes_without_objects_do_not_lower_ap():
    target = entry([[0, 0, 20, 20]], [2])
    assert coco_ap(perfect([target]), [target], num_classes=7)["AP"] == pytest.approx(1)


def test_more_detections_than_the_limit_do_not_count(targets):
    detections = random_detections(targets, 3)
    result = coco_eval(detections, targets, max_detections=2)
    precision = result.eval["precision"][..., 0, 0]
    measured = precision[precision > -1].mean()
    assert measured == pytest.approx(brute_ap(detections, targets, most=2), abs=1e-6)
    assert measured < coco_ap(detections, targets)["AP"]


def test_area_ranges_can_be_chosen(targets):
    detections = random_detections(targets, 5)
    result = coco_eval(detections, targets, area_ranges={"tiny": (0, 200), "rest": (200, 1e10)})
    assert result.params.areaRngLbl == ["tiny", "rest"]
    tiny = result.eval["precision"][..., 0, 0]
    expected = brute_ap(detections, targets, bounds=(0, 200))
    assert tiny[tiny > -1].mean() == pytest.approx(expected, abs=1e-6)


def test_evaluation_prints_nothing_and_changes_nothing(targets, capsys):
    detections = random_detections(targets, 1)
    copies = [{k: v.clone() for k, v in d.items()} for d in detections]
    coco_ap(detections, targets)
    assert capsys.readouterr() == ("", "")
    for a, b in zip(detections, copies):
        assert all(torch.equal(a[key], b[key]) for key in b)


def test_order_of_detections_does_not_matter_without_ties(targets):
    detections = random_detections(targets, 2)
    for i, d in enumerate(detections):
        d["scores"] = torch.rand(len(d["labels"]), generator=torch.Generator().manual_seed(i))
    turned = [{key: value.flip(0) for key, value in d.items()} for d in detections]
    assert coco_ap(detections, targets) == pytest.approx(coco_ap(turned, targets))


GOOD = entry([[0, 0, 9, 9], [5, 5, 20, 20]], [0, 2])
FOUND = GOOD | {"scores": torch.tensor([0.9, 0.8])}
REVERSED = torch.tensor([[9.0, 0, 0, 9], [5, 5, 20, 20]])
BAD_DETECTIONS = {
    "reversed": ({"boxes": REVERSED}, r"detections\[0\]\['boxes'\] must have x1 <= x2 .* row 0"),
    "one box": ({"boxes": torch.zeros(4)}, r"\['boxes'\] must have shape \(N, 4\), got \(4,\)"),
    "nan": ({"boxes": GOOD["boxes"] * math.nan}, r"\['boxes'\] must be finite, row 0 is \[nan"),
    "list": ({"boxes": [[0, 0, 1, 1]]}, r"\['boxes'\] must be a torch tensor, got list"),
    "few scores": (
        {"scores": torch.ones(1)},
        r"detections\[0\]\['scores'\] must have shape \(2,\), got \(1,\)",
    ),
    "score list": ({"scores": [1, 1]}, r"\['scores'\] must be a torch tensor, got list"),
    "nan score": (
        {"scores": torch.tensor([0.5, math.nan])},
        r"detections\[0\]\['scores'\] must be finite, row 1 is nan",
    ),
    "many labels": (
        {"labels": torch.zeros(3, dtype=torch.long)},
        r"detections\[0\]\['labels'\] must have shape \(2,\), got \(3,\)",
    ),
    "float labels": ({"labels": torch.ones(2)}, r"\['labels'\] must be integers, got torch.float"),
    "negative": (
        {"labels": torch.tensor([-1, 0])},
        r"\['labels'\] must lie in 0\.\..*, got \[-1, 0\]",
    ),
    "true labels": (
        {"labels": GOOD["labels"] > 0},
        r"\['labels'\] must be integers, got torch.bool",
    ),
    "complex score": ({"scores": torch.ones(2) + 0j}, r"\['scores'\] must hold real numbers"),
    "true boxes": ({"boxes": GOOD["boxes"] > 0}, r"\['boxes'\] must hold real numbers"),
}


@pytest.mark.parametrize("bad", BAD_DETECTIONS)
def test_bad_detections_are_named(bad):
    change, message = BAD_DETECTIONS[bad]
    for call in (
        lambda: coco_ap([FOUND | change], [GOOD]),
        lambda: error_counts(FOUND | change, GOOD),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: coco_ap([FOUND], []), r"detections must be as many as the targets \(0\), got 1"),
        (
            lambda: coco_ap([GOOD], [GOOD]),
            r"detections\[0\] must have \['boxes', 'scores', 'labels'\], got \['boxes', 'labels'\]",
        ),
        (lambda: coco_ap([None], [GOOD]), r"detections\[0\] must have .*, got NoneType"),
        (lambda: coco_ap([FOUND], [{}]), r"targets\[0\] must have .*, got \[\]"),
        (lambda: coco_ap([FOUND], [GOOD], num_classes=2), r"must lie in 0\.\.1, got \[0, 2\]"),
        (
            lambda: coco_ap([FOUND] * 2, [GOOD, GOOD | {"boxes": REVERSED}]),
            r"targets\[1\]\['boxes'\] must have x1 <= x2",
        ),
        (
            lambda: coco_eval([FOUND], [GOOD], max_detections=0),
            "max_detections must be at least 1, got 0",
        ),
    ],
)
def test_other_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Number types and crowds.


@pytest.mark.parametrize("boxes", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_boxes_labels_and_scores_of_any_type(boxes):
    """Sides of 300 px and more: their areas are infinite in half precision."""
    corners = [[0, 0, 320, 320], [400, 400, 1024, 1024], [96, 64, 512, 640]]
    target = entry(corners, [0, 1, 2])
    found = entry([[0, 0, 320, 256], [400, 400, 1024, 1024], [0, 0, 64, 64]], [0, 1, 1], [3, 2, 1])
    for kind, labels, scores in ((boxes, torch.uint8, torch.half), (boxes, torch.int32, torch.int)):
        change = {"boxes": found["boxes"].to(kind), "labels": found["labels"].to(labels)}
        other = change | {"scores": found["scores"].to(scores)}
        truth = {"boxes": target["boxes"].to(kind), "labels": target["labels"].to(labels)}
        assert coco_ap([other], [truth]) == pytest.approx(coco_ap([found], [target]), nan_ok=True)
        counts = error_counts(other, truth)
        assert counts == error_counts(found, target)
        assert (counts["correct"], counts["background"], counts["missed"]) == (2, 1, 1)


def official_ap50(detections, targets):
    """Of class 0, by hand through pycocotools: COCO files, and whole numbers for crowds."""
    coco = COCO()
    coco.dataset = {"images": [], "categories": [{"id": 0}], "annotations": []}
    results = []
    for i, (found, target) in enumerate(zip(detections, targets)):
        coco.dataset["images"].append({"id": i})
        sizes = box_convert(target["boxes"], "xyxy", "xywh").tolist()
        for box, crowd in zip(sizes, target["iscrowd"].tolist()):
            number = len(coco.dataset["annotations"]) + 1
            row = {"id": number, "image_id": i, "category_id": 0, "bbox": box, "iscrowd": crowd}
            coco.dataset["annotations"].append(row | {"area": box[2] * box[3]})
        for box, score in zip(
            box_convert(found["boxes"], "xyxy", "xywh").tolist(), found["scores"].tolist()
        ):
            results.append({"image_id": i, "category_id": 0, "bbox": box, "score": score})
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[1]


@pytest.mark.parametrize("seed", range(4))
def test_crowds_count_as_in_the_official_evaluation(targets, seed):
    one_class = [t | {"labels": t["labels"] * 0} for t in targets]
    found = [d | {"labels": d["labels"] * 0} for d in random_detections(targets, seed)]
    rng = torch.Generator().manual_seed(seed)
    crowds = [torch.randint(2, (len(t["labels"]),), generator=rng) for t in targets]
    with_crowds = [t | {"iscrowd": c} for t, c in zip(one_class, crowds)]
    ap50 = coco_ap(found, with_crowds, 1)["AP50"]
    assert ap50 == pytest.approx(official_ap50(found, with_crowds), abs=1e-9)
    assert abs(ap50 - coco_ap(found, one_class, 1)["AP50"]) > 1e-3
    as_bool = [t | {"iscrowd": t["iscrowd"] > 0} for t in with_crowds]
    assert coco_ap(found, as_bool, 1)["AP50"] == ap50


def test_detections_inside_a_crowd_are_not_wrong():
    target = entry([[0, 0, 10, 10], [20, 20, 120, 120]], [0, 0]) | {"iscrowd": torch.tensor([0, 1])}
    inside = [[30, 30, 60, 60], [60, 60, 90, 90]]
    found = entry([[0, 0, 10, 10], *inside], [0, 0, 0], [0.5, 0.9, 0.8])
    assert coco_ap([found], [target])["AP50"] == pytest.approx(1)
    outside = entry([[0, 0, 10, 10], [200, 200, 230, 230]], [0, 0], [0.5, 0.9])
    assert coco_ap([outside], [target])["AP50"] == pytest.approx(0.5)


def test_a_crowd_that_is_not_set_changes_nothing(targets):
    found = random_detections(targets, 1)
    unset = [t | {"iscrowd": torch.zeros(len(t["labels"]), dtype=torch.uint8)} for t in targets]
    assert coco_ap(found, unset) == coco_ap(found, targets)


def test_crowds_have_no_error_types():
    crowd = GOOD | {"iscrowd": torch.tensor([0, 1])}
    message = r"^targets\[0\]\['iscrowd'\] must not be set: leave crowds out.* row 1 is 1"
    with pytest.raises(ValueError, match=message):
        error_counts(FOUND, crowd)
    with pytest.raises(ValueError, match=r"^targets\[0\]\['iscrowd'\] must have shape \(2,\)"):
        coco_ap([FOUND], [GOOD | {"iscrowd": torch.tensor([1])}])


# Error types: two objects far apart, a circle (0) on the left and a square (1) on the right.

TWO = entry([[0, 0, 10, 10], [50, 0, 60, 10]], [0, 1])
CIRCLE, SQUARE = [0, 0, 10, 10], [50, 0, 60, 10]
SHIFTED = [5, 0, 15, 10]  # IoU 1/3 with the circle
FAR = [90, 90, 99, 99]


@pytest.mark.parametrize(
    ("boxes", "labels", "expected"),
    [
        ([CIRCLE, SQUARE], [0, 1], {"correct": 2}),
        ([], [], {"missed": 2}),
        ([CIRCLE, SQUARE], [0, 2], {"correct": 1, "classification": 1, "missed": 1}),
        ([SHIFTED, SQUARE], [0, 1], {"correct": 1, "localisation": 1, "missed": 1}),
        ([CIRCLE, CIRCLE, SQUARE], [0, 0, 1], {"correct": 2, "duplicate": 1}),
        ([CIRCLE, SQUARE, FAR], [0, 1, 0], {"correct": 2, "background": 1}),
        ([CIRCLE, SQUARE, SHIFTED], [0, 1, 1], {"correct": 2, "background": 1}),
        ([CIRCLE, SQUARE, SHIFTED], [0, 1, 0], {"correct": 2, "localisation": 1}),
        ([[0, 0, 5, 10], SQUARE], [0, 1], {"correct": 2}),  # IoU exactly 0.5
        ([[9.5, 0, 19.5, 10], SQUARE], [0, 1], {"correct": 1, "background": 1, "missed": 1}),
    ],
)
def test_each_error_type_by_hand(boxes, labels, expected):
    scores = [0.9 - 0.1 * i for i in range(len(labels))]
    counts = error_counts(entry(boxes, labels, scores), TWO)
    assert list(counts) == [
        "correct",
        "classification",
        "localisation",
        "duplicate",
        "background",
        "missed",
    ]
    assert {name: count for name, count in counts.items() if count} == expected


def test_the_better_score_finds_the_object_first():
    tight_but_late = entry([[0, 0, 8, 10], CIRCLE], [0, 0], [0.9, 0.6])
    counts = error_counts(tight_but_late, TWO)
    assert (counts["correct"], counts["duplicate"], counts["missed"]) == (1, 1, 1)


def test_a_detection_takes_the_free_object_that_it_fits_best():
    pair = entry([[0, 0, 10, 10], [2, 0, 12, 10]], [0, 0])
    counts = error_counts(entry([[2, 0, 12, 10], [0, 0, 10, 10]], [0, 0], [0.9, 0.8]), pair)
    assert counts["correct"] == 2 and counts["missed"] == 0


def test_weak_detections_are_left_out():
    detection = entry([CIRCLE, FAR], [0, 0], [0.5, 0.49])
    assert error_counts(detection, TWO)["correct"] == 1
    assert error_counts(detection, TWO)["background"] == 0
    assert error_counts(detection, TWO, score_threshold=0.4)["background"] == 1
    assert error_counts(detection, TWO, score_threshold=0.6)["missed"] == 2


def test_error_counts_without_objects():
    empty = entry([], [])
    assert sum(error_counts(entry([], [], []), empty).values()) == 0
    counts = error_counts(entry([FAR], [0], [0.9]), empty)
    assert counts["background"] == 1 and sum(counts.values()) == 1


def test_errors_add_up(targets):
    for detection, target in zip(random_detections(targets, 6), targets):
        counts = error_counts(detection, target, 0.3)
        missed = counts.pop("missed")
        assert sum(counts.values()) == int((detection["scores"] >= 0.3).sum())
        assert counts["correct"] + missed == len(target["labels"])
