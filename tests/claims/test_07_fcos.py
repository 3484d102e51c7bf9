"""The lecture text's section on FCOS, statement by statement: its lines 936 to 1130."""

import inspect
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from claim import claim
from shared import notebook_code, recorded_mean
from torch import nn
from torchvision.ops import box_iou

from helpers import shapes
from helpers.detectors import augmented_batches
from helpers.lessons import load
from helpers.records import WEIGHTS, load_weights
from helpers.shapes import benchmark

# Tian et al. 2019, AP on COCO minival with a ResNet-50: tables 3 and 4.
RETINANET, IDENTICAL, FCOS = 35.9, 36.3, 37.1
CENTERNESS = {"none": 33.5, "from the distances": 33.5, "a branch": 37.1}
IMPROVED = {"on the box tower": 37.4, "centre sampling": 38.1, "GIoU": 38.3, "strides": 38.6}
# When each was made public, year and month.
PUBLISHED = {"YOLO": (2015, 6), "DenseBox": (2015, 9), "UnitBox": (2016, 8)}
PUBLISHED |= {"CornerNet": (2018, 8), "FCOS": (2019, 4), "CenterNet": (2019, 4), "ATSS": (2019, 12)}
TEXT_STRIDES = (8, 16, 32)


@pytest.fixture(scope="module")
def lesson():
    plt.switch_backend("agg")
    with notebook_code("07_fcos", SEED=0, K=3, DEVICE=torch.device("cpu")) as module:
        module.train_set, module.test_set = benchmark("train"), benchmark("test")
        yield module


@pytest.fixture(scope="module")
def plain(lesson):
    """What the text's rule asks of each level, on 100 of its images: labels, distances."""
    data = lesson.SyntheticObjectDataset(100)
    _, levels = lesson.collate_fn([data[i] for i in range(len(data))])
    return levels


def reaches(levels):
    """The longest distances (P,) that each level is asked for."""
    return [ltrb[labels >= 0].amax(dim=1) for labels, ltrb in levels]


def squares(side, count=200):
    """Squares (count, 4) of a side somewhere in an image of 224 pixels."""
    corner = torch.from_numpy(np.random.RandomState(0).rand(count, 2)).float() * (224 - side)
    return torch.cat([corner, corner + side], dim=1)


def inside_by_level(lesson, boxes):
    """How many locations of each of the text's levels lie inside a box, on average."""
    counts = []
    for stride in TEXT_STRIDES:
        ltrb = lesson.ltrb_of(lesson.locations(224, 224, stride)[:, None], boxes)
        counts.append((ltrb.amin(dim=2) > 0).sum().item() / len(boxes))
    return counts


def two_losses(lesson, error, side):
    """1 - IoU and L1 of a square whose four distances are all wrong by `error`."""
    target = torch.full((1, 4), side / 2)
    return lesson.IoULoss()(target + error, target).item(), 4 * abs(error)


# ---------------------------------------------------------------- the idea, lines 936 to 946
@claim(
    "fcos",
    1,
    936,
    says="all detectors before it, R-CNN to YOLO, rely on anchor boxes or proposals on a grid",
    verdict="false",
    paper="YOLO is called the most popular anchor-free detector; DenseBox, UnitBox, CornerNet, "
    "section 2",
)
def test_regions_that_stand_on_no_grid(measure):
    arguments = list(inspect.signature(load("02_fast_rcnn").FastRCNN.forward).parameters)
    assert arguments == ["self", "images", "rois"]  # whatever regions one likes
    older = [name for name, when in PUBLISHED.items() if when < PUBLISHED["FCOS"]]
    assert older == ["YOLO", "DenseBox", "UnitBox", "CornerNet"]
    measure(f"R-CNN takes regions of selective search; without anchors and older: {older}")


@claim(
    "fcos",
    2,
    940,
    says="detectors with anchors need anchors that are designed with care, in sizes and ratios",
    verdict="true",
    paper="section 1; RetinaNet's table 1c: one anchor 30.3 AP, nine 34.0",
)
def test_poor_sets_of_anchors(lesson, measure):
    objects = torch.cat([t["boxes"] for t in lesson.train_set.targets[:150]])
    one = [lesson.served(objects, "1 square, 2 maps", base) for base in (1.0, 3.0)]
    rich = lesson.served(objects, "6 boxes, 3 maps", 3.0)
    assert one[0] < 0.6 < rich and max(one) < 0.9 < rich
    measure(
        f"objects served: {one[0]:.0%} or {one[1]:.0%} by one square on two maps, as the base is "
        f"chosen, {rich:.0%} by six boxes on three"
    )


