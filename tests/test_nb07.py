"""The code of notebook 07 against its oracles, on random and on nasty input."""

import math
from itertools import product

import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared import (
    NASTY_BOXES,
    OTHER_FLOATS,
    WIDE_AND_HIGH,
    check_stubs_and_solutions,
    nms_by_loops,
    notebook_code,
    objects_of,
    random_boxes,
    stretched,
)
from torch import nn, tensor
from torch.testing import assert_close
from torchvision import ops

from helpers.anchors import grid_anchors
from helpers.shapes import ShapesDataset

SEEDS = st.integers(0, 10**6)
TINY = {"channels": (4, 8, 8, 8), "width": 8, "depth": 1, "groups": 2, "kernel": 3}
RULES = ["text: inside, last wins", "smallest wins", "+ ranges (paper)", "+ centre sampling"]
EVERY_RULE = pytest.mark.parametrize("rule", RULES)


@pytest.fixture(scope="module")
def nb():
    plt.switch_backend("agg")
    with notebook_code("07_fcos", SEED=0, K=3, DEVICE=torch.device("cpu")) as module:
        module.LETTERS = list("CST")
        yield module


@pytest.fixture
def few_images(few_images, nb, monkeypatch):
    """The images, as the notebook's benchmark."""
    for name in ("train_set", "test_set"):
        monkeypatch.setattr(nb, name, few_images, raising=False)
    return few_images


def around(ltrb):
    """The boxes that distances (N, 4) span around the origin."""
    return torch.cat([-ltrb[:, :2], ltrb[:, 2:]], dim=1)


def centerness_by_pencil(left, top, right, bottom):
    x, y = sorted([left, right]), sorted([top, bottom])
    return math.sqrt(x[0] / x[1] * y[0] / y[1])


# ---------------------------------------------------------------- locations, distances, centre-ness
@pytest.mark.parametrize("stride", [1, 8, 32])
@pytest.mark.parametrize("height, width", [(96, 160), (128, 128), (97, 131), (33, 7), (1, 1)])
def test_locations_are_the_centres_of_the_anchors(nb, height, width, stride):
    cells = math.ceil(height / stride), math.ceil(width / stride)
    anchors = grid_anchors(cells, stride, (16.0,), (1.0,))
    assert_close(nb.locations(height, width, stride), (anchors[:, :2] + anchors[:, 2:]) / 2)


@given(seed=SEEDS, count=st.integers(0, 20), others=st.integers(1, 9))
def test_distances_and_boxes_are_inverse(nb, seed, count, others):
    boxes, at = random_boxes(others, seed), random_boxes(count, seed + 1)[:, :2]
    ltrb = nb.ltrb_of(at, boxes)
    assert ltrb.shape == (count, others, 4) and nb.ltrb_of(at, boxes[:0]).shape == (count, 0, 4)
    for m, (box, (x1, y1, x2, y2)) in enumerate(zip(boxes, boxes.tolist())):
        assert_close(nb.boxes_of(at, ltrb[:, m]), box.expand(count, 4), atol=1e-4, rtol=0)
        expected = [[x - x1, y - y1, x2 - x, y2 - y] for x, y in at.tolist()]
        assert_close(ltrb[:, m], torch.Tensor(expected).view(-1, 4), atol=1e-4, rtol=0)


@given(seed=SEEDS, scale=st.sampled_from([0.01, 1.0, 1000.0]), count=st.integers(0, 20))
def test_centerness_by_the_formula(nb, seed, scale, count):
    ltrb = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)) * scale + 1e-4
    found = nb.centerness_of(ltrb)
    expected = [centerness_by_pencil(*row) for row in ltrb.tolist()]
    assert found.tolist() == pytest.approx(expected, rel=1e-4) and max(expected, default=0) <= 1
    for order in ([2, 1, 0, 3], [0, 3, 2, 1], [1, 0, 3, 2]):  # mirrored, and transposed
        assert_close(nb.centerness_of(ltrb[:, order]), found)
    assert torch.equal(nb.FCOSLoss.compute_centerness_targets(ltrb), found)
    nasty = tensor([[7.0, 3, 7, 3], [0, 0, 0, 0], [0, 10, 20, 10], [0, 0, 20, 20], [0, 9, 0, 9]])
    assert nb.centerness_of(nasty).tolist() == [1, 0, 0, 0, 0]  # centre, point, edge, corner, line


# ---------------------------------------------------------------- backbone, pyramid, head, detector
@pytest.mark.parametrize("kernel", [7, 3])
@pytest.mark.parametrize("height, width", [(224, 224), (96, 160), (97, 131), (33, 70), (1, 1)])
def test_strides_and_channels_of_the_backbone(nb, kernel, height, width):
    with torch.device("meta"):
        backbone = nb.SimpleBackbone(kernel=kernel)
        maps = backbone(torch.empty(2, 3, height, width))
        layer, default = nb.SimpleBackbone._make_layer(5, 7, 3, 2), nb.FCOSDetector()
    assert default.backbone.conv1[0].kernel_size == (7, 7) and not default.normalise
    assert list(maps) == ["C3", "C4", "C5"] and default.head.distances == "relu"
    for c, channels, stride in zip(maps.values(), (128, 256, 512), (8, 16, 32)):
        assert c.shape == (2, channels, math.ceil(height / stride), math.ceil(width / stride))
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert [c.kernel_size[0] for c in convs] == [kernel] + [3] * 8
    assert [c.stride[0] for c in convs] == [2, 1, 1, 2, 1, 2, 1, 2, 1]
    assert [type(m) for m in layer] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3
    assert [(c.in_channels, c.out_channels) for c in layer[::3]] == [(5, 7), (7, 7), (7, 7)]


