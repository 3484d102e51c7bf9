"""The code of notebook 01 against its oracles, on random and on nasty input."""

import sys
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays
from torchvision.models.detection._utils import BoxCoder

from helpers import boxes as reference
from helpers.features import load_pretrained
from helpers.lessons import load
from helpers.photos import photo

SIZE = 32  # pixels of a warped region: the least that the network takes
CONTEXT = 16 / 195
NO_BOX = np.zeros((0, 4))


@pytest.fixture(scope="module")
def nb():
    module = load("01_rcnn")
    module.network = load_pretrained()
    module.DEVICE = torch.device("cpu")
    module.OURS = {"size": SIZE, "context": CONTEXT, "batch_size": 16, "device": "cpu"}
    return module


def extractor_of(nb, **options):
    return nb.CNNFeatureExtractor(nb.network, **{**nb.OURS, **options})


def rcnn(nb, num_classes=3, max_proposals=20, **options):
    """An untrained R-CNN on a few sliding windows."""
    windows = nb.SimplifiedProposals(max_proposals=max_proposals)
    return nb.RCNN(num_classes, windows, extractor_of(nb, **options))


@pytest.fixture(scope="module")
def demo(nb):
    """Three tiny images with their objects, and a model that is trained on them."""
    rng = np.random.RandomState(8)
    pairs = [nb.create_synthetic_image(rng, size=64) for _ in range(3)]
    images, annotations = map(list, zip(*pairs))
    nb.seed_everything(0)
    model = nb.RCNN(3, nb.SelectiveSearchProposals(), extractor_of(nb))
    history = model.train(images, annotations, stage1_steps=15)
    return {"images": images, "annotations": annotations, "model": model, "history": history}


@pytest.fixture(scope="module")
def maps(nb):
    """Sixty trunk maps (60, 192, 1, 1): crops of three photographs in turn."""
    rng = np.random.RandomState(0)
    crops = np.concatenate([rng.randint(0, 200, (20, 2)), rng.randint(60, 120, (20, 2))], axis=1)
    photos = [photo(name) for name in ("coffee", "motorcycle", "cat")]
    return torch.stack([extractor_of(nb).extract_maps(p, crops) for p in photos], 1).flatten(0, 1)


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
    return reference.xywh_to_xyxy(torch.tensor(np.asarray(boxes_xywh, float)).reshape(-1, 4))


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
    dataset = nb.ShapesDataset(3, seed=9)
    answers = iter(dataset.targets)

    class Perfect:
        def generate_proposals(self, image):
            assert image.shape == (128, 128, 3) and image.dtype == np.uint8
            return reference.xyxy_to_xywh(next(answers)["boxes"]).numpy()

    best, count = nb.best_overlaps(Perfect(), dataset)
    assert best.tolist() == [1.0] * sum(len(t["boxes"]) for t in dataset.targets)
    assert count == pytest.approx(len(best) / 3)


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
def test_crop_is_a_plain_crop_and_resize(nb, box, context):
    pixels = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(0))
    crop = nb.RegionWarper(nb.network, SIZE, context).crop(pixels, box)
    assert crop.shape == (3, SIZE, SIZE)
    torch.testing.assert_close(crop, crop_by_hand(pixels, box, SIZE, context), atol=1e-4, rtol=0)


def test_the_rim_beyond_the_image_has_the_mean_colour(nb):
    warper = nb.RegionWarper(nb.network, 16, context=0.5)
    crop = warper.crop(torch.ones(3, 40, 40), [0, 0, 8, 8])  # 16 x 16: nothing to resize
    assert (crop[:, :4] == 0).all() and (crop[:, :, :4] == 0).all() and (crop[:, 4:, 4:] == 1).all()
    mean_colour = np.full((10, 10, 3), 0.5)
    assert warper.transform((mean_colour * 255).astype(np.uint8)).abs().max() < 0.01


@pytest.mark.parametrize("box", OUTSIDE, ids=str)
def test_a_region_outside_the_image_has_zero_features(nb, box):
    extractor = extractor_of(nb, context=0.0)
    assert extractor.crop(torch.ones(3, 40, 50), box) is None
    image = np.full((40, 50, 3), 200, np.uint8)
    assert extractor.extract_maps(image, [box, [0, 0, 9, 9]]).flatten(1).any(1).tolist() == [0, 1]
    assert torch.equal(extractor.extract_region_features(image, box), torch.zeros(1280))


@pytest.mark.parametrize("flat, clamped", [((0, 0), (1, 1)), ((0, 9), (1, 9)), ((9, -4), (9, 1))])
def test_sizes_are_at_least_one_pixel(nb, flat, clamped):
    pixels = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(1))
    warper = nb.RegionWarper(nb.network, SIZE, CONTEXT)
    assert torch.equal(warper.crop(pixels, [3, 4, *flat]), warper.crop(pixels, [3, 4, *clamped]))


@pytest.mark.parametrize("nothing", [[], NO_BOX, NO_BOX.astype(int)], ids=["list", "float", "int"])
def test_no_proposals_give_no_features(nb, nothing):
    extractor = extractor_of(nb)
    maps = extractor.extract_maps(PICTURES["RGB"], nothing)
    assert maps.shape == (0, 192, 1, 1)
    vectors, grids = extractor.features(maps)
    assert vectors.shape == (0, 1280) and grids.shape == (0, 320)


