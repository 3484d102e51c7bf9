"""The data generator against its own masks, and the benchmark against its frozen checksums."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from shared import checksum
from sklearn.neighbors import KNeighborsClassifier
from torchvision.ops import box_iou

from helpers.evaluation import AREA_RANGES, MEDIUM, SMALL
from helpers.shapes import (
    CLASSES,
    LECTURE_COLOURS,
    SPLITS,
    ShapesDataset,
    benchmark,
    make_scene,
    shape_mask,
)

ROOT = Path(__file__).parents[1]
CHECKSUMS = {
    "train": "7ee3e53b17622a607feb43e20030c696630ae320dae4002d6f30fc842849f3f4",
    "val": "61a7bf4df689f7b21a51fe0a0fd4990fd186dc517efb84be88779ab2a94036f3",
    "test": "f236524bd92b99c0b95a9b21f253f0770d6a2f948ba53b0aa3c68d87f8c32beb",
}


def scenes(style, count, seed):
    return [make_scene(np.random.RandomState([seed, i]), style) for i in range(count)]


@pytest.fixture(scope="module")
def benchmark_scenes():
    return scenes("benchmark", 400, 11)


@pytest.fixture(scope="module")
def lecture_scenes():
    return scenes("lecture", 100, 11)


def visible(scene):
    """What later objects leave of each mask, by painting in drawing order."""
    painted = np.full(scene.image.shape[:2], -1)
    for i, mask in enumerate(scene.masks):
        painted[mask] = i
    return [painted == i for i in range(len(scene.masks))]


def overlaps(scene):
    boxes = torch.from_numpy(scene.boxes)
    return box_iou(boxes, boxes).fill_diagonal_(0)


def sides(scene_list):
    boxes = np.concatenate([s.boxes for s in scene_list])
    return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]


def assert_boxes_are_tight(scene_list):
    for scene in scene_list:
        size = scene.image.shape[0]
        assert scene.image.shape == (size, size, 3) and scene.image.dtype == np.uint8
        assert scene.boxes.dtype == np.float32 and scene.labels.dtype == np.int64
        assert len(scene.boxes) == len(scene.labels) == len(scene.masks)
        for box, mask in zip(scene.boxes, scene.masks):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert 0 <= box.min() and box.max() <= size


def test_boxes_are_the_tight_bounds_of_the_masks(benchmark_scenes, lecture_scenes):
    assert_boxes_are_tight(benchmark_scenes)
    assert_boxes_are_tight(lecture_scenes)


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_every_permitted_size_of_every_shape_is_tight(label):
    for width in range(8, 73):
        for height in {max(8, -(-width // 2)), width - width % 2 or 8, width, min(72, 2 * width)}:
            mask = shape_mask(label, (3, 5, 3 + width, 5 + height), 80)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert (columns[0], rows[0], columns[-1], rows[-1]) == (3, 5, 2 + width, 4 + height)


def test_masks_have_the_area_of_their_shape():
    box = (10, 20, 70, 60)  # 60 x 40
    areas = [int(shape_mask(label, box, 96).sum()) for label in range(3)]
    assert areas[1] == 2400
    assert areas[0] == pytest.approx(2400 * np.pi / 4, rel=0.01)
    assert areas[2] == 2400 / 2 + 40  # each of the 40 rows is one pixel wider, for the apex


def test_benchmark_objects_overlap_little_and_stay_half_visible(benchmark_scenes):
    touching = 0
    for scene in benchmark_scenes:
        assert overlaps(scene).max() <= 0.3
        touching += int((overlaps(scene) > 0).any())
        for mask, shown in zip(scene.masks, visible(scene)):
            assert shown.sum() >= mask.sum() / 2
    assert touching > 100  # overlap does happen


def test_benchmark_sizes_and_counts(benchmark_scenes):
    width, height = sides(benchmark_scenes)
    long_side, short_side = np.maximum(width, height), np.minimum(width, height)
    assert long_side.min() == 12 and long_side.max() == 72
    assert short_side.min() >= 8
    assert (long_side <= 2 * short_side).all()
    assert 0.45 < (height > width).sum() / (height != width).sum() < 0.55
    counts = np.bincount([len(s.boxes) for s in benchmark_scenes])
    assert len(counts) == 7 and counts[0] == 0 and (counts[1:] > 30).all()
    assert {s.image.shape for s in benchmark_scenes} == {(128, 128, 3)}


def test_colour_and_size_tell_nothing_about_the_class(benchmark_scenes):
    features, labels = [], []
    for scene in benchmark_scenes:
        for shown, box, label in zip(visible(scene), scene.boxes, scene.labels):
            extent = (box[2:] - box[:2]) / 72 * 255
            features.append([*scene.image[shown].mean(0), *extent])
            labels.append(label)
    features, labels = np.array(features), np.array(labels)
    half = len(labels) // 2
    assert half > 600
    for columns in (slice(0, 3), slice(3, 5), slice(0, 5)):
        model = KNeighborsClassifier(25).fit(features[:half, columns], labels[:half])
        accuracy = model.score(features[half:, columns], labels[half:])
        assert accuracy < 1 / 3 + 4 * np.sqrt(2 / 9 / half)  # four standard errors above chance


def test_objects_stand_out_from_what_they_cover():
    rng = np.random.RandomState(0)
    for _ in range(50):
        scene = make_scene(rng, objects=1)
        mask, image = scene.masks[0], scene.image.astype(float)
        x1, y1, x2, y2 = scene.boxes[0].astype(int)
        around = image[max(0, y1 - 3) : y2 + 3, max(0, x1 - 3) : x2 + 3]
        outside = ~mask[max(0, y1 - 3) : y2 + 3, max(0, x1 - 3) : x2 + 3]
        assert np.abs(image[mask].mean(0) - around[outside].mean(0)).max() > 30


def test_lecture_style(lecture_scenes):
    width, height = sides(lecture_scenes)
    assert (width == height).all() and width.min() >= 30 and width.max() <= 80
    assert {len(s.boxes) for s in lecture_scenes} == {1, 2, 3}
    for scene in lecture_scenes:
        assert scene.image.shape == (224, 224, 3)
        assert overlaps(scene).max() == 0
        expected = np.full((224, 224, 3), 242)
        for mask, label in zip(scene.masks, scene.labels):
            expected[mask] = LECTURE_COLOURS[label]
        assert (scene.image == expected).all()


def test_a_scene_may_be_empty():
    scene = make_scene(np.random.RandomState(0), objects=0)
    assert scene.boxes.shape == (0, 4) and scene.labels.shape == (0,)
    assert scene.masks.shape == (0, 128, 128)


def test_the_same_seed_draws_the_same_images_however_many():
    few, many = ShapesDataset(5, seed=3), ShapesDataset(9, seed=3)
    assert torch.equal(few.images, many.images[:5])
    for a, b in zip(few.targets, many.targets):
        assert torch.equal(a["boxes"], b["boxes"]) and torch.equal(a["labels"], b["labels"])
    again, other = ShapesDataset(5, seed=3), ShapesDataset(5, seed=4)
    assert checksum(few.images, few.targets) == checksum(again.images, again.targets)
    assert checksum(few.images, few.targets) != checksum(other.images, other.targets)
    assert not torch.equal(few.images[0], few.images[1])


def test_drawing_leaves_the_global_random_state_alone():
    np.random.seed(1)
    expected = np.random.RandomState(1).rand()
    ShapesDataset(1)
    assert np.random.rand() == expected


@pytest.mark.parametrize("style", ["benchmark", "lecture"])
def test_dataset_items(style):
    dataset = ShapesDataset(4, style=style)
    size = dataset.image_size
    assert len(dataset) == 4 and len(list(dataset)) == 4
    assert dataset.images.shape == (4, 3, size, size) and dataset.images.dtype == torch.uint8
    image, target = dataset[-1]
    scene = dataset.scene(3)
    assert (image.permute(1, 2, 0).numpy() == scene.image).all()
    assert target["boxes"].dtype == torch.float32 and target["labels"].dtype == torch.int64
    assert target["boxes"].tolist() == scene.boxes.tolist()
    assert target["labels"].tolist() == scene.labels.tolist()
    with pytest.raises(IndexError):
        dataset[4]


def test_an_empty_dataset():
    dataset = ShapesDataset(0)
    assert len(dataset) == 0 and list(dataset) == []
    assert dataset.images.shape == (0, 3, 128, 128) and dataset.images.dtype == torch.uint8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ShapesDataset(-1), "count must not be negative, got -1"),
        (lambda: ShapesDataset(1, seed=-1), r"seed must lie in 0\.\.2\*\*32 - 1, got -1"),
        (lambda: ShapesDataset(1, style="oil"), r"style must be one of \['bench.*, got 'oil'"),
        (lambda: make_scene(np.random.RandomState(0), "oil"), "style must be .* got 'oil'"),
        (lambda: make_scene(np.random.RandomState(0), objects=-2), "objects must not .* got -2"),
        (lambda: benchmark("trian"), r"split must be one of \['train'.*\], got 'trian'"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("split", SPLITS)
def test_the_benchmark_is_frozen(split):
    dataset = benchmark(split)
    assert (len(dataset), dataset.seed) == SPLITS[split]
    assert checksum(dataset.images, dataset.targets) == CHECKSUMS[split]
    assert benchmark(split) is dataset


def test_no_image_is_in_two_splits():
    pixels = [image.numpy().tobytes() for split in SPLITS for image in benchmark(split).images]
    assert len(set(pixels)) == len(pixels) == 2600


# The data card, data/README.md


def card_rows():
    """The cells of every table row of the card, by first cell."""
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    rows = [re.findall(r"[^|]+", line) for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def percentages(counts):
    return " / ".join(f"{100 * count / sum(counts):.0f}" for count in counts)


@pytest.mark.parametrize("split", SPLITS)
def test_the_card_tells_the_truth_about(split):
    targets = benchmark(split).targets
    labels = torch.cat([t["labels"] for t in targets])
    boxes = torch.cat([t["boxes"] for t in targets])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    sizes = [int((area < 18**2).sum()), 0, int((area > 32**2).sum())]
    sizes[1] = len(area) - sum(sizes)
    images, seed = SPLITS[split]
    facts = [split, str(images), str(seed), str(len(labels))]
    assert [*facts, percentages(labels.bincount().tolist()), percentages(sizes)] in card_rows()
    assert [split, f"`{CHECKSUMS[split]}`"] in card_rows()


def test_the_card_and_the_code_agree_on_the_size_bounds():
    assert (SMALL, MEDIUM) == (18, 32)
    assert AREA_RANGES["small"][1] == AREA_RANGES["medium"][0] == 18**2
    assert AREA_RANGES["medium"][1] == AREA_RANGES["large"][0] == 32**2
    boxes = torch.cat([t["boxes"] for split in SPLITS for t in benchmark(split).targets])
    assert (boxes[:, 2:] - boxes[:, :2]).prod(1).max() < 96**2  # none is large by COCO's bounds


def test_the_card_names_every_photograph():
    from helpers.photos import PHOTOS

    assert {f"`{name}`" for name in PHOTOS} <= {row[0] for row in card_rows()}
