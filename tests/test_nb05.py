"""The code of notebook 05 against its oracles, on random and on nasty input."""

import ast
import importlib
import math
from itertools import combinations, product

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from shared import (
    OTHER_FLOATS,
    WIDE_AND_HIGH,
    nms_by_loops,
    notebook_code,
    objects_of,
    stretched,
)
from torch import nn
from torchvision.ops import box_convert, box_iou

from helpers import figures, lessons, plotting
from helpers.shapes import ShapesDataset

SEEDS = st.integers(0, 10**6)
PARTS = ["xy", "wh", "conf_obj", "conf_noobj", "class"]
SIZES = [(128, 128), *WIDE_AND_HIGH]


@pytest.fixture(scope="module")
def nb():
    plt.switch_backend("agg")
    with notebook_code("05_yolo", SEED=0, DEVICE=torch.device("cpu")) as module:
        module.LETTERS = list("CST")
        yield module


def tiny_yolo(nb, **options):
    options = {"backbone": nb.SimpleBackbone((4, 4, 8, 8)), "hidden": 8} | options
    return nb.YOLODetector(**options)


def random_targets(images, share, cells=4, classes=3):
    """Targets in which about that share of the cells has an object."""
    has = torch.rand(images, cells, cells, 1) < share
    place, size = torch.rand(2, images, cells, cells, 2)
    one_hot = torch.eye(classes)[torch.randint(0, classes, has.shape[:3])]
    return torch.cat([place, 0.1 + 0.8 * size, torch.ones(has.shape), one_hot], dim=3) * has


def random_forms(images, cells=4, boxes=2, classes=3):
    forms = torch.rand(images, cells, cells, boxes, 5 + classes)
    forms[..., 2:4] = 0.1 + 0.8 * forms[..., 2:4]
    forms[..., 5:] = forms[..., :1, 5:].softmax(dim=-1)  # the classes of the cell
    return forms


def in_boxes(targets, boxes=2):
    """What a network fills in that knows the targets: box 0 has the object, the others are 0."""
    forms = targets[..., None, :].repeat(1, 1, 1, boxes, 1)
    forms[..., 1:, 4] = 0
    return forms


# ---------------------------------------------------------------- one box for an image


@pytest.mark.parametrize("shift, hit", [(0, True), (3, True), (30, False)])
def test_the_mean_box_hits_only_what_lies_together(nb, shift, hit):
    boxes = torch.tensor([[10.0, 10, 40, 40]]) + torch.tensor([[-shift], [shift]])
    assert nb.hit_by_the_mean(boxes) is hit
    assert nb.hit_by_the_mean(boxes[:1]) is True


# ---------------------------------------------------------------- writing into the grid


def cells_of(boxes, size, cells):
    """Row and column of each centre; what lies outside goes to the nearest cell."""
    height, width = size
    found = []
    for x1, y1, x2, y2 in np.float32(boxes):
        spots = (y1 + y2) / 2 / np.float32(height), (x1 + x2) / 2 / np.float32(width)
        found.append(
            tuple(min(max(math.floor(v * np.float32(cells)), 0), cells - 1) for v in spots)
        )
    return found


def first_in_its_cell(boxes, size, cells):
    places = cells_of(boxes, size, cells)
    return [i for i, place in enumerate(places) if place not in places[:i]]


def encoded_by_loops(boxes, labels, size, cells, classes):
    target = np.zeros((cells, cells, 5 + classes))
    places = cells_of(boxes, size, cells)
    for i in first_in_its_cell(boxes, size, cells):
        (x1, y1, x2, y2), (row, column) = boxes[i], places[i]
        x, y, w, h = (x1 + x2) / 2 / size[1], (y1 + y2) / 2 / size[0], x2 - x1, y2 - y1
        numbers = [x * cells - column, y * cells - row, w / size[1], h / size[0], 1]
        target[row, column] = numbers + [float(c == labels[i]) for c in range(classes)]
    return target


@st.composite
def scenes(draw):
    """Boxes in an image, its size (height, width), and a number of cells."""
    height, width = draw(st.sampled_from([*SIZES, (97, 131), (224, 224), (1, 1), (480, 640)]))
    boxes = []
    for _ in range(draw(st.integers(0, 12))):
        x, y = (sorted(draw(st.tuples(*[st.integers(0, n)] * 2))) for n in (width, height))
        boxes.append([x[0], y[0], x[1], y[1]])
    return torch.tensor(boxes).float().view(-1, 4), (height, width), draw(st.integers(1, 20))


@given(scenes())
def test_encoding_by_loops(nb, scene):
    boxes, size, cells = scene
    labels = torch.arange(len(boxes)) % 4
    found = nb.encode_target(boxes, labels, size, cells, num_classes=4)
    assert found.shape == (cells, cells, 9) and found.dtype == torch.float32
    expected = encoded_by_loops(boxes.tolist(), labels.tolist(), size, cells, 4)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@given(scenes())
def test_reading_is_writing_backwards(nb, scene):
    boxes, size, cells = scene
    labels = torch.arange(len(boxes)) % 3
    target = nb.encode_target(boxes, labels, size, cells)
    (found,) = nb.decode_predictions(target[None, :, :, None], size, iou=None, top=1000)
    expected = [
        [labels[i].item(), *boxes[i].tolist()] for i in first_in_its_cell(boxes, size, cells)
    ]
    got = torch.cat([found["labels"][:, None].float(), found["boxes"]], dim=1).tolist()
    order = {tuple(map(round, row)): row for row in got}
    assert len(got) == len(expected) and (found["scores"] == 1).all()
    for row in expected:
        assert order[tuple(map(round, row))] == pytest.approx(row, abs=1e-2)


@given(scenes())
def test_a_form_in_the_image_is_the_object(nb, scene):
    boxes, size, cells = scene
    target = nb.encode_target(boxes, torch.zeros(len(boxes)), size, cells)
    found = nb.in_image(target[None, :, :, None])[0, :, :, 0]  # (S, S, 4)
    sides = torch.tensor([size[1], size[0]] * 2)
    places = cells_of(boxes.tolist(), size, cells)
    for i in first_in_its_cell(boxes.tolist(), size, cells):
        expected = box_convert(boxes[i], "xyxy", "cxcywh") / sides
        torch.testing.assert_close(found[places[i]], expected, atol=1e-5, rtol=0)