def test_features_do_not_depend_on_the_batch(nb):
    image, boxes = PICTURES["RGB"], np.array([*INSIDE, *CROSSING])
    maps = [extractor_of(nb, batch_size=n).extract_maps(image, boxes) for n in (1, 3, 64)]
    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0], atol=1e-4, rtol=1e-4)
    extractor = extractor_of(nb)
    vectors, grids = extractor.features(maps[0])
    assert vectors.shape == (8, 1280) and grids.shape == (8, 320)
    for box, vector in zip(boxes, vectors):
        alone = extractor.extract_region_features(image, box)
        torch.testing.assert_close(alone, vector, atol=1e-4, rtol=1e-4)
        assert not alone.requires_grad
    assert not (maps[0].requires_grad or vectors.requires_grad or grids.requires_grad)


def test_features_are_the_networks(nb):
    extractor = extractor_of(nb, size=64, context=0.0)
    image = PICTURES["RGB"]
    warped = crop_by_hand(extractor.transform(image), [5, 6, 20, 30], 64, 0)
    expected = nb.network(warped[None])[0]  # (1280,)
    vector = extractor.extract_region_features(image, [5, 6, 20, 30])
    torch.testing.assert_close(vector, expected, atol=1e-4, rtol=1e-4)


def test_features_of_every_kind_of_picture(nb):
    for image in PICTURES.values():
        vector = extractor_of(nb).extract_region_features(image, [0, 0, 1, 1])
        assert vector.shape == (1280,) and torch.isfinite(vector).all()
    for image in NO_PICTURES.values():
        with pytest.raises(ValueError, match="^image "):
            extractor_of(nb).extract_maps(image, [[0, 0, 1, 1]])


def test_zero_shot_answers_with_detections(nb):
    found = nb.zero_shot(extractor_of(nb), PICTURES["RGB"], np.array(INSIDE))
    assert found["boxes"].shape == (len(found["scores"]), 4)
    assert ((found["scores"] > 0) & (found["scores"] <= 1)).all()
    nothing = nb.zero_shot(extractor_of(nb), PICTURES["RGB"], NO_BOX)
    assert [tuple(nothing[k].shape) for k in ("boxes", "scores", "labels")] == [(0, 4), (0,), (0,)]


def test_regions_are_computed_once_per_image(nb):
    class Counting(nb.SimplifiedProposals):
        calls = 0

        def generate_proposals(self, image):
            self.calls += 1
            return super().generate_proposals(image)

    windows = Counting(max_proposals=3)
    model = nb.RCNN(3, windows, extractor_of(nb))
    image = PICTURES["RGB"]
    first, again = model.regions(image), model.regions(image.copy())
    assert windows.calls == 1 and first[1] is again[1]
    model.regions(image.reshape(60, 40, 3))  # the same bytes, another picture
    assert windows.calls == 2
    other = image.copy()
    other[0, 0, 0] ^= 1
    model.regions(other)
    assert windows.calls == 3


@pytest.mark.parametrize("number", [0, -1])
def test_there_is_a_class_at_least(nb, number):
    with pytest.raises(ValueError, match=f"num_classes must be at least 1, got {number}"):
        nb.RCNN(number, nb.SimplifiedProposals(), extractor_of(nb))


# ---------------------------------------------------------------- matching

COORDINATE = st.integers(-40, 40) | st.floats(-50, 50, width=16)
EXTENT = st.integers(0, 40) | st.floats(0, 50, width=16)
BOX = st.tuples(COORDINATE, COORDINATE, EXTENT, EXTENT)


@given(one=BOX, many=st.lists(BOX, max_size=6))
def test_iou_is_torchvisions(nb, one, many):
    found = nb.compute_iou(one, np.array(many).reshape(-1, 4))
    with np.errstate(all="ignore"):
        expected = torchvision.ops.box_iou(xyxy([one]), xyxy(many))[0].nan_to_num(0)  # 0 / 0
    assert found.shape == (len(many),)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-9)


def test_iou_of_boxes_without_area_is_zero(nb):
    flat = [[0, 0, 0, 0], [2, 2, 0, 5], [2, 2, 5, 0]]
    assert nb.compute_iou([0, 0, 4, 4], flat).tolist() == [0, 0, 0]
    assert nb.compute_iou([2, 2, 0, 0], flat).tolist() == [0, 0, 0]
    assert nb.compute_iou([0, 0, 4, 4], []).shape == (0,)


@pytest.mark.parametrize("truths", [0, 1, 7])
def test_match_regions_against_brute_force(nb, truths):
    boxes, objects = random_xywh(30, 1), random_xywh(truths, 2)
    labels = np.random.RandomState(3).randint(0, 2, truths)  # nothing of class 2
    overlaps, best = nb.match_regions(boxes, objects, labels, 3)
    assert overlaps.shape == (30, 3) and best.shape == (30, 3, 4)
    table = torchvision.ops.box_iou(xyxy(boxes), xyxy(objects)).numpy()  # (30, M)
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