@claim(
    "fcos",
    3,
    942,
    says="it does away with all hyperparameters of anchors: scales, ratios, thresholds",
    verdict="imprecise",
    paper="ranges m = 0, 64, 128, 256, 512, ∞, section 3.2; later a radius of sampling",
)
def test_what_is_left_to_choose(lesson, measure):
    chosen = [
        name
        for name, p in inspect.signature(lesson.assign).parameters.items()
        if p.default is not inspect.Parameter.empty
    ]
    assert chosen == ["ranges", "radius"]
    shares = []
    for ranges in (lesson.RANGES, lesson.WIDE):
        row = lesson.census(lesson.train_set.targets[:40], ranges=ranges)
        shares.append(int(row[3].rstrip("%")))
    assert shares[0] > 10 > shares[1]
    measure(
        f"of anchors, yes; but {' and '.join(chosen)} are chosen: the coarsest level has "
        f"{shares[0]} % of the positives with ours and {shares[1]} % with the paper's"
    )


@claim(
    "fcos",
    4,
    944,
    says="from a location inside, four distances to the sides determine the box",
    verdict="true",
    paper="section 3.1",
)
def test_four_distances_are_a_box(lesson, measure):
    box, at = torch.tensor([20.0, 36.0, 92.0, 100.0]), lesson.locations(128, 128, 8)
    ltrb = lesson.ltrb_of(at, box)
    inside = ltrb.amin(dim=1) > 0
    back = lesson.boxes_of(at[inside], ltrb[inside])
    assert inside.sum() == 56 and torch.equal(back, box.expand_as(back))
    measure(f"the same box from all {inside.sum()} locations inside")


@claim(
    "fcos",
    5,
    944,
    says="the distances are scale-equivariant, that is, nearby pixels have similar ones",
    verdict="false",
)
def test_smooth_is_not_equivariant(lesson, measure):
    box, at = torch.tensor([8.0, 8.0, 72.0, 56.0]), lesson.locations(80, 80, 8).view(10, 10, 2)
    step = lesson.ltrb_of(at, box).diff(dim=1).abs()
    assert step.max() == 8  # smooth: neighbours differ by a stride at most ...
    assert torch.equal(lesson.ltrb_of(2 * at, 2 * box), 2 * lesson.ltrb_of(at, box))
    constant = torch.full((10, 10, 4), 30.0)  # ... which an answer may be without equivariance
    assert constant.diff(dim=1).abs().max() == 0 and not torch.equal(constant, 2 * constant)
    measure("that is smoothness; equivariant are the targets, twice the image, twice the distances")


@claim("fcos", 6, 944, says="the formulation handles arbitrary shapes", verdict="false")
def test_shapes_within_one_box(measure):
    box = (10, 12, 50, 44)
    masks = [shapes.shape_mask(label, box, 64) for label in range(3)]
    for mask in masks:
        rows, columns = np.where(mask)
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == box
    areas = [int(mask.sum()) for mask in masks]
    assert len(set(areas)) == 3
    measure(f"upright rectangles: shapes of {areas} pixels have the same four distances")


@claim(
    "fcos",
    7,
    946,
    says="locations far from the centre give poor boxes, which the centre-ness holds back",
    verdict="true",
    paper="low-quality boxes produced by locations far away from the center, section 3.3",
)
def test_boxes_from_the_edge(lesson, measure):
    model = lesson.FCOSDetector().eval()
    model.load_state_dict(load_weights("07_fcos", WEIGHTS))
    lesson.model = model
    quality, true, _ = lesson.box_quality()
    low, high = (quality[part].mean().item() for part in (true < 0.3, true > 0.7))
    assert low < high
    measure(f"mean IoU {low:.3f} below a centre-ness of 0.3, {high:.3f} above 0.7")