# of an image 128 pixels wide: centre, cells, column, place in the column
PLACES = [(0, 16, 0, 0), (8, 16, 1, 0), (7.5, 16, 0, 0.9375), (64, 16, 8, 0), (96, 4, 3, 0)]
PLACES += [(128, 16, 15, 1), (128, 1, 0, 1), (127.5, 4, 3, 0.984375), (47.36, 7, 2, 0.59)]
PLACES += [(-40, 16, 0, -5), (148, 16, 15, 3.5)]  # outside: the nearest cell, still exact


@pytest.mark.parametrize("x, cells, column, x_cell", PLACES)
@pytest.mark.parametrize("y, row, y_cell", [(0, 0, 0.0), (96, -1, 1.0)])
def test_encode_one_object(nb, x, cells, column, x_cell, y, row, y_cell):
    box = box_convert(torch.tensor([[x, y, 16, 24.0]]), "cxcywh", "xyxy")
    target = nb.encode_target(box, torch.tensor([2]), (96, 128), cells)
    expected = torch.zeros(cells, cells, 8)
    expected[row, column] = torch.tensor([x_cell, y_cell, 0.125, 0.25, 1, 0, 0, 1])
    torch.testing.assert_close(target, expected, atol=1e-5, rtol=0)


def test_of_two_objects_in_a_cell_the_first_stays(nb):
    boxes = torch.tensor([[60.0, 60, 70, 70], [20, 20, 110, 110], [68, 60, 78, 70]])
    labels = torch.tensor([1, 0, 2])
    both = nb.encode_target(boxes, labels, (128, 128))
    assert torch.equal(both, nb.encode_target(boxes[[0, 2]], labels[[0, 2]], (128, 128)))
    assert not torch.equal(both, nb.encode_target(boxes[1:], labels[1:], (128, 128)))
    assert both[..., 4].sum() == 2


def test_no_object_no_answer(nb):
    for kind in (torch.float32, torch.float64, torch.int32):
        target = nb.encode_target(torch.zeros(0, 4, dtype=kind), torch.zeros(0), (96, 160))
        assert target.shape == (nb.S, nb.S, 5 + nb.C) and not target.any()


KINDS = [*OTHER_FLOATS, torch.int64, torch.int32, torch.int16, torch.uint8]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("size", [*SIZES, (300, 333)], ids=str)  # 333 is no bfloat16, no uint8
def test_the_types_of_objects_do_not_matter(nb, kind, size):
    boxes = torch.tensor([[10, 20, 60, 70], [0, 0, 96, 96], [80, 8, 90, 40]])
    names = torch.tensor([2, 0, 1])
    expected = nb.encode_target(boxes.float(), names, size)
    for labels in (torch.int64, torch.int32, torch.uint8):
        found = nb.encode_target(boxes.to(kind), names.to(labels), size)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("cells", [1, 4, 8, 16])