def test_the_table_holds_proposals_then_truths_of_every_image(nb):
    model = rcnn(nb, max_proposals=5)
    two = annotation([[1, 1, 9, 9], [20, 8, 60, 40]], [2, 0])
    empty = np.zeros((20, 20, 3), np.uint8)
    table = nb.training_table(model, [IMAGE, IMAGE // 2, empty], [OBJECT, two, NOTHING])
    assert len(table.boxes_xywh) == len(table.maps) == len(table.overlaps) == 5 + 1 + 5 + 2 + 5
    assert np.flatnonzero(table.is_truth).tolist() == [5, 11, 12]
    assert table.boxes_xywh[[5, 11, 12]].tolist() == [[4, 5, 16, 25], [1, 1, 8, 8], [20, 8, 40, 32]]
    assert table.overlaps[[5, 11, 12], [1, 2, 0]].tolist() == [1, 1, 1]
    assert (table.overlaps[13:] == 0).all()  # the image without objects
    expected = model.extractor.extract_maps(IMAGE, [[4, 5, 16, 25]])
    torch.testing.assert_close(table.maps[5:6], expected, atol=1e-4, rtol=1e-4)


def test_targets_are_turned_into_top_left_and_size(nb):
    ((boxes, labels),) = nb.targets_of([{"boxes": [[1, 2, 5, 8]], "labels": [2]}], [IMAGE], 3)
    assert boxes.tolist() == [[1, 2, 4, 6]] and labels.tolist() == [2]
    for types in ((np.float64, np.int32), (np.float16, np.uint8), (np.int32, np.int16)):
        entry = {
            k: np.array(v, t) for k, v, t in zip(("boxes", "labels"), ([[1, 2, 5, 8]], [2]), types)
        }
        ((boxes, labels),) = nb.targets_of([entry], [IMAGE], 3)
        assert boxes.tolist() == [[1, 2, 4, 6]] and labels.tolist() == [2]
        assert (boxes.dtype, labels.dtype) == (np.float32, np.int64)
    ((boxes, labels),) = nb.targets_of([{"boxes": [], "labels": []}], [IMAGE], 3)
    assert boxes.shape == (0, 4) and labels.shape == (0,)


@pytest.mark.parametrize(
    "annotations, images, message",
    [
        ([], [], "at least one, got 0 images and 0 annotations"),
        ([OBJECT], [IMAGE, IMAGE], "got 2 images and 1 annotations"),
        ([OBJECT, OBJECT], [IMAGE], "got 1 images and 2 annotations"),
        ([annotation([[0, 0, 5, 5]], [0, 1])], [IMAGE], r"targets\[0\]\['labels'\] .*\(1,\)"),
        ([annotation([[0, 0, 5, 5]], [])], [IMAGE], r"targets\[0\]\['labels'\] .*\(0,\)"),
        (
            [OBJECT, annotation([[0, 0, 5, 5]], [3])],
            [IMAGE] * 2,
            r"targets\[1\].* 0\.\.2, got \[3\]",
        ),
        ([annotation([[0, 0, 5, 5]], [-1])], [IMAGE], r"targets\[0\].* 0\.\.2, got \[-1\]"),
        ([annotation([[0, 0, 5, 5]], [0.5])], [IMAGE], r"targets\[0\]\['labels'\] .*integers"),
        (
            [OBJECT, annotation([[9, 0, 5, 5]], [0])],
            [IMAGE] * 2,
            r"targets\[1\]\['boxes'\] .*x1 <= x2",
        ),
        ([annotation([[0, 0, np.nan, 5]], [0])], [IMAGE], r"targets\[0\]\['boxes'\] .*finite"),
        ([annotation([[0, 0, 5, np.inf]], [0])], [IMAGE], r"targets\[0\]\['boxes'\] .*finite"),
        ([annotation([[0, 3, 5, 3]], [0])], [IMAGE], r"targets\[0\]\['boxes'\] .*positive"),
        ([OBJECT | {"iscrowd": torch.tensor([1])}], [IMAGE], r"targets\[0\]\['iscrowd'\]"),
    ],
)
def test_bad_targets_are_named(nb, annotations, images, message):
    with pytest.raises(ValueError, match=message):
        nb.targets_of(annotations, images, 3)
    with pytest.raises(ValueError, match=message):
        rcnn(nb).train(images, annotations)


def test_boxes_that_are_not_four_numbers_are_named(nb):
    with pytest.raises(ValueError, match=r"targets\[0\]\['boxes'\]"):
        nb.targets_of([{"boxes": [[1, 2, 3, 4, 5]], "labels": [0]}], [IMAGE], 3)


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
    chosen = labels[nb.mixed_batch(labels, background=3)]
    assert ((chosen != 3).sum(), (chosen == 3).sum()) == (positives, negatives)


def test_stage_1_without_positives_says_so_and_changes_nothing(nb):
    model = rcnn(nb)
    before = {key: value.clone() for key, value in model.extractor.tail.state_dict().items()}
    with pytest.raises(ValueError, match="no positives"):
        model.train_stage1_finetune_cnn(table_of(nb, [[0.4, 0, 0], [0, 0.1, 0]]), steps=2)
    after = model.extractor.tail.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_stage_1_changes_the_tail_and_nothing_else(nb, table):
    model = rcnn(nb)

    def state(module):
        return {key: value.clone() for key, value in module.state_dict().items()}

    tail, network = state(model.extractor.tail), state(nb.network)
    nb.seed_everything(0)
    history = model.train_stage1_finetune_cnn(table, steps=12)
    assert set(history.columns()) == {"loss", "accuracy"}
    assert len(history["loss"]) == 12 and np.isfinite(history["loss"]).all()
    assert all(0 <= accuracy <= 1 for accuracy in history["accuracy"])
    assert history["loss"][-1] < history["loss"][0]
    now = state(model.extractor.tail)
    assert any(not torch.equal(tail[key], now[key]) for key in tail)
    assert all(torch.isfinite(value).all() for value in now.values())
    kept = state(nb.network)  # the trunk is a part of it
    assert all(torch.equal(network[key], kept[key]) for key in network)
    statistics = [key for key in tail if "running" in key or "num_batches" in key]
    assert statistics and all(torch.equal(tail[key], now[key]) for key in statistics)
    assert not any(p.requires_grad for p in model.extractor.tail.parameters())


def test_stage_1_without_background_trains(nb):
    table = table_of(nb, [[0.9, 0, 0], [0, 0.7, 0]])
    assert len(rcnn(nb).train_stage1_finetune_cnn(table, steps=1)["loss"]) == 1


# ---------------------------------------------------------------- stage 2

OVERLAPS = [[1, 0.2, 0], [0.99, 0, 0], [0.31, 0, 0], [0.3, 0, 0], [0.29, 1, 0], [0, 0, 0]]
TRUTHS = [True, False, False, False, True, False]


def test_svm_labels_are_the_papers_and_the_texts(nb):
    table = table_of(nb, OVERLAPS, TRUTHS)
    # The paper: the objects themselves; below 0.3 is negative; between is ignored.
    assert nb.svm_labels(table, 0).tolist() == [1, -1, -1, -1, 0, 0]
    assert nb.svm_labels(table, 1).tolist() == [0, 0, 0, 0, 1, 0]
    assert nb.svm_labels(table, 2).tolist() == [0, 0, 0, 0, 0, 0]
    assert nb.svm_labels(table, 0, negative_below=0.5).tolist() == [1, -1, 0, 0, 0, 0]
    # The text: positive above 0.3, and nothing is ignored.
    assert nb.svm_labels_of_the_text(table, 0).tolist() == [1, 1, 1, 0, 0, 0]


def test_a_proposal_that_fits_exactly_is_no_positive_of_an_svm(nb):
    assert nb.svm_labels(table_of(nb, [[1.0]], [False]), 0).tolist() == [-1]


def test_as_objectness_has_one_class_and_no_ignored_region(nb):
    one = nb.as_objectness(table_of(nb, OVERLAPS, TRUTHS))
    assert one.overlaps.tolist() == [[1], [0.99], [1], [0]]
    assert one.is_truth.tolist() == [True, False, True, False]
    assert one.truths_xywh.shape == (4, 1, 4) and len(one.maps) == len(one.boxes_xywh) == 4


def test_svm_scores_tell_the_classes_apart_and_are_the_definition(nb, table):
    model = rcnn(nb)
    model.train_stage2_svm(table)
    vectors, _ = model.extractor.features(table.maps)
    scores = model.svm_scores(vectors)
    assert scores.shape == (60, 3)
    truth = table.overlaps[table.is_truth].argmax(1)
    assert (scores[table.is_truth].argmax(1) == truth).all()
    for c in range(3):
        scaler, svm = model.scalers[c], model.svms[c]
        scaled = (vectors.numpy() - scaler.mean_) / scaler.scale_
        by_hand = scaled @ svm.coef_[0] + svm.intercept_
        np.testing.assert_allclose(scores[:, c], by_hand, atol=1e-5)
    assert model.svm_scores(torch.zeros(0, 1280)).shape == (0, 3)


def test_a_class_without_positives_is_skipped_and_never_found(nb, table):
    table.overlaps[:, 1], table.is_truth[table.overlaps[:, 1] == 1] = 0, False
    model = rcnn(nb)
    model.train_stage2_svm(table)
    assert sorted(model.svms) == sorted(model.scalers) == [0, 2]
    scores = model.svm_scores(model.extractor.features(table.maps)[0])
    assert (scores[:, 1] == -np.inf).all() and np.isfinite(scores[:, [0, 2]]).all()
    found = model.detect(IMAGE, threshold=-np.inf, nms_threshold=1.0)
    assert set(found["labels"].tolist()) == {0, 2} and torch.isfinite(found["scores"]).all()


def test_a_class_without_negatives_is_skipped(nb):
    model = rcnn(nb, num_classes=1)
    model.train_stage2_svm(table_of(nb, [[1.0], [0.5]], [True, False]))
    assert model.svms == {} and model.scalers == {}


def test_softmax_scores_are_probabilities_without_the_background(nb):
    model = nb.RCNNSoftmax(3, nb.SimplifiedProposals(max_proposals=4), extractor_of(nb))
    model.head = torch.nn.Linear(1280, 4)
    vectors = torch.randn(5, 1280, generator=torch.Generator().manual_seed(0))
    expected = model.head(vectors).softmax(1)[:, :3].detach().numpy()
    np.testing.assert_allclose(model.svm_scores(vectors), expected, atol=1e-6)


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
    with pytest.raises(ValueError, match="positive sizes"):
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


def test_mend_moves_each_box_by_the_regressor_of_its_label(nb):
    model = rcnn(nb)
    boxes = np.array([[0, 0, 10, 10], [5, 5, 10, 10], [9, 9, 10, 10]])
    features = np.zeros((3, 4))
    twice = [0, 0, np.log(2), np.log(2)]
    shifted = nb.BoundingBoxRegressor.apply(np.tile(twice, (12, 1)), random_xywh(12))
    model.bbox_regressors.train_regressor(1, np.zeros((12, 4)), random_xywh(12), shifted)
    mended = model.mend(boxes, features, np.array([0, 1, 0]))
    np.testing.assert_allclose(mended, [[0, 0, 10, 10], [0, 0, 20, 20], [9, 9, 10, 10]], atol=1e-9)
    assert boxes.tolist() == [[0, 0, 10, 10], [5, 5, 10, 10], [9, 9, 10, 10]]  # not in place
    assert model.mend(NO_BOX, np.zeros((0, 4)), np.zeros(0, int)).shape == (0, 4)


@pytest.mark.parametrize("describe_by, width", [("grids", 320), ("vectors", 1280)])
def test_the_regressors_see_what_was_chosen(nb, table, describe_by, width):
    windows = nb.SimplifiedProposals(max_proposals=5)
    model = nb.RCNN(3, windows, extractor_of(nb), describe_by=describe_by)
    vectors, features = model.describe(table.maps)
    assert vectors.shape == (60, 1280) and features.shape == (60, width)
    model.train_stage3_bbox_regression(table)
    assert {ridge.coef_.shape for ridge in model.bbox_regressors.ridges.values()} == {(4, width)}


# ---------------------------------------------------------------- NMS


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 120])
def test_nms_is_torchvisions(nb, count, ties, threshold):
    rng = np.random.RandomState(count)
    boxes, scores, labels = random_xywh(count, 4), rng.rand(count), rng.randint(0, 3, count)
    scores = scores.round(1) if ties else scores
    expected = torchvision.ops.batched_nms(
        xyxy(boxes), torch.from_numpy(scores), torch.from_numpy(labels), threshold
    ).tolist()
    kept = rcnn(nb).apply_nms(boxes, scores, labels, threshold)
    if ties:  # torchvision sorts equal scores of different classes as it likes
        assert set(kept) == set(expected)
        assert (np.diff(scores[kept]) <= 0).all()
    else:
        assert kept == expected


