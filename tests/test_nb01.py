"""The code of notebook 01 against its oracles, on random and on nasty input."""

import sys
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from shared import notebook_code
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, box_convert, box_iou

from helpers import figures
from helpers.photos import photo
from helpers.shapes import ShapesDataset

SIZE = 32  # pixels of a warped region: the least that the network takes
CONTEXT = 16 / 195
NO_BOX = np.zeros((0, 4))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def nb():
    plt.switch_backend("agg")
    with notebook_code("01_rcnn", SEED=0, DEVICE=CPU) as module:
        yield module


def extractor_of(nb, **options):
    return nb.CNNFeatureExtractor(**{"size": SIZE, "context": CONTEXT} | options)


@pytest.fixture(scope="module")
def extractor(nb):
    """One that nothing tunes."""
    return extractor_of(nb)


class Known:
    """An extractor whose maps are the features themselves: (N, D) for both descriptions."""

    def extract_maps(self, image, boxes_xywh):
        return torch.as_tensor(np.asarray(boxes_xywh, np.float32))

    def features(self, maps):
        return np.asarray(maps), np.asarray(maps)


def rcnn(nb, num_classes=3, max_proposals=20, extractor=None):
    """An untrained R-CNN on a few sliding windows."""
    windows = nb.SimplifiedProposals(max_proposals=max_proposals)
    return nb.RCNN(num_classes, windows, extractor or extractor_of(nb))


@pytest.fixture(scope="module")
def demo(nb):
    """Three tiny images with their objects, and a model that is trained on them."""
    rng = np.random.RandomState(8)
    pairs = [nb.create_synthetic_image(rng, size=64) for _ in range(3)]
    images, annotations = map(list, zip(*pairs))
    model = nb.RCNN(3, nb.SelectiveSearchProposals(), extractor_of(nb))
    history = model.train(images, annotations, steps=15)
    return {"images": images, "annotations": annotations, "model": model, "history": history}


@pytest.fixture(scope="module")
def maps(extractor):
    """Sixty trunk maps (60, 192, 1, 1): crops of three photographs in turn."""
    rng = np.random.RandomState(0)
    crops = np.concatenate([rng.randint(0, 200, (20, 2)), rng.randint(60, 120, (20, 2))], axis=1)
    photos = [photo(name) for name in ("coffee", "motorcycle", "cat")]
    return torch.stack([extractor.extract_maps(p, crops) for p in photos], 1).flatten(0, 1)


@pytest.fixture
def table(nb, maps):
    """Sixty regions around six objects, two of each class; a photograph for every class."""
    rng = np.random.RandomState(0)
    labels = np.arange(6) % 3
    truths = np.stack([np.arange(6) * 100.0, np.full(6, 50.0), np.full(6, 40.0), np.full(6, 30.0)])
    truths = truths.T  # (6, 4)
    noise = rng.normal(0, 1, (9, 6, 4)) * np.array([8, 6, 4, 3])
    boxes = np.concatenate([*(truths + noise), truths])  # (60, 4)
    overlaps, best = nb.match_regions(boxes, truths, labels, 3)
    return nb.TrainingTable(boxes, maps, overlaps, best, np.arange(60) >= 54)


def random_xywh(count, seed=0):
    return np.random.RandomState(seed).uniform(1, 60, (count, 4))


def xyxy(boxes_xywh):
    boxes = torch.tensor(np.asarray(boxes_xywh, float)).reshape(-1, 4)
    return box_convert(boxes, "xywh", "xyxy")


@pytest.mark.parametrize("side", [1, 2, 5])
def test_rectangles_are_counted(nb, side):
    pairs = [(a, b) for a in range(side) for b in range(a, side)]
    assert nb.rectangles(side) == len(pairs) ** 2


# ---------------------------------------------------------------- proposals

RNG = np.random.RandomState(3)
PICTURES = {
    "RGB": RNG.randint(0, 256, (40, 60, 3)).astype(np.uint8),
    "grey": RNG.randint(0, 256, (50, 30)).astype(np.uint8),
    "RGBA": RNG.randint(0, 256, (40, 40, 4)).astype(np.uint8),
    "float": RNG.rand(33, 47, 3).astype(np.float32),
    "bool": RNG.rand(40, 40) < 0.5,
    "one colour": np.full((40, 50, 3), 7, np.uint8),
    "one pixel": np.zeros((1, 1, 3), np.uint8),
    "one row": RNG.randint(0, 256, (1, 400, 3)).astype(np.uint8),
    "one column": RNG.randint(0, 256, (400, 1)).astype(np.uint8),
}
NO_PICTURES = {
    "None": None,
    "a path": "cat.png",
    "a list": [[0, 1], [1, 0]],
    "no pixels": np.zeros((0, 4, 3), np.uint8),
    "empty": np.zeros(0),
    "NaN": np.full((8, 8, 3), np.nan),
    "floats to 255": np.full((8, 8, 3), 200.0),
    "channels first": np.zeros((3, 20, 20), np.uint8),
    "a batch": np.zeros((1, 20, 20, 3), np.uint8),
}
GENERATORS = ["SelectiveSearchProposals", "SimplifiedProposals"]


