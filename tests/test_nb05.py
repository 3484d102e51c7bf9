"""The code of notebook 05 against its oracles, on random and on nasty input."""

import math
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from shared import (
    OTHER_FLOATS,
    WIDE_AND_HIGH,
    check_stubs_and_solutions,
    notebook_code,
    random_boxes,
    stretched,
)
from torch import nn
from torchvision.ops import box_convert, box_iou

from helpers import boxes as reference
from helpers import nms as nms_reference
from helpers.shapes import ShapesDataset

NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
SEEDS = st.integers(0, 10**6)
PARTS = ["xy", "wh", "conf_obj", "conf_noobj", "class"]
PAIRS = product(("iou", "first"), ("iou", "one"))
RULES = [{"responsible": r, "confidence": c} for r, c in PAIRS]


@pytest.fixture(scope="module")
def nb():
    plt.switch_backend("agg")
    cpu = torch.device("cpu")
    with notebook_code("05_yolo", SEED=0, C=3, S=7, B=2, DEVICE=cpu) as module:
        module.LETTERS = list("CST")
        yield module


def tiny_yolo(nb, **options):
    return nb.YOLODetector(**{"backbone": nb.SimpleBackbone((4, 4, 8, 8)), "head": 8} | options)


def random_targets(images, share, cells=4, boxes=2):
    """Targets in which about that share of the cells has an object."""
    has = torch.rand(images, cells, cells, 1) < share
    thing = torch.cat([torch.rand(*has.shape[:3], 2), 0.1 + 0.8 * torch.rand(*has.shape[:3], 2)], 3)
    labels = F.one_hot(torch.randint(0, 3, has.shape[:3]), 3)
    targets = torch.zeros(images, cells, cells, boxes, 8)
    targets[..., 0, :] = torch.cat([thing, torch.ones_like(thing[..., :1]), labels], 3) * has
    return targets


def random_predictions(images, cells=4, boxes=2):
    predictions = torch.rand(images, cells, cells, boxes, 8)
    predictions[..., 2:4] = 0.1 + 0.8 * predictions[..., 2:4]
    predictions[..., 5:] = predictions[..., :1, 5:].softmax(dim=-1)  # the classes of the cell
    return predictions


def objects_of(*counts, size=128.0):
    """For each image that many boxes that lie in it, and labels 0, 1, 2, 0, ..."""
    boxes = [random_boxes(n, n, size * 0.7).clamp(max=size) for n in counts]
    return boxes, [torch.arange(n) % 3 for n in counts]


# ---------------------------------------------------------------- backbone, cells, detector
@pytest.mark.parametrize("halvings", [3, 4])
@pytest.mark.parametrize("height, width", [(224, 224), (128, 128), (96, 160), (97, 131)])
def test_the_backbone_halves_and_widens(nb, halvings, height, width):
    with torch.device("meta"):
        backbone = nb.SimpleBackbone((4, 5, 6, 7), halvings)
        out = backbone(torch.empty(2, 3, height, width))
    sides = [math.ceil(n / 2) // 2 ** (halvings - 1) for n in (height, width)]
    assert out.shape == (2, 7, *sides) and ((height, halvings) != (224, 4) or sides == [14, 14])
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


def test_defaults_and_unknown_options(nb):
    with torch.device("meta"):
        model = nb.YOLODetector()
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 7, 7, 2, 8)
    assert (model.grid_size, model.num_boxes, model.num_classes) == (7, 2, 3)
    assert (model.sizes, model.activation) == ("root", "sigmoid")
    hidden, _, leaky, dropout, last = model.head
    assert (hidden.in_channels, hidden.out_channels, last.out_channels) == (512, 1024, 13)
    assert (leaky.negative_slope, dropout.p) == (0.1, 0.5)
    loss = nb.YOLOLoss()
    assert (loss.lambda_coord, loss.lambda_noobj) == (5.0, 0.5)
    assert (loss.responsible, loss.confidence) == ("iou", "iou")
    for option in ("sizes", "activation", "responsible", "confidence"):
        with pytest.raises(ValueError, match="unknown"):
            (nb.YOLODetector if hasattr(model, option) else nb.YOLOLoss)(**{option: "other"})


@pytest.mark.parametrize("images, height, width", [(2, 224, 224), (1, 256, 256), (1, 97, 131)])
@pytest.mark.parametrize("s, b, c", [(7, 2, 3), (5, 3, 4)])
@torch.no_grad()
def test_predictions_of_any_size(nb, images, height, width, s, b, c):
    model = tiny_yolo(nb, grid_size=s, num_boxes=b, num_classes=c).eval()
    x = torch.randn(images, 3, height, width)
    start = model(x)
    nn.init.normal_(model.head[-1].weight, std=1000.0)  # answers far from the start's
    for p in (start, model(x)):
        assert p.shape == (images, s, s, b, 5 + c) and p.min() >= 0 and p.max() <= 1
        torch.testing.assert_close(p[..., 5:].sum(dim=-1), torch.ones(images, s, s, b))
        assert torch.equal(p[..., 5:], p[..., :1, 5:].expand_as(p[..., 5:]))
    assert (start[..., 4] - 0.5).abs().max() < 0.1  # undecided
    assert p[..., 4].min() < 0.01 and p[..., 4].max() > 0.99