def test_nms_of_equal_boxes_keeps_the_first_of_each_class(nb):
    boxes = np.tile([1.0, 2, 5, 5], (6, 1))
    labels = np.array([2, 0, 2, 0, 2, 1])
    assert rcnn(nb).apply_nms(boxes, np.ones(6), labels) == [0, 1, 5]
    flat = np.tile([1.0, 2, 0, 5], (3, 1))  # without area: IoU 0, nothing is suppressed
    assert rcnn(nb).apply_nms(flat, np.ones(3), np.zeros(3, int)) == [0, 1, 2]


def test_nms_comparisons_are_counted(nb):
    nb.extractor = extractor_of(nb)
    apart = np.array([[20.0 * i, 0, 5, 5] for i in range(8)])
    assert nb.nms_comparisons(apart) == 28
    assert nb.nms_comparisons(apart[[0] * 8]) == 7
    assert nb.nms_comparisons(apart[:0]) == 0


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
def test_an_untrained_model_finds_nothing(nb, image):
    found = rcnn(nb, max_proposals=3).detect(image, threshold=-np.inf)
    assert_valid(found, image)
    assert len(found["scores"]) == 0


@pytest.mark.parametrize("image", PICTURES.values(), ids=PICTURES)
def test_detections_of_every_kind_of_picture(nb, demo, image):
    model = nb.RCNN(3, nb.SimplifiedProposals(max_proposals=12), demo["model"].extractor)
    model.svms, model.scalers = demo["model"].svms, demo["model"].scalers
    model.bbox_regressors = demo["model"].bbox_regressors
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
            assert len(mine) and torchvision.ops.box_iou(box[None], mine).max() > 0.5