def test_kept_counts_free_cells(nb, monkeypatch, cells):
    data = ShapesDataset(20, seed=3)
    monkeypatch.setattr(nb, "train_set", data, raising=False)
    free = [len(set(cells_of(t["boxes"].tolist(), (128, 128), cells))) for t in data.targets]
    assert nb.kept(cells) == sum(free)


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("height, width", [(224, 224), (128, 128), (96, 160), (97, 131)])
def test_the_backbone_halves_and_widens(nb, stride, height, width):
    with torch.device("meta"):
        backbone = nb.SimpleBackbone((4, 5, 6, 7), stride)
        out = backbone(torch.empty(2, 3, height, width))
    sides = [math.ceil(n / 2) // (stride // 2) for n in (height, width)]
    assert out.shape == (2, 7, *sides)
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [4, 5, 6, 6, 7, 7] and backbone.out_channels == 7
    assert [(c.kernel_size[0], c.stride[0]) for c in convs] == [(7, 2)] + [(3, 1)] * 5
    slopes = [m.negative_slope for m in backbone.modules() if isinstance(m, nn.LeakyReLU)]
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert slopes == [0.1] * 6 and len(norms) == 6 and all(c.bias is None for c in convs)


@pytest.mark.parametrize("boxes, classes", [(1, 3), (2, 3), (3, 5), (2, 1)])
def test_split_cell_by_brute_force(nb, boxes, classes):
    output = torch.randn(2, 3, 3, 5 * boxes + classes, requires_grad=True)
    cells = nb.split_cell(output, boxes, classes)
    for n, i, j, b in product(range(2), range(3), range(3), range(boxes)):
        numbers = output[n, i, j].tolist()
        assert cells[n, i, j, b].tolist() == numbers[5 * b : 5 * b + 5] + numbers[5 * boxes :]
    cells.sum().backward()  # a class is heard once per box
    expected = torch.tensor([1.0] * 5 * boxes + [boxes] * classes)
    assert cells.shape == (2, 3, 3, boxes, 5 + classes) and (output.grad == expected).all()


def test_defaults(nb):
    model = nb.YOLODetector().eval()
    with torch.no_grad():
        forms = model(torch.rand(2, 3, 128, 128))
    assert forms.shape == (2, 16, 16, 2, 8)
    assert (nb.S, nb.B, nb.C) == (model.grid_size, model.num_boxes, model.num_classes)
    loss = nb.YOLOLoss()
    assert (loss.lambda_coord, loss.lambda_noobj) == (5.0, 0.5)


@pytest.mark.parametrize("starts", [(0.14, 0.34), (0.5,), (0.01, 0.25, 0.9)])
def test_every_cell_begins_undecided_and_each_box_with_a_size_of_its_own(nb, starts):
    model = nb.YOLODetector(starts=starts).eval()
    with torch.no_grad():
        forms = model(torch.rand(2, 3, 128, 128))
    torch.testing.assert_close(
        forms[..., [0, 1, 4]],
        torch.tensor(0.5).expand(2, 16, 16, len(starts), 3),
        atol=0.05,
        rtol=0,
    )
    torch.testing.assert_close(
        forms[..., 5:], torch.tensor(1 / 3).expand_as(forms[..., 5:]), atol=0.05, rtol=0
    )
    sizes = torch.tensor(starts)[:, None].expand_as(forms[..., 2:4])
    torch.testing.assert_close(forms[..., 2:4], sizes, atol=0.05, rtol=0)


@pytest.mark.parametrize("height, width", [(128, 128), *WIDE_AND_HIGH, (97, 131), (256, 64)])
@pytest.mark.parametrize("s, b, c", [(16, 2, 3), (5, 3, 4), (7, 1, 1)])
@torch.no_grad()
def test_forms_of_any_size(nb, height, width, s, b, c):
    model = tiny_yolo(nb, grid_size=s, starts=(0.2,) * b, num_classes=c).eval()
    for std in (0.01, 1e6):  # at the start, and as far from it as can be
        nn.init.normal_(model.head[-1].weight, std=std)
        forms = model(torch.randn(2, 3, height, width))
        assert forms.shape == (2, s, s, b, 5 + c) and forms.min() >= 0 and forms.max() <= 1
        torch.testing.assert_close(forms[..., 5:].sum(dim=-1), torch.ones(2, s, s, b))
        assert torch.equal(forms[..., 5:], forms[..., :1, 5:].expand_as(forms[..., 5:]))
    sure = (forms[..., 4] - 0.5).abs() > 0.49
    assert sure.float().mean() > 0.9


def test_activations_by_loops(nb):
    model, output = tiny_yolo(nb), 3 * torch.randn(2, 13, 4, 4)
    model.backbone = model.pool = model.head = nn.Identity()
    found = model(output)
    for n, i, j, b in product(range(2), range(4), range(4), range(2)):
        raw, classes = output[n, 5 * b : 5 * b + 5, i, j].tolist(), output[n, 10:, i, j].numpy()
        x, y, w, h, confidence = (1 / (1 + math.exp(-v)) for v in raw)
        classes = np.exp(classes) / np.exp(classes).sum()
        expected = [x, y, w**2, h**2, confidence, *classes]
        assert found[n, i, j, b].tolist() == pytest.approx(expected, 1e-4)


def test_half_precision_on_the_way(nb):
    model, images = tiny_yolo(nb).eval(), torch.randn(2, 3, 96, 160)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        forms = model(images)
    torch.testing.assert_close(forms.float(), model(images).detach(), atol=0.02, rtol=0)


def test_nothing_is_left_on_the_cpu(nb, pretended_gpu):
    boxes, labels = (
        [value.to("cuda") for value in values] for values in objects_of(3, 0, size=64.0)
    )
    images = torch.zeros(2, 3, 64, 64, device="cuda")
    forms, targets = nb.forms_of(tiny_yolo(nb).to("cuda"), images, boxes, labels)
    parts = nb.YOLOLoss()(forms, targets)
    (found, _) = nb.decode_predictions(forms.detach(), (64, 64))
    everything = [forms, targets, nb.in_image(forms), *parts.values(), *found.values()]
    assert {t.device.type for t in everything} == {"cuda"}


# ---------------------------------------------------------------- overlap


@pytest.mark.parametrize("cells", [1, 3, 7])
def test_boxes_in_the_image_by_brute_force(nb, cells):
    boxes = torch.rand(2, cells, cells, 2, 8)
    found = nb.in_image(boxes)
    assert found.shape == (2, cells, cells, 2, 4)
    for n, i, j, b in product(range(2), range(cells), range(cells), range(2)):
        x, y, w, h = boxes[n, i, j, b, :4].tolist()
        expected = [(j + x) / cells, (i + y) / cells, w, h]
        assert found[n, i, j, b].tolist() == pytest.approx(expected, 1e-5)


@given(seed=SEEDS, shape=st.sampled_from([(9,), (2, 3), (1, 2, 2, 2)]))
def test_iou_is_torchvisions(nb, seed, shape):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(*shape, 4, generator=g, dtype=torch.double) for _ in range(2))
    corners = [box_convert(x.view(-1, 4), "cxcywh", "xyxy") for x in (a, b)]
    expected = box_iou(*corners).diagonal().view(shape)
    torch.testing.assert_close(nb.compute_iou(a, b), expected)
    torch.testing.assert_close(nb.compute_iou(100 * a, 100 * b), expected)
    torch.testing.assert_close(nb.compute_iou(a, a), torch.ones(shape, dtype=torch.double))


@given(seed=SEEDS, pixels=st.floats(1, 64), size=st.sampled_from([128, 1333, 4000]))
def test_iou_of_small_boxes_is_torchvisions(nb, seed, pixels, size):
    """In shares of the image a small box has an area of 1e-7: an epsilon must be far below."""
    g = torch.Generator().manual_seed(seed)
    one = torch.cat([torch.rand(1, 2, generator=g), torch.full((1, 2), pixels / size)], dim=1)
    other = one + torch.tensor([0.4, 0.1, 0.3, 0.0]) * pixels / size
    for a, b in product((one, other), repeat=2):
        corners = [box_convert(x.double(), "cxcywh", "xyxy") for x in (a, b)]
        assert nb.compute_iou(a, b).item() == pytest.approx(box_iou(*corners).item(), abs=2e-3)


@pytest.mark.parametrize("kind", [torch.float32, *OTHER_FLOATS], ids=str)
def test_iou_of_boxes_without_area(nb, kind):
    box, point, line = [0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0.2]
    for pair in product((point, line), (box, point, line)):
        a, b = (torch.tensor(values, dtype=kind) for values in pair)
        assert nb.compute_iou(a, b) == nb.compute_iou(b, a) == 0
    touching = torch.tensor([[0.75, 0.5, 0.25, 0.25], [0.5, 0.5, 0.25, 0.25]], dtype=kind)
    assert nb.compute_iou(*touching) == 0


# ---------------------------------------------------------------- the loss


