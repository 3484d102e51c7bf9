"""The code of notebook 10 against its oracles, on random and on nasty input."""

import math
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from shared import notebook_code
from torch import nn
from torchvision.ops import box_iou

from experiments import runner
from helpers import lessons
from helpers.datasets import read_folder
from helpers.evaluation import coco_ap, coco_eval
from helpers.records import EXPERIMENTS, WEIGHTS, load_weights, read_records

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def nb():
    plt.switch_backend("agg")
    with notebook_code("10_your_own_data", SEED=0, DEVICE=CPU) as module:
        levels = {"STRIDES": module.STRIDES, "RANGES": module.RANGES}
        module.fcos = lessons.load("07_fcos", DEVICE=CPU, **levels)
        yield module


@pytest.fixture(scope="module")
def model(nb):
    torch.manual_seed(0)
    return nb.tree_detector().eval()


def boxes_in(size, count, seed=0):
    """Random boxes (count, 4) within an image of (height, width)."""
    rng = np.random.RandomState(seed)
    sides = np.array([size[1], size[0]] * 2)
    corners = np.sort(rng.uniform(size=(count, 2, 2)), axis=1).reshape(count, 4)
    return torch.tensor(corners * sides, dtype=torch.float32)


@st.composite
def several_boxes(draw, side=100):
    whole = st.integers(0, side)
    found = []
    for _ in range(draw(st.integers(0, 8))):
        x, y = sorted(draw(st.tuples(whole, whole))), sorted(draw(st.tuples(whole, whole)))
        found.append([x[0], y[0], x[1] + 1, y[1] + 1])
    return torch.tensor(found).float().reshape(-1, 4)


# ---------------------------------------------------------------- tiles


@given(st.integers(1, 3000), st.integers(1, 600), st.integers(1, 600))
def test_tiles_cover_a_side_and_end_with_it(nb, length, side, step):
    step = min(step, side)  # else there are gaps
    starts = nb.corners(length, side, step)
    assert starts == sorted(set(starts)) and starts[0] == 0
    covered = set().union(*(range(s, min(s + side, length)) for s in starts))
    assert len(covered) == length
    assert starts[-1] + side == length or starts == [0]