def test_detections_are_the_best_above_the_threshold_and_do_not_overlap(demo):
    model, image = demo["model"], demo["images"][0]
    everything = model.detect(image, threshold=-np.inf)
    assert len(everything["scores"]) > 3
    few = model.detect(image, threshold=-np.inf, max_detections=2)
    assert all(torch.equal(few[key], everything[key][:2]) for key in few)
    level = everything["scores"][1:3].mean().item()
    assert (model.detect(image, threshold=level)["scores"] > level).all()
    assert len(model.detect(image, threshold=-np.inf, max_detections=0)["scores"]) == 0
    assert len(model.detect(image, threshold=np.inf)["scores"]) == 0
    boxes, scores, labels = model.candidates(image, -np.inf)
    kept = boxes[model.apply_nms(boxes, scores, labels)]
    inside = reference.clip_boxes(xyxy(kept).float(), *image.shape[:2])
    torch.testing.assert_close(everything["boxes"], inside)


def test_training_needs_an_object(nb):
    with pytest.raises(ValueError, match="no positives"):
        rcnn(nb, max_proposals=3).train([IMAGE], [NOTHING], stage1_steps=1)


def test_images_without_proposals_make_an_empty_table(nb, demo):
    pixel = np.zeros((1, 1, 3), np.uint8)
    table = nb.training_table(demo["model"], [pixel], [NOTHING])
    assert table.maps.shape == (0, 192, 1, 1) and table.overlaps.shape == (0, 3)
    with pytest.raises(ValueError, match="no positives"):
        rcnn(nb).train_stage1_finetune_cnn(table)