@pytest.mark.parametrize("activation", ["sigmoid", "linear"])
@pytest.mark.parametrize("sizes", ["root", "raw"])
def test_activations_by_loops(nb, sizes, activation):
    model, output = tiny_yolo(nb, sizes=sizes, activation=activation), 3 * torch.randn(2, 13, 4, 4)
    model.backbone = model.pool = model.head = nn.Identity()
    found = model(output)
    for n, i, j, b in product(range(2), range(4), range(4), range(2)):
        box, classes = output[n, 5 * b : 5 * b + 5, i, j].tolist(), output[n, 10:, i, j].numpy()
        soft = [1 / (1 + math.exp(-v)) for v in box]
        x, y, w, h, confidence = soft if activation == "sigmoid" else box
        w, h = (w**2, h**2) if sizes == "root" else box[2:4]
        if activation == "sigmoid":
            classes = np.exp(classes) / np.exp(classes).sum()
        assert found[n, i, j, b].tolist() == pytest.approx([x, y, w, h, confidence, *classes], 1e-4)
    assert (found[..., 2:4] < 0).any() == (sizes == "raw")


def test_nothing_is_left_on_the_cpu(nb, pretended_gpu):
    images = torch.zeros(2, 3, 64, 64, device="cuda")
    predictions = tiny_yolo(nb).to("cuda")(images)
    mask, iou = nb.YOLOLoss().responsibility(predictions, predictions)
    assert {t.device.type for t in (predictions, mask, iou)} == {"cuda"}
    assert predictions.shape == (2, 7, 7, 2, 8) and mask.shape == iou.shape == (2, 7, 7, 2)


@pytest.mark.parametrize("size, wrong_by", [(20, 10), (200, 10), (20, -5), (50, 0)])
def test_size_errors_by_the_formula(nb, size, wrong_by):
    errors = [nb.size_error(size, wrong_by, *scale) for scale in ([], [np.sqrt], [np.log])]
    root, log = math.sqrt(size + wrong_by) - math.sqrt(size), math.log((size + wrong_by) / size)
    assert errors == pytest.approx([(wrong_by / 224) ** 2, root**2 / 224, log**2])


# ---------------------------------------------------------------- overlap and loss
@given(seed=SEEDS, shape=st.sampled_from([(9,), (2, 3), (1, 2, 2, 2)]))
def test_iou_is_torchvisions(nb, seed, shape):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(*shape, 4, generator=g, dtype=torch.double) for _ in range(2))
    corners = [box_convert(x.view(-1, 4), "cxcywh", "xyxy") for x in (a, b)]
    expected = box_iou(*corners).diagonal().view(shape)
    torch.testing.assert_close(nb.BoxOverlap.compute_iou(a, b, eps=0), expected)
    large = nb.BoxOverlap.compute_iou(100 * a, 100 * b)
    torch.testing.assert_close(large, expected, atol=1e-4, rtol=0)


@given(seed=SEEDS, pixels=st.floats(1, 64), size=st.sampled_from([128, 1333, 4000]))
def test_iou_of_small_boxes_is_torchvisions(nb, seed, pixels, size):
    """In shares of the image a small box has an area of 1e-7: an epsilon must be far below."""
    g = torch.Generator().manual_seed(seed)
    one = torch.cat([torch.rand(1, 2, generator=g), torch.full((1, 2), pixels / size)], dim=1)
    other = one + torch.tensor([0.4, 0.1, 0.3, 0.0]) * pixels / size
    for a, b in product((one, other), repeat=2):
        corners = [box_convert(x.double(), "cxcywh", "xyxy") for x in (a, b)]
        assert nb.BoxOverlap.compute_iou(a, b).item() == pytest.approx(
            box_iou(*corners).item(), abs=2e-3
        )


def test_iou_of_boxes_without_area(nb):
    box, point, line = [0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0.2]
    for pair in product((point, line), (box, point, line)):
        a, b = map(torch.tensor, pair)
        assert nb.BoxOverlap.compute_iou(a, b) == nb.BoxOverlap.compute_iou(b, a) == 0
    touching = torch.tensor([0.75, 0.5, 0.25, 0.25]), torch.tensor([0.5, 0.5, 0.25, 0.25])
    assert nb.BoxOverlap.compute_iou(*touching) == 0


@pytest.mark.parametrize("cells", [1, 3, 7])
def test_boxes_in_the_image_by_brute_force(nb, cells):
    boxes = torch.rand(2, cells, cells, 2, 8)
    found = nb.BoxOverlap.in_image(boxes)
    for n, i, j, b in product(range(2), range(cells), range(cells), range(2)):
        x, y, w, h = boxes[n, i, j, b, :4].tolist()
        expected = [(j + x) / cells, (i + y) / cells, w, h]
        assert found[n, i, j, b].tolist() == pytest.approx(expected, 1e-5)