@given(
    st.integers(1, 4).flatmap(
        lambda boxes: st.lists(
            st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=boxes, max_size=boxes),
            min_size=1,
            max_size=9,
        )
    )
)
def test_exactly_one_box_per_object_is_responsible(nb, rows):
    """The best one, also of equal ones and where none overlaps."""
    iou = torch.tensor(rows)
    mask = nb.YOLOLoss().responsible(iou)
    assert mask.dtype == torch.bool and mask.shape == iou.shape
    assert mask.sum(dim=1).tolist() == [1] * len(iou)
    assert torch.equal(iou[mask], iou.amax(dim=1))
    assert nb.YOLOLoss().responsible(iou[:0]).shape == (0, iou.shape[1])


def losses_by_loops(forms, targets, coord=5, noobj=0.5):
    parts = dict.fromkeys(PARTS, 0.0)
    images, cells, _, boxes, _ = forms.shape

    def corners(box, i, j):
        x, y, w, h = (box[0] + j) / cells, (box[1] + i) / cells, *box[2:4]
        return torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]])

    for n, i, j in product(range(images), range(cells), range(cells)):
        its, answers = targets[n, i, j].tolist(), forms[n, i, j].tolist()
        ious = [box_iou(corners(p, i, j), corners(its, i, j)).item() for p in answers]
        chosen = ious.index(max(ious)) if its[4] == 1 else None
        for b, p in enumerate(answers):
            if b != chosen:
                parts["conf_noobj"] += noobj * p[4] ** 2
                continue
            parts["xy"] += coord * sum((p[k] - its[k]) ** 2 for k in (0, 1))
            roots = [((cells * p[k]) ** 0.5, (cells * its[k]) ** 0.5) for k in (2, 3)]
            parts["wh"] += coord * sum((root - its_root) ** 2 for root, its_root in roots)
            parts["conf_obj"] += (p[4] - ious[b]) ** 2
            parts["class"] += sum((p - t) ** 2 for p, t in zip(answers[0][5:], its[5:]))
    return {name: value / images for name, value in parts.items()}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weights", [(), (2.0, 0.7), (0.0, 0.0)])