def test_training_on_one_object_of_one_class(nb):
    model = rcnn(nb, max_proposals=5)
    model.train([IMAGE], [OBJECT], stage1_steps=2)
    assert sorted(model.svms) == [1] and model.bbox_regressors.ridges == {}
    found = model.detect(IMAGE, threshold=-np.inf)
    assert_valid(found, IMAGE)
    assert set(found["labels"].tolist()) == {1}


# ---------------------------------------------------------------- saving


def same(first, second):
    return set(first) == set(second) and all(np.array_equal(first[k], second[k]) for k in first)


def test_a_model_comes_back_whole(nb, demo, tmp_path):
    path = tmp_path / "deep" / "model.npz"
    demo["model"].save_model(path)
    restored = nb.RCNN(3, nb.SelectiveSearchProposals(), extractor_of(nb))
    restored.load_model(path)
    assert same(nb.model_arrays(restored), nb.model_arrays(demo["model"]))
    for image in demo["images"]:
        mine, theirs = (m.detect(image, threshold=-1) for m in (demo["model"], restored))
        assert len(mine["scores"]) and all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert [file.name for file in path.parent.iterdir()] == ["model.npz"]


def test_what_the_file_does_not_have_the_model_forgets(nb, table, tmp_path):
    rcnn(nb).save_model(tmp_path / "untrained.npz")
    model = rcnn(nb)
    model.train_stage2_svm(table)
    model.train_stage3_bbox_regression(table)
    model.load_model(str(tmp_path / "untrained.npz"))  # a string will do as well
    assert not any(nb.fitted_parts(model).values())
    assert len(model.detect(IMAGE, threshold=-np.inf)["scores"]) == 0


def test_a_file_that_is_not_there(nb, tmp_path):
    with pytest.raises(FileNotFoundError):
        rcnn(nb).load_model(tmp_path / "none.npz")


@pytest.fixture(scope="module")
def saved(nb, demo, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.npz"
    demo["model"].save_model(path)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99, 0.9999])
def test_a_truncated_file_is_refused_and_the_model_stays(nb, saved, tmp_path, share):
    path = tmp_path / "half.npz"
    path.write_bytes(saved[: int(share * len(saved))])
    model = rcnn(nb)
    before = nb.model_arrays(model)
    with pytest.raises(ValueError, match="half.npz is no complete .npz file"):
        model.load_model(path)
    assert same(nb.model_arrays(model), before)


def test_a_damaged_file_is_refused(nb, saved, tmp_path):
    path, damaged = tmp_path / "damaged.npz", bytearray(saved)
    damaged[len(saved) // 2] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged.npz is no complete .npz file"):
        rcnn(nb).load_model(path)


@pytest.mark.parametrize("kind", ["npz", "other format", "npy", "text", "zip", "folder"])
def test_a_foreign_file_is_refused(nb, tmp_path, kind):
    path = tmp_path / "foreign.npz"
    if kind == "npz":
        np.savez(path, weights=np.ones(3))
    elif kind == "other format":
        np.savez(path, format=np.array("somebody else's R-CNN"))
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    elif kind == "text":
        path.write_text("not a model at all\n")
    elif kind == "zip":
        nb.zipfile.ZipFile(path, "w").writestr("readme.txt", "no arrays")
    else:
        path.mkdir()
    with pytest.raises(ValueError, match="foreign.npz"):
        rcnn(nb).load_model(path)


def test_pickled_objects_are_refused_and_not_executed(nb, tmp_path):
    path, flag = tmp_path / "trap.npz", tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return Path.touch, (flag,)

    arrays = {"format": np.array(nb.FORMAT), "svms/0/coef_": np.array([Trap()], dtype=object)}
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="trap.npz is no complete .npz file of plain arrays"):
        rcnn(nb).load_model(path)
    assert not flag.exists()
    np.load(path, allow_pickle=True)["svms/0/coef_"]
    assert flag.exists()  # the trap was live


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_classes": 4}, "num_classes = 3, this model has 4"),
        ({"size": 48}, "size = 32, this model has 48"),
        ({"context": 0.0}, r"context = 0\.08\d*, this model has 0\.0"),
    ],
)
def test_another_models_file_is_refused_and_the_model_stays(nb, saved, tmp_path, options, message):
    path = tmp_path / "model.npz"
    path.write_bytes(saved)
    model = rcnn(nb, **options)
    before = nb.model_arrays(model)
    with pytest.raises(ValueError, match=message):
        model.load_model(path)
    assert same(nb.model_arrays(model), before)