def losses_by_loops(predictions, targets, coord=5, noobj=0.5, responsible="iou", confidence="iou"):
    parts = dict.fromkeys(PARTS, 0.0)
    images, cells, _, boxes, _ = predictions.shape

    def corners(box, i, j):
        x, y, w, h = (box[0] + j) / cells, (box[1] + i) / cells, *box[2:4]
        return torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]])

    for n, i, j in product(range(images), range(cells), range(cells)):
        its, answers = targets[n, i, j, 0].tolist(), predictions[n, i, j].tolist()
        place = corners(its, i, j)
        ious = [reference.box_iou(corners(p, i, j), place).item() for p in answers]
        chosen = ious.index(max(ious)) if responsible == "iou" else 0
        for b, p in enumerate(answers):
            if its[4] != 1 or b != chosen:
                parts["conf_noobj"] += noobj * p[4] ** 2
                continue
            parts["xy"] += coord * sum((p[k] - its[k]) ** 2 for k in (0, 1))
            parts["wh"] += coord * sum((p[k] ** 0.5 - its[k] ** 0.5) ** 2 for k in (2, 3))
            parts["conf_obj"] += (p[4] - (ious[b] if confidence == "iou" else 1)) ** 2
        if its[4] == 1:
            parts["class"] += sum((p - t) ** 2 for p, t in zip(answers[0][5:], its[5:]))
    return {name: value / images for name, value in parts.items()}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("images, boxes, weights", [(1, 1, ()), (2, 2, ()), (3, 3, (2.0, 0.7))])
def test_five_components_by_loops(nb, rules, share, images, boxes, weights):
    answers = random_predictions(images, 4, boxes), random_targets(images, share, 4, boxes)
    total, parts = nb.YOLOLoss(*weights, **rules)(*answers)
    expected = losses_by_loops(*answers, *weights, **rules)
    found = {name: part.item() for name, part in parts.items()}
    assert list(found) == PARTS and found == pytest.approx(expected, rel=1e-3)
    assert total.item() == pytest.approx(sum(expected.values()), rel=1e-3)
    assert (found["conf_noobj"] > 0) == (share < 1 or boxes > 1)
    assert all((found[name] > 0) == (share > 0) for name in PARTS if name != "conf_noobj")


def test_who_is_responsible(nb):
    targets = torch.zeros(1, 1, 5, 2, 8)
    targets[..., 0, :5] = torch.tensor([0.5, 0.5, 0.4, 0.4, 1])
    targets = targets.expand(1, 5, 5, 2, 8).clone()
    targets[0, 0, 4] = 0  # no object
    boxes = targets[..., :1, :].expand_as(targets).clone()
    boxes[0, 0, 0, 0, 2] = boxes[0, 0, 1, 1, 2] = 0.1  # the other box is better, then this one
    boxes[0, 0, 3, :, 2:4] = 0  # no overlap at all; in cell 2 both are perfect
    truth = targets[..., :1, :].expand_as(targets)
    mask, iou = nb.YOLOLoss().responsibility(boxes, truth)
    assert mask[0, 0].int().tolist() == [[0, 1], [1, 0], [1, 0], [1, 0], [0, 0]]
    assert iou[0, 0, :4].flatten().tolist() == pytest.approx([0.25, 1, 1, 0.25, 1, 1, 0, 0], 1e-4)
    mask, _ = nb.YOLOLoss(responsible="first").responsibility(boxes, truth)
    assert mask[0, 0].int().tolist() == [[1, 0]] * 4 + [[0, 0]]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("responsible", ["iou", "first"])
def test_perfect_predictions_cost_nothing(nb, share, responsible):
    targets = random_targets(3, share)
    perfect = targets[..., :1, :].expand_as(targets).clone()
    perfect[..., 1:, 4] = 0  # of two equal boxes the first is responsible
    assert nb.YOLOLoss(responsible=responsible, confidence="one")(perfect, targets)[0] == 0
    assert nb.YOLOLoss(responsible=responsible)(perfect, targets)[0] < 1e-6


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_gradients_only_where_they_should_be(nb, rules, share):
    predictions, targets = random_predictions(2).requires_grad_(), random_targets(2, share)
    criterion, has = nb.YOLOLoss(**rules), targets[..., 0, 4] == 1
    mask, _ = criterion.responsibility(predictions, targets[..., :1, :].expand_as(predictions))
    assert torch.equal(mask.sum(dim=-1), has.long())
    criterion(predictions, targets)[0].backward()
    grad = predictions.grad
    assert (grad[mask][:, :4] != 0).all() and (grad[~mask][:, :4] == 0).all()
    torch.testing.assert_close(grad[~mask][:, 4], 0.5 * predictions[~mask][:, 4].detach())
    classes = grad[..., 5:].sum(dim=3)
    assert (classes[has] != 0).all() and (classes[~has] == 0).all()
    assert rules["responsible"] == "iou" or not (mask[..., 1].any() or grad[..., 1, 5:].any())


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("zero", ["predictions", "targets", "both"])
def test_sizes_of_zero_are_survived(nb, rules, zero):
    predictions, targets = random_predictions(2), random_targets(2, 0.5)
    predictions[..., 2:4] *= zero == "targets"
    targets[..., 2:4] *= zero == "predictions"
    total, parts = nb.YOLOLoss(**rules)(predictions.requires_grad_(), targets)
    total.backward()
    assert total.isfinite() and predictions.grad.isfinite().all()
    assert (parts["wh"] > 0.1) == (zero != "both")