# ---------------------------------------------------------------- the backbone, lines 952 to 970
@claim(
    "fcos",
    8,
    956,
    says="strides go 4, 8, 16, 32 and channels 64, 128, 256, 512",
    verdict="true",
)
def test_strides_and_channels(lesson, measure):
    with torch.device("meta"):
        backbone, x = lesson.SimpleBackbone(), torch.empty(1, 3, 224, 224)
        maps = [backbone.layer1(backbone.conv1(x)), *backbone(x).values()]
    found = [(224 // m.shape[3], m.shape[1]) for m in maps]
    assert found == [(4, 64), (8, 128), (16, 256), (32, 512)]
    measure(f"stride and channels of the four layers: {found}")


@claim(
    "fcos",
    9,
    970,
    says="which level gets which size is automatic; nothing is coded for it (line 1100)",
    verdict="false",
    paper="ranges of the longest distance, coded explicitly, section 3.2",
)
def test_without_ranges_sizes_are_not_sorted(lesson, measure):
    said = []
    for side in (30, 80, 200):
        counts = inside_by_level(lesson, squares(side))
        shares = [count / sum(counts) for count in counts]
        assert shares[0] == pytest.approx(0.76, abs=0.03)
        assert shares[2] == pytest.approx(0.05, abs=0.02)
        said.append(f"{side} px: " + " / ".join(f"{share:.0%}" for share in shares))
    measure("inside is enough: shares of P3 / P4 / P5 for objects of " + "; ".join(said))


# ---------------------------------------------------------------- the scales, lines 974 to 980
@claim(
    "fcos",
    10,
    974,
    says="one learnt number multiplies a level's regression outputs",
    verdict="imprecise",
    paper="e^(s x), section 3.2: it multiplies the exponent; with ReLU, from the later code on, "
    "the distance",
)
def test_what_the_scale_multiplies(lesson, measure):
    head, x = lesson.FCOSHead(8, 3, groups=2, depth=1).eval(), torch.randn(1, 8, 4, 4)
    nn.init.normal_(head.reg_pred.weight, std=0.1)
    with torch.no_grad():
        once = head(x, 0)[1]
        head.scales[0].scale.fill_(2.0)
        twice = head(x, 0)[1]
    torch.testing.assert_close(twice.log(), 2 * once.log())
    assert not torch.allclose(twice, 2 * once, rtol=0.1)
    measure("twice the scale squares the distance; under a ReLU it would double it")


@claim(
    "fcos",
    11,
    978,
    says="P3 may predict distances of 10 to 30 px, P5 of 100 to 300 px",
    verdict="contradicts",
    paper="0–64 on P3, 256 and more only on P6 and P7",
)
def test_distances_that_never_occur(plain, measure):
    found = reaches(plain)
    means = [reach.mean().item() for reach in found]
    assert max(reach.max().item() for reach in found) <= 80 and max(means) - min(means) < 3
    measure(
        "its objects have 30 to 80 px (line 804), on all levels: longest distances of "
        + ", ".join(f"{mean:.0f}" for mean in means)
        + " px on average on P3, P4, P5"
    )


@claim(
    "fcos",
    12,
    980,
    says="in practice the scales of deeper levels tend to become larger",
    verdict="unverifiable",
)
def test_what_could_drive_the_scales(lesson, plain, measure):
    spread = [reach.mean().item() for reach in reaches(plain)]
    boxes, labels = ([t[key] for t in lesson.train_set.targets[:60]] for key in ("boxes", "labels"))
    classes, goals = lesson.targets_of(boxes, labels, (128, 128))
    _, stride = lesson.all_locations(128, 128)
    ours = [goals[:, stride == s][classes[:, stride == s] >= 0] for s in lesson.STRIDES]
    ours = [ltrb.amax(dim=1).mean().item() for ltrb in ours]
    assert max(spread) / min(spread) < 1.1 and ours[2] > 2 * ours[0]
    measure(
        "its rule asks all levels for the same, so nothing drives it; with ranges the mean longest "
        f"distance is {ours[0]:.0f}, {ours[1]:.0f} and {ours[2]:.0f} px"
    )


# ---------------------------------------------------------------- the head, lines 986 to 1014
@claim("fcos", 13, 986, says="the head has three parallel towers", verdict="contradicts")
def test_towers(lesson, measure):
    with torch.device("meta"):
        head = lesson.FCOSHead()
    towers = [name for name, part in head.named_children() if isinstance(part, nn.Sequential)]
    assert towers == ["cls_tower", "reg_tower"] and isinstance(head.centerness, nn.Conv2d)
    measure(f"two, {' and '.join(towers)}; centerness is one convolution, as line 992 says")


@claim(
    "fcos",
    14,
    986,
    says="group normalisation is taken for being more stable with small batches",
    verdict="true",
    paper="Wu & He 2018; FCOS uses it in the new layers, section 4",
)
def test_an_image_does_not_depend_on_its_batch(measure):
    batch = torch.randn(4, 32, 6, 6) * torch.tensor([1.0, 2, 5, 9])[:, None, None, None]
    gaps = {}
    for name, norm in (("group", nn.GroupNorm(8, 32)), ("batch", nn.BatchNorm2d(32))):
        gaps[name] = (norm(batch)[:1] - norm(batch[:1])).abs().max().item()
    assert gaps["group"] < 1e-4 and gaps["batch"] > 1
    measure(
        "an image alone and in a batch of four: differs by "
        f"{gaps['group']:.0e} (group), {gaps['batch']:.1f} (batch normalisation)"
    )


@claim(
    "fcos",
    15,
    992,
    says="the centre-ness branch uses the features of the regression tower",
    verdict="imprecise",
    paper=f"figure 2: beside the classes; on the box tower {FCOS} → "
    f"{IMPROVED['on the box tower']}, table 3",
)
def test_where_the_centerness_stands(lesson, measure):
    head, x = lesson.FCOSHead(8, 3, groups=2, depth=1), torch.randn(1, 8, 4, 4)
    head(x, 0)[2].sum().backward()
    reached = [t[0].weight.grad is not None for t in (head.cls_tower, head.reg_tower)]
    assert reached == [False, True] and IMPROVED["on the box tower"] > FCOS
    measure("here and in the improved version, yes; first it stood on the class tower")


@claim(
    "fcos",
    16,
    998,
    says="the class bias begins at −2.19, that is −log((1 − π)/π) for π = 0.01",
    verdict="false",
)
def test_the_bias_of_one_per_cent(lesson, measure):
    with torch.no_grad():
        bias = lesson.FCOSHead(8, 3, groups=2, depth=1).cls_logits.bias
    assert torch.allclose(bias, torch.tensor(-4.595), atol=1e-3)
    said = 1 / (1 + math.exp(2.19))
    assert said == pytest.approx(0.1, abs=1e-3)
    measure(f"π = 0.01 is {-math.log(99):.3f}; σ(−2.19) = {said:.3f}")


@claim(
    "fcos",
    17,
    1000,
    says="an initial probability around 0.01 matches the frequency of objects",
    verdict="false",
    paper="a convention; results are insensitive to it (RetinaNet, section 5.1)",
)
def test_how_frequent_objects_are(plain, measure):
    positive = torch.cat([labels.flatten() >= 0 for labels, _ in plain]).float().mean().item()
    assert positive / 3 > 0.02
    measure(f"by its own rule {positive:.0%} of the locations, {positive / 3:.1%} per class")


@claim(
    "fcos",
    18,
    1002,
    says="the ReLU ensures that distances are positive",
    verdict="imprecise",
    paper="e^(s x); ReLU only with the improvements",
)
def test_zeros_of_the_relu(lesson, measure):
    shares, slopes = [], []
    for seed in range(20):
        torch.manual_seed(seed)
        head = lesson.ReLUHead(16, 3, groups=2, depth=1)
        ltrb = head(torch.randn(1, 16, 8, 8), 0)[1]
        shares.append((ltrb == 0).float().mean().item())
        (slope,) = torch.autograd.grad(ltrb[ltrb == 0].sum(), head.reg_pred.weight)
        slopes.append(slope.abs().max().item())
    assert 0.3 < np.mean(shares) < 0.7 and max(slopes) == 0
    measure(f"not negative: {np.mean(shares):.0%} of untrained distances are 0, without gradient")


@claim(
    "fcos",
    19,
    1014,
    says="one head serves all levels since the same patterns mean objects at all scales",
    verdict="imprecise",
    paper="not reasonable to have identical heads for all levels, so a scale each, section 3.2",
)
def test_levels_are_asked_for_different_numbers(lesson, measure):
    boxes, labels = ([t[key] for t in lesson.train_set.targets[:60]] for key in ("boxes", "labels"))
    classes, goals = lesson.targets_of(boxes, labels, (128, 128))
    _, stride = lesson.all_locations(128, 128)
    logs = [goals[:, stride == s][classes[:, stride == s] >= 0].log() for s in lesson.STRIDES]
    pixels = [log.mean().exp().item() for log in logs]
    strides = [pixel / s for pixel, s in zip(pixels, lesson.STRIDES)]
    assert max(pixels) / min(pixels) > 2 > max(strides) / min(strides)
    measure(
        "the distances are not the same: geometric means of "
        + ", ".join(f"{p:.1f}" for p in pixels)
        + " px by level, in strides "
        + ", ".join(f"{s:.1f}" for s in strides)
    )


# ---------------------------------------------------------------- the detector, lines 1020 to 1032
@claim(
    "fcos",
    20,
    1020,
    says="location (i, j) of P3 is the pixel (8 i + 4, 8 j + 4)",
    verdict="imprecise",
    paper="(s/2 + x s, s/2 + y s), section 3.1",
)
def test_rows_are_not_x(lesson, measure):
    at = lesson.locations(96, 160, 8).view(12, 20, 2)
    i, j = 2, 7
    assert at[i, j].tolist() == [8 * j + 4, 8 * i + 4]
    measure(f"as (row, column); x and y of row {i}, column {j} are {at[i, j].tolist()}")


@claim(
    "fcos",
    21,
    1038,
    says="it predicts more densely than RetinaNet: every pixel, not only anchor centres",
    verdict="false",
    paper="9× fewer output variables, section 3.1",
)
def test_how_many_numbers(lesson, measure):
    cells = sum(len(lesson.locations(224, 224, s)) for s in TEXT_STRIDES)
    ours, theirs = cells * (3 + 4 + 1), cells * 9 * (3 + 4)
    assert (ours, theirs) == (8232, 64827)
    measure(f"the same {cells:,} places; {ours:,} numbers, with nine anchors each {theirs:,}")


# ---------------------------------------------------------------- the losses, lines 1038 to 1080
@claim(
    "fcos",
    22,
    1038,
    says="the focal loss is implemented as before",
    verdict="contradicts",
)
def test_sum_and_mean(lesson, measure):
    z, y = torch.randn(50, 3), (torch.rand(50, 3) < 0.2).float()
    before = load("04_fpn_retinanet").FocalLoss(0.25, 2.0)(z, y)
    here = lesson.FocalLoss(0.25, 2.0)(z, y)
    assert here.item() == pytest.approx(150 * before.item(), rel=1e-4)
    measure("line 632 averages, line 1040 sums: on 50 locations of 3 classes 150 times as much")


@claim(
    "fcos",
    23,
    1040,
    says="divided by the positives, since in an average the negatives would dominate",
    verdict="imprecise",
    paper="divided by the number of positives, eq. 2",
)
def test_a_divisor_has_no_favourites(lesson, measure):
    z, y = torch.zeros(1344, 3, requires_grad=True), torch.zeros(1344, 3)
    y[:20, 0] = 1
    shares, sizes = [], []
    for divisor in (20, y.numel()):
        (slope,) = torch.autograd.grad(lesson.FocalLoss(0.25, 2.0)(z, y) / divisor, z)
        shares.append((slope[y == 1].abs().sum() / slope.abs().sum()).item())
        sizes.append(slope.norm().item())
    assert shares[0] == pytest.approx(shares[1]) and sizes[0] > 100 * sizes[1]
    measure(
        f"the positives' share is {shares[0]:.1%} either way; the average makes the classes "
        f"{sizes[0] / sizes[1]:.0f} times smaller beside the boxes"
    )


@claim(
    "fcos",
    24,
    1044,
    says="its regression loss is 1 − IoU",
    verdict="imprecise",
    paper="that of UnitBox, −ln IoU, section 3.1",
)
def test_two_losses_of_an_iou(lesson, measure):
    half, whole = torch.tensor([[5.0, 10, 5, 10]]), torch.full((1, 4), 10.0)
    iou = lesson.IoULoss.iou(half, whole).item()
    linear = lesson.IoULoss()(half, whole).item()
    assert iou == pytest.approx(0.5) and linear == pytest.approx(1 - iou)
    measure(f"at an IoU of {iou:g}: {linear:g} against {-math.log(iou):.3f}")


@claim(
    "fcos",
    25,
    1048,
    says="the intersection is (min l + min r) · (min t + min b)",
    verdict="true",
)
def test_the_intersection(lesson, measure):
    torch.manual_seed(0)
    a, b, here = torch.rand(1000, 4) * 50, torch.rand(1000, 4) * 50, torch.zeros(1000, 2)
    theirs = box_iou(lesson.boxes_of(here, a), lesson.boxes_of(here, b)).diagonal()
    gap = (lesson.IoULoss.iou(a, b) - theirs).abs().max().item()
    assert gap < 1e-5
    measure(f"1,000 random pairs: the IoU is torchvision's to {gap:.0e}")


@claim("fcos", 26, 1050, says="boxes without overlap have a loss of 1", verdict="imprecise")
def test_boxes_around_one_location_overlap(lesson, measure):
    torch.manual_seed(0)
    a, b = torch.rand(1000, 4) * 50 + 0.1, torch.rand(1000, 4) * 50 + 0.1
    least = lesson.IoULoss.iou(a, b).min().item()
    flat = lesson.IoULoss()(torch.tensor([[0.0, 5, 0, 5]]), a[:1]).item()
    assert least > 0 and flat == 1
    measure(f"they always overlap: least IoU {least:.3f}; 1 is the loss of a box without area")


@claim(
    "fcos",
    27,
    1052,
    says="5 px at all sides are an error of 10 % for a box of 50 px and of 1 % for one of 500",
    verdict="imprecise",
)
def test_five_pixels(lesson, measure):
    losses = {
        (side, error): two_losses(lesson, error, side)[0]
        for side in (50, 500)
        for error in (5.0, -5.0)
    }
    assert 5 / 25 == 0.2 and (50 + 10) / 50 - 1 == pytest.approx(0.2)
    assert losses[50, 5.0] == pytest.approx(0.306, abs=1e-3)
    assert losses[50, -5.0] == pytest.approx(0.36, abs=1e-3)
    measure(
        "20 % and 2 %, of each distance and of the width; 1 − IoU is "
        + ", ".join(f"{loss:.3f} ({side} px, {e:+.0f})" for (side, e), loss in losses.items())
    )


@claim("fcos", 28, 1052, says="the IoU loss does not depend on scale, L1 does", verdict="true")
def test_scale(lesson, measure):
    torch.manual_seed(0)
    a, b = torch.rand(100, 4) * 50 + 1, torch.rand(100, 4) * 50 + 1
    pairs = [
        (lesson.IoULoss()(k * a, k * b).item(), F.l1_loss(k * a, k * b).item()) for k in (1, 10)
    ]
    assert pairs[0][0] == pytest.approx(pairs[1][0], rel=1e-4)
    assert pairs[1][1] == pytest.approx(10 * pairs[0][1], rel=1e-4)
    measure("boxes ten times as large: the IoU loss stays, L1 is ten times as large")


@claim(
    "fcos",
    29,
    1058,
    says="the loss stores the strides but does not need them",
    verdict="imprecise",
    paper=f"distances in strides: {IMPROVED['GIoU']} → {IMPROVED['strides']}, table 3",
)
def test_pixels_and_strides(lesson, measure):
    fits = [
        np.mean([lesson.first_boxes(network, lesson.FCOSHead, seed)[1] for seed in range(2)])
        for network in (lesson.InPixels, lesson.FCOSDetector)
    ]
    assert fits[1] > 4 * fits[0]
    measure(
        f"the loss works in pixels, too; but an untrained box has a mean IoU of {fits[0]:.3f} "
        f"then, in strides {fits[1]:.3f}"
    )


@claim(
    "fcos",
    30,
    1062,
    says="centre-ness is √(min(l, r)/max(l, r) · min(t, b)/max(t, b)), from 0 to 1",
    verdict="true",
    paper="eq. 3, with the root to slow its decay down",
)
def test_values_of_the_centerness(lesson, measure):
    places = torch.tensor([[9.0, 9, 9, 9], [5, 10, 15, 10], [5, 5, 15, 15], [0, 9, 9, 9]])
    found = lesson.centerness_of(places).tolist()
    assert found == pytest.approx([1, math.sqrt(1 / 3), 1 / 3, 0])
    box = torch.tensor([0.0, 0, 400, 400])
    everywhere = lesson.centerness_of(lesson.ltrb_of(lesson.locations(400, 400, 1), box))
    measure(
        f"middle 1, a quarter across {found[1]:.3f}, both ways {found[2]:.3f}; mean over a box "
        f"{everywhere.mean():.3f}, without the root {(everywhere**2).mean():.3f}"
    )


@claim(
    "fcos",
    31,
    1074,
    says="divided level by level, no level with more positives can dominate",
    verdict="imprecise",
    paper="one number of positives for all levels, eq. 2",
)
def test_a_level_without_positives(lesson, measure):
    torch.manual_seed(0)
    maps = [torch.full((1, 3, 4, 4), -2.0)], [torch.ones(1, 4, 4, 4)], [torch.zeros(1, 1, 4, 4)]
    empty, full = torch.full((1, 16), -1), torch.full((1, 16), -1)
    full[0, :8] = 0
    goals = torch.ones(1, 16, 4)
    alone, shared = (lesson.FCOSLoss()(maps, k, goals)["focal"].item() for k in (empty, full))
    negatives = lesson.FocalLoss()(torch.full((48,), -2.0), torch.zeros(48)).item()
    assert alone == pytest.approx(negatives, rel=1e-4)
    assert shared == pytest.approx(
        (lesson.FocalLoss()(torch.full((8,), -2.0), torch.ones(8)).item() + negatives * 40 / 48)
        / 8,
        rel=1e-4,
    )
    measure(
        "a level without a positive is divided by 1: its negatives count in full, 8 times as much "
        "as beside eight positives"
    )


@claim(
    "fcos",
    32,
    1078,
    says="cross-entropy with logits applies the sigmoid itself and takes targets between 0 and 1",
    verdict="true",
)
def test_soft_targets(measure):
    torch.manual_seed(0)
    z, target = torch.randn(100), torch.rand(100)
    p = z.sigmoid()
    by_hand = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    theirs = F.binary_cross_entropy_with_logits(z, target)
    torch.testing.assert_close(theirs, by_hand)
    measure(f"{theirs:.4f}, by hand {by_hand:.4f}")


@claim(
    "fcos",
    33,
    1080,
    says="an average over levels gives all scales the same weight",
    verdict="imprecise",
    paper="one sum over all levels",
)
def test_equal_levels_are_unequal_locations(lesson, measure):
    counts = inside_by_level(lesson, squares(60))
    weight = counts[0] / counts[2]
    assert 12 < weight < 20
    measure(f"all levels; by its rule a positive of P5 then weighs {weight:.0f} times one of P3")


@claim(
    "fcos",
    34,
    1080,
    says="the three parts need no weights: they are of like size",
    verdict="true",
    paper="λ = 1, eq. 2; the centre-ness is added as it is, section 3.3",
)
def test_sizes_of_the_parts(lesson, measure):
    torch.manual_seed(0)
    images, *objects = next(augmented_batches(lesson.train_set, 1, 0, torch.device("cpu"), 4))
    with torch.no_grad():
        answers = lesson.FCOSDetector()(images)
    parts = lesson.FCOSLoss()(answers, *lesson.targets_of(*objects, images.shape[2:]))
    values = {name: part.item() for name, part in parts.items()}
    assert all(0.05 < value < 20 for value in values.values())
    measure("untrained " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))


# ---------------------------------------------------------------- targets, lines 1098 to 1110
@claim(
    "fcos",
    35,
    1098,
    says="a pixel inside an object is responsible for it, without any further rule",
    verdict="false",
    paper="the smallest of several within the level's range, section 3.2; ambiguous 23 % without "
    "a pyramid, 7 % with, table 2",
)
def test_who_wins_depends_on_a_list(lesson, measure):
    at, stride = lesson.all_locations(128, 128)
    changed = positives = 0
    for boxes in (t["boxes"] for t in lesson.train_set.targets[:60]):
        forwards = lesson.last_wins(at, stride, boxes)
        back = lesson.last_wins(at, stride, boxes.flip(0))
        changed += int((forwards != torch.where(back >= 0, len(boxes) - 1 - back, -1)).sum())
        positives += int((forwards >= 0).sum())
    assert 0.01 < changed / positives < 0.5
    measure(f"{changed / positives:.1%} of the positives change if the list is turned round")


@claim(
    "fcos",
    36,
    1110,
    says="a high centre-ness loss means that middle and edge are not told apart",
    verdict="imprecise",
)
def test_the_floor_of_the_centerness_loss(lesson, measure):
    box = torch.tensor([0.0, 0, 400, 400])
    target = lesson.centerness_of(lesson.ltrb_of(lesson.locations(400, 400, 1), box))
    perfect = F.binary_cross_entropy(target, target).item()
    nothing = F.binary_cross_entropy(torch.full_like(target, 0.5), target).item()
    assert perfect > 0.5 and nothing == pytest.approx(math.log(2), abs=1e-4)
    measure(f"over a whole box a perfect answer has {perfect:.3f}, an untrained one {nothing:.3f}")


# ---------------------------------------------------------------- reading, lines 1114 to 1128
@claim(
    "fcos",
    37,
    1114,
    says="the decoded boxes above the threshold are the final detections",
    verdict="imprecise",
    paper="non-maximum suppression follows, section 3.3",
)
def test_an_object_has_many_answers(lesson, measure):
    many = sum(inside_by_level(lesson, squares(80)))
    assert 120 < many < 140
    measure(f"{many:.0f} locations of its three levels lie inside an object of 80 px; line 1143")


@claim(
    "fcos",
    38,
    1116,
    says="the score is the class probability times the centre-ness",
    verdict="true",
    paper="section 3.3",
)
def test_the_score(lesson, measure):
    torch.manual_seed(0)
    maps = [torch.randn(1, 3, 4, 4)], [torch.full((1, 4, 4, 4), 0.1)], [torch.randn(1, 1, 4, 4)]
    (found,) = lesson.decode_predictions(maps, (16, 16), (4,), threshold=0.0)
    product = (maps[0][0].sigmoid().amax(dim=1) * maps[2][0].sigmoid()[:, 0]).flatten()
    torch.testing.assert_close(found["scores"] ** 2, product.sort(descending=True).values)
    measure("the later code and this lesson take the root of it, which keeps the order")


@claim(
    "fcos",
    39,
    1128,
    says="the centre-ness branch was the key to making it work",
    verdict="true",
    paper=f"{CENTERNESS['none']} → {CENTERNESS['a branch']} AP; computed from the distances "
    f"{CENTERNESS['from the distances']}, table 4",
)
def test_what_the_centerness_gains(measure):
    assert CENTERNESS["a branch"] - CENTERNESS["none"] > 3
    names = ("main", "no centre-ness", "wide ranges, no centre sampling", "wide ranges, neither")
    ap = [recorded_mean("07_fcos", name) for name in names]
    assert ap[0] - ap[1] > 0.01 and ap[2] - ap[3] > 0.01  # here, too, but far less
    measure(
        f"in the paper; on our shapes {ap[1]:.3f} without, {ap[0]:.3f} with it, and under wide "
        f"ranges {ap[3]:.3f} and {ap[2]:.3f}"
    )


@claim(
    "fcos",
    40,
    1130,
    says="it inspired CornerNet and CenterNet",
    verdict="false",
    paper="cites CornerNet and compares with it",
)
def test_what_came_first(measure):
    assert PUBLISHED["CornerNet"] < PUBLISHED["FCOS"] == PUBLISHED["CenterNet"] < PUBLISHED["ATSS"]
    measure("CornerNet August 2018, FCOS and CenterNet April 2019; ATSS, December 2019, it did")


@claim(
    "fcos",
    41,
    1130,
    says="it matched the accuracy of detectors with anchors",
    verdict="true",
    paper=f"{FCOS} against RetinaNet's {RETINANET}, in identical settings {IDENTICAL}, table 3",
)
def test_beside_retinanet(measure):
    assert FCOS > IDENTICAL > RETINANET
    ours, theirs = recorded_mean("07_fcos", "main"), recorded_mean("04_fpn_retinanet", "main")
    assert ours > theirs - 0.05
    measure(f"on our shapes FCOS {ours:.3f}, RetinaNet {theirs:.3f}")