@pytest.mark.parametrize("height, width", [(12, 20), (13, 17), (1, 9)])
def test_the_pyramid_is_torchvisions(nb, height, width):
    sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in (1, 2, 4)]
    ours, theirs = nb.FPN((3, 5, 7), 8), ops.FeaturePyramidNetwork([3, 5, 7], 8)
    assert all((conv.bias == 0).all() for conv in (*ours.lateral, *ours.output))
    others = (*theirs.inner_blocks, *theirs.layer_blocks)
    for mine, other in zip((*ours.lateral, *ours.output), others):
        nn.init.normal_(mine.bias)
        other[0].load_state_dict(mine.state_dict())
    features = {f"C{3 + i}": torch.randn(2, 3 + 2 * i, *size) for i, size in enumerate(sizes)}
    for p, expected, size in zip(ours(features), theirs(features).values(), sizes):
        assert p.shape == (2, 8, *size)
        assert_close(p, expected, atol=1e-4, rtol=1e-4)


def test_the_head_as_in_the_paper(nb):
    head, other = nb.FCOSHead(), nb.FCOSHead(64, 3, levels=5, pi=0.1, groups=8, he_init=True)
    for tower in (head.cls_tower, head.reg_tower):
        assert [type(m) for m in tower] == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 4
        assert all(m.num_groups == 32 and m.num_channels == 256 for m in tower[1::3])
    convs = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert sorted(c.out_channels for c in convs) == [1, 4, 80] + [256] * 8
    assert all((c.in_channels, c.kernel_size, c.padding) == (256, (3, 3), (1, 1)) for c in convs)
    assert all(c.weight.std().item() == pytest.approx(0.01, rel=0.1) for c in convs)
    assert all((c.bias == 0).all() for c in convs if c is not head.cls_logits)
    for h, pi, levels in ((head, 0.01, 3), (other, 0.1, 5)):
        assert_close(h.cls_logits.bias.sigmoid(), torch.full_like(h.cls_logits.bias, pi))
        assert [s.scale.item() for s in h.scales] == [1.0] * levels
    for conv in (*other.cls_tower[::3], *other.reg_tower[::3]):
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)
    with pytest.raises(ValueError, match="exp or relu, got 'softplus'"):
        nb.FCOSHead(8, 3, groups=2, distances="softplus")


@pytest.mark.parametrize("distances", ["exp", "relu"])
def test_the_head_scales_each_level(nb, distances):
    head, x = nb.FCOSHead(8, 3, depth=1, groups=2, distances=distances), torch.randn(2, 8, 3, 5)
    nn.init.normal_(head.reg_pred.weight)
    for level, factor in enumerate((0.5, 2.0, -3.0, 1e6)):
        nn.init.constant_(head.scales[level % 3].scale, factor)
        logits, ltrb, centerness = head(x, level % 3)
        raw = factor * head.reg_pred(head.reg_tower(x))
        assert_close(ltrb, raw.clamp(max=8).exp() if distances == "exp" else raw.clamp(min=0))
        assert torch.equal(logits, head.cls_logits(head.cls_tower(x)))
        assert torch.equal(centerness, head.centerness(head.reg_tower(x)))
        assert [m.shape for m in (logits, ltrb, centerness)] == [(2, c, 3, 5) for c in (3, 4, 1)]
    ltrb.sum().backward()
    gradients = [s.scale.grad for s in head.scales]
    assert gradients[0].isfinite() and gradients[1:] == [None, None]


@pytest.mark.parametrize("images, height, width", [(2, 224, 224), (1, 96, 160), (1, 97, 131)])
@torch.no_grad()
def test_three_lists_of_any_size(nb, images, height, width):
    model, x = nb.FCOSDetector(**TINY).eval(), torch.randn(images, 3, height, width)
    lists = model(x)
    sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in (8, 16, 32)]
    for maps, channels in zip(lists, (3, 4, 1)):
        assert [tuple(m.shape) for m in maps] == [(images, channels, *size) for size in sizes]
    cells = [len(nb.locations(height, width, s)) for s in nb.FCOSDetector.strides]
    assert cells == [math.prod(size) for size in sizes] and all((m > 0).any() for m in lists[1])
    model.normalise = True  # the same numbers, in strides
    for before, after in zip(lists, model(x)):
        factors = (8, 16, 32) if before is lists[1] else (1, 1, 1)
        assert all(torch.equal(k * b, a) for k, b, a in zip(factors, before, after))