@pytest.mark.parametrize("rules", RULES)
def test_the_loss_is_a_mean_over_images_in_any_order(nb, rules):
    predictions, targets = random_predictions(3), random_targets(3, 0.3)
    loss = nb.YOLOLoss(**rules)
    once = loss(predictions, targets)
    for order in ([2, 0, 1], [0, 1, 2, 0, 1, 2]):
        torch.testing.assert_close(loss(predictions[order], targets[order]), once)
    each = [loss(predictions[i : i + 1], targets[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(once[0], torch.stack(each).mean())


@pytest.mark.parametrize("kind", OTHER_FLOATS, ids=str)
@pytest.mark.parametrize("rules", RULES)
def test_other_floats_give_the_loss_and_boxes_of_float32(nb, kind, rules):
    predictions, targets = random_predictions(2).to(kind), random_targets(2, 0.5)
    expected = nb.YOLOLoss(**rules)(predictions.float(), targets)
    found = nb.YOLOLoss(**rules)(predictions, targets.double())
    torch.testing.assert_close(found, expected)
    mask, iou = nb.YOLOLoss(**rules).responsibility(predictions, predictions)
    assert (iou > 0.999).all() and iou.dtype == torch.float32
    boxes = [nb.decode_batch(p, 128) for p in (predictions, predictions.float())]
    torch.testing.assert_close(*boxes)


# ---------------------------------------------------------------- shapes and targets
@pytest.mark.parametrize("kind, filled", [(0, math.pi / 4), (1, 1.0), (2, 0.5)])
@pytest.mark.parametrize("place", ["inside", "first corner", "last corner"])
def test_what_is_painted_fills_its_box(nb, kind, filled, place):
    for size in range(30, 81):
        last, image = (120 - size, 96 - size), np.zeros((96, 120, 3), dtype=np.float32)
        x, y = {"inside": (9, 13), "first corner": (0, 0), "last corner": last}[place]
        nb.draw_shape(image, kind, x, y, size, (0.2, 0.4, 0.6))
        painted = image[..., 0] > 0
        rows, columns = np.nonzero(painted)
        assert [columns.min(), rows.max() + 1, columns.max() + 1] == [x, y + size, x + size]
        assert rows.min() - y in ((0, 1) if kind == 2 else (0,))  # the tip may miss all centres
        assert painted.sum() == pytest.approx(filled * size**2, 0.02)
        assert np.allclose(image[painted], (0.2, 0.4, 0.6)) and not image[~painted].any()


PLACES = [(0.37, 7, 2, 0.59), (0.0, 7, 0, 0), (3 / 7, 7, 3, 0), (0.75, 4, 3, 0), (0.5, 16, 8, 0)]
PLACES += [(1.0, 7, 6, 1), (1.0, 1, 0, 1), (0.999, 7, 6, 0.993)]


@pytest.mark.parametrize("x, cells, column, x_cell", PLACES)
@pytest.mark.parametrize("y, row, y_cell", [(0.0, 0, 0.0), (1.0, -1, 1.0)])
def test_encode_one_object(nb, x, cells, column, x_cell, y, row, y_cell):
    target = nb.encode_target([{"x": x, "y": y, "w": 0.2, "h": 0.1, "class": 2}], cells)
    assert target.shape == (cells, cells, 2, 8)
    expected = torch.zeros(cells, cells, 2, 8)
    expected[row, column, 0] = torch.tensor([x_cell, y_cell, 0.2, 0.1, 1, 0, 0, 1])
    torch.testing.assert_close(target, expected, atol=1e-5, rtol=0)


def test_of_two_objects_in_a_cell_the_first_stays(nb):
    first = {"x": 0.5, "y": 0.5, "w": 0.1, "h": 0.1, "class": 1}
    second = first | {"w": 0.9, "class": 0}
    neighbour = second | {"x": 0.6}
    both = nb.encode_target([first, second, neighbour])
    assert torch.equal(both, nb.encode_target([first, neighbour]))
    assert not torch.equal(both, nb.encode_target([second, neighbour]))
    assert nb.objects_kept(both[None]) == 2
    none = nb.encode_target([], 5, 3, 4)
    assert none.shape == (5, 5, 3, 9) and not none.any()


@pytest.mark.parametrize("counts", [(3, 0, 40, 1), (0, 0), (0,), (9,), (0, 5, 0)], ids=str)
@pytest.mark.parametrize("size, cells, boxes", [(128, 16, 2), (224, 7, 1), (64, 1, 3)])
def test_encode_batch_is_encode_target(nb, counts, size, cells, boxes):
    lists, labels = objects_of(*counts, size=size)
    edges = torch.arange(cells + 1)[:, None] * size / cells  # points on the edges of cells
    lists = [torch.cat([edges.expand(-1, 4), b]) if len(b) else b for b in lists]
    labels = [torch.arange(len(b)) % 3 for b in lists]
    found = nb.encode_batch(lists, labels, size, cells, boxes)
    for target, image, kinds in zip(found, lists, labels, strict=True):
        centres = (box_convert(image, "xyxy", "cxcywh") / size).tolist()
        objects = [dict(zip("xywh", c)) | {"class": k} for c, k in zip(centres, kinds.tolist())]
        expected = nb.encode_target(objects, cells, boxes)
        torch.testing.assert_close(target, expected, atol=1e-5, rtol=0)
    taken = [nb.in_taken_cells(image * 128 / size, cells) for image in lists]
    assert nb.objects_kept(found) == int((~torch.cat(taken)).sum()) == (found[..., 4] == 1).sum()


def test_a_centre_outside_counts_for_the_nearest_cell(nb):
    for x, cell in ((-0.3, 0), (1.2, 6)):
        thing = {"x": x, "y": x, "w": 1.0, "h": 1.0, "class": 0}
        box = torch.tensor([[x - 0.5, x - 0.5, x + 0.5, x + 0.5]]) * 64
        targets = [nb.encode_target([thing]), nb.encode_batch([box], [torch.tensor([0])], 64, 7)[0]]
        assert [t[..., 0, 4].nonzero().tolist() for t in targets] == [[[cell, cell]]] * 2


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_targets_of_other_types(nb, kind):
    boxes, labels = objects_of(3, 0, 5)
    others = [b.double() for b in boxes], [c.to(kind) for c in labels]
    found = nb.encode_batch(*others, 128, 7)
    assert (
        torch.equal(found, nb.encode_batch(boxes, labels, 128, 7)) and found.dtype == torch.float32
    )


def test_images_of_the_text(nb):
    dataset = nb.SyntheticObjectDataset(15, seed=4)
    colours = np.float32([(0.95, 0.95, 0.95), *dataset.colours])
    assert len(dataset) == len(list(dataset)) == 15
    for image, target, objects in dataset:
        assert image.shape == (3, 224, 224) and image.dtype == torch.float32
        assert {tuple(c) for c in np.unique(image.flatten(1).T, axis=0)} <= set(map(tuple, colours))
        assert (image == colours[0, 0]).all(dim=0).float().mean() > 0.5  # off-white
        assert torch.equal(target, nb.encode_target(objects))
        for o in objects:
            assert o["w"] == o["h"] and 30 <= round(224 * o["w"], 6) <= 80
            assert all(o["w"] / 2 <= o[k] <= 1 - o["w"] / 2 for k in "xy")
        row, column = int(o["y"] * 224), int(o["x"] * 224)  # the last: nothing lies above it
        assert np.array_equal(image[:, row, column], colours[1 + o["class"]])
    assert {len(objects) for _, _, objects in dataset} == {1, 2, 3}


def test_an_image_depends_on_seed_and_index_alone(nb):
    one, longer, other = (nb.SyntheticObjectDataset(n, seed=s) for n, s in ((3, 1), (9, 1), (3, 2)))
    assert torch.equal(one[2][0], longer[2][0]) and one[2][2] == one[2][2] == longer[2][2]
    assert one[2][2] != other[2][2] and one[2][2] != one[1][2]
    for index in (3, -1, 100):
        with pytest.raises(IndexError, match=f"index {index} of 3"):
            one[index]
    images, targets, objects = nb.collate([one[0], other[0], one[2]])
    assert torch.equal(images[1], other[0][0]) and torch.equal(targets[2], one[2][1])
    assert images.shape == (3, 3, 224, 224) and objects == [one[0][2], other[0][2], one[2][2]]


# ---------------------------------------------------------------- from grid to boxes
@pytest.mark.parametrize("iou, top", [(None, 100), (0.5, 100), (0.2, 100), (0.5, 3), (None, 0)])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.3, 2.0])
def test_batch_and_loop_read_the_same(nb, threshold, iou, top):
    """With NMS, the loop's detections go through that of the helpers."""
    predictions, counts = random_predictions(3), []
    batch = nb.decode_batch(predictions, 64, threshold, iou, top)
    for found, p in zip(batch, predictions, strict=True):
        loop, expected = nb.decode_predictions(p, threshold), []
        for label in range(3):
            things = [d for d in loop if d["class"] == label]
            boxes = torch.tensor([[d[k] * 64 for k in "xywh"] for d in things]).view(-1, 4)
            boxes = reference.clip_boxes(reference.cxcywh_to_xyxy(boxes), 64, 64)
            scores = torch.tensor([d["confidence"] for d in things])
            rows = range(len(things)) if iou is None else nms_reference.nms(boxes, scores, iou)
            expected += [(scores[r].item(), label, boxes[r].tolist()) for r in rows]
        expected = sorted(expected, reverse=True)[:top]
        assert found["scores"].tolist() == pytest.approx([s for s, _, _ in expected])
        assert found["labels"].tolist() == [label for _, label, _ in expected]
        boxes = np.reshape([b for _, _, b in expected], (-1, 4))
        np.testing.assert_allclose(found["boxes"], boxes, atol=1e-3)
        counts.append(len(expected))
    assert max(counts) <= top and (max(counts) > 0) == (threshold < 2 and top > 0)
    assert iou is None or max(counts) < 32  # suppression has had work to do


def test_the_score_is_confidence_times_class(nb):
    predictions = torch.zeros(1, 2, 2, 2, 8)
    predictions[0, 1, 0, 1] = torch.tensor([0.5, 0.25, 0.75, 0.5, 0.5, 0.1, 0.8, 0.1])
    (loop,) = nb.decode_predictions(predictions[0])
    expected = {"x": 0.25, "y": 0.625, "w": 0.75, "h": 0.5, "confidence": 0.4, "class": 1}
    assert loop == pytest.approx(expected)
    (found,) = nb.decode_batch(predictions, 80)
    assert found["boxes"].tolist() == [[0, 30, 50, 70]]  # clipped on the left: x1 would be -10
    assert found["scores"].tolist() == pytest.approx([0.4]) and found["labels"].tolist() == [1]
    predictions[..., 2:4] *= -1  # raw sizes: the loop takes the absolute value
    assert nb.decode_predictions(predictions[0])[0] == pytest.approx(expected)


@pytest.mark.parametrize("size, cells", [(128, 16), (224, 7)])
def test_reading_is_writing_backwards(nb, size, cells):
    """Objects in cells of their own, some of them reaching to the border of the image."""
    boxes = objects_of(20, size=size)[0][0]
    boxes = boxes[~nb.in_taken_cells(boxes * 128 / size, cells)]
    labels = torch.arange(len(boxes)) % 3
    (found,) = nb.decode_batch(nb.encode_batch([boxes], [labels], size, cells), size, iou=None)
    order = torch.cdist(boxes, found["boxes"]).argmin(dim=1)
    assert len(found["boxes"]) == len(boxes) > 9 and boxes.max() == size
    torch.testing.assert_close(found["boxes"][order], boxes, atol=1e-2, rtol=0)
    assert torch.equal(found["labels"][order], labels) and (found["scores"] == 1).all()


@pytest.mark.parametrize("size", WIDE_AND_HIGH)
def test_reading_is_writing_backwards_on_images_that_are_not_square(nb, size):
    sides = torch.tensor([size[1], size[0], size[1], size[0]])
    squares, labels = objects_of(9, 1, 20)
    boxes = [b * sides / 128 for b in squares]
    targets = nb.encode_batch(boxes, labels, size, 16)
    torch.testing.assert_close(targets, nb.encode_batch(squares, labels, 128, 16))
    for b, c, found in zip(boxes, labels, nb.decode_batch(targets, size, iou=None), strict=True):
        own = ~nb.in_taken_cells(b, 16, size)
        order = torch.cdist(b[own], found["boxes"]).argmin(dim=1)
        assert len(found["boxes"]) == own.sum() and torch.equal(found["labels"][order], c[own])
        torch.testing.assert_close(found["boxes"][order], b[own], atol=1e-2, rtol=0)
    everywhere = torch.ones(1, 4, 4, 1, 8)  # boxes as large as the image, clipped to it
    corners = nb.decode_batch(everywhere, size, iou=None)[0]["boxes"]
    assert corners.min() == 0 and torch.equal(corners.amax(dim=0)[2:], sides[2:].float())


def test_no_image_no_detections(nb):
    model = tiny_yolo(nb)
    assert nb.decode_batch(torch.zeros(0, 7, 7, 2, 8), 64) == []
    assert nb.detector_of(model)(torch.zeros(0, 3, 64, 96)) == []


@pytest.mark.parametrize("cells", [1, 4, 16])
def test_taken_cells_by_brute_force(nb, cells):
    boxes, taken, held = objects_of(40)[0][0], [], set()
    boxes = torch.cat([boxes, boxes[:1], torch.tensor([[128.0, 128, 128, 128]])])
    for x1, y1, x2, y2 in boxes.tolist():
        cell = tuple(min(int(v / 2 * cells / 128), cells - 1) for v in (x1 + x2, y1 + y2))
        taken.append(cell in held)
        held.add(cell)
    assert nb.in_taken_cells(boxes, cells).tolist() == taken and sum(taken) > 0
    assert nb.in_taken_cells(NO_BOXES, cells).shape == (0,)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8, 1.0])