def without(key):
    return lambda arrays: arrays.pop(key)


def reshaped(key):
    return lambda arrays: arrays.update({key: arrays[key][..., :-1]})


def renamed(old, new):
    return lambda arrays: arrays.update({new: arrays.pop(old)})


def last_of_tail(arrays):
    return [key for key in arrays if key.startswith("tail/") and arrays[key].ndim][-1]


DAMAGE = {
    "format missing": without("size"),
    "other network": lambda arrays: arrays.update(network=np.array("resnet50")),
    "other regressor features": lambda arrays: arrays.update(describe_by=np.array("vectors")),
    "a tensor of the tail missing": lambda arrays: arrays.pop(last_of_tail(arrays)),
    "a tensor of the tail cut": lambda arrays: reshaped(last_of_tail(arrays))(arrays),
    "a tensor too many": lambda arrays: arrays.update({"tail/9.weight": np.zeros(3, "f4")}),
    "half an SVM": without("svms/0/intercept_"),
    "an SVM without scaler": lambda arrays: [
        arrays.pop(f"scalers/0/{name}") for name in ("mean_", "scale_")
    ],
    "a cut SVM": reshaped("svms/0/coef_"),
    "no number of a class": renamed("svms/0/coef_", "svms/x/coef_"),
    "a class too many": lambda arrays: [
        renamed(f"{part}/0/{name}", f"{part}/7/{name}")(arrays)
        for part, names in (("svms", ("coef_", "intercept_", "classes_")),)
        for name in names
    ],
    "a strange attribute": renamed("svms/0/coef_", "svms/0/decision_function"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_arrays_that_do_not_fit_are_refused_and_the_model_stays(nb, demo, damage):
    """Half a load would be a model that nobody trained."""
    arrays = dict(nb.model_arrays(demo["model"]))
    damage(arrays)
    model = rcnn(nb)
    before = {key: np.array(value) for key, value in nb.model_arrays(model).items()}
    with pytest.raises(ValueError):
        nb.restore_model(model, arrays)
    assert same(nb.model_arrays(model), before)


@pytest.mark.parametrize("fails", ["os.replace", "numpy.savez_compressed"])
def test_a_write_that_fails_leaves_the_old_file_whole(nb, tmp_path, monkeypatch, fails):
    path = tmp_path / "model.npz"
    path.write_bytes(b"the old file")

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(fails, fail)
    with pytest.raises(OSError, match="no space left"):
        rcnn(nb).save_model(path)
    assert path.read_bytes() == b"the old file"
    assert [file.name for file in tmp_path.iterdir()] == ["model.npz"]


@given(
    content=st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: b"PK\x03\x04" + tail)
)
def test_no_bytes_whatever_are_a_model(nb, tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="bytes.npz"):
        nb.read_arrays(path)


@given(numpy_arrays(np.float32, st.tuples(st.integers(0, 3), st.integers(0, 3))))
def test_read_arrays_gives_what_was_written(nb, tmp_path_factory, array):
    path = tmp_path_factory.getbasetemp() / "arrays.npz"
    np.savez(path, format=np.array(nb.FORMAT), x=array)
    assert np.array_equal(nb.read_arrays(path)["x"], array, equal_nan=True)


# ---------------------------------------------------------------- the demo's images and pictures


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
        painted[y1:y2, x1:x2] = nb.DEMO_COLOURS[label]
    assert np.array_equal(painted, image)


def test_a_synthetic_image_without_objects(nb):
    image, truth = nb.create_synthetic_image(np.random.RandomState(0), 64, num_objects=0)
    assert (image == 235).all()
    assert truth["boxes"].shape == (0, 4) and truth["labels"].shape == (0,)
    assert truth["labels"].dtype == torch.int64


FOUND = annotation([[1, 2, 20, 30], [5, 5, 9, 9]], [0, 2]) | {"scores": torch.tensor([0.9, -3.0])}


def test_visualize_detections_draws_every_box_with_name_and_score(nb):
    axes = nb.visualize_detections(IMAGE, FOUND, nb.DEMO_CLASSES)
    texts = " ".join(text.get_text() for text in axes.texts)
    assert "red" in texts and "blue" in texts and "0.9" in texts and "3" in texts
    assert len(axes.patches) >= 2
    _, given_axes = plt.subplots()
    assert nb.visualize_detections(IMAGE, FOUND, nb.DEMO_CLASSES, given_axes) is given_axes
    plt.close("all")


def test_visualize_detections_of_nothing(nb):
    axes = nb.visualize_detections(IMAGE, NOTHING | {"scores": torch.zeros(0)}, nb.DEMO_CLASSES)
    assert len(axes.images) == 1 and not axes.texts
    plt.close("all")


def test_mean_iou_is_over_pairs(nb):
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    assert nb.mean_iou(boxes, np.array([[0.0, 0, 10, 10], [50, 50, 5, 5]])) == 0.5


# ---------------------------------------------------------------- the exercises


def test_the_stubs_are_still_to_do_and_the_solutions_right(nb):
    for stub in (None, ...):
        assert "still to do" in nb.check_passes(stub)
    assert nb.check_passes(10 * 25 * 2000).startswith("✓")
    for name, check in (
        ("label_region", nb.check_label),
        ("my_targets", nb.check_targets),
        ("with_context", nb.check_context),
    ):
        assert "still to do" in check(getattr(nb, name))
        assert check(getattr(nb, f"{name}_solution")).startswith("✓")


@pytest.mark.parametrize(
    "answer, says",
    [
        (2000, "every frame"),
        (250, "number of frames"),
        (20_000, "25"),
        (50_000, "ten"),
        (250_000, "250000"),
        (500_000.5, "500000.5"),
        ("half a million", "half a million"),
        ([500_000], "500000"),
    ],
)
def test_check_passes_names_the_mistake(nb, answer, says):
    message = nb.check_passes(answer)
    assert not message.startswith("✓") and says in message


def label_region(overlaps, above=np.greater_equal, threshold=0.5, background=None):
    background = len(overlaps) if background is None else background
    return int(overlaps.argmax()) if above(overlaps.max(), threshold) else background


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda o: label_region(o) if o.max() >= 0.5 or o.max() < 0.1 else -1, "ignores none"),
        (lambda o: label_region(o, threshold=0.3), "0.3"),
        (lambda o: int(o.argmax()), "0.3"),
        (lambda o: label_region(o, above=np.greater), ">="),
        (lambda o: int(o.max() >= 0.5), "object or not"),
        (lambda o: next((i for i, v in enumerate(o) if v >= 0.5), len(o)), "not the first"),
        (lambda o: label_region(o) if o.max() >= 0.5 or o.max() < 0.1 else None, "ignores none"),
        (lambda o: label_region(o, background=len(o) - 1), "expected"),
        (lambda o: (label_region(o) + 1) % (len(o) + 1), "background"),  # background is class 0
    ],
)
def test_check_label_names_the_mistake(nb, wrong, says):
    message = nb.check_label(wrong)
    assert not message.startswith("✓") and says in message