@pytest.mark.parametrize("images, boxes, classes", [(1, 1, 3), (2, 2, 3), (3, 3, 1), (1, 2, 7)])
def test_five_parts_by_loops(nb, share, weights, images, boxes, classes):
    forms = random_forms(images, 4, boxes, classes)
    targets = random_targets(images, share, 4, classes)
    parts = nb.YOLOLoss(*weights)(forms, targets)
    found = {name: part.item() for name, part in parts.items()}
    assert list(found) == PARTS
    assert found == pytest.approx(losses_by_loops(forms, targets, *weights), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_perfect_forms_cost_nothing(nb, share):
    targets = random_targets(3, share)
    assert all(part.abs() < 1e-6 for part in nb.YOLOLoss()(in_boxes(targets), targets).values())


def test_the_paired_twin_must_be_silent(nb):
    targets = torch.zeros(1, 1, 1, 8)
    targets[0, 0, 0, [0, 1, 2, 3, 4, 6]] = torch.tensor([0.5, 0.5, 0.4, 0.4, 1, 1])
    forms = in_boxes(targets)
    forms[..., 0, 2], forms[..., :, 4] = 0.1, 0.6  # box 1 fits better: IoU 1 against 0.25
    parts = nb.YOLOLoss()(forms, targets)
    assert parts["xy"] == parts["wh"] == parts["class"] == 0
    assert parts["conf_obj"].item() == pytest.approx(0.4**2, rel=1e-4)
    assert parts["conf_noobj"].item() == pytest.approx(0.5 * 0.6**2)


def pulls(nb, name, forms, targets):
    """Where one part of the loss moves the forms."""
    forms = forms.clone().requires_grad_()
    nb.YOLOLoss()(forms, targets)[name].backward()
    return -forms.grad


@given(SEEDS)
def test_each_part_pulls_the_right_way_and_nothing_else(nb, seed):
    torch.manual_seed(seed)
    forms, targets = random_forms(2), random_targets(2, 0.4)
    has = targets[..., 4] == 1
    overlap = nb.compute_iou(nb.in_image(forms), nb.in_image(targets[..., None, :]))
    mine = torch.zeros_like(overlap, dtype=torch.bool)
    mine[has] = nb.YOLOLoss().responsible(overlap[has])
    truth = targets[..., None, :].expand_as(forms)
    columns = {"xy": [0, 1], "wh": [2, 3], "conf_obj": [4], "conf_noobj": [4]}
    for name, which in columns.items():
        pull = pulls(nb, name, forms, targets)
        goal = truth.clone()
        goal[..., 4] = overlap if name == "conf_obj" else 0
        place = ~mine if name == "conf_noobj" else mine
        assert torch.equal(pull[place][:, which].sign(), (goal - forms)[place][:, which].sign())
        pull[place[..., None] & torch.isin(torch.arange(8), torch.tensor(which))] = 0
        assert pull.abs().max() < 1e-6, name  # an IoU is a goal: nobody is pulled by it
    pull = pulls(nb, "class", forms, targets)
    classes = pull[..., 5:].sum(dim=3)  # of the cell: both boxes carry the same numbers
    assert torch.equal(classes[has].sign(), (targets - forms[..., 0, :])[has][:, 5:].sign())
    assert not classes[~has].any() and not pull[..., :5].any()


@pytest.mark.parametrize("zero", ["forms", "targets", "both"])
def test_sizes_of_zero_are_survived(nb, zero):
    forms, targets = random_forms(2), random_targets(2, 0.5)
    forms[..., 2:4] *= zero == "targets"
    targets[..., 2:4] *= zero == "forms"
    parts = nb.YOLOLoss()(forms.requires_grad_(), targets)
    sum(parts.values()).backward()
    assert all(part.isfinite() for part in parts.values()) and forms.grad.isfinite().all()
    assert (parts["wh"] > 0.1) == (zero != "both")


@pytest.mark.parametrize("far", [-200.0, -30.0, 0.0, 200.0])
def test_gradients_reach_the_raw_outputs_and_stay_finite(nb, far):
    """Also where a sigmoid has become 0 or 1 in float32."""
    raw = torch.full((2, 4, 4, 2, 8), far, requires_grad=True)
    sum(nb.YOLOLoss()(tiny_yolo(nb).activate(raw), random_targets(2, 0.5)).values()).backward()
    assert raw.grad.isfinite().all() and (far != 0 or raw.grad.any())


def test_the_loss_is_a_mean_over_images_in_any_order(nb):
    forms, targets, loss = random_forms(3), random_targets(3, 0.3), nb.YOLOLoss()
    once = loss(forms, targets)
    for order in ([2, 0, 1], [0, 1, 2, 0, 1, 2]):
        torch.testing.assert_close(loss(forms[order], targets[order]), once)
    each = [loss(forms[i : i + 1], targets[i : i + 1]) for i in range(3)]
    for name, part in once.items():
        torch.testing.assert_close(part, torch.stack([parts[name] for parts in each]).mean())


@pytest.mark.parametrize("kind", OTHER_FLOATS, ids=str)
def test_other_floats_give_the_loss_and_boxes_of_float32(nb, kind):
    forms, targets = random_forms(2).to(kind), random_targets(2, 0.5)
    expected = nb.YOLOLoss()(forms.float(), targets)
    torch.testing.assert_close(nb.YOLOLoss()(forms, targets.double()), expected)
    torch.testing.assert_close(
        *(nb.decode_predictions(f, (96, 333)) for f in (forms, forms.float()))
    )


@pytest.mark.parametrize("size", SIZES)
def test_the_forms_of_a_batch_and_what_they_should_be(nb, size):
    images, (boxes, labels) = torch.rand(3, 3, *size), objects_of(4, 0, 2, size=90.0)
    model = tiny_yolo(nb, grid_size=8).eval()
    forms, targets = nb.forms_of(model, images, boxes, labels)
    torch.testing.assert_close(forms, model(images))
    for target, own, names in zip(targets, boxes, labels, strict=True):
        assert torch.equal(target, nb.encode_target(own, names, size, 8))


# ---------------------------------------------------------------- from forms to boxes


@pytest.mark.parametrize("iou, top", [(None, 100), (0.5, 100), (0.2, 100), (0.5, 3), (None, 0)])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.3, 2.0])
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_decoding_by_loops(nb, threshold, iou, top, size):
    forms, counts = random_forms(3), []
    batch = nb.decode_predictions(forms, size, threshold, iou, top)
    for found, image in zip(batch, forms, strict=True):
        read = {label: [] for label in range(3)}  # (score, x1, y1, x2, y2)
        for i, j, b in product(range(4), range(4), range(2)):
            x, y, w, h, confidence, *classes = image[i, j, b].tolist()
            middle, label = ((j + x) / 4, (i + y) / 4), classes.index(max(classes))
            low = [max(m - s / 2, 0) * n for m, s, n in zip(middle, (w, h), size[::-1])]
            high = [min(m + s / 2, 1) * n for m, s, n in zip(middle, (w, h), size[::-1])]
            if confidence * classes[label] > threshold:
                read[label].append((confidence * classes[label], *low, *high))
        expected = []
        for label, rows in read.items():
            table = torch.tensor(rows).view(-1, 5)
            keep = range(len(rows))
            if iou is not None:
                keep = nms_by_loops(table[:, 1:], table[:, 0], 0 * table[:, 0], iou).tolist()
            expected += [(*rows[k][:1], label, *rows[k][1:]) for k in keep]
        expected = sorted(expected, reverse=True)[:top]
        assert found["scores"].tolist() == pytest.approx([row[0] for row in expected])
        assert found["labels"].tolist() == [row[1] for row in expected]
        boxes = np.reshape([row[2:] for row in expected], (-1, 4))
        np.testing.assert_allclose(found["boxes"], boxes, atol=1e-3)
        counts.append(len(expected))
    assert max(counts) <= top and (max(counts) > 0) == (threshold < 2 and top > 0)
    assert iou is None or max(counts) < 32  # suppression has had work to do


def test_the_score_is_confidence_times_class(nb):
    forms = torch.zeros(1, 2, 2, 2, 8)
    forms[0, 1, 0, 1] = torch.tensor([0.5, 0.25, 0.75, 0.5, 0.5, 0.1, 0.8, 0.1])
    (found,) = nb.decode_predictions(forms, (80, 160))
    assert found["boxes"].tolist() == [[0, 30, 100, 70]]  # clipped on the left: x1 would be -20
    assert found["scores"].tolist() == pytest.approx([0.4]) and found["labels"].tolist() == [1]
    assert len(nb.decode_predictions(forms, (80, 160), threshold=-1.0, iou=None)[0]["boxes"]) == 8
    for threshold in (0.41, found["scores"].item()):  # a score must lie above it
        assert len(nb.decode_predictions(forms, (80, 160), threshold)[0]["boxes"]) == 0


def test_no_image_no_detections(nb):
    assert nb.decode_predictions(torch.zeros(0, 7, 7, 2, 8), (64, 64)) == []
    assert nb.detector_of(tiny_yolo(nb).eval())(torch.zeros(0, 3, 64, 96)) == []


def test_forms_that_are_not_numbers_are_not_detections(nb):
    (found,) = nb.decode_predictions(torch.full((1, 4, 4, 2, 8), torch.nan), (64, 64))
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(found, 0)


# ---------------------------------------------------------------- training


@pytest.fixture
def tiny(nb, monkeypatch):
    """The notebook with four images to train on, three to test on, and a narrow network."""
    monkeypatch.setattr(nb, "train_set", ShapesDataset(4, seed=3), raising=False)
    monkeypatch.setattr(nb, "test_set", ShapesDataset(3), raising=False)
    return nb