def test_found_objects_by_brute_force(nb, threshold):
    (boxes,), (labels,) = objects_of(12)
    places = boxes + 3
    detection = {"boxes": places, "scores": torch.rand(12)}
    detection["labels"] = labels.roll(1).maximum(labels)
    target, expected = {"boxes": boxes, "labels": labels}, []
    for box, label in zip(boxes, labels):
        right = (detection["labels"] == label) & (detection["scores"] > threshold)
        overlaps = reference.box_iou(box[None], places)[0][right].tolist()
        expected.append(any(v >= 0.5 for v in overlaps))
    assert nb.found_objects(detection, target, threshold).tolist() == expected
    assert any(expected) == (threshold < 1) and not all(expected)
    nothing = {"boxes": NO_BOXES, "scores": torch.zeros(0), "labels": NO_LABELS}
    assert nb.found_objects(nothing, target).tolist() == [False] * 12
    assert nb.found_objects(detection, nothing).shape == (0,)


# ---------------------------------------------------------------- training and figures
@pytest.fixture
def tiny(nb, monkeypatch):
    """The notebook with four images to train on, three to test on, and a narrow backbone."""
    original, narrow = nb.SimpleBackbone, (4, 4, 8, 8)
    change = {"train_set": ShapesDataset(4, seed=3), "test_set": ShapesDataset(3)}
    change["SimpleBackbone"] = lambda channels=narrow, halvings=4: original(narrow, halvings)
    for name, value in change.items():
        monkeypatch.setattr(nb, name, value, raising=False)
    return nb