def centre_shift(p, g):
    return (g[:2] + g[2:] / 2) - (p[:2] + p[2:] / 2)


def logs(p, g):
    return np.log(g[2:] / p[2:])


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda p, g: [*((g - p)[:2] / p[2:]), *logs(p, g)], "between centres"),
        (lambda p, g: [*centre_shift(p, g), *logs(p, g)], "divide the shift"),
        (lambda p, g: [*(centre_shift(p, g) / g[2:]), *logs(p, g)], "not the truth's"),
        (lambda p, g: [*(-centre_shift(p, g) / p[2:]), *-logs(p, g)], "sign is reversed"),
        (lambda p, g: [*(centre_shift(p, g) / p[2:]), *(g[2:] / p[2:])], "logarithm"),
        (lambda p, g: [*(centre_shift(p, g) / p[2:]), *np.log2(g[2:] / p[2:])], "expected"),
        (lambda p, g: centre_shift(p, g), "4 numbers are needed, got shape (2,)"),
        (lambda p, g: [[1, 2, 3, 4]], "4 numbers are needed, got shape (1, 4)"),
    ],
)
def test_check_targets_names_the_mistake(nb, wrong, says):
    message = nb.check_targets(wrong)
    assert not message.startswith("✓") and says in message


def test_check_targets_accepts_a_right_answer_that_works_in_place(nb):
    def in_place(p, g):
        p[:2] += p[2:] / 2
        g[:2] += g[2:] / 2
        return [*((g - p)[:2] / p[2:]), *logs(p, g)]

    assert nb.check_targets(in_place).startswith("✓")


def grown(box, factor):
    extra = (factor - 1) * box[2:]
    return [*(box[:2] - extra / 2), *(box[2:] + extra)]


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda b, s, r: [b[0] - r, b[1] - r, b[2] + 2 * r, b[3] + 2 * r], "not in the image"),
        (lambda b, s, r: grown(b, (s + 2 * r) / s), "fills size - 2 rim"),
        (lambda b, s, r: grown(b, s / (s - r)), "both sides"),
        (lambda b, s, r: [*b[:2], *(b[2:] * s / (s - 2 * r))], "its corner moves"),
        (lambda b, s, r: b, "expected"),
        (lambda b, s, r: b[2:], "4 numbers are needed, got shape (2,)"),
    ],
)
def test_check_context_names_the_mistake(nb, wrong, says):
    message = nb.check_context(wrong)
    assert not message.startswith("✓") and says in message


def test_the_context_rule_agrees_with_the_extractors(nb):
    box = np.array([50.0, 40, 65, 130])
    larger = nb.with_context_solution(box, 227, 16)  # our extractors have context 16 / 195
    assert np.allclose(
        larger, grown(box, 1 + 2 * 16 / (227 - 32))
    )  # OURS: context = 16 / (227 - 32)