NETWORKS = [{}, {"grid_size": 8}, {"grid_size": 4, "starts": (0.3,)}, {"starts": (0.1, 0.2, 0.4)}]


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_two_steps_on_the_benchmark(tiny, options):
    def network():
        return tiny_yolo(tiny, **options)

    runs = [tiny.train_yolo(2, seed, network) for seed in (0, 0, 1)]
    model, history = runs[0]
    cells, boxes = options.get("grid_size", 16), len(options.get("starts", "ab"))
    assert not model.training and model(torch.zeros(1, 3, 128, 128)).shape[1:4] == (
        cells,
        cells,
        boxes,
    )
    assert list(history.columns()) == PARTS
    assert all(len(v) == 2 and np.isfinite(v).all() for v in history.columns().values())
    weights = [net.head[-1].weight for net, _ in runs]  # the same seed, the same network
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_network_of_the_page_trains(tiny):
    model, history = tiny.train_yolo(2, 0)
    assert type(model) is tiny.YOLODetector and not model.training
    assert all(np.isfinite(v).all() for v in history.columns().values())
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_given_criterion_is_the_one_that_trains(tiny):
    silent = tiny.YOLOLoss(lambda_coord=0.0, lambda_noobj=0.0)
    _, history = tiny.train_yolo(2, 0, lambda: tiny_yolo(tiny), silent)
    assert history["xy"] == history["wh"] == history["conf_noobj"] == [0, 0]
    assert min(history["class"]) > 0


@pytest.mark.parametrize("size", WIDE_AND_HIGH)
def test_training_and_reading_know_both_sides(tiny, monkeypatch, size):
    seen, encode = [], tiny.encode_target

    def watched(boxes, labels, size, *rest):
        seen.append(tuple(size))
        return encode(boxes, labels, size, *rest)

    monkeypatch.setattr(tiny, "encode_target", watched)
    monkeypatch.setattr(tiny, "train_set", stretched(tiny.train_set, *size))
    model, _ = tiny.train_yolo(1, 0, lambda: tiny_yolo(tiny))
    assert set(seen) == {size}
    nn.init.constant_(model.head[-1].bias, 1.0)  # sure everywhere, with large boxes
    with torch.no_grad():
        (found,) = tiny.detector_of(model)(torch.randn(1, 3, *size))
        expected = tiny.decode_predictions(model(torch.zeros(1, 3, *size)), size)[0]
    assert len(found["boxes"]) > 1 and set(found) == set(expected)
    assert found["boxes"][:, 2].max() == size[1] and found["boxes"][:, 3].max() == size[0]


def test_a_few_steps_find_what_is_there(tiny, monkeypatch):
    """The whole way, from target to box: 200 steps on one image learn it by heart."""
    data = ShapesDataset(1, seed=7)
    monkeypatch.setattr(tiny, "train_set", data)
    model, history = tiny.train_yolo(200, 0, lambda: tiny_yolo(tiny, hidden=32))
    assert history["xy"][-1] < 0.3 * history["xy"][0]
    assert history["conf_noobj"][-1] < 0.05 * history["conf_noobj"][0]
    detect = tiny.detector_of(model)
    ap, found = tiny.detectors.evaluate(detect, data, torch.device("cpu"))
    assert ap["AP50"] > 0.5 and len(found) == 1


# ---------------------------------------------------------------- further: the text's own shapes


@pytest.mark.parametrize("kind, filled", [(0, math.pi / 4), (1, 1.0), (2, 0.5)])
@pytest.mark.parametrize("place", ["inside", "first corner", "last corner"])
def test_what_is_painted_fills_its_box(nb, kind, filled, place):
    dataset = nb.SyntheticObjectDataset(1, img_size=96)
    for size in range(30, 81):
        last, image = (96 - size,) * 2, np.zeros((96, 96, 3), dtype=np.float32)
        x, y = {"inside": (9, 13), "first corner": (0, 0), "last corner": last}[place]
        dataset.draw_shape(image, kind, x, y, size)
        painted = image.any(axis=2)
        rows, columns = np.nonzero(painted)
        assert [columns.min(), rows.max() + 1, columns.max() + 1] == [
            x,
            min(y + size, 96),
            min(x + size, 96),
        ]
        assert rows.min() - y in ((0, 1) if kind == 2 else (0,))  # the tip may miss all centres
        if max(x, y) + size <= 96:
            assert painted.sum() == pytest.approx(filled * size**2, 0.02)
        assert np.allclose(image[painted], dataset.colours[kind])