@EVERY_RULE
def test_nothing_is_left_on_the_cpu(nb, pretended_gpu, rule):
    model = nb.FCOSDetector(**TINY, normalise=True, distances="exp").to("cuda")
    maps = sum(model(torch.zeros(2, 3, 64, 64, device="cuda")), [])
    boxes = [torch.tensor([[4.0, 6, 30, 40]] * n, device="cuda").reshape(-1, 4) for n in (2, 0)]
    matches = sum((nb.assign_levels(b, nb.RULES[rule]) for b in boxes), [])
    assert [t.device.type for t in (*maps, *matches)] == ["cuda"] * (9 + 6)


# ---------------------------------------------------------------- focal and IoU loss
@given(seed=SEEDS, alpha=st.sampled_from([0.25, 0.7]), gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_focal_loss_is_torchvisions(nb, seed, alpha, gamma):
    g = torch.Generator().manual_seed(seed)
    z, y = 4 * torch.randn(30, 3, generator=g), torch.randint(0, 2, (30, 3), generator=g).float()
    expected = ops.sigmoid_focal_loss(z, y, alpha, gamma, reduction="sum")
    assert_close(nb.FocalLoss(alpha, gamma)(z, y), expected, rtol=1e-4, atol=1e-4)
    assert nb.FocalLoss()(z, y) == nb.FocalLoss(0.25, 2.0)(z, y)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [17.0, 120.0, 1e4, -17.0, -120.0, -1e4])
def test_extreme_logits_have_finite_gradients(nb, gamma, size):
    y = tensor([1.0, 0, 1, 0])  # weights 0.25, 0.75, 0.25, 0.75
    z = (size * (2 * y - 1)).requires_grad_()
    loss = nb.FocalLoss(gamma=gamma)(z, y)
    loss.backward()
    assert z.grad.isfinite().all() and loss.item() == pytest.approx(max(0, -2 * size), 1e-4, 1e-2)


