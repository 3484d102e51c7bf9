"""The code of notebook 09 against its oracles, on random and on nasty input."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared import check_stubs_and_solutions, finite_gradients, notebook_code, random_boxes
from torch import nn

from helpers.evaluation import coco_ap, error_counts

SEEDS = st.integers(0, 10**6)
PEERS = pytest.mark.parametrize("model", ["Faster R-CNN", "RetinaNet", "SSD", "FCOS"])


@pytest.fixture(scope="module")
def nb():
    plt.switch_backend("agg")
    with notebook_code("09_comparison", SEED=0, DEVICE=torch.device("cpu")) as module:
        yield module


def detection(boxes, scores, labels):
    return {
        "boxes": torch.tensor(boxes).float().reshape(-1, 4),
        "scores": torch.tensor(scores).float(),
        "labels": torch.tensor(labels, dtype=torch.long),
    }


def target(boxes, labels):
    made = detection(boxes, [0.0] * len(labels), labels)
    return {"boxes": made["boxes"], "labels": made["labels"]}


NOTHING, NO_OBJECT = detection([], [], []), target([], [])


def noisy(seed, images=3):
    """Random targets, and detections near them, of any class, some anywhere."""
    rng = np.random.RandomState(seed)
    targets, found = [], []
    for i in range(images):
        objects = random_boxes(rng.randint(0, 5), seed + i)
        boxes = torch.cat([objects.repeat(2, 1), random_boxes(3, seed + i + 99)])
        boxes = boxes + torch.from_numpy(rng.uniform(-6, 6, boxes.shape)).float()
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = torch.from_numpy(rng.randint(0, 3, len(boxes)))
        scores = torch.from_numpy(rng.uniform(0, 1, len(boxes))).float()
        found.append({"boxes": boxes, "scores": scores, "labels": labels})
        own = torch.from_numpy(rng.randint(0, 3, len(objects)))
        targets.append({"boxes": objects, "labels": own})
    targets.append(target([[0, 0, 10, 10]], [1]))  # AP needs an object
    found.append(NOTHING)
    return found, targets


# ---------------------------------------------------------------- records


def row(model="YOLO", variant="main", seed=0, **values):
    made = {"model": model, "variant": variant, "seed": seed, "source": "runs", "device": "cpu"}
    made |= {"threads": 2, "torch": "2.5", "parameters": 10, "steps": 5}
    made |= dict.fromkeys(("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"), 0.5)
    return made | {"train_seconds": 1.0, "ms_per_image": None, "notebook": "05_yolo"} | values


def test_numbers_that_nobody_measured_do_not_count(nb):
    assert nb.mean([1.0, None, 3.0]) == 2.0
    assert np.isnan(nb.mean([])) and np.isnan(nb.mean([None]))
    assert nb.spread([0.5, None]) == "0.500" and nb.spread([]) == nb.spread([None]) == "–"
    assert nb.spread([0.4, 0.5, 0.6]) == "0.500 ± 0.100"


def test_the_table_has_a_line_for_each_model_with_a_main_row(nb):
    rows = [row(), row(seed=1, AP=0.6), row("SSD", "no prior"), row("FCOS", AP_small=None)]
    lines = nb.comparison(rows, ["YOLO", "SSD", "FCOS"])
    assert [line[0] for line in lines] == ["YOLO", "FCOS"]
    assert lines[0][1] == "0.550 ± 0.071" and lines[0][-1] == 2
    assert lines[1][4] == "nan" and lines[1][-2] == "nan"
    assert nb.comparison([], ["YOLO"]) == []


def test_origins_name_seeds_by_folder_and_every_machine(nb):
    rows = [row(), row(seed=1, source="reference"), row(seed=2, source="reference", device="cuda")]
    (line,) = nb.origins(rows, ["YOLO"])
    assert line[:3] == ("YOLO", [0], [1, 2])
    assert line[3] == "cpu, 2 threads, torch 2.5; cuda, 2 threads, torch 2.5"
    assert nb.origins([], ["YOLO"]) == [("YOLO", "–", "–", "")]


def test_median_ms_forgets_a_busy_moment(nb):
    rows = [row(ms_per_image=value) for value in (2.0, 30.0, None, 2.2)]
    assert nb.median_ms(rows) == pytest.approx(2.2) and np.isnan(nb.median_ms([row()]))


def test_without_opencv_a_sentence_says_so(nb, monkeypatch, capsys):
    def missing():
        raise RuntimeError("Selective search needs OpenCV")

    assert nb.can_search()
    monkeypatch.setattr(nb, "selective_search_module", missing)
    assert not nb.can_search() and "needs OpenCV" in capsys.readouterr().out
    monkeypatch.setattr(nb, "latest_weights", committed)
    assert "Fast R-CNN" not in nb.load_detectors()


# ---------------------------------------------------------------- bootstrap


@given(SEEDS)
def test_resampled_ap_is_the_official_one_of_the_drawn_images(nb, seed):
    found, targets = noisy(seed)
    resampled = nb.ResampledAP(found, targets)
    chosen = np.random.RandomState(seed).randint(0, len(targets), len(targets))
    chosen[0] = len(targets) - 1  # never a sample without any object
    for images in (np.arange(len(targets)), chosen, chosen):  # twice: a call leaves nothing behind
        expected = coco_ap([found[i] for i in images], [targets[i] for i in images])["AP"]
        assert nb.silently(resampled, images) == pytest.approx(expected, abs=1e-9)


def test_silently_returns_and_prints_nothing(nb, capsys):
    assert nb.silently(lambda x: print("loud") or x + 1, 2) == 3
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------- costs


def beaten(points, name):
    cost, ap = points[name]
    return any(
        c <= cost and a >= ap and (c, a) != (cost, ap) for n, (c, a) in points.items() if n != name
    )


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=8))
def test_the_front_holds_who_is_not_beaten(nb, values):
    points = {str(i): (float(c), a / 10) for i, (c, a) in enumerate(values)}
    front = nb.front(points)
    assert not any(beaten(points, name) for name in front)
    assert {points[name] for name in front} == {
        p for name, p in points.items() if not beaten(points, name)
    }
    assert [points[n][0] for n in front] == sorted(points[n][0] for n in front)


def test_the_front_of_nothing_is_empty(nb):
    assert nb.front({}) == []


class Counted:
    """A detector that writes down how many images it was asked for."""

    def __init__(self):
        self.prepared, self.seen = [], []

    def prepare(self, images):
        self.prepared.append(len(images))
        return [None] * len(images)

    def __call__(self, images, regions=None):
        self.seen.append((len(images), len(regions)))


def test_milliseconds_asks_for_every_image_once_a_round(nb):
    counted = Counted()
    assert nb.milliseconds(counted, torch.zeros(5, 3, 8, 8), 2, rounds=1) > 0
    assert counted.prepared == [2, 2, 1]
    assert counted.seen == [(2, 2)] + [(2, 2), (2, 2), (1, 1)]  # the first call warms up


# ---------------------------------------------------------------- thresholds


def test_the_threshold_parts_right_boxes_from_wrong_ones(nb):
    t = target([[0, 0, 10, 10]], [0])
    d = detection([[0, 0, 10, 10], [50, 50, 60, 60]], [0.6, 0.4], [0, 0])
    threshold, f1 = nb.best_threshold([d], [t])
    assert 0.4 < threshold <= 0.6 and f1 == 1.0
    assert nb.best_threshold([NOTHING], [t])[1] == 0.0
    assert nb.best_threshold([NOTHING], [NO_OBJECT]) == (0.5, 0.0)


@given(SEEDS, st.sampled_from([0.1, 0.5, 0.9]))
def test_f1_is_the_harmonic_mean_of_precision_and_recall(nb, seed, threshold):
    found, targets = noisy(seed)
    right = shown = 0
    for d, t in zip(found, targets):
        kept = nb.shown(d, threshold)
        shown += len(kept["boxes"])
        right += sum(kind == "correct" for kind, _ in nb.judge(kept, t))
    objects = sum(len(t["boxes"]) for t in targets)
    precision, recall = right / max(shown, 1), right / objects
    expected = 2 * precision * recall / (precision + recall) if right else 0.0
    assert nb.f1_at(found, targets, threshold) == pytest.approx(expected)


@pytest.mark.parametrize(
    "d, said",
    [
        (detection([[0, 0, 10, 10]], [0.9], [0]), "✓"),
        (NOTHING, "1 missed"),
        (detection([[0, 0, 10, 10]], [0.9], [1]), "1 wrong, 1 missed"),
        (detection([[0, 0, 10, 10], [40, 40, 50, 50]], [0.9, 0.8], [0, 0]), "1 wrong"),
        (detection([[0, 0, 10, 10]], [0.4], [0]), "1 missed"),
    ],
)
def test_summary_says_what_is_wrong(nb, d, said):
    assert nb.summary(d, target([[0, 0, 10, 10]], [0]), 0.5) == said


def test_shown_keeps_the_sure_boxes_with_their_labels(nb):
    kept = nb.shown(detection([[0, 0, 1, 1], [0, 0, 2, 2]], [0.5, 0.4], [2, 1]), 0.5)
    assert kept["labels"].tolist() == [2] and kept["boxes"].tolist() == [[0, 0, 1, 1]]


# ---------------------------------------------------------------- types of error


@pytest.mark.parametrize(
    "box, label, kind",
    [
        ([0, 0, 10, 10], 0, "correct"),
        ([0, 0, 10, 10], 1, "classification"),
        ([6, 0, 16, 10], 0, "localisation"),
        ([6, 0, 16, 10], 1, "both"),
        ([9.5, 0, 19.5, 10], 0, "background"),
        ([40, 40, 50, 50], 0, "background"),
        ([0, 0, 0, 0], 0, "background"),
    ],
)
def test_a_box_is_judged_by_place_and_class(nb, box, label, kind):
    t = target([[0, 0, 10, 10]], [0])
    assert nb.judge(detection([box], [0.5], [label]), t)[0][0] == kind
    assert nb.judge(detection([box], [0.5], [label]), NO_OBJECT) == [("background", None)]
    assert nb.judge(NOTHING, t) == []


def test_the_surer_box_takes_the_object(nb):
    t = target([[0, 0, 10, 10]], [0])
    d = detection([[0, 0, 10, 10], [0, 0, 10, 9]], [0.5, 0.6], [0, 0])
    assert nb.judge(d, t) == [("correct", 0), ("duplicate", 0)]  # best score first
    mended, _ = nb.mend(d, t, "duplicate")
    assert mended["scores"].tolist() == pytest.approx([0.6])


def test_a_mended_box_gets_class_or_place_unless_the_object_is_found_anyway(nb):
    t = target([[0, 0, 10, 10]], [0])
    wrong = detection([[0, 0, 10, 10]], [0.5], [2])
    mended, _ = nb.mend(wrong, t, "classification")
    assert mended["labels"].tolist() == [0]
    beside = detection([[6, 0, 16, 10], [7, 0, 17, 10]], [0.5, 0.4], [0, 0])
    mended, _ = nb.mend(beside, t, "localisation")
    assert mended["boxes"].tolist() == [[0, 0, 10, 10]]  # the second would be a duplicate
    both = detection([[0, 0, 10, 10], [0, 0, 10, 10]], [0.5, 0.4], [0, 2])
    mended, _ = nb.mend(both, t, "classification")
    assert mended["labels"].tolist() == [0]
    assert wrong["labels"].tolist() == [2]  # the original stays as it was


def test_a_missed_object_goes_unless_a_box_concerns_it(nb):
    t = target([[0, 0, 10, 10], [40, 40, 60, 60]], [0, 1])
    d = detection([[0, 0, 10, 10]], [0.5], [2])
    assert nb.mend(d, t, "missed")[1]["labels"].tolist() == [0]
    assert len(nb.mend(NOTHING, t, "missed")[1]["boxes"]) == 0
    assert len(nb.mend(d, NO_OBJECT, "missed")[1]["boxes"]) == 0


@given(SEEDS, st.sampled_from([0.5, 0.75]))
def test_all_mended_is_perfect_and_each_type_agrees_with_lecture_00(nb, seed, high):
    found, targets = noisy(seed)
    pairs = list(zip(found, targets))
    for d, t in pairs:
        kinds = [kind for kind, _ in nb.judge(d, t)]
        counts = error_counts(d, t, score_threshold=0.0)
        assert kinds.count("background") + kinds.count("both") == counts["background"]
        for kind in ("correct", "classification", "localisation", "duplicate"):
            assert kinds.count(kind) == counts[kind]
    for kind in nb.TYPES:
        pairs = [nb.mend(*pair, kind, high) for pair in pairs]
    assert all(kind == "correct" for pair in pairs for kind, _ in nb.judge(*pair, high))
    assert all(len(d["boxes"]) == len(t["boxes"]) for d, t in pairs)


def test_price_names_the_only_error(nb):
    t = [target([[0, 0, 10, 10]], [0]), target([[0, 0, 10, 10]], [1])]
    d = [detection([[0, 0, 10, 10]], [0.5], [0]), detection([[0, 0, 10, 10]], [0.9], [2])]
    rises = nb.price(d, t, 0.5)
    assert rises["classification"] == pytest.approx(0.5)
    assert all(v == pytest.approx(0) for kind, v in rises.items() if kind != "classification")


def test_ap_at_one_iou(nb):
    t, d = [target([[0, 0, 10, 10]], [0])], [detection([[0, 0, 10, 7.2]], [0.9], [0])]
    assert nb.ap_at(d, t, 0.5) == pytest.approx(1) and nb.ap_at(d, t, 0.75) == 0.0
    with pytest.raises(ValueError, match="not in list"):
        nb.ap_at(d, t, 0.51)


# ---------------------------------------------------------------- size, crowds, stages


def test_ap_by_size_ignores_the_other_sizes(nb):
    t = [target([[0, 0, 10, 10], [20, 20, 60, 60]], [0, 0])]
    d = [detection([[0, 0, 10, 10]], [0.9], [0])]
    assert nb.ap_by(d, t, {"small": (0, 400), "large": (400, 1e10)}) == pytest.approx([1, 0])


@pytest.mark.parametrize("objects", [0, 1, 12])
def test_scenes_hold_at_most_the_objects_asked_for(nb, objects):
    scenes = nb.Scenes(3, objects)
    assert scenes.images.shape == (3, 3, 128, 128) and scenes.images.dtype == torch.uint8
    assert all(len(t["boxes"]) <= objects for t in scenes.targets)
    again = nb.Scenes(2, objects)
    assert torch.equal(again.images, scenes.images[:2])


def test_shrunk_boxes_keep_their_centre(nb):
    d = detection([[0, 0, 10, 20], [5, 5, 5, 5]], [0.9, 0.8], [0, 1])
    small = nb.shrunk(d, 0.5)
    assert small["boxes"].tolist() == [[2.5, 5, 7.5, 15], [5, 5, 5, 5]]
    assert d["boxes"][0].tolist() == [0, 0, 10, 20] and small["labels"] is d["labels"]
    assert nb.shrunk(NOTHING, 0.5)["boxes"].shape == (0, 4)


def test_share_found_counts_objects_not_images(nb):
    t = [target([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1]), NO_OBJECT]
    d = [detection([[0, 0, 10, 10], [20, 20, 30, 30]], [0.9, 0.8], [0, 0]), NOTHING]
    assert nb.share_found(d, t) == 1.0 and nb.share_found(d, t, named=True) == 0.5
    assert nb.share_found([NOTHING, NOTHING], t) == 0.0


# ---------------------------------------------------------------- our detectors and torchvision's


def test_every_detector_loads_and_answers_in_the_common_form(nb, few_images, monkeypatch):
    """From the committed weights; also images without objects and of other sizes."""
    monkeypatch.setattr(nb, "latest_weights", lambda name: committed(name))
    detectors = nb.load_detectors()
    assert list(detectors) == list(nb.LECTURES)
    blank = torch.full((2, 3, 128, 128), 200, dtype=torch.uint8)
    for images in (few_images.images, blank):
        for model, detector in detectors.items():
            regions = [torch.tensor([[10.0, 10, 60, 60]])] * len(images)
            for found in nb.detections_on(detector, images, regions):
                assert set(found) == {"boxes", "scores", "labels"}, model
                n = len(found["scores"])
                assert found["boxes"].shape == (n, 4) and found["labels"].shape == (n,)
                assert found["boxes"].isfinite().all()
                assert ((found["labels"] >= 0) & (found["labels"] < 3)).all()
    for model in ("RetinaNet", "SSD", "FCOS", "YOLO", "Faster R-CNN", "DETR"):
        wide = torch.randint(0, 255, (1, 3, 96, 192), dtype=torch.uint8)
        assert len(detectors[model](wide)) == 1
        every = detectors[model](few_images.images, threshold=-1.0, iou=1.0, top=10**6)
        usual = detectors[model](few_images.images)
        assert all(len(a["boxes"]) >= len(b["boxes"]) for a, b in zip(every, usual))
        (seen,) = detectors[model](wide, threshold=-1.0, iou=1.0, top=10**6)
        assert seen["boxes"][:, 2].max() > 96 >= seen["boxes"][:, 3].max(), model


def committed(name):
    from helpers.records import WEIGHTS, latest_weights

    return latest_weights(name, runs=WEIGHTS / "none")


def test_yolo_is_built_and_read_as_in_its_lecture(nb, few_images, monkeypatch):
    lesson = nb.lessons.load("05_yolo")
    model = lesson.YOLODetector().eval()
    monkeypatch.setattr(nb, "latest_weights", lambda name: (model.state_dict(), "runs"))
    detector = nb.YOLO("05_yolo")
    with torch.no_grad():
        forms = model(nb.to_input(few_images.images, torch.device("cpu")))
    dials = {"threshold": 0.1, "iou": 0.3, "top": 7}
    for reading in ({}, dials, {"threshold": -1.0, "iou": 1.0, "top": 10**6}):
        found = detector(few_images.images, **reading)
        torch.testing.assert_close(found, lesson.decode_predictions(forms, (128, 128), **reading))
    assert [len(d["boxes"]) for d in found] == [2 * 16 * 16] * 4  # every box


def test_a_detector_that_cannot_be_had_is_named_and_left_out(nb, monkeypatch, capsys):
    def weights(name):
        if name == "05_yolo":
            raise FileNotFoundError("no readable weights of 05_yolo")
        if name == "06_ssd":
            return {"another": torch.zeros(1)}, "runs"
        return committed(name)

    monkeypatch.setattr(nb, "latest_weights", weights)
    detectors = nb.load_detectors()
    assert set(nb.LECTURES) - set(detectors) == {"YOLO", "SSD"}
    said = capsys.readouterr().out
    assert "YOLO is left out: no readable weights" in said and "SSD is left out" in said


@PEERS
def test_a_peer_has_our_backbone_and_learns_from_every_batch(nb, model):
    build, _, first = nb.PEERS[model]
    lesson = nb.lessons.load(nb.LECTURES[model])
    net = build(lesson).train()
    images = [torch.rand(3, 128, 128) for _ in range(2)]
    boxes = [torch.tensor([[10.0, 10, 50, 50]]), torch.zeros(0, 4)]
    labels = [torch.tensor([first]), torch.zeros(0, dtype=torch.long)]
    losses = net(images, [{"boxes": b, "labels": c} for b, c in zip(boxes, labels)])
    sum(losses.values()).backward()
    assert finite_gradients(net) and all(v.isfinite() for v in losses.values())


@PEERS
def test_a_peer_answers_with_labels_from_0(nb, model):
    class Fixed(nn.Module):
        def forward(self, images):
            labels = torch.arange(3) + nb.PEERS[model][2]
            one = {"boxes": random_boxes(3), "scores": torch.rand(3), "labels": labels}
            return [one for _ in images]

    found = nb.Peer(Fixed(), nb.PEERS[model][2])(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert [f["labels"].tolist() for f in found] == [[0, 1, 2]] * 2


def test_a_peer_trains_by_the_clock(nb, few_images, monkeypatch):
    monkeypatch.setattr(nb, "benchmark", lambda split: few_images)
    net, steps, spent = nb.train_peer("SSD", 0.5)
    assert steps >= 1 and 0.5 <= spent < 30 and not net.training
    assert all(p.isfinite().all() for p in net.parameters())


def test_maps_are_numbered(nb):
    maps = nb.Maps(nn.Identity(), 3)(torch.zeros(1, 3, 2, 2))
    assert list(maps) == ["0"]
    body = nn.Module()
    body.forward = lambda x: [x, x]
    assert list(nb.Maps(body, [3, 3])(torch.zeros(1))) == ["0", "1"]


# ---------------------------------------------------------------- exercises


def test_stubs_and_solutions(nb):
    assert all("still to do" in nb.check_rise(stub) for stub in (None, ...))
    checks = {"pareto": "check_front", "bootstrap": "check_bootstrap", "ensemble": "check_ensemble"}
    check_stubs_and_solutions(nb, checks)


def points_of(costs, accuracies, take):
    at_least = (costs[None] <= costs[:, None]) & (accuracies[None] >= accuracies[:, None])
    better = (costs[None] < costs[:, None]) | (accuracies[None] > accuracies[:, None])
    return take(at_least, better)


def means(first, second, same=True, sign=1, of_means=True, repeat=True):
    rng, n = np.random.RandomState(0), len(first)
    a = rng.randint(0, n, (2000, n)) if repeat else np.tile(np.arange(n), (20, 1))
    b = a if same else rng.randint(0, n, (2000, n))
    difference = sign * (first[a] - second[b])
    values = difference.mean(axis=1) if of_means else difference[:50].ravel()
    return np.percentile(values, [2.5, 97.5])


def joined(first, second, iou, classes=True, nms=True, ordered=True):
    from torchvision import ops

    both = {key: torch.cat([first[key], second[key]]) for key in first}
    keep = ops.batched_nms(
        both["boxes"], both["scores"], both["labels"] * classes, iou if nms else 1.1
    )
    keep = keep if ordered else keep.flip(0)
    return {key: value[keep] for key, value in both.items()}


RISE = [
    ("duplicate still counts", 1.0),
    ("before", 0.75),
    ("precision at the last box", 2 / 3),
    ("that is the rise", 1 / 12),
    ("ends in ValueError", "high"),
    ("precision and recall", 0.2),
]
FRONT = [
    ("as accurate as point 2", lambda c, a: [0, 1, 2, 4]),
    ("whoever is cheaper", lambda c, a: [int(a.argmax())]),
    ("whoever is more accurate", lambda c, a: [int(c.argmin())]),
    ("not a mask", lambda c, a: np.array([True, True, True, False, False])),
    ("less accurate", lambda c, a: range(5)),
    ("beaten ones", lambda c, a: [3, 4]),
    ("compare each point", lambda c, a: [2, 3]),
    ("compare each point", lambda c, a: []),
]
BOOTSTRAP = [
    ("*same* drawn images", lambda a, b: means(a, b, same=False)),
    ("first minus second", lambda a, b: means(a, b, sign=-1)),
    ("lower end comes first", lambda a, b: means(a, b)[::-1]),
    ("single images", lambda a, b: means(a, b, of_means=False)),
    ("with repetition", lambda a, b: means(a, b, repeat=False)),
    ("two numbers", lambda a, b: means(a, b).mean()),
]
ENSEMBLE = [
    ("NMS is missing", lambda *x: joined(*x, nms=False)),
    ("class by class", lambda *x: joined(*x, classes=False)),
    ("best score first", lambda *x: joined(*x, ordered=False)),
    ("expected the scores", lambda a, b, iou: a),
    ("a dictionary", lambda a, b, iou: a["boxes"]),
    ("no longer go with", lambda *x: joined(*x) | {"labels": joined(*x)["labels"].sort().values}),
]
ANSWERS = {"rise": RISE, "front": FRONT, "bootstrap": BOOTSTRAP, "ensemble": ENSEMBLE}


@pytest.mark.parametrize(
    "check, said, answer", [(check, *pair) for check, pairs in ANSWERS.items() for pair in pairs]
)
def test_checks_name_the_mistake(nb, check, said, answer):
    message = getattr(nb, f"check_{check}")(answer)
    assert message.startswith("✗") and said in message


def test_the_exercise_numbers_are_those_of_pycocotools(nb):
    """Exercise 1, with boxes: all-point AP of lecture 00 from precision and recall."""
    precision, recall = [1, 1 / 2, 1 / 3, 2 / 4], [0.5, 0.5, 0.5, 1.0]
    best_after = [max(precision[i:]) for i in range(4)]
    steps = zip(best_after, itertools.pairwise([0, *recall]))
    assert sum(p * (b - a) for p, (a, b) in steps) == 0.75
    assert nb.check_rise(5 / 6).startswith("✓")