def test_images_of_the_text(nb):
    dataset = nb.SyntheticObjectDataset(15, seed=4)
    colours = np.float32([(0.95, 0.95, 0.95), *dataset.colours])
    assert len(dataset) == len(list(dataset)) == 15
    for image, target, objects in dataset:
        assert image.shape == (3, 224, 224) and image.dtype == torch.float32
        assert {tuple(c) for c in np.unique(image.flatten(1).T, axis=0)} <= set(map(tuple, colours))
        assert (image == colours[0, 0]).all(dim=0).float().mean() > 0.5  # off-white
        assert torch.equal(target, nb.encode_target(**objects, image_size=(224, 224), grid_size=7))
        sides = objects["boxes"][:, 2:] - objects["boxes"][:, :2]
        assert (sides[:, 0] == sides[:, 1]).all() and sides.min() >= 30 and sides.max() <= 80
        assert objects["boxes"].min() >= 0 and objects["boxes"].max() <= 224
        x1, y1, x2, y2 = objects["boxes"][-1].int().tolist()  # the last: nothing lies above it
        middle = image[:, (y1 + y2) // 2, (x1 + x2) // 2]
        assert np.array_equal(middle, colours[1 + objects["labels"][-1]])
    assert {len(objects["labels"]) for _, _, objects in dataset} == {1, 2, 3}


def test_an_image_depends_on_seed_and_index_alone(nb):
    one, longer, other = (nb.SyntheticObjectDataset(n, seed=s) for n, s in ((3, 1), (9, 1), (3, 2)))
    assert torch.equal(one[2][0], longer[2][0]) and not torch.equal(one[2][0], other[2][0])
    assert not torch.equal(one[2][0], one[1][0])
    assert torch.equal(one[2][2]["boxes"], one[2][2]["boxes"])
    for index in (3, -1, 100):
        with pytest.raises(IndexError, match=f"index {index} of 3"):
            one[index]


def test_two_epochs_of_the_text(tiny, capsys):
    model, history, dataset = tiny.train_on_shapes(2, 17, channels=(4, 4, 8, 8))
    assert list(history) == ["total", *PARTS] and len(dataset) == 17 and not model.training
    assert np.isfinite(list(history.values())).all() and len(history["total"]) == 2
    parts = np.sum([history[name] for name in PARTS], axis=0)
    np.testing.assert_allclose(history["total"], parts, rtol=1e-4)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith(f"epoch 2: total {history['total'][1]:.2f}")


def test_figures_of_the_text_show_computed_numbers(tiny):
    dataset = tiny.SyntheticObjectDataset(2)
    for threshold, most in ((0.0, 2 * 98), (2.0, 0)):
        net = tiny_yolo(tiny, grid_size=7).eval()
        figure = tiny.visualize_predictions(net, dataset, 2, threshold)
        words = [t.get_text() for ax in figure.axes for t in ax.texts]
        assert (0 < len(words) <= most) or len(words) == most == 0
        assert {word.split()[0] for word in words} <= set("CST")
        dashed = [p for ax in figure.axes for p in ax.patches if p.get_linestyle() == "--"]
        assert len(dashed) == 2 * sum(len(objects["labels"]) for *_, objects in dataset)
    figure = tiny.plot_training_curves({name: [2.0, 1.0] for name in ["total", *PARTS]})
    assert [len(ax.lines) for ax in figure.axes] == [1, 5]
    assert [line.get_label() for line in figure.axes[1].lines] == PARTS


def test_the_slider_shows_what_it_is_set_to(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "forms", random_forms(3, 16), raising=False)
    counts = {}
    for threshold in (0.05, 0.5, 0.95):
        figure = tiny.show_answers(2, threshold)
        for ax, when in zip(figure.axes, ("before", "after")):
            counts[threshold, when] = shown = int(ax.get_title().split()[0])
            assert ax.get_title().endswith(f" boxes above {threshold:g}, {when} suppression")
            assert len(ax.texts) == shown
        plt.close(figure)
    assert counts[0.05, "before"] == 100 >= counts[0.05, "after"] > counts[0.5, "after"]
    assert counts[0.95, "before"] == counts[0.95, "after"] == 0


# ---------------------------------------------------------------- the diagrams


@pytest.fixture
def lecture_style():
    with plt.rc_context():
        plotting.use_lecture_style()
        yield


def written(ax):
    """What is written on, above and beside an axes, ticks out of sight left out."""
    yield from (t for t in [*ax.texts, ax.title] if t.get_text().strip())
    if not ax.axison:
        return
    for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        yield from (t for t in [axis.label] if t.get_text().strip())
        ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels())
        yield from (t for at, t in ticks if min(limits) <= at <= max(limits) and t.get_text())


def check_legible(figure):
    """It fills the page; what is written is large enough, in its axes, and not on one another."""
    figure.canvas.draw()
    assert figure.get_size_inches()[0] * 80 >= 1000
    for ax in figure.axes:
        whole = ax.get_window_extent()
        for text in filter(Text.get_text, ax.texts):
            frame = Text.get_window_extent(text)  # without the arrow of an annotation
            assert whole.x0 - 1 <= frame.x0 and frame.x1 <= whole.x1 + 1, text
            assert whole.y0 - 1 <= frame.y0 and frame.y1 <= whole.y1 + 1, text
    texts = [t for ax in figure.axes for t in written(ax)]
    assert texts and min(t.get_fontsize() for t in texts) >= 12
    frames = [Text.get_window_extent(t) for t in texts]
    for (one, a), (other, b) in combinations(zip(texts, frames, strict=True), 2):
        assert not a.overlaps(b.padded(-1)), (one, other)


def test_yolo_at_a_glance(lecture_style):
    figure = figures.yolo_figure()
    check_legible(figure)
    (ax,) = figure.axes
    frames = [p.get_window_extent() for p in ax.patches if isinstance(p, plt.Rectangle)]
    words = {text.get_text(): text.get_window_extent() for text in ax.texts if text.get_text()}
    names = ("SimpleBackbone", "head", "split_cell", "decode_\npredictions", "YOLOLoss")
    for name in (*names, "encode_target"):  # each in its box
        (x0, y0), (x1, y1) = words[name].get_points()
        assert any(f.contains(x0, y0) and f.contains(x1, y1) for f in frames), name


def test_the_shapes_of_the_diagram_are_those_of_the_network(nb):
    model = nb.YOLODetector().eval()
    with torch.no_grad():
        features = model.backbone(torch.zeros(1, 3, 128, 128))
        output, forms = model.head(model.pool(features)), model(torch.zeros(1, 3, 128, 128))
    target = nb.encode_target(torch.zeros(0, 4), torch.zeros(0), (128, 128))
    said = {text.get_text() for text in figures.yolo_figure().axes[0].texts}
    for shape in (features[0].shape, output[0].shape, forms[0].shape, target.shape):
        assert str(tuple(shape)) in said
    names = {text.replace("\n", "") for text in said if text and not text.startswith("(")}
    assert all(hasattr(nb, name) for name in names - {"image", "features", "head", "forms"})


PART = figures.Part