OPTIONS = [{}, {"grid_size": 8}, {"grid_size": 4, "net": {"num_boxes": 1}}]
OPTIONS += [{"responsible": "first", "confidence": "one"}, {"net": {"activation": "linear"}}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_two_steps_on_the_benchmark(tiny, options):
    runs = [tiny.train_on_benchmark(2, seed, **options) for seed in (None, 0, 1)]
    model, history = runs[0]
    assert not model.training and model.grid_size == options.get("grid_size", 16)
    assert model.backbone(torch.zeros(1, 3, 128, 128)).shape[2] == max(8, model.grid_size)
    assert list(history.columns()) == PARTS
    assert all(len(v) == 2 and np.isfinite(v).all() for v in history.columns().values())
    weights = [net.head[0].weight for net, _ in runs]  # the same seed, the same network
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    with torch.no_grad():  # detector_of leaves the training mode and knows the size of the image
        images, detect = torch.randn(1, 3, 96, 96), tiny.detector_of(model.train(), threshold=0.01)
        (found,), (expected,) = detect(images), tiny.decode_batch(model(images), 96, 0.01)
    assert not model.training and found["boxes"].equal(expected["boxes"]) and len(found["boxes"])


@pytest.mark.parametrize("size", WIDE_AND_HIGH)
def test_training_and_reading_know_both_sides(tiny, monkeypatch, size):
    seen, encode = [], tiny.encode_batch

    def watched(boxes, labels, size, *rest):
        seen.append(tuple(size))
        return encode(boxes, labels, size, *rest)

    monkeypatch.setattr(tiny, "encode_batch", watched)
    for name in ("train_set", "test_set"):
        monkeypatch.setattr(tiny, name, stretched(getattr(tiny, name), *size), raising=False)
    model, _ = tiny.train_on_benchmark(1)
    tiny.confidence_study(model)
    assert set(seen) == {size}
    found = tiny.detector_of(model, threshold=-1.0)(torch.randn(1, 3, *size))[0]["boxes"]
    assert (found[:, 2].max() > size[0]) == (size[1] > size[0]) and found[:, 3].max() <= size[0]
    monkeypatch.setattr(tiny, "model", model, raising=False)
    image, boxes = tiny.draw_grid_answers(1, 0.01).axes
    assert image.images[0].get_extent() == [-0.5, size[1] - 0.5, size[0] - 0.5, -0.5]


@pytest.mark.parametrize("size", WIDE_AND_HIGH)
def test_boxes_are_drawn_where_they_are(tiny, size):
    class Data(list):
        class_names = tiny.CLASSES

    thing = {"x": 0.5, "y": 0.25, "w": 0.5, "h": 0.25, "class": 1}
    figure = tiny.visualize_predictions(
        tiny_yolo(tiny), Data([(torch.zeros(3, *size), None, [thing])]), 1, threshold=2.0
    )
    box = figure.axes[0].patches[-1]
    height, width = size
    expected = (width / 4, height / 8, width / 2, height / 4)
    found = (*box.get_xy(), box.get_width(), box.get_height())
    assert found == pytest.approx(expected, abs=0.51)  # pixels may be drawn about their centres


def test_two_epochs_of_the_text(tiny, capsys):
    model, history, dataset = tiny.train_yolo(epochs=2, num_samples=5, batch_size=4, seed=1)
    assert list(history) == ["total", *PARTS] and len(dataset) == 5
    assert np.isfinite(list(history.values())).all()
    parts = np.sum([history[name] for name in PARTS], axis=0)
    np.testing.assert_allclose(history["total"], parts, rtol=1e-4)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and f"epoch 2: total {history['total'][1]:.3f}" in lines[1]


def test_figures_show_computed_numbers(tiny, monkeypatch):
    dataset = tiny.SyntheticObjectDataset(2)
    truth = [f"GT: {tiny.CLASSES[o['class']]}" for *_, objects in dataset for o in objects]
    for threshold, detections in ((0.0, 2 * 98), (2.0, 0)):
        figure = tiny.visualize_predictions(tiny_yolo(tiny), dataset, 2, threshold)
        words = [t.get_text() for ax in figure.axes for t in ax.texts]
        assert sorted(w for w in words if w.startswith("GT")) == sorted(truth)
        assert len(words) - len(truth) == detections
    figure = tiny.plot_training_curves({name: [2.0, 1.0] for name in ["total", *PARTS]})
    assert [len(ax.lines) for ax in figure.axes] == [1, 5]
    for x, column in ((0.0, 0), (0.42, 2), (1.0, 6)):
        (ax,) = tiny.draw_responsible_cell(x, 0.55, 0.25).axes
        at = f"row 3, column {column}: x {7 * x - column:.2f}, y 0.85"
        assert ax.get_title() == f"{at}, w = h = 0.25"
        assert ax.patches[0].get_xy() == pytest.approx((column / 7, 3 / 7))
    monkeypatch.setattr(tiny, "model", tiny_yolo(tiny), raising=False)
    cases = [("no", 0.0), ("yes", 0.0), ("yes", 0.99)]
    titles = [tiny.draw_grid_answers(2, t, nms).axes[1].get_title() for nms, t in cases]
    every, kept, none = (int(title.split(" boxes")[0]) for title in titles)
    assert every == 98 > kept > none == 0


# ---------------------------------------------------------------- the exercises
def test_the_stubs_are_still_to_do_and_the_solutions_right(nb):
    assert all("still to do" in nb.check_numbers(stub) for stub in (None, ...))
    checks = {"read_box": "read", "responsible": "responsible", "split_box": "split"}
    check_stubs_and_solutions(nb, {name: f"check_{check}" for name, check in checks.items()})


NUMBERS = [("✓", 5915), ("✓", np.int64(5915)), ("that is one cell", 35), ("13 × 13 cells", 455)]
NUMBERS += [("not to each box", 12675), ("a confidence, too", 5408), ("three boxes per", 4225)]
NUMBERS += [("Cells × (boxes × 5 + classes)", answer) for answer in (7, [5915], "5915")]


def corners(cx, cy, w, h, part=2):
    return torch.tensor([cx - w / part, cy - h / part, cx + w / part, cy + h / part])


READ = [  # r: row, c: column, n: cells, s: size
    ("✓", lambda r, c, x, y, w, h, n, s: corners((c + x) / n, (r + y) / n, w, h) * s),
    ("are swapped", lambda r, c, x, y, w, h, n, s: corners((r + x) / n, (c + y) / n, w, h) * s),
    ("the size of the", lambda r, c, x, y, w, h, n, s: corners((c + x) / n, (r + y) / n, w, h)),
    ("half of", lambda r, c, x, y, w, h, n, s: corners((c + x) / n, (r + y) / n, w, h, 1) * s),
    ("not of the cell", lambda r, c, x, y, w, h, n, s: corners(c + x, r + y, w, h) * s / n),
    ("add column", lambda r, c, x, y, w, h, n, s: corners(x / n, y / n, w, h) * s),
    ("not corners", lambda *_: (30, 65, 20, 40)),
    ("not the corner", lambda *_: (30, 65, 30 + 20, 65 + 40)),
    ("expected (20, 45, 40, 85)", lambda *_: np.zeros(4)),
    ("got shape (1, 4)", lambda *_: [(20, 45, 40, 85)]),
    ("four numbers are needed", lambda *_: "20 45 40 85"),
]


RESPONSIBLE = [  # v: IoU (n, 2), has (n,)
    ("✓", lambda v, has: F.one_hot(v.argmax(1), 2).bool() & has[:, None]),
    ("✓", lambda v, has: (F.one_hot(v.argmax(1), 2) * has[:, None]).tolist()),
    (
        "✓ one box per object, and",
        lambda v, has: F.one_hot((v[:, 1] >= v[:, 0]).long(), 2) * has[:, None],
    ),
    ("a cell without an object", lambda v, has: F.one_hot(v.argmax(1), 2)),
    ("both boxes of a cell", lambda v, has: has[:, None].expand(-1, 2)),
    ("always box 0", lambda v, has: torch.stack([has, has & False], 1)),
    ("without overlap needs", lambda v, has: (v == v.amax(1, True)) & (v > 0) & has[:, None]),
    ("of two equal boxes take one", lambda v, has: (v == v.amax(1, True)) & has[:, None]),
    ("the worse box", lambda v, has: F.one_hot(v.argmin(1), 2) * has[:, None]),
    ("expected boxes 1, 0, 0", lambda v, has: v > 9),
    ("shape (4, 2) is needed, got (4,)", lambda v, has: v.argmax(1)),
    ("a mask is needed, got", lambda v, has: "1"),
]
SPLIT = [
    ("✓", lambda out, b: out.view(*out.shape[:3], b, -1)),
    ("yours are interleaved", lambda out, b: out.unflatten(-1, (-1, b)).transpose(3, 4)),
    ("2, 8), got (2, 3, 3, 8, 2)", lambda out, b: out.unflatten(-1, (-1, b))),
    ("got ()", lambda out, b: 1),
    ("first eight numbers of a cell", lambda out, b: out.unflatten(-1, (b, -1)).transpose(1, 2)),
]
ANSWERS = {"numbers": NUMBERS, "read": READ, "responsible": RESPONSIBLE, "split": SPLIT}
CASES = [(check, *pair) for check, pairs in ANSWERS.items() for pair in pairs]


@pytest.mark.parametrize("check, says, answer", CASES)
def test_checks_name_the_mistake(nb, check, says, answer):
    message = getattr(nb, f"check_{check}")(answer)
    assert says in message and message[0] == ("✓" if says[0] == "✓" else "✗")