@given(seed=SEEDS, scale=st.sampled_from([0.1, 1.0, 100.0]))
def test_iou_of_distances_is_torchvisions(nb, seed, scale):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(20, 4, generator=g) * 50 + 0.5 for _ in range(2))
    weights, expected = torch.rand(20, generator=g), ops.box_iou(around(a), around(b)).diagonal()
    assert_close(nb.IoULoss.iou(scale * a, scale * b), expected, atol=1e-4, rtol=0)
    assert_close(nb.IoULoss()(a, b), (1 - expected).sum(), rtol=1e-4, atol=1e-4)
    for kind, losses in (("linear", 1 - expected), ("log", -expected.log())):
        found = nb.IoULoss(kind)(a, b, weights)
        assert_close(found, (losses * weights).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unit", [1 / 128, 1 / 4000, 1e-4])
def test_iou_of_distances_in_any_unit(nb, unit):
    a, b = tensor([[3.0, 1, 2, 4]]), tensor([[2.0, 2, 2, 3]])
    assert_close(nb.IoULoss.iou(a * unit, b * unit), nb.IoULoss.iou(a, b), atol=1e-5, rtol=0)
    assert_close(nb.IoULoss.iou(a * unit, a * unit), torch.ones(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind, worst", [("linear", 1.0), ("log", -math.log(1e-6))])
def test_distances_of_zero_are_survived(nb, kind, worst):
    nothing, line, box = torch.zeros(1, 4), tensor([[0.0, 3, 0, 3]]), torch.full((1, 4), 5.0)
    for pred, target in product((nothing, line, box), repeat=2):
        said = pred.clone().requires_grad_()
        loss = nb.IoULoss(kind)(said, target)
        loss.backward()
        assert loss.item() == pytest.approx(0 if pred is target is box else worst)
        assert said.grad.isfinite().all()
    assert nb.IoULoss(kind)(nothing[:0], nothing[:0]) == 0
    with pytest.raises(ValueError, match="linear or log, got 'giou'"):
        nb.IoULoss("giou")


# ---------------------------------------------------------------- who answers for whom
def options_of(nb, rule, level):
    return nb.RULES[rule] | {"limits": nb.RULES[rule]["limits"][level]}


def assign_by_brute_force(at, boxes, stride, limits, radius=math.inf, smallest=True):
    answers = []
    for x, y in at.tolist():
        candidates = []
        for m, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            off = max(abs(2 * x - x1 - x2), abs(2 * y - y1 - y2)) / 2
            reach = max(x - x1, y - y1, x2 - x, y2 - y)
            inside = x1 < x < x2 and y1 < y < y2
            if inside and limits[0] <= reach < limits[1] and off < radius * stride:
                candidates.append(((x2 - x1) * (y2 - y1) if smallest else -m, m))
        answers.append(min(candidates)[1] if candidates else -1)
    return answers


NASTY = {
    "no objects": [],
    "a point and a line": [[36, 36, 36, 36], [44, 10, 44, 90]],
    "one centre": [[20, 30, 84, 70], [30, 20, 74, 80], [40, 40, 64, 60]],
    "equal areas": [[8, 8, 56, 40], [20, 4, 52, 52], [8, 8, 56, 40]],
    "on the border": [[0, 0, 40, 30], [100, 80, 160, 96]],
    "edges on locations": [[12, 12, 44, 44], [8, 8, 88, 88], [16, 16, 80, 80]],
    "at the limits of ranges": [[20, 20, 68, 68], [16, 16, 104, 104], [0, 0, 88, 88]],
    "too small for a location": [[5, 5, 11, 11], [61, 61, 63, 63]],
    "many": random_boxes(30, 5).tolist(),
} | {name: [box] for name, box in NASTY_BOXES.items()}


@EVERY_RULE
@pytest.mark.parametrize("objects", NASTY.values(), ids=NASTY)
def test_assignment_by_brute_force(nb, rule, objects):
    boxes, size = (
        torch.Tensor(objects).view(-1, 4).mul(4).round().div(4),
        (96, 160),
    )  # areas are exact
    for level, match in enumerate(nb.assign_levels(boxes, nb.RULES[rule], size)):
        at = nb.locations(*size, nb.STRIDES[level])
        options = options_of(nb, rule, level)
        expected = assign_by_brute_force(at, boxes, nb.STRIDES[level], **options)
        assert match.tolist() == expected and match.dtype == torch.int64
        assert nb.assign_slowly(at, boxes, nb.STRIDES[level], **options) == expected


def test_assignment_by_pencil(nb):
    at = tensor([[12.0, 28], [44, 28], [28, 12], [28, 44], [28, 28], [12.5, 28]])
    box = tensor([[12.0, 12, 44, 44]])
    for assign in (nb.assign, nb.assign_slowly):
        assert list(assign(at, box, 8)) == [-1, -1, -1, -1, 0, 0]  # on an edge is not inside
        in_range = [*assign(at[4:5], box, 8, (16.0, 20.0)), *assign(at[4:5], box, 8, (9.0, 16.0))]
        near = [*assign(at[5:], box, 8, radius=2.0), *assign(at[5:], box, 8, radius=15.5 / 8)]
        assert in_range == near == [0, -1]  # at 16 px: in [16, 20); at 15.5 px: below the radius
        pair = tensor([[0.0, 0, 50, 50], [20, 20, 36, 36], [20, 20, 36, 36]])
        assert list(assign(at[4:], pair, 8)) == [1, 0]  # the smallest, of equal ones the first
        assert list(assign(at[4:], pair, 8, smallest=False)) == [2, 0]  # the last


# ---------------------------------------------------------------- targets, data set, batches
@EVERY_RULE
@pytest.mark.parametrize("counts", [(3, 0, 1), (0, 0), (7, 12)], ids=str)
def test_targets_of_a_batch(nb, rule, counts):
    (boxes, classes), data = objects_of(*counts), nb.SyntheticObjectDataset(0, rule)
    data.shapes.image_size = 128
    levels, positives = nb.targets_of(boxes, classes, nb.RULES[rule]), 0
    for (i, b), level in product(enumerate(boxes), range(3)):
        labels, ltrb = (part[i] for part in levels[level])
        match, at = nb.assign_levels(b, nb.RULES[rule])[level], nb.locations(128, 128, 8 * 2**level)
        positive, alone = match >= 0, data.encode_targets(b, classes[i])[level]
        expected = [int(classes[i][m]) if m >= 0 else -1 for m in match]
        assert labels.tolist() == alone[0].tolist() == expected and labels.dtype == torch.int64
        assert_close(nb.boxes_of(at, ltrb)[positive], b[match[positive]])
        assert torch.equal(alone[1][positive], ltrb[positive]) and ltrb.shape == alone[1].shape
        assert (alone[1][~positive] == 0).all()
        positives += int(positive.sum())
    assert (positives > 0) == (sum(counts) > 0)


@EVERY_RULE
def test_targets_of_other_types(nb, rule):
    boxes, labels = objects_of(3, 0, 5)
    expected = nb.targets_of(boxes, labels, nb.RULES[rule])
    others = [b.double() for b in boxes], [c.int() for c in labels]
    assert_close(nb.targets_of(*others, nb.RULES[rule]), expected)


@EVERY_RULE
@pytest.mark.parametrize("size", WIDE_AND_HIGH)
def test_targets_of_images_that_are_not_square(nb, few_images, rule, size):
    data = stretched(few_images, *size)
    boxes, labels = ([t[key] for t in data.targets] for key in ("boxes", "labels"))
    levels = nb.targets_of(boxes, labels, nb.RULES[rule], size)
    for (i, b), level in product(enumerate(boxes), range(3)):
        match = nb.assign_levels(b, nb.RULES[rule], size)[level]
        at, positive = nb.locations(*size, 8 * 2**level), match >= 0
        kinds, ltrb = (part[i] for part in levels[level])
        assert_close(nb.boxes_of(at, ltrb)[positive], b[match[positive]])
        assert kinds.tolist() == [int(labels[i][m]) if m >= 0 else -1 for m in match]
    per_image = sum(int((kinds >= 0).sum()) for kinds, _ in levels) / len(boxes)
    assert nb.count_positives(data.targets, nb.RULES[rule], size)["per image"] == per_image


@EVERY_RULE
def test_the_texts_data_and_its_batches(nb, rule):
    data, shapes = nb.SyntheticObjectDataset(3, rule, seed=5), ShapesDataset(3, 5, "lecture")
    samples = [data[i] for i in range(len(data))]
    images, by_level = nb.collate_fn(samples)  # [image][level] -> [level][image]
    assert torch.equal(images, shapes.images) and len(by_level) == 3
    for (i, target), level in product(enumerate(shapes.targets), range(3)):
        _, targets, boxes, classes = samples[i]
        assert_close({"boxes": boxes, "labels": classes}, target)
        labels, ltrb = (part[i] for part in by_level[level])
        assert torch.equal(labels, targets[level][0]) and torch.equal(ltrb, targets[level][1])
        found = nb.boxes_of(nb.locations(224, 224, nb.STRIDES[level]), ltrb)[labels >= 0]
        distance, own = (found[:, None] - boxes).abs().amax(dim=2).min(dim=1)
        assert (distance < 1e-3).all() and torch.equal(classes[own], labels[labels >= 0])
    assert sum((labels >= 0).any(dim=1) for labels, _ in by_level).min() > 0


@EVERY_RULE
def test_counts_by_loops(nb, rule):
    reach, answered, shared, (boxes, _) = [[], [], []], set(), 0, objects_of(3, 0, 9)
    for (i, b), (level, stride) in product(enumerate(boxes), enumerate(nb.STRIDES)):
        at, options = nb.locations(128, 128, stride), options_of(nb, rule, level)
        alone = [assign_by_brute_force(at, box[None], stride, **options) for box in b]
        shared += sum(column.count(0) > 1 for column in zip(*alone))
        for n, m in enumerate(nb.assign(at, b, stride, **options).tolist()):
            if m >= 0:
                reach[level].append(nb.ltrb_of(at[n : n + 1], b)[0, m].max().item())
                answered.add((i, m))
    assert shared > 0 or "radius" in nb.RULES[rule]
    found = nb.count_positives([{"boxes": b} for b in boxes], nb.RULES[rule])
    total = sum(map(len, reach))
    assert found["levels"] == pytest.approx([len(r) / total for r in reach])
    numbers = 1 - len(answered) / 12, shared / total, total / 3
    assert [found[k] for k in ("lonely", "ambiguous", "per image")] == pytest.approx(numbers)
    assert found["mean"] == pytest.approx([sum(r) / max(1, len(r)) for r in reach])


# ---------------------------------------------------------------- the loss over all levels
def random_batch(shares):
    """Answers and targets in which about that share of the locations of each level is positive."""
    lists, targets = ([], [], []), []
    for (rows, columns), share in zip(((3, 4), (2, 3), (1, 2)), shares):
        for maps, channels in zip(lists, (3, 4, 1)):
            values = torch.randn(2, channels, rows, columns)
            maps.append((20 * values.abs() + 1 if channels == 4 else values).requires_grad_())
        labels = torch.randint(0, 3, (2, rows * columns))
        labels[torch.rand(labels.shape) >= share] = -1
        targets.append((labels, torch.rand(*labels.shape, 4) * 30 + 1))
    return lists, targets


def losses_by_loops(lists, targets, gamma=2.0, kind="linear", per_level=False, **switches):
    sums, counts = [], []
    for level, (labels, goals) in enumerate(targets):
        logits, ltrb, quality = (maps[level].detach() for maps in lists)
        focal, boxes, weights, centre = 0.0, [], [], 0.0
        images, _, rows, columns = logits.shape
        for n, i, j in product(range(images), range(rows), range(columns)):
            label, goal = int(labels[n, i * columns + j]), goals[n, i * columns + j]
            truth = tensor([float(k == label) for k in range(3)])
            focal += ops.sigmoid_focal_loss(logits[n, :, i, j], truth, 0.25, gamma, "sum").item()
            if label >= 0:
                iou = ops.box_iou(around(ltrb[n, :, i, j][None]), around(goal[None])).item()
                boxes.append(1 - iou if kind == "linear" else -math.log(iou))
                target = centerness_by_pencil(*goal.tolist())
                weights.append(target if switches.get("weighted", False) else 1.0)
                p = 1 / (1 + math.exp(-quality[n, 0, i, j]))
                centre -= target * math.log(p) + (1 - target) * math.log(1 - p)
        box = sum(w * b for w, b in zip(weights, boxes)) * len(boxes) / max(1e-9, sum(weights))
        sums.append([focal, box, centre * switches.get("centerness", True)])
        counts.append(len(boxes))
    by = [3 * max(1, n) if per_level else max(1, sum(counts)) for n in counts]
    return [sum(s[k] / n for s, n in zip(sums, by)) for k in range(3)]


OPTIONS = [{}, {"per_level": True, "weighted": True}, {"per_level": True}, {"kind": "log"}]
OPTIONS += [{"weighted": True}, {"centerness": False, "weighted": True}, {"gamma": 0.5}]
SHARES = [(0.5, 0.5, 0.5), (0.3, 0.0, 1.0), (0.0, 0.0, 0.9), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_the_loss_by_loops(nb, options, shares):
    (lists, targets), criterion = random_batch(shares), nb.FCOSLoss(**options)
    total, parts = criterion(lists, targets)
    found, used = [p.item() for p in parts.values()], options.get("centerness", True)
    assert list(parts) == ["focal", "iou", "centerness"]
    assert total.item() == pytest.approx(sum(found))
    assert found == pytest.approx(losses_by_loops(lists, targets, **options), rel=1e-4)
    assert [v > 0 for v in found] == [True, any(shares), any(shares) and used]
    turned = ([[m.flip(0) for m in maps] for maps in column] for column in (lists, targets))
    assert_close(criterion(*turned)[0], total)  # the order of the images does not matter
    total.backward()
    for level, (labels, _) in enumerate(targets):
        gradients = [maps[level].grad.flatten(2).transpose(1, 2) for maps in lists]
        assert all(g.isfinite().all() for g in gradients) and (gradients[0] != 0).all()
        assert torch.equal((gradients[1] != 0).any(dim=2), labels >= 0)  # only positives hear
        assert (gradients[2][labels < 0] == 0).all()


# ---------------------------------------------------------------- from distances to boxes, training
def maps_of(nb, boxes, labels, size, rule):
    """What a perfect network answers: lists by level."""
    lists = ([], [], [])
    for stride, match in zip(nb.STRIDES, nb.assign_levels(boxes, nb.RULES[rule], size)):
        own, positive = match.clamp(min=0), match >= 0
        ltrb = nb.ltrb_of(nb.locations(*size, stride), boxes)[torch.arange(len(own)), own]
        logits = torch.full((len(own), 3), -20.0)
        logits[positive, labels[own][positive]] = 20.0
        centerness = nb.centerness_of(ltrb.clamp(min=0)).logit(eps=1e-6)[:, None]
        for maps, column in zip(lists, (logits, ltrb.clamp(min=0), centerness)):
            maps.append(column.T.reshape(1, -1, *(math.ceil(n / stride) for n in size)))
    return lists


@EVERY_RULE
@pytest.mark.parametrize("size", [(96, 160), (97, 131), (128, 128)], ids=str)
def test_reading_is_the_inverse_of_writing(nb, rule, size):
    boxes = tensor([[10.0, 10, 40, 34], [50, 20, 120, 90], [4, 60, 20, 92]])
    (found,) = nb.decode_predictions(maps_of(nb, boxes, tensor([2, 0, 1]), size, rule), size)
    overlap, own = ops.box_iou(boxes, found["boxes"]).max(dim=1)
    assert (overlap > 0.999).all() and found["labels"][own].tolist() == [2, 0, 1] and len(own) == 3


@pytest.mark.parametrize("use, iou", [(True, None), (True, 0.3), (False, 0.5), (False, None)])
@pytest.mark.parametrize("threshold, top", [(0.05, 1000), (0.4, 100), (0.1, 5), (1.0, 100)])
@pytest.mark.parametrize("size", [(40, 56), (33, 70)], ids=str)
def test_decoding_by_loops(nb, size, use, iou, threshold, top):
    shapes = [[math.ceil(n / s) for n in size] for s in (8, 16, 32)]
    lists = [[torch.randn(2, c, *s) for s in shapes] for c in (3, 4, 1)]
    lists[1] = [20 * m.abs() for m in lists[1]]
    found = nb.decode_predictions(lists, size, (8, 16, 32), threshold, iou, top, use)
    for n in range(2):
        rows = []
        for stride, logits, ltrb, quality in zip((8, 16, 32), *lists):
            for i, j in product(*map(range, logits.shape[2:])):
                p = logits[n, :, i, j].sigmoid()
                p = (p * quality[n, 0, i, j].sigmoid()).sqrt() if use else p
                x, y = (j + 0.5) * stride, (i + 0.5) * stride
                box = tensor([x, y, x, y]) + ltrb[n, :, i, j] * tensor([-1, -1, 1, 1])
                box = [min(max(v, 0), size[1 - k % 2]) for k, v in enumerate(box.tolist())]
                rows.append((p.max().item(), box, p.argmax().item()))
        rows = sorted((r for r in rows if r[0] > threshold), key=lambda r: -r[0])
        scores, boxes = tensor([r[0] for r in rows]), tensor([r[1] for r in rows]).view(-1, 4)
        labels = tensor([r[2] for r in rows], dtype=torch.long)
        keep = nms_by_loops(boxes, scores, labels, iou) if iou else slice(None)
        assert_close([*found[n].values()], [v[keep][:top] for v in (boxes, scores, labels)])
        assert (len(found[n]["boxes"]) > 0) == (threshold < 1)


@pytest.mark.parametrize("kind", OTHER_FLOATS, ids=str)
def test_other_floats_give_the_loss_and_boxes_of_float32(nb, kind):
    lists, targets = random_batch((0.5, 0.5, 0.5))
    halves = [[m.detach().to(kind) for m in maps] for maps in lists]
    floats = [[m.float() for m in maps] for maps in halves]
    others = [(labels.int(), goals.double()) for labels, goals in targets]
    for options in ({}, {"per_level": True, "weighted": True}, {"kind": "log"}):
        found, expected = (
            nb.FCOSLoss(**options)(*pair) for pair in ((halves, others), (floats, targets))
        )
        assert_close(found, expected)
    strides = (8, 12, 24)  # of maps of 3 x 4, 2 x 3 and 1 x 2 cells
    answers = [
        nb.decode_predictions(maps, (24, 32), strides, threshold=0.0) for maps in (halves, floats)
    ]
    assert_close(*answers)
    assert len(answers[0][0]["boxes"]) > 0


def test_no_image_no_detections(nb):
    model, none = nb.FCOSDetector(**TINY), torch.zeros(0, 3, 64, 96)
    assert nb.detector_of(model)(none) == []


@pytest.mark.parametrize("size", WIDE_AND_HIGH)
def test_training_on_images_that_are_not_square(nb, few_images, monkeypatch, size):
    for name in ("train_set", "test_set"):
        monkeypatch.setattr(nb, name, stretched(few_images, *size))
    monkeypatch.setattr(nb, "slim_fcos", tiny_fcos(nb))
    model, history = nb.train_on_benchmark(1)
    assert all(math.isfinite(v[0]) for v in history.columns().values())
    assert len(nb.box_quality(model)[0]) > 0 and nb.first_gradient("exp", True, 0)[2] > 0
    assert len(nb.draw_rules(0, RULES[1:3]).axes) == 6
    monkeypatch.setattr(nb, "model", model, raising=False)
    extents = [ax.images[0].get_extent() for ax in nb.draw_scores(1).axes[:3]]
    assert extents == [[-0.5, size[1] - 0.5, size[0] - 0.5, -0.5]] * 3


@torch.no_grad()
def test_a_model_becomes_a_detector(nb, few_images):
    model, x = (
        nb.FCOSDetector(**TINY, normalise=True, distances="exp", pi=0.4),
        torch.randn(2, 3, 97, 131),
    )
    found = nb.detector_of(model.train(), threshold=0.1, top=7)(x)
    assert not model.training and [len(f["boxes"]) for f in found] == [7, 7]
    assert_close(found, nb.decode_predictions(model(x), (97, 131), threshold=0.1, top=7))
    metrics, detections = nb.evaluate(model, threshold=0.1)
    assert 0 <= metrics["AP"] <= 1 and len(detections) == 4


@pytest.mark.parametrize("factor, quality", [(1.0, 1.0), (0.5, 0.25)])
def test_quality_of_known_boxes(nb, few_images, factor, quality):
    answers, rule, positives = [], "+ ranges (paper)", 0
    for t in few_images.targets:
        lists = maps_of(nb, t["boxes"], t["labels"], (128, 128), rule)
        answers.append((lists[0], [factor * m for m in lists[1]], lists[2]))
        positives += sum((m >= 0).sum() for m in nb.assign_levels(t["boxes"], nb.RULES[rule]))
    found, centre = nb.box_quality(lambda _: answers.pop(0))
    assert_close(found, torch.full_like(found, quality))
    assert len(found) == len(centre) == positives and 0 < centre.min() and centre.max() <= 1


def tiny_fcos(nb):
    def build(normalise=True, distances="exp"):
        return nb.FCOSDetector(**TINY | {"normalise": normalise, "distances": distances})

    return build


def test_the_first_gradient_by_hand(nb, few_images, monkeypatch):
    monkeypatch.setattr(nb, "slim_fcos", tiny_fcos(nb))
    flat, iou, norm = nb.first_gradient("exp", True, 0)
    assert flat == 0 and 0.05 < iou < 0.9 and norm > 0
    assert nb.first_gradient("exp", False, 0)[1] < iou  # boxes of two pixels
    assert nb.first_gradient("relu", False, 0)[0] > 0


def test_every_variant_takes_two_steps(nb, few_images, monkeypatch):
    for name, value in {"SHORT": 2, "runs": {}, "models": {}}.items():
        monkeypatch.setattr(nb, name, value, raising=False)
    monkeypatch.setattr(nb, "slim_fcos", tiny_fcos(nb))
    variants = nb.FORM_VARIANTS | nb.RULE_VARIANTS
    for name, options in ({"FCOS": {}} | variants).items():
        nb.short_run(name, **options)
        assert 0 <= nb.runs[name, 0]["AP"] <= 1 and not nb.models[name, 0].training
    ways = {(m.head.distances, m.normalise) for m in nb.models.values()}
    assert ways == set(product(("exp", "relu"), (True, False)))
    assert len(nb.models) == 1 + len(variants)
    scales = {
        name: [s.scale.requires_grad for s in nb.models[name, 0].head.scales] for name in variants
    }
    assert [name for name, learns in scales.items() if not any(learns)] == [
        "exp, pixels, scales frozen"
    ]


def test_training_learns_and_repeats(nb, few_images, monkeypatch):
    monkeypatch.setattr(nb, "slim_fcos", tiny_fcos(nb))
    trained = [nb.train_on_benchmark(12, seed) for seed in (None, 0, 1)]
    weights = [model.head.reg_pred.weight for model, _ in trained]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    for _, history in trained:
        assert list(history.columns()) == ["focal", "iou", "centerness"]
        totals = [sum(parts) for parts in zip(*history.columns().values())]
        assert len(totals) == 12 and sum(totals[-3:]) < 0.95 * sum(totals[:3])
    model, history = nb.train_fcos(1, num_samples=3, batch_size=2)  # the text's
    assert list(history) == ["focal", "iou", "centerness"] and isinstance(model, nb.FCOSDetector)
    assert all(len(h) == 1 and 0 < h[0] < math.inf for h in history.values())


# ---------------------------------------------------------------- figures and exercises
@pytest.mark.parametrize("use, threshold", [("yes", 0.05), ("no", 0.9)])
def test_locations_and_scores_are_drawn(nb, few_images, monkeypatch, use, threshold):
    places = {
        (64, 64): "1.00, answers on P4",
        (40, 64): "answers on P4",
        (32, 64): "answers on P5",
        (0, 0): "outside",
    }
    for (x, y), title in (places | {(29, 64): "outside", (64, 89): "outside"}).items():
        (ax,) = nb.draw_location(x, y).axes
        assert title in ax.get_title() and len(ax.texts) == (0 if title == "outside" else 4)
    assert len(nb.draw_rules(0, RULES[1:3]).axes) == 6
    model = nb.FCOSDetector(**TINY, pi=0.5, distances="exp")
    monkeypatch.setattr(nb, "model", model, raising=False)
    titles = [ax.get_title() for ax in nb.draw_scores(1, use, threshold).axes]
    assert titles[:3] == ["P3", "P4", "P5"] and (titles[3] == "0 boxes") == (threshold == 0.9)


def test_the_stubs_are_still_to_do_and_the_solutions_right(nb):
    assert all("still to do" in nb.check_centerness(stub) for stub in (None, ...))
    checks = {"iou_of_distances": "check_iou", "who": "check_answer", "giou": "check_giou"}
    check_stubs_and_solutions(nb, checks)


def who_by(order="areas", of="amax", inside=True, low=True, high=True):
    def who(ltrb, areas, limits):
        reach, place = getattr(ltrb, of)(dim=1), torch.arange(len(areas))
        allowed = (ltrb.amin(dim=1) > 0) | (not inside)
        allowed &= ((reach >= limits[0]) | (not low)) & ((reach < limits[1]) | (not high))
        cost = {"areas": areas, "first": place, "last": -place, "largest": -areas}[order]
        return int(torch.where(allowed, cost.float(), math.inf).argmin()) if allowed.any() else -1

    return who


def iou_by(result, pick=torch.maximum, order=(0, 1, 2, 3)):
    def area(d):
        return (d[:, 0] + d[:, 2]) * (d[:, 1] + d[:, 3])

    def iou(a, b):
        a, b = (torch.as_tensor(d).view(-1, 4)[:, list(order)] for d in (a, b))
        shared = area(torch.minimum(a, b))
        return result(shared, area(a) + area(b) - shared, area(pick(a, b)))

    return iou


SMALLEST, OUT = "the one with the smallest area is meant", "a negative distance means outside"
CENTERNESS = [("✓", 0.447), ("the square root is missing", 0.2), ("both directions count", 0.6)]
CENTERNESS += [("not all four", 0.25), ("by the side of the box", math.sqrt(15 / 40 * 20 / 80))]
CENTERNESS += [("opposite sides belong together", math.sqrt(15 / 20 * 25 / 60))]
CENTERNESS += [("First l, t, r, b", 0.9), ("First l, t, r, b", math.nan)]
CENTERNESS += [("one number is needed", [0.447]), ("one number is needed", tensor(0.447))]
IOU = [("✓", iou_by(lambda s, u, h: s / u)), ("is the loss", iou_by(lambda s, u, h: 1 - s / u))]
IOU += [("subtract the intersection once", iou_by(lambda s, u, h: s / (u + s)))]
IOU += [("that is the intersection", iou_by(lambda s, u, h: s)), ("got 7.0", lambda a, b: 7)]
IOU += [("smaller distance of each side", iou_by(lambda s, u, h: h / (u + s - h)))]
IOU += [("width is l + r", iou_by(lambda s, u, h: s / u, order=(0, 2, 1, 3)))]
IOU += [("one number is needed", lambda a, b: [a, b])]
GIOU = [("✓", lambda a, b: ops.generalized_box_iou(around(a), around(b)).diagonal())]
GIOU += [("hull is missing", iou_by(lambda s, u, h: s / u)), ("got (50, 4)", lambda a, b: a)]
GIOU += [("divide by the hull", iou_by(lambda s, u, h: s / u - (h - u) / u))]
GIOU += [("that is the loss", iou_by(lambda s, u, h: 1 - s / u + (h - u) / h))]
GIOU += [("not the intersection", iou_by(lambda s, u, h: s / u - (h - s) / h))]
GIOU += [("larger distance", iou_by(lambda s, u, h: s / u - (h - u) / h, torch.minimum))]
GIOU += [("expected shape (50,), got ()", lambda a, b: 0.5)]
WHO = [("✓", who_by()), *((SMALLEST, who_by(order)) for order in ("first", "last", "largest"))]
WHO += [("2 is out of range", who_by(low=False, high=r)) for r in (True, False)]
WHO += [(OUT, who_by(inside=False, low=r, high=r)) for r in (True, False)]
WHO += [("the *largest*", who_by(of="amin")), ("the *largest*", who_by(high=False))]
WHO += [("got [5, 5, 5]", lambda *_: 5), ("one whole number per call", lambda *_: [1, 2])]
ANSWERS = {"centerness": CENTERNESS, "iou": IOU, "giou": GIOU, "answer": WHO}


@pytest.mark.parametrize(
    "check, says, answer", [(check, *pair) for check, pairs in ANSWERS.items() for pair in pairs]
)
def test_checks_name_the_mistake(nb, check, says, answer):
    message = getattr(nb, f"check_{check}")(answer)
    assert says in message and message.startswith("✓" if says == "✓" else "✗")