@given(st.integers(200, 2500), st.integers(1, 127))
def test_what_is_smaller_than_the_overlap_is_whole_in_some_tile(nb, length, size):
    for start in (0, 1, length // 3, length - size):
        starts = nb.corners(length, 512, 512 - 128)
        assert any(s <= start and start + size <= s + 512 for s in starts)


def test_a_tile_keeps_what_is_left_enough(nb):
    boxes = torch.tensor([[90.0, 0, 110, 20], [94, 0, 114, 20], [80, 0, 101, 20], [0, 0, 5, 5]])
    left = nb.cut(boxes, 100, 0, 64)  # half of it, more than half, a sliver, nothing
    assert left.tolist() == [[0, 0, 10, 20], [0, 0, 14, 20]]
    assert nb.cut(boxes[:0], 3, 4, 64).shape == (0, 4)
    assert len(nb.cut(torch.tensor([[5.0, 5, 5, 9]]), 0, 0, 64)) == 0  # no area, no tree


@given(several_boxes(), st.integers(0, 80), st.integers(0, 80), st.floats(0.01, 1))
def test_cut_boxes_lie_in_the_tile_and_keep_their_share(nb, boxes, x, y, least):
    left = nb.cut(boxes, x, y, 32, least)
    assert (left >= 0).all() and (left <= 32).all()
    expected = 0
    for x1, y1, x2, y2 in boxes.tolist():
        w, h = min(x2, x + 32) - max(x1, x), min(y2, y + 32) - max(y1, y)
        area = max(w, 0) * max(h, 0)
        expected += np.float32(area) >= np.float32(least) * np.float32((x2 - x1) * (y2 - y1))
    assert len(left) == expected


# ---------------------------------------------------------------- views


@pytest.mark.parametrize("turn", range(8))
def test_a_turned_box_holds_the_same_pixels(nb, turn):
    image = torch.arange(3 * 20 * 31).view(3, 20, 31)
    box = torch.tensor([[4.0, 7, 15, 12]])
    view, turned = nb.turned(image, box, turn)
    assert sorted(view.shape[1:]) == [20, 31]
    x1, y1, x2, y2 = turned[0].long().tolist()
    assert sorted(view[:, y1:y2, x1:x2].flatten().tolist()) == sorted(
        image[:, 7:12, 4:15].flatten().tolist()
    )


def test_the_eight_views_are_different_and_the_first_is_the_image(nb):
    image, none = torch.arange(3 * 8 * 8).view(3, 8, 8), torch.zeros(0, 4)
    views = [nb.turned(image, none, turn)[0] for turn in range(8)]
    assert torch.equal(views[0], image)
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8


@pytest.mark.parametrize("turn", range(4))
def test_the_first_four_views_are_their_own_way_back(nb, turn):
    image, boxes = torch.rand(3, 9, 14), boxes_in((9, 14), 5)
    back, same = nb.turned(*nb.turned(image, boxes, turn), turn)
    assert torch.equal(back, image) and torch.allclose(same, boxes, atol=1e-4)


# ---------------------------------------------------------------- the detector


@pytest.mark.parametrize("frozen", range(4))
def test_kept_maps_give_the_same_answer_whatever_is_frozen(nb, model, frozen):
    other = nb.tree_detector(lambda: nb.PretrainedStages(frozen)).eval()
    other.load_state_dict(model.state_dict())
    images = nb.normalised(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8))
    with torch.no_grad():
        ours = other(other.backbone.keep(images))
        expected = model(model.backbone.keep(images))
    assert len(other.backbone.keep(images)) == max(1, frozen)
    for maps, wanted in zip(ours, expected):
        assert [m.shape[2:] for m in maps] == [(8, 12), (4, 6), (2, 3)]
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(maps, wanted))


@pytest.mark.parametrize("frozen", range(4))
def test_what_is_frozen_is_not_trained_and_keeps_its_statistics(nb, frozen):
    stages = nb.PretrainedStages(frozen).train()
    assert not any(module.training for module in stages.modules())
    trained = [any(p.requires_grad for p in stage.parameters()) for stage in stages.stages]
    assert trained == [number >= frozen for number in range(3)]


@pytest.mark.parametrize("size", [(64, 64), (65, 33), (1, 1)])
def test_images_are_filled_up_to_whole_cells_with_grey(nb, size):
    image = nb.normalised(torch.full((1, 3, *size), 255, dtype=torch.uint8))
    assert all(n % 32 == 0 and n >= s for n, s in zip(image.shape[2:], size))
    assert (image[..., : size[0], : size[1]] == 1).all()
    rest = image[..., size[0] :, :]
    assert rest.numel() == 0 or rest.abs().max() < 0.01