@pytest.mark.parametrize("image", PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize("name", GENERATORS)
def test_proposals_are_boxes_inside_the_image(nb, name, image):
    boxes = getattr(nb, name)().generate_proposals(image)
    assert boxes.shape == (len(boxes), 4) and np.issubdtype(boxes.dtype, np.integer)
    x, y, w, h = boxes.T
    assert (x >= 0).all() and (y >= 0).all() and (w >= 1).all() and (h >= 1).all()
    assert (x + w <= image.shape[1]).all() and (y + h <= image.shape[0]).all()


@pytest.mark.parametrize("image", NO_PICTURES.values(), ids=NO_PICTURES)
@pytest.mark.parametrize("name", GENERATORS)
def test_what_is_no_image_is_named_before_opencv_sees_it(nb, name, image):
    with pytest.raises(ValueError, match="^image "):
        getattr(nb, name)().generate_proposals(image)


@pytest.mark.parametrize("most", [0, 1, 7])
@pytest.mark.parametrize("name", GENERATORS)
def test_proposals_are_at_most_so_many_and_repeat_with_the_seed(nb, name, most):
    def boxes(seed, most=most):
        generator = getattr(nb, name)(max_proposals=most, seed=seed)
        return generator.generate_proposals(blocks)

    blocks = np.kron(RNG.randint(0, 256, (5, 7, 3)), np.ones((9, 9, 1))).astype(np.uint8)
    everything = {tuple(box) for box in boxes(0, most=10**6).tolist()}
    assert len(everything) > 7
    assert boxes(0).shape == (most, 4)
    assert {tuple(box) for box in boxes(0).tolist()} <= everything
    assert np.array_equal(boxes(0), boxes(0))
    assert most < 7 or not np.array_equal(boxes(0), boxes(1))


def test_selective_search_drops_the_small_and_finds_the_object(nb):
    image = np.full((60, 80, 3), 235, np.uint8)
    image[20:40, 10:50] = (200, 40, 40)
    boxes = nb.SelectiveSearchProposals(min_size=1).generate_proposals(image)
    assert [10, 20, 40, 20] in boxes.tolist()
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    for least in (20, 21):
        kept = nb.SelectiveSearchProposals(min_size=least).generate_proposals(image)
        expected = {tuple(box) for box in boxes.tolist() if min(box[2:]) >= least}
        assert {tuple(box) for box in kept.tolist()} == expected
        assert ([10, 20, 40, 20] in kept.tolist()) == (least == 20)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_aspect_ratio_is_height_over_width(nb, ratio):
    windows = nb.SimplifiedProposals((0.4,), (ratio,)).generate_proposals(np.zeros((400, 400, 3)))
    assert len(np.unique(windows[:, 2:], axis=0)) == 1
    _, _, w, h = windows[0]
    assert h / w == pytest.approx(ratio, rel=0.05)
    assert w * h == pytest.approx((0.4 * 400) ** 2, rel=0.05)


def test_windows_step_by_a_fraction_of_themselves(nb):
    windows = nb.SimplifiedProposals((0.5,), (1.0,), stride=0.25, max_proposals=10**6)
    boxes = windows.generate_proposals(np.zeros((80, 80, 3)))
    assert sorted(set(boxes[:, 0].tolist())) == [0, 10, 20, 30, 40]
    assert len(boxes) == 25 and (boxes[:, 2:] == 40).all()


class NoLibrary:
    """An import hook: OpenCV is there, a system library that it needs is not."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")


@pytest.mark.parametrize("missing", ["OpenCV", "contrib", "libGL"])
def test_without_selective_search_there_is_one_sentence_and_windows(
    nb, monkeypatch, capsys, missing
):
    if missing == "libGL":
        monkeypatch.delitem(sys.modules, "cv2", raising=False)
        monkeypatch.setattr(sys, "meta_path", [NoLibrary, *sys.meta_path])
    else:
        monkeypatch.setitem(sys.modules, "cv2", None if missing == "OpenCV" else ModuleType("cv2"))
    generator = nb.proposal_generator(scale=100, min_size=9)
    printed = capsys.readouterr().out
    assert isinstance(generator, nb.SimplifiedProposals)
    assert printed.count("\n") == 1 and missing in printed and "windows" in printed
    assert 0 < len(generator.generate_proposals(np.zeros((128, 128, 3)))) <= 200


def test_with_selective_search_its_options_arrive_and_nothing_is_printed(nb, capsys):
    generator = nb.proposal_generator(scale=100, min_size=9)
    assert isinstance(generator, nb.SelectiveSearchProposals)
    assert (generator.scale, generator.min_size) == (100, 9)
    assert capsys.readouterr().out == ""


def test_best_overlaps_of_perfect_proposals_is_one(nb):
    dataset = ShapesDataset(3, seed=9)
    answers = iter(dataset.targets)

    class Perfect:
        def generate_proposals(self, image):
            assert image.shape == (128, 128, 3) and image.dtype == np.uint8
            return box_convert(next(answers)["boxes"], "xyxy", "xywh").numpy()

    best, count = nb.best_overlaps(Perfect(), dataset, 3)
    assert best == pytest.approx([1.0] * sum(len(t["boxes"]) for t in dataset.targets))
    assert count == pytest.approx(len(best) / 3)


def test_best_overlaps_without_proposals_is_zero(nb):
    class Nothing:
        def generate_proposals(self, image):
            return NO_BOX

    best, count = nb.best_overlaps(Nothing(), ShapesDataset(2, seed=9), 2)
    assert (best == 0).all() and len(best) and count == 0


@pytest.mark.parametrize("count, size", [(50, 50), (2000, 50), (10, 3)])
def test_the_seed_draws_the_images(nb, count, size):
    first, again, other = (nb.few(count, seed, size) for seed in (0, 0, 1))
    assert len(set(first)) == size and set(first) <= set(range(count))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


# ---------------------------------------------------------------- regions and features


def crop_by_hand(pixels, box_xywh, size, context):
    """The region of an image in a sea of zeros, resized."""
    x, y, w, h = box_xywh
    dx, dy, sea = round(context * w), round(context * h), 200
    wide = F.pad(pixels, [sea] * 4)
    rows = slice(sea + y - dy, sea + y + h + dy)
    region = wide[:, rows, sea + x - dx : sea + x + w + dx]
    resized = F.interpolate(region[None], (size, size), mode="bilinear", antialias=True)
    return resized[0]


INSIDE = [[5, 7, 20, 10], [0, 0, 50, 40], [49, 39, 1, 1], [10, 0, 3, 40]]
CROSSING = [[-8, -3, 30, 12], [30, 20, 90, 100], [-50, -50, 150, 150], [-9, 5, 10, 10]]
OUTSIDE = [[60, 5, 10, 10], [5, 40, 10, 10], [-30, 5, 10, 10], [5, -11, 10, 10], [900, 900, 1, 1]]


@pytest.mark.parametrize("context", [0.0, CONTEXT, 0.5])
@pytest.mark.parametrize("box", INSIDE + CROSSING, ids=str)
def test_a_warp_is_a_plain_crop_and_resize(nb, box, context):
    pixels = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(0))
    found = nb.warp(pixels, box, SIZE, context)
    assert found.shape == (3, SIZE, SIZE)
    torch.testing.assert_close(found, crop_by_hand(pixels, box, SIZE, context), atol=1e-4, rtol=0)


def test_the_rim_beyond_the_image_has_the_mean_colour(nb, extractor):
    crop = nb.warp(torch.ones(3, 40, 40), [0, 0, 8, 8], 16, context=0.5)  # nothing to resize
    assert (crop[:, :4] == 0).all() and (crop[:, :, :4] == 0).all() and (crop[:, 4:, 4:] == 1).all()
    assert extractor.transform(np.full((10, 10, 3), 127, np.uint8)).abs().max() < 0.01


@pytest.mark.parametrize("box", OUTSIDE, ids=str)
def test_a_region_outside_the_image_has_zero_features(nb, box):
    outside = extractor_of(nb, context=0.0)
    assert not nb.warp(torch.ones(3, 40, 50), box, SIZE, 0.0).any()
    image = PICTURES["RGB"][:, :50]
    vector = outside.extract_region_features(image, box)
    assert vector.shape == (1280,) and not vector.any()
    assert outside.extract_region_features(image, [0, 0, 9, 9]).any()


@pytest.mark.parametrize("flat, clamped", [((0, 0), (1, 1)), ((0, 9), (1, 9)), ((9, -4), (9, 1))])
def test_sizes_are_at_least_one_pixel(nb, flat, clamped):
    pixels = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(1))
    found = [nb.warp(pixels, [3, 4, *size], SIZE, CONTEXT) for size in (flat, clamped)]
    assert torch.equal(*found)


@pytest.mark.parametrize("nothing", [[], NO_BOX, NO_BOX.astype(int)], ids=["list", "float", "int"])
def test_no_proposals_give_no_features(extractor, nothing):
    maps = extractor.extract_maps(PICTURES["RGB"], nothing)
    assert maps.shape == (0, 192, 1, 1)
    vectors, grids = extractor.features(maps)
    assert vectors.shape == (0, 1280) and grids.shape == (0, 320)


def test_features_do_not_depend_on_the_batch(extractor):
    image, boxes = PICTURES["RGB"], np.array([*INSIDE, *CROSSING] * 3)  # more than one batch
    maps = extractor.extract_maps(image, boxes)
    vectors, grids = extractor.features(maps)
    assert vectors.shape == (24, 1280) and grids.shape == (24, 320)
    for box, vector in zip(boxes[:8], vectors):
        alone = extractor.extract_region_features(image, box)
        np.testing.assert_allclose(alone, vector, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(vectors[:8], vectors[16:], atol=1e-4)
    assert not maps.requires_grad


def test_features_are_the_networks(nb):
    plain = extractor_of(nb, size=64, context=0.0)
    image = PICTURES["RGB"]
    warped = crop_by_hand(plain.transform(image), [5, 6, 20, 30], 64, 0)
    expected = plain.network(warped[None])[0]  # (1280,)
    vector = plain.extract_region_features(image, [5, 6, 20, 30])
    np.testing.assert_allclose(vector, expected.numpy(), atol=1e-4, rtol=1e-4)


def test_features_of_every_kind_of_picture(extractor):
    for image in PICTURES.values():
        vector = extractor.extract_region_features(image, [0, 0, 1, 1])
        assert vector.shape == (1280,) and np.isfinite(vector).all()
    for image in NO_PICTURES.values():
        with pytest.raises(ValueError, match="^image "):
            extractor.extract_maps(image, [[0, 0, 1, 1]])


def test_zero_shot_answers_with_detections(nb, extractor):
    found = nb.zero_shot(extractor, PICTURES["RGB"], np.array(INSIDE), top=3)
    assert found["boxes"].shape == (len(found["scores"]), 4) and len(found["scores"]) <= 3
    assert ((found["scores"] > 0) & (found["scores"] <= 1)).all()
    nothing = nb.zero_shot(extractor, PICTURES["RGB"], NO_BOX)
    assert [tuple(nothing[k].shape) for k in ("boxes", "scores", "labels")] == [(0, 4), (0,), (0,)]


# ---------------------------------------------------------------- matching

COORDINATE = st.integers(-40, 40) | st.floats(-50, 50, width=16)
EXTENT = st.integers(0, 40) | st.floats(0, 50, width=16)
BOXES = st.lists(st.tuples(COORDINATE, COORDINATE, EXTENT, EXTENT), max_size=6)


@given(ones=BOXES, others=BOXES)
def test_iou_is_torchvisions(nb, ones, others):
    found = nb.compute_iou(ones, others)
    with np.errstate(all="ignore"):
        expected = box_iou(xyxy(ones), xyxy(others)).nan_to_num(0)  # 0 / 0
    assert found.shape == (len(ones), len(others))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-9)


def test_iou_of_boxes_without_area_is_zero(nb):
    flat = [[0, 0, 0, 0], [2, 2, 0, 5], [2, 2, 5, 0]]
    assert not nb.compute_iou([[0, 0, 4, 4], [2, 2, 0, 0]], flat).any()
    assert nb.compute_iou([0, 0, 4, 4], [0, 0, 4, 4]).tolist() == [[1]]  # one box will do


@pytest.mark.parametrize("truths", [0, 1, 7])
def test_match_regions_against_brute_force(nb, truths):
    boxes, objects = random_xywh(30, 1), random_xywh(truths, 2)
    labels = np.random.RandomState(3).randint(0, 2, truths)  # nothing of class 2
    overlaps, best = nb.match_regions(boxes, objects, labels, 3)
    assert overlaps.shape == (30, 3) and best.shape == (30, 3, 4)
    table = box_iou(xyxy(boxes), xyxy(objects)).numpy()  # (30, M)
    for i, c in np.ndindex(30, 3):
        mine = [j for j in range(truths) if labels[j] == c]
        assert overlaps[i, c] == pytest.approx(max((table[i, j] for j in mine), default=0))
        if mine:
            j = max(mine, key=lambda j: table[i, j])
            assert best[i, c].tolist() == objects[j].tolist()


def test_match_regions_without_regions(nb):
    overlaps, best = nb.match_regions(NO_BOX, random_xywh(2), np.array([0, 1]), 3)
    assert overlaps.shape == (0, 3) and best.shape == (0, 3, 4)


def annotation(boxes, labels):
    return {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels)}


IMAGE = np.full((48, 64, 3), 90, np.uint8)
OBJECT = annotation([[4, 5, 20, 30]], [1])
NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}


def test_the_table_holds_proposals_then_truths_of_every_image(nb, extractor):
    windows = nb.SimplifiedProposals(max_proposals=5)
    two = annotation([[1, 1, 9, 9], [20, 8, 60, 40]], [2, 0])
    empty = np.zeros((20, 20, 3), np.uint8)
    images, targets = [IMAGE, IMAGE // 2, empty], [OBJECT, two, NOTHING]
    table = nb.training_table(windows, extractor, images, targets, 3)
    assert len(table.boxes_xywh) == len(table.maps) == len(table.overlaps) == 5 + 1 + 5 + 2 + 5
    assert np.flatnonzero(table.is_truth).tolist() == [5, 11, 12]
    assert table.boxes_xywh[[5, 11, 12]].tolist() == [[4, 5, 16, 25], [1, 1, 8, 8], [20, 8, 40, 32]]
    assert table.overlaps[[5, 11, 12], [1, 2, 0]] == pytest.approx(1)
    assert (table.overlaps[13:] == 0).all()  # the image without objects
    expected = extractor.extract_maps(IMAGE, [[4, 5, 16, 25]])
    torch.testing.assert_close(table.maps[5:6], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "annotations, images, message",
    [
        ([OBJECT], [IMAGE, IMAGE], "zip"),
        ([OBJECT, OBJECT], [IMAGE], "zip"),
        ([annotation([[0, 0, 5, 5]], [0, 1])], [IMAGE], r"targets\[0\]\['labels'\] .*\(1,\)"),
        ([OBJECT, annotation([[0, 0, 5, 5]], [3])], [IMAGE] * 2, r"targets\[1\].* got \[3\]"),
        ([annotation([[0, 0, 5, 5]], [-1])], [IMAGE], r"targets\[0\].* 0\.\.2, got \[-1\]"),
        ([annotation([[0, 0, 5, 5]], [0.5])], [IMAGE], r"targets\[0\]\['labels'\] .*integers"),
        ([annotation([[9, 0, 5, 5]], [0])], [IMAGE], r"targets\[0\]\['boxes'\] .*x1 <= x2"),
        ([annotation([[0, 0, np.nan, 5]], [0])], [IMAGE], r"targets\[0\]\['boxes'\] .*finite"),
        ([annotation([[0, 3, 5, 3]], [0])], [IMAGE], r"targets\[0\]\['boxes'\] .*positive"),
        ([OBJECT | {"iscrowd": torch.tensor([1])}], [IMAGE], r"targets\[0\]\['iscrowd'\]"),
        ([{"boxes": [[1, 2, 3, 4]], "labels": [0]}], [IMAGE], r"targets\[0\]\['boxes'\]"),
    ],
)
def test_bad_targets_are_named(nb, annotations, images, message):
    with pytest.raises(ValueError, match=message):
        rcnn(nb, max_proposals=2, extractor=Known()).train(images, annotations)


# ---------------------------------------------------------------- stage 1


def table_of(nb, overlaps, is_truth=None):
    """A training table of which only the overlaps matter."""
    overlaps = np.array(overlaps, float)
    count, classes = overlaps.shape
    boxes = np.tile([0.0, 0, 9, 9], (count, 1))
    truths = np.tile(boxes[:, None], (1, classes, 1))
    is_truth = np.zeros(count, bool) if is_truth is None else np.array(is_truth)
    return nb.TrainingTable(boxes, torch.zeros(count, 192, 1, 1), overlaps, truths, is_truth)


def test_stage_1_labels_are_the_papers(nb):
    table = table_of(
        nb, [[0.5, 0, 0], [0.49, 0, 0], [0.6, 0.8, 0], [0, 0, 1], [0, 0.3, 0.2], [0, 0, 0]]
    )
    assert nb.stage1_labels(table).tolist() == [0, 3, 1, 2, 3, 3]


@pytest.mark.parametrize(
    "labels, positives, negatives",
    [
        ([0, 2, 3, 3, 3], 32, 96),  # fewer regions than a batch: they repeat
        ([*range(3)] * 100 + [3] * 300, 32, 96),
        ([3] * 5, 0, 96),
        ([0, 1], 32, 0),
    ],
)
def test_a_batch_has_one_positive_to_three_negatives(nb, labels, positives, negatives):
    labels = np.array(labels)
    first, again = (nb.mixed_batch(labels, 3, np.random.RandomState(0)) for _ in range(2))
    chosen = labels[first]
    assert ((chosen != 3).sum(), (chosen == 3).sum()) == (positives, negatives)
    assert np.array_equal(first, again)


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def test_stage_1_without_positives_says_so_and_changes_nothing(nb):
    model = rcnn(nb)
    before = state(model.extractor.tail)
    with pytest.raises(ValueError, match="no object to learn from"):
        model.train_stage1_finetune_cnn(table_of(nb, [[0.4, 0, 0], [0, 0.1, 0]]), steps=2)
    after = model.extractor.tail.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_stage_1_changes_the_tail_and_nothing_else(nb, table):
    model = rcnn(nb)
    tail, trunk = state(model.extractor.tail), state(model.extractor.trunk)
    _, history = model.train_stage1_finetune_cnn(table, steps=12)
    assert set(history.columns()) == {"loss", "accuracy"}
    assert len(history["loss"]) == 12 and np.isfinite(history["loss"]).all()
    assert all(0 <= accuracy <= 1 for accuracy in history["accuracy"])
    assert history["loss"][-1] < history["loss"][0]
    now, kept = state(model.extractor.tail), state(model.extractor.trunk)
    assert any(not torch.equal(tail[key], now[key]) for key in tail)
    assert all(torch.isfinite(value).all() for value in now.values())
    assert all(torch.equal(trunk[key], kept[key]) for key in trunk)
    statistics = [key for key in tail if "running" in key or "num_batches" in key]
    assert statistics and all(torch.equal(tail[key], now[key]) for key in statistics)
    assert not any(p.requires_grad for p in model.extractor.tail.parameters())


def test_the_seed_of_stage_1_decides_all(nb, table):
    heads = []
    for seed in (0, 0, 1):
        head, _ = rcnn(nb).train_stage1_finetune_cnn(table, steps=2, seed=seed)
        heads.append(head.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_stage_1_without_background_trains(nb):
    table = table_of(nb, [[0.9, 0, 0], [0, 0.7, 0]])
    _, history = rcnn(nb).train_stage1_finetune_cnn(table, steps=1)
    assert len(history["loss"]) == 1


# ---------------------------------------------------------------- stage 2

OVERLAPS = [[1, 0.2, 0], [0.99, 0, 0], [0.31, 0, 0], [0.3, 0, 0], [0.29, 1, 0], [0, 0, 0]]
TRUTHS = [True, False, False, False, True, False]


def test_svm_labels_are_the_papers(nb):
    table = table_of(nb, OVERLAPS, TRUTHS)
    assert nb.svm_labels(table, 0).tolist() == [1, -1, -1, -1, 0, 0]
    assert nb.svm_labels(table, 1).tolist() == [0, 0, 0, 0, 1, 0]
    assert nb.svm_labels(table, 2).tolist() == [0, 0, 0, 0, 0, 0]
    assert nb.svm_labels(table, 0, negative_below=0.5).tolist() == [1, -1, 0, 0, 0, 0]


def test_a_proposal_that_fits_exactly_is_no_positive_of_an_svm(nb):
    assert nb.svm_labels(table_of(nb, [[1.0]], [False]), 0).tolist() == [-1]


def test_svm_scores_tell_the_classes_apart_and_are_the_definition(nb, table, extractor):
    vectors, _ = extractor.features(table.maps)
    scalers, svms = nb.fit_svms(vectors, table)
    scores = nb.svm_scores(svms, scalers, vectors, 3)
    assert scores.shape == (60, 3)
    truth = table.overlaps[table.is_truth].argmax(1)
    assert (scores[table.is_truth].argmax(1) == truth).all()
    for c in range(3):
        scaled = (vectors - scalers[c].mean_) / scalers[c].scale_
        by_hand = scaled @ svms[c].coef_[0] + svms[c].intercept_
        np.testing.assert_allclose(scores[:, c], by_hand, atol=1e-5)
    assert nb.svm_scores(svms, scalers, np.zeros((0, 1280)), 3).shape == (0, 3)


def test_the_plane_minimises_the_formula(nb, table, extractor):
    vectors, labels = extractor.features(table.maps)[0], nb.svm_labels(table, 2)
    scaler, plane = nb.fit_svm(vectors, labels)
    x, y = scaler.transform(vectors[labels >= 0]), 2 * labels[labels >= 0] - 1

    def objective(scale):
        w, b = scale * plane.coef_[0], scale * plane.intercept_[0]
        return 0.5 * (w @ w + b * b) + 0.01 * (np.maximum(0, 1 - y * (x @ w + b)) ** 2).sum()

    assert objective(1.0) < min(objective(0.97), objective(1.03))


def test_ignored_regions_do_not_count(nb, table, extractor):
    vectors, labels = extractor.features(table.maps)[0], nb.svm_labels(table, 0)
    assert (labels == -1).any()
    changed = np.where(labels[:, None] == -1, 100.0, vectors)
    first, second = (nb.fit_svm(v, labels)[1].coef_ for v in (vectors, changed))
    np.testing.assert_array_equal(first, second)


def test_a_class_without_positives_is_skipped_and_never_found(nb, table):
    table.overlaps[:, 1], table.is_truth[table.overlaps[:, 1] == 1] = 0, False
    model = rcnn(nb)
    model.train_stage2_svm(table)
    assert sorted(model.svms) == sorted(model.scalers) == [0, 2]
    vectors, _ = model.extractor.features(table.maps)
    scores = nb.svm_scores(model.svms, model.scalers, vectors, 3)
    assert (scores[:, 1] == -np.inf).all() and np.isfinite(scores[:, [0, 2]]).all()
    found = model.detect(IMAGE, threshold=-np.inf, nms_threshold=1.0)
    assert set(found["labels"].tolist()) == {0, 2} and torch.isfinite(found["scores"]).all()


def test_a_class_without_negatives_is_skipped(nb):
    model = rcnn(nb, num_classes=1)
    model.train_stage2_svm(table_of(nb, [[1.0], [0.5]], [True, False]))
    assert model.svms == {} and model.scalers == {}


# ---------------------------------------------------------------- stage 3


def test_regression_targets_are_torchvisions_and_apply_inverts_them(nb):
    proposals, truths = random_xywh(80, 1), random_xywh(80, 2)
    targets = nb.BoundingBoxRegressor.compute_regression_targets(proposals, truths)
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    expected = coder.encode_single(xyxy(truths), xyxy(proposals))
    np.testing.assert_allclose(targets, expected.numpy(), atol=1e-9)
    np.testing.assert_allclose(nb.BoundingBoxRegressor.apply(targets, proposals), truths)
    wild = np.full((80, 4), 1000.0)
    decoded = coder.decode_single(torch.from_numpy(wild), xyxy(proposals))
    applied = nb.BoundingBoxRegressor.apply(wild, proposals)
    np.testing.assert_allclose(xyxy(applied).numpy(), decoded.numpy())
    assert np.isfinite(applied).all()


def test_regression_of_nothing_is_nothing(nb):
    assert nb.BoundingBoxRegressor.compute_regression_targets(NO_BOX, NO_BOX).shape == (0, 4)
    assert nb.BoundingBoxRegressor.apply(NO_BOX, NO_BOX).shape == (0, 4)


@pytest.mark.parametrize(
    "proposals, truths",
    [
        ([[0, 0, 0, 5]], [[0, 0, 5, 5]]),
        ([[0, 0, 5, 5]], [[0, 0, 5, 0]]),
        ([[0, 0, -5, 5]], [[0, 0, 5, 5]]),
        ([[0, 0, 5, 5]], [[0, 0, 5, 5], [1, 1, 5, 5]]),
    ],
)
def test_boxes_without_size_have_no_regression_targets(nb, proposals, truths):
    with pytest.raises(ValueError, match="with width and height"):
        nb.BoundingBoxRegressor.compute_regression_targets(proposals, truths)


def test_a_regressor_learns_a_shift_that_its_features_tell(nb):
    rng = np.random.RandomState(0)
    proposals, shifts = random_xywh(200, 3), rng.normal(0, 0.1, (200, 4))
    truths = nb.BoundingBoxRegressor.apply(shifts, proposals)
    regressor = nb.BoundingBoxRegressor(alpha=0.01)
    regressor.train_regressor(2, shifts, proposals, truths)
    np.testing.assert_allclose(regressor.predict(shifts, proposals, 2), truths, rtol=1e-2)
    untouched = regressor.predict(shifts, proposals, 0)  # no regressor for this class
    assert np.array_equal(untouched, proposals) and untouched.dtype == float
    assert regressor.predict(np.zeros((0, 4)), NO_BOX, 2).shape == (0, 4)


@pytest.mark.parametrize("count, fitted", [(9, []), (10, [1])])
def test_stage_3_needs_ten_regions(nb, count, fitted):
    table = table_of(nb, [[0.6, 0, 0]] * 20 + [[0, 0.61, 0]] * count)  # 0.6 is not above 0.6
    model = rcnn(nb)
    model.train_stage3_bbox_regression(table)
    assert sorted(model.bbox_regressors.ridges) == fitted


def test_the_ridge_is_the_formula(nb):
    rng = np.random.default_rng(0)
    x, regions = rng.normal(size=(30, 5)), random_xywh(30, 5)
    truths = nb.BoundingBoxRegressor.apply(rng.normal(0, 0.2, (30, 4)), regions)
    regressor = nb.BoundingBoxRegressor(alpha=7.0)
    regressor.train_regressor(0, x, regions, truths)
    t = regressor.compute_regression_targets(regions, truths)
    x, t = (x - x.mean(axis=0)) / x.std(axis=0), t - t.mean(axis=0)
    closed_form = np.linalg.solve(x.T @ x + 7 * np.eye(5), x.T @ t)  # (5, 4)
    np.testing.assert_allclose(regressor.ridges[0].coef_.T, closed_form)


def test_each_box_is_moved_by_the_regressor_of_its_label(nb):
    regressor = nb.BoundingBoxRegressor()
    boxes = np.array([[0, 0, 10, 10], [5, 5, 10, 10], [9, 9, 10, 10]])
    twice = [0, 0, np.log(2), np.log(2)]
    grown = nb.BoundingBoxRegressor.apply(np.tile(twice, (12, 1)), random_xywh(12))
    regressor.train_regressor(1, np.zeros((12, 4)), random_xywh(12), grown)
    moved = nb.move_regions(regressor, boxes, np.zeros((3, 4)), np.array([0, 1, 0]))
    np.testing.assert_allclose(moved, [[0, 0, 10, 10], [0, 0, 20, 20], [9, 9, 10, 10]], atol=1e-9)
    assert boxes.tolist() == [[0, 0, 10, 10], [5, 5, 10, 10], [9, 9, 10, 10]]  # not in place
    assert nb.move_regions(regressor, NO_BOX, np.zeros((0, 4)), np.zeros(0, int)).shape == (0, 4)


# ---------------------------------------------------------------- NMS


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 120])
def test_nms_is_torchvisions(nb, count, ties, threshold):
    rng = np.random.RandomState(count)
    boxes, scores, labels = random_xywh(count, 4), rng.rand(count), rng.randint(0, 3, count)
    scores = scores.round(1) if ties else scores
    oracle = (xyxy(boxes), torch.from_numpy(scores), torch.from_numpy(labels), threshold)
    expected = batched_nms(*oracle).tolist()
    kept = nb.apply_nms(boxes, scores, labels, threshold).tolist()
    if ties:  # torchvision sorts equal scores of different classes as it likes
        assert set(kept) == set(expected)
        assert (np.diff(scores[kept]) <= 0).all()
    else:
        assert kept == expected


def test_nms_of_equal_boxes_keeps_the_first_of_each_class(nb):
    boxes = np.tile([1.0, 2, 5, 5], (6, 1))
    labels = np.array([2, 0, 2, 0, 2, 1])
    assert nb.apply_nms(boxes, np.ones(6), labels).tolist() == [0, 1, 5]
    flat = np.tile([1.0, 2, 0, 5], (3, 1))  # without area: IoU 0, nothing is suppressed
    assert nb.apply_nms(flat, np.ones(3), np.zeros(3, int)).tolist() == [0, 1, 2]


# ---------------------------------------------------------------- the detector


def assert_valid(found, image):
    count = len(found["scores"])
    assert found["boxes"].shape == (count, 4) and found["labels"].shape == (count,)
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert found["labels"].dtype == torch.int64
    height, width = image.shape[:2]
    boxes, limit = found["boxes"], torch.tensor([width, height, width, height])
    assert (boxes >= 0).all() and (boxes <= limit).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
    assert (found["scores"].diff() <= 0).all() and torch.isfinite(found["scores"]).all()


@pytest.mark.parametrize("image", PICTURES.values(), ids=PICTURES)
def test_detections_of_every_kind_of_picture(nb, demo, image):
    trained = demo["model"]
    model = nb.RCNN(3, nb.SimplifiedProposals(max_proposals=12), trained.extractor)
    assert len(model.detect(image, threshold=-np.inf)["scores"]) == 0  # untrained
    model.svms, model.scalers = trained.svms, trained.scalers
    model.bbox_regressors = trained.bbox_regressors
    found = model.detect(image, threshold=-np.inf)
    assert_valid(found, image)
    assert len(found["scores"]) > 0


@pytest.mark.parametrize("image", NO_PICTURES.values(), ids=NO_PICTURES)
def test_detect_names_what_is_no_image(demo, image):
    with pytest.raises(ValueError, match="^image "):
        demo["model"].detect(image)


def test_an_image_without_proposals_has_no_detections(demo):
    pixel = np.zeros((1, 1, 3), np.uint8)  # selective search drops what is small
    found = demo["model"].detect(pixel, threshold=-np.inf)
    assert_valid(found, pixel)
    assert len(found["scores"]) == 0


def test_the_detector_finds_what_it_was_trained_on(demo):
    assert np.isfinite(demo["history"]["loss"]).all()
    for image, truth in zip(demo["images"], demo["annotations"]):
        found = demo["model"].detect(image)
        assert_valid(found, image)
        assert len(truth["boxes"])
        for box, label in zip(truth["boxes"], truth["labels"]):
            mine = found["boxes"][found["labels"] == label]
            assert len(mine) and box_iou(box[None], mine).max() > 0.5


def test_detections_are_the_best_above_the_threshold_and_do_not_overlap(nb, demo):
    model, image = demo["model"], demo["images"][0]
    everything = model.detect(image, threshold=-np.inf)
    assert len(everything["scores"]) > 3
    level = everything["scores"][1:3].mean().item()
    assert (model.detect(image, threshold=level)["scores"] > level).all()
    assert len(model.detect(image, threshold=np.inf)["scores"]) == 0
    found = model.candidates(*model.regions(image), -np.inf)
    few = nb.as_detections(*found, image.shape[:2], 0.3, top=2)
    assert all(torch.equal(few[key], everything[key][:2]) for key in few)
    kept = xyxy(found[0][model.apply_nms(*found)]).float()
    height, width = image.shape[:2]
    inside = kept.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    torch.testing.assert_close(everything["boxes"], inside)


def test_a_region_may_be_of_two_classes(nb, table, extractor):
    model = rcnn(nb, extractor=extractor)
    model.train_stage2_svm(table)
    _, vectors, grids = regions = model.regions(IMAGE)
    _, scores, labels = model.candidates(*regions, -np.inf)
    assert len(scores) == 3 * len(vectors) and np.bincount(labels).tolist() == [len(vectors)] * 3


def test_training_needs_an_object(nb):
    with pytest.raises(ValueError, match="no object to learn from"):
        rcnn(nb, max_proposals=3).train([IMAGE], [NOTHING], steps=1)


def test_training_on_one_object_of_one_class(nb):
    model = rcnn(nb, max_proposals=5)
    model.train([IMAGE], [OBJECT], steps=2)
    assert sorted(model.svms) == [1] and model.bbox_regressors.ridges == {}
    found = model.detect(IMAGE, threshold=-np.inf)
    assert_valid(found, IMAGE)
    assert set(found["labels"].tolist()) == {1}


def test_the_page_reads_held_out_regions_as_detect_does(nb, demo):
    model = demo["model"]
    image = np.kron(demo["images"][0], np.ones((2, 2, 1), np.uint8))  # 128 pixels
    (found,) = nb.answers(model, [model.regions(image)])
    again = model.detect(image, threshold=-np.inf)
    assert all(torch.equal(found[key], again[key]) for key in again)


def test_the_clock_counts_every_part(nb, demo, monkeypatch):
    monkeypatch.setattr(nb, "model", demo["model"], raising=False)
    count, seconds = nb.seconds_by_part(demo["images"][0])
    assert count == len(demo["model"].proposals.generate_proposals(demo["images"][0]))
    assert seconds.shape == (5,) and (seconds > 0).all()


# ---------------------------------------------------------------- saving


def arrays_of(nb, model):
    found = {f"tail/{n}": v.numpy().copy() for n, v in model.extractor.tail.state_dict().items()}
    for part, by_class in nb.fitted_parts(model).items():
        for c, fitted in by_class.items():
            found |= {f"{part}/{c}/{n}": getattr(fitted, n) for n in nb.FITTED[part][1]}
    return found


def same(first, second):
    return set(first) == set(second) and all(np.array_equal(first[k], second[k]) for k in first)


def test_a_model_comes_back_whole(nb, demo, tmp_path):
    path = tmp_path / "deep" / "model.npz"
    nb.save_model(demo["model"], path)
    restored = nb.RCNN(3, nb.SelectiveSearchProposals(), extractor_of(nb))
    nb.load_model(restored, path)
    assert same(arrays_of(nb, restored), arrays_of(nb, demo["model"]))
    for image in demo["images"]:
        mine, theirs = (m.detect(image, threshold=-1) for m in (demo["model"], restored))
        assert len(mine["scores"]) and all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert [file.name for file in path.parent.iterdir()] == ["model.npz"]


def test_what_the_file_does_not_have_the_model_forgets(nb, table, tmp_path):
    nb.save_model(rcnn(nb), tmp_path / "untrained.npz")
    model = rcnn(nb)
    model.train_stage2_svm(table)
    nb.load_model(model, str(tmp_path / "untrained.npz"))  # a string will do as well
    assert not any(nb.fitted_parts(model).values())
    assert len(model.detect(IMAGE, threshold=-np.inf)["scores"]) == 0


def test_a_file_that_is_not_there(nb, tmp_path):
    with pytest.raises(FileNotFoundError):
        nb.load_model(rcnn(nb), tmp_path / "none.npz")


@pytest.fixture(scope="module")
def saved(nb, demo, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.npz"
    nb.save_model(demo["model"], path)
    return path.read_bytes()


def refused(nb, path, model):
    before = arrays_of(nb, model)
    with pytest.raises(ValueError, match=f"{path.name} is no model like this one"):
        nb.load_model(model, path)
    assert same(arrays_of(nb, model), before)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99, 0.9999])
def test_a_truncated_file_is_refused_and_the_model_stays(nb, saved, tmp_path, share):
    path = tmp_path / "half.npz"
    path.write_bytes(saved[: int(share * len(saved))])
    refused(nb, path, rcnn(nb))


@pytest.mark.parametrize("kind", ["npz", "npy", "text", "folder", "one bit"])
def test_a_foreign_file_is_refused(nb, saved, tmp_path, kind):
    path = tmp_path / "foreign.npz"
    if kind == "npz":
        np.savez(path, weights=np.ones(3))
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    elif kind == "text":
        path.write_text("not a model at all\n")
    elif kind == "folder":
        path.mkdir()
    else:
        damaged = bytearray(saved)
        damaged[len(saved) // 2] ^= 255
        path.write_bytes(damaged)
    refused(nb, path, rcnn(nb))


def test_another_number_of_classes_is_refused(nb, saved, tmp_path):
    path = tmp_path / "model.npz"
    path.write_bytes(saved)
    refused(nb, path, rcnn(nb, num_classes=4))


def test_pickled_objects_are_refused_and_not_executed(nb, tmp_path):
    path, flag = tmp_path / "trap.npz", tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return Path.touch, (flag,)

    np.savez(path, num_classes=3, **{"svms/0/coef_": np.array([Trap()], dtype=object)})
    refused(nb, path, rcnn(nb))
    assert not flag.exists()
    np.load(path, allow_pickle=True)["svms/0/coef_"]
    assert flag.exists()  # the trap was live


@pytest.mark.parametrize("fails", ["os.replace", "numpy.savez_compressed"])
def test_a_write_that_fails_leaves_the_old_file_whole(nb, tmp_path, monkeypatch, fails):
    path = tmp_path / "model.npz"
    path.write_bytes(b"the old file")

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(fails, fail)
    with pytest.raises(OSError, match="no space left"):
        nb.save_model(rcnn(nb), path)
    assert path.read_bytes() == b"the old file"
    assert [file.name for file in tmp_path.iterdir()] == ["model.npz"]


# ---------------------------------------------------------------- rectangles and pictures


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size, most", [(224, 3), (64, 1), (64, 6), (12, 3)])
def test_synthetic_boxes_are_their_pixels(nb, seed, size, most):
    image, truth = nb.create_synthetic_image(np.random.RandomState(seed), size, most)
    again, _ = nb.create_synthetic_image(np.random.RandomState(seed), size, most)
    assert np.array_equal(image, again)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert 1 <= len(truth["boxes"]) == len(truth["labels"]) <= most
    painted = np.full_like(image, 235)
    for box, label in zip(truth["boxes"].int().tolist(), truth["labels"].tolist()):
        x1, y1, x2, y2 = box
        assert 0 <= x1 < x2 <= size and 0 <= y1 < y2 <= size
        assert (painted[y1:y2, x1:x2] == 235).all()  # no overlap
        painted[y1:y2, x1:x2] = nb.PAINTS[label]
    assert np.array_equal(painted, image)


def test_a_synthetic_image_without_objects(nb):
    image, truth = nb.create_synthetic_image(np.random.RandomState(0), 64, num_objects=0)
    assert (image == 235).all()
    assert truth["boxes"].shape == (0, 4) and truth["labels"].shape == (0,)
    assert truth["labels"].dtype == torch.int64


FOUND = annotation([[1, 2, 20, 30], [5, 5, 9, 9]], [0, 2]) | {"scores": torch.tensor([0.9, -3.0])}


def test_visualize_detections_draws_every_box_with_name_and_score(nb):
    axes = nb.visualize_detections(IMAGE, FOUND, nb.COLOUR_NAMES)
    texts = " ".join(text.get_text() for text in axes.texts)
    assert "red" in texts and "green" in texts and "0.90" in texts and "-3" in texts
    assert len(axes.patches) >= 2
    _, given_axes = plt.subplots()
    assert nb.visualize_detections(IMAGE, FOUND, nb.COLOUR_NAMES, given_axes) is given_axes
    nothing = nb.visualize_detections(IMAGE, NOTHING | {"scores": torch.zeros(0)}, nb.COLOUR_NAMES)
    assert len(nothing.images) == 1 and not nothing.texts
    plt.close("all")


def test_the_diagram_names_the_classes_of_the_page(nb):
    figure = figures.rcnn_figure()
    figure.canvas.draw()
    words = {t.get_text().replace("\n", "") for t in figure.findobj(Text)}
    for name in ("SelectiveSearchProposals", "warp", "BoundingBoxRegressor", "apply_nms"):
        assert name in words and hasattr(nb, name)
    for stage, name in enumerate(("stage1_labels", "svm_labels"), 1):
        assert f"stage {stage}:{name}" in words and hasattr(nb, name)
    plt.close(figure)