def test_a_diagram_says_what_is_added_what_is_learnt_and_what_only_trains(lecture_style):
    parts = {
        "x": PART("map", size=(3, 64, 64)),
        "Layer": PART("learnt", added=True),
        "fixed": PART("fixed"),
        "Loss": PART("fixed", under=("Layer", 1), training=True),
        "Deeper": PART("learnt", under=("fixed", 2)),
    }
    arrows = {("x", "Layer"): "(3, 64, 64)", ("Layer", "fixed"): "", ("Layer", "Loss"): "(1,)"}
    arrows |= {("fixed", "Deeper"): "down", ("Loss", "Deeper"): "odd"}
    figure = figures.detector_figure(parts, arrows)
    check_legible(figure)
    (ax,) = figure.axes
    boxes = [p for p in ax.patches if isinstance(p, plt.Rectangle)]
    assert [p.get_facecolor()[:3] for p in boxes] == [
        to_rgb(figures.KINDS[kind]) for kind in ("learnt", "fixed", "fixed", "learnt")
    ]
    assert [to_rgb(p.get_edgecolor()) == to_rgb(figures.ADDED) for p in boxes] == [True] + [
        False
    ] * 3
    assert [p.get_linestyle() for p in boxes] == ["-", "-", "--", "-"]
    drawn = [t.arrow_patch.get_linestyle() for t in ax.texts if getattr(t, "arrow_patch", None)]
    assert drawn == ["-", "-", "--", "-", "--"]
    tops = [p.get_y() for p in boxes]
    assert ax.yaxis.get_inverted() and tops[3] > tops[2] > tops[0]


@given(
    st.tuples(st.integers(1, 512), st.integers(1, 256)),
    st.tuples(st.integers(1, 512), st.integers(1, 256)),
)
def test_slabs_follow_the_size_of_their_map(a, b):
    (side_a, depth_a), (side_b, depth_b) = (figures._slab((c, h, h)) for c, h in (a, b))
    assert (side_a < side_b) == (a[1] < b[1]) and (depth_a < depth_b) == (a[0] < b[0])


def filled_cells(figure, size, cells):
    """Row and column of each filled cell of the right panel; none is filled in the left one."""
    left, right = figure.axes
    assert not any(patch.get_fill() for patch in left.patches)
    places = []
    for patch in filter(plt.Rectangle.get_fill, right.patches):
        corner = (patch.get_y() + 0.5, patch.get_x() + 0.5)
        assert patch.get_width() == pytest.approx(size[1] / cells)
        assert patch.get_height() == pytest.approx(size[0] / cells)
        places.append([round(at * cells / side) for at, side in zip(corner, size)])
    return sorted(places)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cells", [1, 7, 16])
def test_the_filled_cells_are_those_that_must_answer(lecture_style, size, cells):
    data = stretched(ShapesDataset(2, seed=5), *size)
    figure = figures.grid_figure(data.images[0], data.targets[0], cells)
    check_legible(figure)
    expected = sorted(map(list, cells_of(data.targets[0]["boxes"].tolist(), size, cells)))
    assert filled_cells(figure, size, cells) == expected


def test_a_centre_on_the_border_fills_the_last_cell(lecture_style):
    boxes = torch.tensor([[100.0, 120, 156, 136], [-8, -8, 8, 8], [-20, 60, -4, 68]])
    image = torch.zeros(3, 128, 128, dtype=torch.uint8)
    figure = figures.grid_figure(image, {"boxes": boxes}, 16)
    assert filled_cells(figure, (128, 128), 16) == [[0, 0], [8, 0], [15, 15]]


@pytest.mark.parametrize("iou", [(0.4, 0.7), (0.7, 0.1)])
def test_the_best_box_is_called_responsible(lecture_style, iou):
    truth = torch.tensor([64.0, 60, 60, 36])
    figure = figures.responsibility_figure(truth, truth + torch.rand(2, 4), iou)
    check_legible(figure)
    for text, value in zip(figure.axes[0].texts, iou, strict=True):
        word = "responsible:" if value == max(iou) else "not responsible:"
        assert f"IoU {value:.2f}, {word}" in text.get_text()


@pytest.mark.parametrize("size", SIZES)
def test_the_class_map_has_the_letters_where_the_cells_are(lecture_style, size):
    forms = torch.full((4, 4, 2, 8), 0.2)
    forms[..., 5:] = 1 / 3
    forms[3, 1, :, 5:], forms[0, 3, :, 5:] = torch.tensor([[0.0, 1, 0], [0, 0.1, 0.9]])
    forms[2, 2, 1, 4] = 0.9
    data = stretched(ShapesDataset(1), *size)
    figure = figures.class_map_figure(data.images[0], data.targets[0], forms)
    check_legible(figure)
    _, confidence, classes = figure.axes
    assert confidence.images[0].get_array()[2, 2] == pytest.approx(0.9)
    height, width = size
    spots = {t.get_text(): t.get_position() for t in classes.texts}
    expected = {"S": (1.5 * width / 4 - 0.5, 3.5 * height / 4 - 0.5)}
    expected["T"] = (3.5 * width / 4 - 0.5, 0.5 * height / 4 - 0.5)
    assert set(spots) == set(expected)
    for letter, place in expected.items():
        assert spots[letter] == pytest.approx(place)
    colour = classes.images[0].get_array()
    np.testing.assert_allclose(colour[3, 1], to_rgb(plotting.COLOURS[1]), atol=1e-6)
    np.testing.assert_allclose(colour[0, 0], 1, atol=1e-6)


@pytest.mark.parametrize(
    "answering", [[0, 1, 0], [0, 0, 0], [1, 1, 1], [2, 0, 1], [4, 0, 1]], ids=str
)
def test_every_object_is_in_the_panel_of_its_box(lecture_style, answering):
    sizes = torch.tensor([[20.0, 30], [50, 12], [40, 40]])
    figure = figures.specialists_figure(sizes, torch.tensor(answering))
    check_legible(figure)
    for i, ax in enumerate(figure.axes):
        points = np.column_stack(ax.lines[0].get_data())
        np.testing.assert_array_equal(points, sizes[torch.tensor(answering) == i])
    assert len(figure.axes) > max(answering)


# ---------------------------------------------------------------- the page


def code_of_the_page():
    cells = lessons.read(lessons.find("05_yolo")).cells
    return ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code"))


def test_every_helper_that_the_page_calls_exists():
    """Also in branches that nobody runs before a reader does."""
    tree, missing = code_of_the_page(), []
    modules = {
        alias.name: importlib.import_module(f"helpers.{alias.name}")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "helpers"
        for alias in node.names
    }
    assert len(modules) > 4
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None and not hasattr(module, node.attr):
                missing.append(f"{node.value.id}.{node.attr}")
    assert missing == []