def test_batches_are_cut_out_of_kept_maps_where_the_boxes_are(nb):
    """With nothing frozen, the maps are the pixels: a bright box must be bright in every tile."""
    image = torch.zeros(3, 300, 420, dtype=torch.uint8)
    boxes = torch.tensor([[60.0, 90, 100, 120], [200, 30, 260, 100], [300, 200, 380, 290]])
    for x1, y1, x2, y2 in boxes.long().tolist():
        image[:, y1:y2, x1:x2] = 255
    stages = nb.PretrainedStages(0)
    views = nb.kept_views(stages, image, boxes)
    assert len(views) == 8
    seen = 0
    for (pixels,), found in nb.random_tiles(views, stages.strides, 6, 0, side=128, batch_size=4):
        assert pixels.shape == (4, 3, 128, 128)
        for tile, its_boxes in zip(pixels, found):
            for x1, y1, x2, y2 in its_boxes.round().long().tolist():
                assert (tile[:, y1:y2, x1:x2] == 1).all()
                seen += 1
    assert seen > 10


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_kept_maps_of_a_tile_are_those_of_the_photograph(nb, frozen):
    """Away from the borders, where the photograph goes on and a lone tile ends."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 256, 256), dtype=torch.uint8)
    stages = nb.PretrainedStages(frozen)
    views = [(stages.keep(nb.normalised(image[None])), torch.zeros(0, 4))]
    ((maps, _),) = nb.random_tiles(views, stages.strides, 1, 0, side=256, batch_size=1)
    for got, wanted in zip(maps, views[0][0]):
        assert torch.equal(got, wanted)


def test_a_training_changes_what_is_not_frozen_and_nothing_else(nb):
    image, boxes = torch.randint(0, 256, (3, 128, 160), dtype=torch.uint8), boxes_in((128, 160), 5)
    before = nb.PretrainedStages(1).state_dict()

    def views(stages):
        return nb.kept_views(stages, image, boxes, [0, 5])

    model, history = nb.train_detector(2, 0, views, side=64)
    assert set(history) == {"focal", "iou", "centerness"} and len(history["iou"]) == 2
    after = model.backbone.state_dict()
    moved = {n.split(".")[1] for n in before if not torch.equal(before[n], after[n])}
    assert moved == {"2"}
    assert not [n for n in before if "running" in n and not torch.equal(before[n], after[n])]


def test_a_training_without_a_single_tree(nb):
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)

    def views(stages):
        return nb.kept_views(stages, image, torch.zeros(0, 4), [0])

    _, history = nb.train_detector(1, 0, views, side=64)
    assert all(math.isfinite(value) for column in history.values() for value in column)


# ---------------------------------------------------------------- one answer for a photograph


class Sees(nn.Module):
    """A detector that sees bright squares, also those of which a tile has only a part."""

    strides = (8, 16, 32)

    def __init__(self):
        super().__init__()
        self.backbone = self

    def keep(self, images):
        return [images]

    def forward(self, kept):
        return kept


@pytest.fixture
def bright(nb, monkeypatch):
    """The page's `detect` with a detector whose answers are the bright pixels' bounds."""
    from scipy.ndimage import find_objects, label

    def decode(kept, size, **_):
        picture = kept[0][0, 0].numpy() > 0.9
        spots = find_objects(label(picture)[0])
        boxes = [[x.start, y.start, x.stop, y.stop] for y, x in spots]
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        scores = 0.5 + 0.4 * (boxes[:, 2] - boxes[:, 0]) / 100
        return [{"boxes": boxes, "scores": scores}]

    monkeypatch.setattr(nb.fcos, "decode_predictions", decode)
    return lambda image, **look: nb.merged(*nb.tile_answers(Sees(), image), **look)


def bright_squares(size, squares):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for x, y, side in squares:
        image[:, y : y + side, x : x + side] = 255
    return image


@pytest.mark.parametrize("size", [(400, 400), (1035, 1249), (100, 700), (512, 513), (30, 20)])
def test_every_tree_counts_once_wherever_the_seams_are(nb, bright, size):
    squares = [
        (x, y, 9 + (x * 7 + y) % 60)
        for y in range(3, size[0] - 70, 83)
        for x in range(5, size[1] - 70, 79)
    ] or [(2, 3, 10)]
    image = bright_squares(size, squares)
    found = bright(image)
    wanted = sorted([x, y, x + s, y + s] for x, y, s in squares)
    assert sorted(map(list, found["boxes"].tolist())) == wanted
    assert len(bright(image, leave_seams=False, iou=None)["boxes"]) >= len(wanted)


def test_without_the_rule_of_seams_halves_remain(nb, bright):
    image = bright_squares((600, 900), [(495, 100, 60)])  # from 495 to 555: one tile ends at 512
    assert len(bright(image)["boxes"]) == 1
    assert len(bright(image, leave_seams=False)["boxes"]) == 2


def test_trees_at_the_border_of_the_photograph_stay(nb, bright):
    image = bright_squares((600, 900), [(0, 0, 30), (870, 570, 30), (400, 0, 40)])
    assert len(bright(image)["boxes"]) == 3


@pytest.mark.parametrize("size", [(32, 32), (33, 100), (400, 400)])
def test_the_real_detector_takes_any_size_and_stays_inside(nb, model, size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    found = nb.detect(model, image, threshold=0.0)
    assert set(found) == {"boxes", "scores", "labels"} and len(found["boxes"]) > 0
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= torch.tensor([size[1], size[0]] * 2)).all()
    assert (found["scores"].diff() <= 0).all()


# ---------------------------------------------------------------- measures


@given(several_boxes(), several_boxes())
def test_hits_are_those_of_pycocotools(nb, boxes, trees):
    right, taken = nb.hits(boxes, trees, iou=0.5)
    assert right.sum() == taken.sum()
    scores = torch.linspace(1, 0.5, len(boxes)) if len(boxes) else torch.zeros(0)
    labels = torch.zeros(len(boxes), dtype=torch.long)
    found = {"boxes": boxes, "scores": scores, "labels": labels}
    truth = {"boxes": trees, "labels": torch.zeros(len(trees), dtype=torch.long)}
    if not len(trees):
        return
    result = coco_eval([found], [truth], 1, {"all": (0, 1e10)}, 1000)
    recall = result.eval["recall"][0, 0, 0, 0]
    if len(boxes):
        assert right.sum().item() == round(recall * len(trees))


def test_hits_of_a_duplicate_and_of_nothing(nb):
    tree = torch.tensor([[0.0, 0, 10, 10]])
    right, taken = nb.hits(torch.cat([tree, tree]), tree)
    assert right.tolist() == [True, False] and taken.tolist() == [True]
    assert nb.hits(tree, tree[:0])[0].tolist() == [False]
    assert nb.hits(tree[:0], tree)[1].tolist() == [False]


@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=30, unique=True), st.integers(0, 29))
def test_above_the_counting_threshold_are_as_many_as_wanted(nb, scores, number):
    found = {"scores": torch.tensor(scores)}
    if len(set(found["scores"].tolist())) == len(scores) and number < len(scores):
        threshold = nb.counting_threshold(found, number)
        assert (found["scores"] > threshold).sum() == number
    assert nb.counting_threshold(found, 1000) == 0  # more trees than boxes: take them all
    assert nb.counting_threshold({"scores": torch.zeros(0)}, 3) == 0


def test_blocks_count_every_box_once(nb):
    boxes = boxes_in((100, 200), 500)
    counts = nb.per_block(boxes, (100, 200))
    assert counts.shape == (20,) and counts.sum() == 500
    corner = torch.tensor([[190.0, 90, 200, 100]])
    assert nb.per_block(corner, (100, 200)).tolist() == [0] * 19 + [1]
    assert nb.per_block(boxes[:0], (100, 200)).tolist() == [0] * 20
    edge = torch.tensor([[200.0, 100, 200, 100]])
    assert nb.per_block(edge, (100, 200)).tolist() == [0] * 19 + [1]


@given(st.lists(st.integers(-9, 20), min_size=20, max_size=20), st.integers(0, 300))
def test_a_corrected_count_is_right_on_average(nb, numbers, count):
    missing = torch.tensor(numbers).double()
    choices = torch.combinations(torch.arange(20), 3)
    middle, half = nb.corrected(count, missing[choices])
    assert middle.mean() == pytest.approx(count + sum(numbers), abs=1e-6)
    # the variance over all choices is the mean of its estimates: the last factor is the right one
    error = half / stats.t.ppf(0.975, 2)
    assert middle.var(correction=0) == pytest.approx((error**2).mean().item(), abs=1e-6)


def test_when_all_blocks_are_counted_nothing_is_left_to_chance(nb):
    middle, half = nb.corrected(10, torch.tensor([1.0, 0, -2, 5]), blocks=4)
    assert (middle, half) == (14, 0)


def test_average_precision_of_the_truth_is_one(nb):
    trees = boxes_in((1000, 1000), 300)
    trees = trees[((trees[:, 2:] - trees[:, :2]) > 1).all(dim=1)]
    scores = torch.rand(len(trees))
    found = {"boxes": trees, "scores": scores, "labels": torch.zeros(len(trees)).long()}
    assert nb.average_precision(found, trees) == {"AP": 1.0, "AP50": 1.0}  # more than COCO's 100
    nothing = {key: value[:0] for key, value in found.items()}
    assert nb.average_precision(nothing, trees)["AP50"] == 0


# ---------------------------------------------------------------- your folder


def test_photographs_of_all_sizes_are_padded_with_a_mask(nb):
    sizes = [(100, 200), (200, 100), (7, 300), (64, 64)]
    pairs = []
    for size in sizes:
        target = {"boxes": boxes_in(size, 3), "labels": torch.tensor([0, 1, 0])}
        target["iscrowd"] = torch.tensor([0, 1, 0])
        pairs.append((torch.full((3, *size), 200, dtype=torch.uint8), target))
    data = nb.Padded(pairs, ["a", "b"], side=128)
    assert data.images.shape == (4, 3, 128, 128) and len(data) == 4
    for image, mask, target, (_, truth), size in zip(
        data.images, data.mask, data.targets, pairs, sizes
    ):
        assert (image[:, mask] == 200).all() and (image[:, ~mask] == 127).all()
        scale = 128 / max(size)
        assert mask.sum() == max(1, round(size[0] * scale)) * max(1, round(size[1] * scale))
        assert target["labels"].tolist() == [0, 0]  # the crowd is left out
        assert torch.allclose(target["boxes"], truth["boxes"][[0, 2]] * scale)
    without = [(pairs[0][0], {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()})]
    assert len(nb.Padded(without, ["a"]).targets[0]["boxes"]) == 0


def test_views_of_many_photographs_train_one_detector(nb):
    pairs = [
        (torch.randint(0, 256, (3, *size), dtype=torch.uint8), {"boxes": boxes_in(size, 4)})
        for size in ((256, 300), (400, 256))
    ]
    views = nb.views_of(pairs)(nb.PretrainedStages())
    assert len(views) == 16
    _, history = nb.train_detector(1, 0, nb.views_of(pairs))
    assert all(len(column) == 1 for column in history.values())


TRAINED = {
    "03_faster_rcnn": "train_faster_rcnn",
    "04_fpn_retinanet": "train_retinanet",
    "05_yolo": "train_yolo",
    "06_ssd": "train_ssd",
    "07_fcos": "train_fcos",
    "08_detr": "train_detr",
}


@pytest.mark.parametrize("lecture", TRAINED)
def test_a_lecture_loaded_with_ones_own_classes_trains_on_ones_own_images(nb, lecture):
    """Five classes, where the shapes have three; one photograph without an object."""
    target = {"boxes": boxes_in((90, 160), 5), "labels": torch.arange(5)}
    pairs = [(torch.randint(0, 256, (3, 90, 160), dtype=torch.uint8), target)] * 3
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    pairs.append((pairs[0][0], nothing))
    mine = nb.Padded(pairs, list("abcde"))
    page = lessons.load(lecture, CLASSES=mine.classes, train_set=mine, SEED=0, DEVICE=CPU)
    net, history = getattr(page, TRAINED[lecture])(1, 0)
    assert all(len(column) == 1 for column in history.values())
    with torch.no_grad():
        net(torch.zeros(1, 3, 128, 128))


def test_the_forests_are_read_without_importing_their_package(nb):
    found = read_folder(nb.forests())
    assert [len(target["boxes"]) for target in found.targets] == [574, 279, 61, 37]
    assert "deepforest" not in sys.modules


def test_without_the_package_a_sentence_says_what_to_type(nb, monkeypatch):
    monkeypatch.setattr(nb, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps deepforest==2\.1\.0"):
        nb.forests()


def test_the_places_of_the_page(nb):
    sizes = {"slope": 574, "road": 279, "Florida": 61, "California": 37}
    for name, trees in sizes.items():
        image, boxes = nb.place(name)
        assert image.shape[0] == 3 and image.dtype == torch.uint8 and len(boxes) == trees
        assert (box_iou(boxes, boxes).fill_diagonal_(0) < 0.3).all()  # NMS at 0.3 loses nobody


# ---------------------------------------------------------------- the experiment


@pytest.fixture(scope="module")
def experiment():
    return runner.load("10")


def test_blocks_of_the_held_out_place_hold_every_tree_once(experiment):
    assert len(experiment.TARGETS) == 20
    assert sum(len(target["boxes"]) for target in experiment.TARGETS) == 279
    assert all(len(target["boxes"]) <= 100 for target in experiment.TARGETS)  # COCO's most


def test_a_detection_belongs_to_the_block_of_its_tree(experiment):
    trees = torch.tensor([[90.0, 10, 104, 20], [150, 10, 160, 20]])  # the first is left of x = 100
    boxes = torch.tensor([[96.0, 10, 112, 20], [101, 80, 119, 90]])
    found = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8]), "labels": torch.zeros(2).long()}
    blocks = experiment.by_block(found, (100, 500), trees)
    assert blocks[0]["scores"].tolist() == pytest.approx([0.9])
    assert blocks[16]["scores"].tolist() == pytest.approx([0.8])  # on no tree: its own block
    none = {key: value[:0] for key, value in found.items()}
    assert all(len(b["boxes"]) == 0 for b in experiment.by_block(none, (100, 500), trees))


def test_ap_by_blocks_is_that_of_the_whole_photograph(experiment, nb):
    generator = torch.Generator().manual_seed(0)
    boxes = experiment.TREES + torch.randn(experiment.TREES.shape, generator=generator) * 4
    found = {"boxes": boxes, "scores": torch.rand(len(boxes), generator=generator)}
    found["labels"] = torch.zeros(len(boxes), dtype=torch.long)
    blocks = experiment.by_block(found, experiment.ROAD.shape[1:], experiment.TREES)
    whole = nb.average_precision(found, experiment.TREES)
    by_block = coco_ap(blocks, experiment.TARGETS)
    assert by_block["AP50"] == pytest.approx(whole["AP50"], abs=0.01)
    assert by_block["AP"] == pytest.approx(whole["AP"], abs=0.01)


def test_a_shuffled_split_leaves_no_tile_out(experiment):
    train, test = experiment.shuffled_tiles(torch.zeros(3, 512, 640), torch.zeros(0, 4))
    assert len(train) + len(test) == 3 * 4 and len(test) == 2
    assert all(image.shape == (3, 256, 256) for image, _ in (*train, *test))


@pytest.fixture(scope="module")
def short(experiment):
    """The experiment with two steps, on corners of its photographs; and what *main* finds."""
    lesson, whole = experiment.lesson, experiment.lesson.place

    def corner(name, side=544):
        image, trees = whole(name)
        image = image[:, :side, :side]
        inside = (trees[:, 2] <= image.shape[2]) & (trees[:, 3] <= image.shape[1])
        return image, trees[inside]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "STEPS", 2)
        patch.setattr(lesson, "BORDER", 288)
        patch.setattr(lesson, "place", corner)
        road, trees = corner("road", 320)
        patch.setattr(experiment, "ROAD", road)
        patch.setattr(experiment, "TREES", trees)
        truth = experiment.targets_of(trees)
        patch.setattr(experiment, "TARGETS", experiment.by_block(truth, road.shape[1:], trees))
        yield experiment, experiment.train(0)


@pytest.mark.parametrize("variant", runner.load("10").VARIANTS)
def test_every_variant_trains_and_is_another_one(short, variant):
    experiment, main = short
    outcome = experiment.train(0, **experiment.VARIANTS[variant])
    share = experiment.VARIANTS[variant].get("share", 1)
    assert outcome.steps == max(1, round(2 * share)) and outcome.seconds > 0
    assert len(outcome.detections) == 20 and outcome.parameters > 3_000_000
    own = "own tiles" if variant == "shuffled tiles" else "next door"
    assert {f"AP50 {own}", "AP50 Florida", "AP50 California"} <= set(outcome.extra)
    assert sum("view" in key for key in outcome.extra) == (8 if variant == "one view" else 0)
    same = all(torch.equal(value, outcome.weights[key]) for key, value in main.weights.items())
    assert same == (variant == "main")


# ---------------------------------------------------------------- numbers of the prose


@pytest.fixture(scope="module")
def mean():
    """The mean over seeds of a number of a variant: AP50 at the road, or one of `extra`."""
    rows, problems = read_records(EXPERIMENTS, ["10_your_own_data"])
    assert problems == []

    def value(variant, key="AP50"):
        own = [row | row["extra"] for row in rows if row["variant"] == variant]
        assert len(own) == 3
        return round(np.mean([row[key] for row in own]), 2)

    value.rows = rows
    return value


def test_what_each_training_reaches_at_the_road(mean):
    assert mean("main") >= 0.42  # what the lecture has to reach
    named = {"main": 0.46, "frozen": 0.43, "from scratch": 0.04, "one view": 0.16}
    assert {name: mean(name) for name in named} == named
    assert mean("from scratch, equal steps") == 0.05
    assert mean("recoloured") / mean("main") == pytest.approx(2 / 3, abs=0.02)


def test_next_door_does_not_see_what_one_view_costs(mean):
    assert mean("main", "AP50 next door") == mean("one view", "AP50 next door") == 0.41
    assert mean("recoloured", "AP50 Florida") > mean("main", "AP50 Florida") + 0.05


def test_one_view_knows_the_mirrored_road(mean):
    """Where shadows fall as they do on the slope."""
    aps = [mean("one view", f"AP50 road, view {turn}") for turn in range(8)]
    assert aps[0] < 0.2 < 0.35 < aps[1] == max(aps)
    assert abs(aps[1] - mean("one view", "AP50 next door")) < 0.05


def test_what_a_shuffled_split_promises(mean):
    promised, next_door = mean("shuffled tiles", "AP50 own tiles"), mean("main", "AP50 next door")
    assert (promised, round(promised - next_door, 2)) == (0.54, 0.13)
    assert abs(mean("shuffled tiles") - mean("main")) < 0.02


def test_rows_of_equal_seconds_took_them(mean):
    """Those that were trained alone, on two threads."""
    names = ("main", "one stage frozen", "frozen", "fine-tuned", "from scratch")
    rows = {r["variant"]: r for r in mean.rows if (r["seed"], r["threads"]) == (0, 2)}
    seconds = [rows[name]["train_seconds"] for name in names]
    assert max(seconds) < 180 and max(seconds) < 1.15 * min(seconds)
    costs = [rows[name]["train_seconds"] / rows[name]["steps"] for name in ("main", "fine-tuned")]
    assert costs[0] < costs[1] / 2  # a frozen step, with the maps that it needs
    one_thread = {r["variant"]: r["train_seconds"] for r in mean.rows if r["threads"] == 1}
    ratio = one_thread["from scratch, equal steps"] / one_thread["recoloured"]
    assert 2.5 < ratio < 3 and "main" not in one_thread


def test_how_many_trees_grow_across_the_border(nb):
    _, trees = nb.place("slope")
    assert ((trees[:, 1] < nb.BORDER) & (trees[:, 3] > nb.BORDER)).sum() == 11


def test_how_far_apart_the_two_large_photographs_are(nb):
    """Their names give the metres east and north."""
    (x, y), (there, up) = (map(int, nb.FILES[n].split("_")[3:5]) for n in ("slope", "road"))
    assert round(math.hypot(there - x, up - y) / 1000) == 13


def test_what_fcos_reaches_on_shapes():
    rows, _ = read_records(EXPERIMENTS, ["07_fcos"])
    assert round(np.mean([r["AP50"] for r in rows if r["variant"] == "main"]), 2) == 0.97


def test_which_level_answers_for_the_trees(nb):
    _, trees = nb.place("slope")
    at, stride = nb.fcos.all_locations(2496, 2304)
    match = nb.fcos.assign(at, stride, trees)
    levels = [set(match[(stride == s) & (match >= 0)].tolist()) for s in nb.STRIDES]
    assert min(len(levels[0] - levels[1]), len(levels[0] & levels[1]), len(levels[1])) > 100
    assert ((match >= 0) & (stride == 32)).sum() < 0.05 * (match >= 0).sum()


@pytest.fixture(scope="module")
def trained(nb):
    model = nb.tree_detector().eval()
    model.load_state_dict(load_weights("10_your_own_data", WEIGHTS))
    return model


def test_what_asking_in_tiles_gains_next_door(nb, trained):
    """As the shuffled test asks: in tiles, with the trees that a tile or the border cuts."""
    image, trees = nb.place("slope")
    strip, border = image[:, nb.BORDER :], torch.tensor([0.0, nb.BORDER, 0, nb.BORDER])
    alone = trees[trees[:, 1] >= nb.BORDER] - border
    once = nb.average_precision(nb.detect(trained, strip), alone)["AP50"]
    found, truth = [], []
    for y in nb.corners(strip.shape[1], 256, 128):
        for x in nb.corners(strip.shape[2], 256, 128):
            found.append(nb.detect(trained, strip[:, y : y + 256, x : x + 256]))
            boxes = nb.cut(trees, x, nb.BORDER + y, 256)
            truth.append({"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.long)})
    assert coco_ap(found, truth, 1)["AP50"] - once == pytest.approx(0.07, abs=0.01)


def test_most_misses_are_the_thresholds(nb, trained):
    """The network has a box for the tree, whose score is below the threshold."""
    (road, trees), (slope, others) = nb.place("road"), nb.place("slope")
    beside = (others[:, 1] >= nb.BORDER).sum().item()
    threshold = nb.counting_threshold(nb.detect(trained, slope[:, nb.BORDER :]), beside)
    found = nb.detect(trained, road)
    _, taken = nb.hits(found["boxes"][found["scores"] > threshold], trees)
    unsure = found["boxes"][(found["scores"] > 0.3) & (found["scores"] <= threshold)]
    nearly = box_iou(trees[~taken], unsure).amax(dim=1) >= 0.4
    assert nearly.float().mean() > 0.55


def test_stages_have_the_weights_that_the_page_says(nb):
    weights = [sum(p.numel() for p in s.parameters()) for s in nb.PretrainedStages().stages]
    assert 0.2 < sum(weights[:2]) / sum(weights) < 0.27


def test_where_the_shadows_fall(nb):
    """How often it is dark beside a tree: most often on the right, and at the upper left."""
    sides = {"right": (1, 0), "left": (-1, 0), "upper left": (-1, -1), "upper right": (1, -1)}
    darkest = []
    for name in ("slope", "road"):
        image, trees = nb.place(name)
        dark = (image.float().mean(dim=0) < 110).float()
        width = (trees[:, 2:] - trees[:, :2]).amax(dim=1)
        trees = trees[(width > 30) & (width < 60)]
        shares = {}
        for side, step in sides.items():
            beside = trees + 0.8 * (trees[:, 2:] - trees[:, :2]).mul(torch.tensor(step)).repeat(
                1, 2
            )
            cells = [dark[y1:y2, x1:x2] for x1, y1, x2, y2 in beside.clamp(min=0).long().tolist()]
            shares[side] = torch.cat([cell.flatten() for cell in cells]).mean().item()
        darkest.append(max(shares, key=shares.get))
    assert darkest == ["right", "upper left"]
