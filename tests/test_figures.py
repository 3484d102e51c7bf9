"""The diagrams are drawn from whatever the lecture or a reader's slider gives them."""

import re

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from helpers import figures, lessons
from helpers.datasets import PhotoDataset
from helpers.figures import (
    anchors_on_image_figure,
    ap_figure,
    bands_figure,
    base_anchors_figure,
    bill_figure,
    closeups_figure,
    count_figure,
    coverage_figure,
    crowd_figure,
    family_figure,
    fast_rcnn_figure,
    faster_rcnn_figure,
    focal_loss_figure,
    forest_figure,
    fpn_figure,
    look_at,
    nms_figure,
    objectness_figure,
    overlap_figure,
    pieces_figure,
    places_figure,
    regression_figure,
    roi_align_figure,
    roi_pooling_figure,
    routing_figure,
    scores_figure,
    shift_figure,
    shifted_iou_figure,
    show_hits,
    sizes_figure,
    top_regions_figure,
    transfer_figure,
    views_figure,
)
from helpers.plotting import COLOURS

FEATURE = torch.arange(48.0).view(6, 8) - 20
EDGES = {"rows": ([1, 2, 3], [2, 3, 5]), "columns": ([2, 3, 5], [4, 5, 7])}
ROI = (2.2, 0.6, 6.6, 4.5)


@pytest.fixture
def draw():
    """A function that draws the figure to the last pixel; whatever it opened is closed."""
    with mpl.rc_context():

        def drawn(feature=FEATURE, pooled=None, roi=ROI, rows=None, columns=None):
            rows, columns = rows or EDGES["rows"], columns or EDGES["columns"]
            pooled = torch.zeros(len(rows[0]), len(columns[0])) if pooled is None else pooled
            figure = roi_pooling_figure(feature, pooled, roi, rows, columns)
            figure.canvas.draw()
            return figure

        yield drawn
        plt.close("all")
    assert plt.get_fignums() == []


def marks(ax):
    """Cells (x, y) with a #."""
    return {text.get_position() for text in ax.texts if text.get_text() == "#"}


def test_the_cells_that_bins_read_are_marked(draw):
    left, middle, right = draw().axes
    assert marks(left) == {(x, y) for x in range(2, 7) for y in range(1, 5)}
    names = {text.get_text() for text in middle.texts}
    assert names == {"a1", "a2", "a3", "b1", "c1"}
    assert len(middle.patches) == 9 + 1 and len(left.patches) == 1 and not right.patches
    assert right.images[0].get_array().shape == (3, 3)


def test_the_outline_is_the_box_in_cells(draw):
    for ax in draw().axes[:2]:
        (outline,) = [p for p in ax.patches if p.get_linestyle() == "--"]
        np.testing.assert_allclose(outline.get_bbox().extents, np.array(ROI) - 0.5)


def test_frames_lie_around_the_cells_of_their_bin(draw):
    middle = draw().axes[1]
    first = middle.patches[0].get_bbox().extents  # bin a1: columns 2 and 3, row 1
    assert (np.abs(first - [1.5, 0.5, 3.5, 1.5]) < 0.15).all()


def test_the_three_panels_share_one_scale(draw):
    limits = {ax.images[0].get_clim() for ax in draw().axes}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -20 and high > 27


ODD = {
    "partly outside": {"roi": (-3.0, -2.0, 5.0, 30.0), "rows": ([0, 1, 5], [1, 6, 6])},
    "outside": {"roi": (90.0, 90, 99, 99), "rows": ([6] * 3, [6] * 3), "columns": ([8] * 3,) * 2},
    "no area": {"roi": (3.0, 3, 3, 3), "rows": ([3] * 3, [4] * 3), "columns": ([3] * 3, [4] * 3)},
    "empty bins": {"rows": ([1, 1, 2], [1, 2, 2])},
    "fewer rows than columns": {"rows": ([2], [4])},
    "whole tensors": {"roi": tuple(torch.tensor(ROI))},
}


@pytest.mark.parametrize("case", ODD.values(), ids=ODD)
def test_odd_boxes_are_drawn(draw, case):
    left, middle, _ = draw(**case).axes
    rows, columns = case.get("rows", EDGES["rows"]), case.get("columns", EDGES["columns"])
    filled = [
        (t, b, x1, x2) for t, b in zip(*rows) for x1, x2 in zip(*columns) if b > t and x2 > x1
    ]
    assert len(middle.patches) == len(filled) + 1
    cells = {(x, y) for t, b, x1, x2 in filled for x in range(x1, x2) for y in range(t, b)}
    assert marks(left) == cells


FEATURES = {
    "one value": torch.full((6, 8), 3.0),
    "zeros": torch.zeros(6, 8),
    "negative": -1 - torch.rand(6, 8) / 100,
    "one negative value": torch.full((6, 8), -2.0),
    "with a gradient": torch.rand(6, 8, requires_grad=True),
    "one cell": torch.zeros(1, 1),
    "half": torch.rand(6, 8).half(),
}


@pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES)
def test_odd_maps_are_drawn(draw, feature):
    edges = {"rows": ([0], [1]), "columns": ([0], [1])}
    figure = draw(feature, pooled=feature[:1, :1], **edges)
    low, high = figure.axes[0].images[0].get_clim()
    assert low == feature.min().item() and high >= feature.max().item()


BILLS = {
    "small": {"slow": [1.0, 5.0, 2.0], "fast": (1.0, 0.5, 2.0)},
    "large": {"slow": np.array([900.0, 8000, 500]), "fast": [900.0, 0.0, 700]},
}


def test_bars_of_a_bill_are_milliseconds():
    figure = bill_figure(BILLS, ("a", "b", "c"))
    figure.canvas.draw()
    assert len(figure.axes) == 2
    for ax, (setting, bars) in zip(figure.axes, BILLS.items()):
        widths = np.array([bar.get_width() for bar in ax.patches]).reshape(len(bars), 3)
        np.testing.assert_allclose(widths, list(bars.values()))
        lefts = np.array([bar.get_x() for bar in ax.patches]).reshape(len(bars), 3)
        np.testing.assert_allclose(lefts, widths.cumsum(axis=1) - widths)
        assert [t.get_text() for t in ax.get_yticklabels()] == list(bars)
        assert ax.yaxis.get_inverted() and ax.get_title() == setting
        totals = [float(text.get_text().replace(",", "")) for text in ax.texts]
        np.testing.assert_allclose(totals, widths.sum(axis=1), atol=0.51)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
    plt.close(figure)


def test_coverage_counts_the_regions_of_each_pixel():
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    figure = coverage_figure(image, torch.tensor([[0.0, 0, 10, 10], [5, 5, 30, 20]]))
    figure.canvas.draw()
    counts = figure.axes[1].images[0].get_array()
    assert counts.shape == (20, 30) and counts.sum() == 100 + 25 * 15
    assert counts[7, 7] == 2 and counts[2, 2] == 1 and counts[15, 2] == 0
    plt.close(figure)


def test_gradients_are_written_into_their_cells():
    feature, parts = torch.rand(6, 8), torch.zeros(2, 6, 8)
    parts[0, 1, 2], parts[1, 1, 2], parts[1, 4, 5] = 3, 1, 2
    boxes = [(0, 0, 4, 4), (1.5, 1, 7, 6)]
    figure = routing_figure(feature, boxes, [*parts, parts.sum(dim=0)])
    figure.canvas.draw()
    written = [
        {text.get_position(): text.get_text() for text in ax.texts} for ax in figure.axes[1:]
    ]
    assert written == [{(2, 1): "3"}, {(2, 1): "1", (5, 4): "2"}, {(2, 1): "4", (5, 4): "2"}]
    assert [len(ax.patches) for ax in figure.axes] == [2, 1, 1, 2]
    plt.close(figure)


def test_a_detector_of_two_steps_fits_its_diagram():
    figure = fast_rcnn_figure()
    figure.canvas.draw()
    (ax,) = figure.axes
    names = " ".join(text.get_text().replace("\n", "") for text in ax.texts)
    assert all(name in names for name in ("SmallBackbone", "RoIPooling", "FastRCNNHead"))
    plt.close(figure)


def extents(patches):
    """Boxes (N, 4) xyxy, whatever the direction of the axes."""
    corners = [(*p.get_xy(), p.get_width(), p.get_height()) for p in patches]
    return np.array([(x, y, x + w, y + h) for x, y, w, h in corners])


def covers(ax, boxes):
    (x1, x2), (y1, y2) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
    low, high = np.array([x1, y1]), np.array([x2, y2])
    return bool((boxes[:, :2] >= low).all() and (boxes[:, 2:] <= high).all())


@pytest.mark.parametrize("count", [1, 9, 20])
def test_templates_are_drawn_around_the_origin(count):
    half = np.random.RandomState(0).uniform(1, 300, (count, 2))
    boxes, names = np.hstack([-half, half]), [f"template {i}" for i in range(count)]
    figure = base_anchors_figure(boxes, names)
    figure.canvas.draw()
    (ax,) = figure.axes
    np.testing.assert_allclose(extents(ax.patches), boxes)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == names
    assert len({p.get_edgecolor() for p in ax.patches}) == count
    assert covers(ax, boxes) and ax.yaxis.get_inverted() and ax.get_aspect() == 1
    plt.close(figure)


@pytest.mark.parametrize("rows, columns", [(14, 14), (3, 5), (4, 2), (1, 1)])
def test_anchors_are_drawn_on_the_image(rows, columns):
    half = np.array([[20.0, 10], [15, 15], [3, 40]])
    base = np.hstack([-half, half])  # (3, 4)
    y, x = np.meshgrid(8 * np.arange(rows) + 4, 8 * np.arange(columns) + 4, indexing="ij")
    anchors = np.stack([x, y, x, y], axis=-1)[:, :, None] + base  # (rows, columns, 3, 4)
    image = torch.zeros(3, 8 * rows, 8 * columns, dtype=torch.uint8)
    figure = anchors_on_image_figure(image, anchors, which=2)
    figure.canvas.draw()
    left, right = figure.axes
    np.testing.assert_allclose(extents(left.patches), anchors[rows // 2, columns // 2])
    np.testing.assert_allclose(extents(right.patches), anchors[::2, ::2, 2].reshape(-1, 4))
    dots = np.column_stack(right.lines[0].get_data())
    np.testing.assert_allclose(dots, np.stack([x, y], axis=-1).reshape(-1, 2))
    whole = np.array([[0, 0, 8 * columns, 8 * rows]])
    for ax in (left, right):
        assert covers(ax, whole) and covers(ax, extents(ax.patches)) and ax.yaxis.get_inverted()
    plt.close(figure)


@pytest.fixture
def closed():
    """Whatever a test opens is closed."""
    yield
    plt.close("all")


def texts_of(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.mark.parametrize("c5_on_top", [False, True])
def test_the_pyramid_has_its_numbers_and_its_arrows_go_from_coarse_to_fine(closed, c5_on_top):
    figure = fpn_figure((48, 64, 96), (16, 8, 4), 32, c5_on_top)
    figure.canvas.draw()
    words = texts_of(figure)
    for level, channels, size in ((3, 48, 16), (4, 64, 8), (5, 96, 4)):
        box = f"C{level}\n{channels} channels\n{size} × {size}, stride {2**level}"
        assert box in words and f"P{level}\n32 channels" in words
    assert words.count("upsample") == 2
    arrows = [t for t in figure.axes[0].texts if getattr(t, "arrow_patch", None)]
    red = [a for a in arrows if a.arrow_patch.get_linestyle() == "--"]
    rises = [a.xy[1] > a.xyann[1] for a in red]  # from the deeper level to the finer one
    assert rises == [not c5_on_top] * 2


def test_the_verdicts_follow_the_sums(closed):
    def words(easy, hard):
        return " ".join(texts_of(crowd_figure({"CE": (100.0, 1.0), "FL": (easy, hard)})))

    assert "Easy negatives\ndominate training!" in words(2.0, 4.0)
    assert "FL: Hard examples get\nmore focus!" in words(2.0, 4.0)
    assert "FL: Easy negatives still lead" in words(4.0, 2.0)


def test_tiny_sums_stay_on_the_axis(closed):
    (ax,) = crowd_figure({"CE": (100.0, 1.0), "FL": (1e-5, 1e-3)}).axes
    low, high = ax.get_ylim()
    assert low < 1e-5 and high > 100


def test_the_focal_panels_show_what_they_are_given(closed):
    p = torch.linspace(0.1, 0.9, 5)
    losses = {gamma: (1 - p) ** gamma for gamma in (0, 2.0)}
    figure = focal_loss_figure(p, losses, easy=0.8)
    figure.canvas.draw()
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["cross-entropy (γ = 0)", "γ = 2"]
    factors = dict(zip(*(right.lines[0].get_data())))
    assert [factors[gamma] for gamma in (0.0, 2.0, 5.0)] == pytest.approx([1, 0.04, 0.2**5])
    assert "γ = 2 leaves 4%" in texts_of(figure)


# ---------------------------------------------------------------- lectures 04, 06 and 08


@pytest.mark.parametrize(
    "draw_it, lecture, names",
    [
        (
            figures.retinanet_figure,
            "04_fpn_retinanet",
            "SimpleBackbone SimpleFPN SimpleRetinaNet DenseLoss FocalLoss match_anchors",
        ),
        (figures.ssd_figure, "06_ssd", "SSDBackbone MultiBoxLoss match_boxes mine_hard_negatives"),
        (
            figures.fcos_figure,
            "07_fcos",
            "SimpleBackbone FPN FCOSHead decode_predictions FCOSLoss assign targets_of",
        ),
        (
            figures.detr_figure,
            "08_detr",
            "SimpleBackbone PositionalEncoding2D TransformerEncoder TransformerDecoder "
            "HungarianMatcher DETRLoss read_answers",
        ),
    ],
    ids=["04", "06", "07", "08"],
)
def test_a_detector_is_drawn_with_the_names_of_its_page(closed, draw_it, lecture, names):
    page = lessons.load(lecture)
    figure = draw_it()
    figure.canvas.draw()
    words = " ".join(re.sub(r"\s*\n\s*", "", word) for word in texts_of(figure))
    for name in names.split():
        assert name in words and callable(getattr(page, name))


def test_the_shapes_of_the_transformer_are_those_of_the_page(closed):
    page = lessons.load("08_detr")
    model = page.PlacedDETR(**page.SLIM)
    memory, *_ = model.encode(torch.zeros(1, 3, 128, 128))
    figure = figures.transformer_figure()
    figure.canvas.draw()
    words = " ".join(texts_of(figure))
    tokens, width, queries = memory.shape[1], memory.shape[2], len(model.places)
    heads, hidden = model.encoder.layers[0].attend.heads, model.encoder.layers[0].think[0]
    assert f"({tokens}, {width})" in words and f"({queries}, {width})" in words
    for a, b in ((tokens, tokens), (queries, queries), (queries, tokens)):
        assert f"{heads} heads, {a} × {b}" in words
    assert f"{width} → {hidden.out_features} → {width}" in words
    for name in ("attend", "think", "self_attend", "cross_attend"):
        layers = (model.encoder.layers[0], model.decoder.layers[0])
        assert name in words and any(hasattr(layer, name) for layer in layers)


def test_a_placed_query_is_drawn_with_the_names_of_its_page(closed):
    page = lessons.load("08_detr")
    model = page.PlacedDETR(**page.SLIM)
    words = " ".join(texts_of(figures.placed_figure()))
    for name in ("self_attend", "cross_attend", "think"):
        assert name in words and hasattr(model.decoder.layers[0], name)
    for name in ("query_embed", "bbox_embed", "nearness", "places"):
        assert name in words and hasattr(model, name)
    assert f"{tuple(model.places.shape)}" in words


def test_evidence_for_a_single_region(closed):
    box, weights = torch.tensor([2.0, 3.0, 9.0, 12.0]), torch.rand(4, 4)
    figure = figures.evidence_figure(torch.zeros(3, 16, 16), [box], [weights], ["one"])
    (ax,) = figure.axes
    assert ax.get_title() == "one" and len(ax.images) == 2


def test_queries_have_their_dots_and_their_places(closed):
    centres = torch.rand(40, 2)
    places = torch.tensor([[0.25, 0.25], [0.75, 0.75]])
    owners = {"a": (centres[:, 0] > 0.5).long(), "b": torch.zeros(40, dtype=torch.long)}
    figure = figures.queries_figure(centres, owners, places)
    figure.canvas.draw()
    for ax, (name, owner) in zip(figure.axes, owners.items(), strict=True):
        assert ax.get_title() == name and [t.get_text() for t in ax.texts] == ["0", "1"]
        counts = [len(line.get_xdata()) for line in ax.lines]
        assert counts == owner.bincount(minlength=2).tolist()


def test_pairs_are_joined(closed):
    boxes = torch.tensor([[0.2, 0.3, 0.1, 0.2], [0.7, 0.6, 0.2, 0.2]])
    figure = figures.matching_figure(boxes, boxes.flip(0), [(0, 1), (1, 0)], "a title")
    figure.canvas.draw()
    (ax,) = figure.axes
    assert ax.get_title() == "a title" and len(ax.patches) == 4
    for line in ax.lines:  # each answer lies on its object
        assert np.ptp(line.get_xdata()) == 0 and np.ptp(line.get_ydata()) == 0
    names = {f"{kind} {i}" for kind in ("answer", "object") for i in (0, 1)}
    assert {t.get_text() for t in ax.texts} == names


def test_a_receptive_field_has_its_side_and_lies_in_the_middle(closed):
    image, target = torch.zeros(3, 40, 60, dtype=torch.uint8), {"boxes": torch.zeros(0, 4)}
    figure = figures.receptive_fields_figure(image, target, ("C2", "C3"), (10, 200))
    figure.canvas.draw()
    for ax, side in zip(figure.axes, (10, 200)):
        assert f"{side} × {side} pixels" in ax.get_title()
        box = ax.patches[-1]
        assert (box.get_width(), box.get_height()) == (side, side)
        assert (box.get_x() + side / 2, box.get_y() + side / 2) == (29.5, 19.5)
        assert ax.get_xlim() == (-0.5, 59.5) and ax.get_ylim() == (39.5, -0.5)


def test_score_maps_lie_over_the_image(closed):
    image, target = torch.zeros(3, 40, 60, dtype=torch.uint8), {"boxes": torch.zeros(0, 4)}
    maps = [torch.rand(10, 15), torch.rand(5, 8)]
    figure = figures.score_maps_figure(image, target, maps, ("P2", "stride 8"))
    figure.canvas.draw()
    first, *others = figure.axes
    for ax, scores, name in zip(others, maps, ("P2", "stride 8"), strict=True):
        assert ax.get_title() == f"{name}: {scores.shape[0]} × {scores.shape[1]} cells"
        assert ax.images[0].get_extent() == [-0.5, 59.5, 39.5, -0.5]
        np.testing.assert_allclose(ax.images[0].get_array(), scores)


# ---------------------------------------------------------------- lecture 07


def test_the_head_is_drawn_with_the_names_of_its_parts(closed):
    head = lessons.load("07_fcos").FCOSHead(8, 3, groups=2, depth=1)
    figure = figures.fcos_head_figure()
    figure.canvas.draw()
    words = texts_of(figure)
    names = [name for name, _ in head.named_children() if name != "scales"]
    assert len(names) == 5 and set(names) <= set(words) and "Scale of P2" in words


def test_maps_of_all_levels_lie_over_the_image(closed):
    image, target = torch.zeros(3, 40, 60, dtype=torch.uint8), {"boxes": torch.zeros(0, 4)}
    upper, lower = ([torch.rand(10, 15), torch.rand(5, 8)] for _ in range(2))
    figure = figures.level_maps_figure(image, target, upper, lower)
    figure.canvas.draw()
    rows = figure.axes[:3], figure.axes[3:]
    for row, maps, what in zip(rows, (upper, lower), ("class", "centre-ness")):
        for level, (ax, values) in enumerate(zip(row[1:], maps, strict=True), 2):
            assert ax.get_title() == f"P{level}: {what}"
            assert ax.images[0].get_extent() == [-0.5, 59.5, 39.5, -0.5]
            np.testing.assert_allclose(ax.images[0].get_array(), values)


def test_a_location_shows_its_distances_where_it_has_any(closed):
    box, at = torch.tensor([20.0, 30, 90, 70]), torch.tensor([30.0, 50])
    answers = torch.tensor([[30.0, 50], [34, 50], [40, 56]]), torch.tensor([4, 4, 16])
    for ltrb, count in ((torch.tensor([10.0, 20, 60, 20]), 4), (torch.tensor([-1.0, 2, 3, 4]), 0)):
        figure = figures.location_figure(box, at, ltrb, "a title", *answers)
        figure.canvas.draw()
        assert figure.axes[0].get_title() == "a title" and len(figure.axes[0].texts) == count
        assert count == 0 or "l = 10" in texts_of(figure)
        legend = figure.axes[1].get_legend().get_texts()
        assert [text.get_text() for text in legend] == ["P2: 2", "P3: 0", "P4: 1"]


def test_candidates_stand_over_their_levels(closed):
    image, boxes = torch.zeros(3, 40, 60, dtype=torch.uint8), torch.tensor([[5.0, 5, 30, 30]] * 2)
    stride = torch.tensor([4, 4, 8, 8, 8])
    candidates = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 1], [0, 0]]).bool()
    overlap = torch.arange(10.0).view(5, 2) / 10
    match = torch.tensor([-1, 1, -1, 0, -1])
    figure = figures.atss_figure(image, boxes, candidates, overlap, match, stride)
    figure.canvas.draw()
    for m, ax in enumerate(figure.axes[1:]):
        values = overlap[candidates[:, m], m]
        line = ax.lines[0].get_ydata()[0]
        assert line == pytest.approx((values.mean() + values.std()).item())
        dots = [tuple(dot) for c in ax.collections[::2] for dot in c.get_offsets()]
        assert sorted(y for _, y in dots) == pytest.approx(sorted(values.tolist()))
        filled = [dot[1] for c in ax.collections[1::2] for dot in c.get_offsets()]
        assert filled == pytest.approx(overlap[match == m, m].tolist())
        assert [t.get_text() for t in ax.get_xticklabels()] == ["P2", "P3"]


# ---------------------------------------------------------------- lecture 03


def test_the_family_is_drawn_in_three_rows(closed):
    figure = family_figure()
    figure.canvas.draw()
    words = [word.strip() for word in texts_of(figure)]
    assert words.count("selective search") == 2 and words.count("RPN") == 1
    assert [words.count(name) for name in ("R-CNN", "Fast R-CNN", "Faster R-CNN")] == [1, 1, 1]
    rows = {
        t.get_text(): t.get_position()[1] for t in figure.axes[0].texts if "R-CNN" in t.get_text()
    }
    assert rows["R-CNN"] < rows["Fast R-CNN"] < rows["Faster R-CNN"]  # downwards


@pytest.mark.parametrize(
    "draw_it",
    [
        family_figure,
        faster_rcnn_figure,
        figures.detr_figure,
        figures.transformer_figure,
        figures.placed_figure,
    ],
)
def test_no_text_leaves_the_diagram(closed, draw_it):
    figure = draw_it()
    figure.canvas.draw()
    (ax,) = figure.axes
    frame = ax.get_window_extent()
    for text in ax.texts:
        box = text.get_window_extent()
        assert frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1, text.get_text()
        assert not text.get_text() or text.get_fontsize() >= 12


def test_sizes_have_a_panel_for_each_set(closed):
    objects = torch.tensor([[0.0, 0, 10, 20], [5, 5, 45, 25]])
    figure = sizes_figure(objects, {"a": objects[:1], "b": objects})
    figure.canvas.draw()
    assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
    dots, crosses = figure.axes[1].lines
    np.testing.assert_allclose(np.array(dots.get_data()), [[10, 40], [20, 20]])
    np.testing.assert_allclose(np.array(crosses.get_data()), [[10, 40], [20, 20]])


def test_objectness_has_a_map_for_each_size(closed):
    image, target = torch.zeros(3, 64, 96, dtype=torch.uint8), {"boxes": torch.zeros(0, 4)}
    maps = torch.rand(8, 12, 2)
    figure = objectness_figure(image, target, maps, [16, 32])
    figure.canvas.draw()
    assert [ax.get_title() for ax in figure.axes[1:]] == [
        "templates of 16 px",
        "templates of 32 px",
    ]
    for i, ax in enumerate(figure.axes[1:]):
        np.testing.assert_allclose(ax.images[0].get_array(), maps[..., i])


def test_roi_align_is_drawn_beside_whole_cells(closed):
    figure = roi_align_figure((1.3, 0.8, 6.4, 5.6), cells=(8, 9), bins=3)
    figure.canvas.draw()
    left, right = figure.axes
    assert len(left.patches) == len(right.patches) == 9 + 1
    bins = extents(left.patches[:9])
    assert (bins == bins.round()).all() and bins.min() == 1 and bins.max() == 7
    np.testing.assert_allclose(
        extents(right.patches[:9])[[0, 8]].ravel()[[0, 1, 6, 7]], [1.3, 0.8, 6.4, 5.6]
    )
    assert len(right.lines[1].get_xdata()) == 36


# ---------------------------------------------------------------- lecture 00


def test_the_way_to_the_ap_names_the_functions_of_the_page(closed):
    page = lessons.load("00_boxes_and_ap")
    figure = ap_figure()
    figure.canvas.draw()
    words = [word.replace("\n", "") for word in texts_of(figure)]
    for name in ("decode", "nms_per_class", "iou", "match", "ranking", "precision_recall"):
        assert name in words and callable(getattr(page, name))
    assert "average_precision" in words and callable(page.average_precision)


def test_the_areas_of_an_overlap(closed):
    a, b = torch.tensor([0.0, 0.0, 40.0, 40.0]), torch.tensor([20.0, 10.0, 60.0, 50.0])
    for first, second in ((a, b), (b, a)):
        figure = overlap_figure(first, second)
        titles = [ax.get_title() for ax in figure.axes]
        assert titles == ["shared: 600 square pixels", "together: 3,200 - 600 = 2,600"]
        assert all(covers(ax, np.array([[0, 0, 60, 50]])) for ax in figure.axes)
        left, right = (extents([p for p in ax.patches if p.get_fill()]) for ax in figure.axes)
        assert left.tolist() == [[20, 10, 40, 40]]
        assert sorted(right.tolist()) == [[0, 0, 40, 40], [20, 10, 60, 50]]


def test_boxes_that_are_apart_share_nothing(closed):
    a, b = torch.tensor([0.0, 0.0, 10.0, 10.0]), torch.tensor([20.0, 20.0, 30.0, 30.0])
    left, right = overlap_figure(a, b).axes
    assert left.get_title() == "shared: 0 square pixels" and right.get_title().endswith("= 200")
    assert not any(p.get_fill() for p in left.patches)


def test_the_lines_of_the_shifts_begin_at_an_iou_of_one(closed):
    shifts = torch.arange(-3.0, 4.0)
    heat = torch.exp(-(shifts[:, None] ** 2) - 2 * shifts**2)  # steeper in x
    figure = shifted_iou_figure(shifts, heat)
    figure.canvas.draw()
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    np.testing.assert_allclose(lines["along one axis"], heat[3, 3:])
    np.testing.assert_allclose(lines["along both"], heat.diagonal()[3:])


@pytest.mark.parametrize("rounds", [[], [(1, [0, 2])], [(2, []), (1, [0])]])
def test_every_round_of_nms_has_a_panel_with_all_boxes_in_their_state(closed, rounds):
    boxes = torch.tensor([[1.0, 1, 9, 9], [2, 1, 9, 9], [20, 20, 30, 30]])
    found = {"boxes": boxes, "scores": torch.tensor([0.5, 0.9, 0.4]), "labels": torch.arange(3)}
    figure = nms_figure(torch.zeros(3, 40, 40, dtype=torch.uint8), found, rounds)
    figure.canvas.draw()
    assert len(figure.axes) == len(rounds) + 1 and figure.axes[0].get_title() == "before"
    kept, gone = 0, 0
    for ax, (best, deleted) in zip(figure.axes, [(None, []), *rounds]):
        kept, gone = kept + (best is not None), gone + len(deleted)
        styles = [p.get_linestyle() for p in ax.patches][1::2]  # each box has a white rim
        assert styles.count("-") == kept and styles.count("--") == len(deleted)
        assert styles.count(":") == 3 - kept - gone
        assert len(ax.texts) == kept


# ---------------------------------------------------------------- lecture 01


def test_bands_name_their_limits(closed):
    figure = bands_figure(np.array([0.0, 0.2, 0.95, 1.0]), {0.3: "one", 0.6: "two"})
    (ax,) = figure.axes
    assert [line.get_xdata()[0] for line in ax.lines] == [0.3, 0.6]
    assert [text.get_text() for text in ax.texts] == ["one: 50%", "two: 50%"]
    assert sum(bar.get_height() for bar in ax.patches) == 4
    bands_figure(np.zeros(0), {0.5: "nothing"}).canvas.draw()


def test_shifts_say_their_correlation(closed):
    growth = np.linspace(-1, 1, 9)
    figure = shift_figure({"edge": -growth, "centre": growth**2}, growth)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "correlation -1.00" and titles[1] in (
        "correlation +0.00",
        "correlation -0.00",
    )


def test_each_row_has_its_pictures_and_name(closed):
    pictures = [(np.full((4 + i, 9, 3), 90, np.uint8), float(i)) for i in range(3)]
    figure = top_regions_figure({"first": pictures, "second": pictures})
    figure.canvas.draw()
    assert [ax.get_title() for ax in figure.axes] == ["0.0", "1.0", "2.0"] * 2
    assert texts_of(figure) == ["first", "second"]


def test_scores_have_a_panel_for_each_class(closed):
    overlaps, scores = np.random.RandomState(0).rand(2, 50, 3)
    figure = scores_figure(overlaps, scores)
    for c, ax in enumerate(figure.axes):
        np.testing.assert_allclose(ax.lines[0].get_ydata(), scores[:, c])
        np.testing.assert_allclose(ax.lines[0].get_xdata(), overlaps[:, c])
    assert len(figure.axes) == 3


def test_gains_are_means_by_the_overlap_before(closed):
    before = np.array([0.52, 0.53, 0.97, 1.0])
    figure = regression_figure(before, before + np.array([0.1, 0.3, -0.1, -0.3]))
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    np.testing.assert_allclose(heights, [0.2] + [0] * 8 + [-0.2])
    assert "0.755 before" in figure.axes[0].get_title()


# ---------------------------------------------------------------- lecture 10


def test_the_way_to_the_count_names_what_the_page_defines(closed):
    page = lessons.load("10_your_own_data")
    figure = forest_figure()
    figure.canvas.draw()
    words = " ".join(texts_of(figure)).replace("-\n", "").replace("_\n", "_").replace("\n", " ")
    for name in ("corners", "cut", "PretrainedStages", "detect", "turned"):
        assert name in words and callable(getattr(page, name))


def some_photos(tmp_path, counts):
    """A data set of grey photographs of growing size with so many boxes each, of two classes."""
    files, targets = [], []
    for number, count in enumerate(counts):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", (60 + 40 * number, 50)).save(files[-1])
        boxes = torch.tensor([[i, 2.0 * i, i + 20, 2 * i + 10] for i in range(count)])
        labels = torch.arange(count) % 2
        targets.append({"boxes": boxes.reshape(-1, 4), "labels": labels})
    return PhotoDataset(files, targets, ["cat", "dog"])


@pytest.mark.parametrize("counts", [[3], [0, 2], [1, 0, 4, 2, 7], [0]])
def test_any_data_set_at_a_glance(closed, tmp_path, counts):
    figure = look_at(some_photos(tmp_path, counts))
    figure.canvas.draw()
    *photos, sizes, kinds, crowds = figure.axes
    assert [ax.get_title().split(", ")[1] for ax in photos] == [
        f"{count} objects" for count in counts[:4]
    ]
    assert [len(ax.patches) for ax in photos] == counts[:4]
    assert sum(len(dots.get_offsets()) for dots in sizes.collections) == sum(counts)
    assert sum(bar.get_width() for bar in kinds.patches) == sum(counts)
    assert sum(bar.get_height() for bar in crowds.patches) == sum(counts)


def test_an_empty_data_set_is_refused(closed):
    with pytest.raises(ValueError, match="dataset must hold a photograph, got none"):
        look_at(PhotoDataset([], [], []))


def test_pieces_and_close_ups_stay_inside_the_photograph(closed):
    image = torch.zeros(3, 200, 300, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0, 30, 20], [270, 180, 300, 200], [100, 100, 160, 150]])
    figure = closeups_figure(image, boxes, boxes[:1], boxes, {0: "first"})
    assert [ax.get_title() for ax in figure.axes[:3]] == ["first", "", ""]
    for ax in figure.axes[:3]:
        assert ax.images[0].get_array().shape == (120, 120, 3)
        assert covers(ax, extents(ax.patches))
    spots = {"one": (0, 0), "two": (90, 90)}
    figure = pieces_figure(image, spots, 100, boxes)
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]
    assert len(figure.axes[1].patches) == 2  # one box with its rim
    (ax,) = pieces_figure(image, {"alone": (0, 0)}, 100, boxes).axes
    assert len(ax.patches) == 2


def test_hits_are_green_inventions_orange_and_misses_dashed(closed):
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 30, 30]])
    _, ax = plt.subplots()
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    show_hits(ax, image, boxes, torch.tensor([True, False]), boxes + 5)
    colours = [to_hex(p.get_edgecolor()).upper() for p in ax.patches][1::2]
    assert colours == ["#000000", "#000000", COLOURS[2], COLOURS[0]]
    assert [p.get_linestyle() for p in ax.patches[:4]] == ["--"] * 4


def test_a_count_with_its_blocks_and_its_intervals(closed):
    missing, known = torch.tensor([[1.0, -2], [0, 3]]), torch.tensor([3, 0])
    one, other = (torch.tensor([30.0, 20]), torch.tensor([4.0, 5])), torch.tensor([[9.0], [2]])
    left, right = count_figure(missing, known, {"a": one, "b": other}, 22, 28).axes
    assert [text.get_text() for text in left.texts] == ["+1", "-2", "+0", "+3"]
    assert [patch.get_xy()[::-1] for patch in left.patches] == [(-0.46, -0.46), (0.54, 0.54)]
    names = [text.get_text() for text in right.get_legend().get_texts()]
    assert sorted(names) == ["a", "b", "detector alone", "drawn by people"]
    ends = [line[:, 0].tolist() for bar in right.collections for line in bar.get_segments()]
    assert ends == [[26, 34], [15, 25], [7, 11]]
    count_figure(torch.zeros(4, 5), known, {}, 3, 3)  # nothing is wrong


def test_where_each_way_of_training_works(closed):
    places = {"next door": 0.4, "Florida": 0.2, "California": 0.1}
    rows = [
        {"variant": v, "AP50": 0.1 * s, "extra": {f"AP50 {k}": n for k, n in places.items()}}
        for v in ("main", "frozen", "else")
        for s in (3, 5)
    ]
    (ax,) = transfer_figure(rows, {"main": "the last stage", "frozen": "none"}).axes
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["the last stage", "none"]
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([0.4, 0.4, 0.2, 0.1])
    (first, _) = ax.collections
    assert first.get_segments()[1][:, 1].tolist() == pytest.approx([0.3, 0.5])  # from seed to seed


def test_the_road_in_all_views(closed):
    extra = {f"AP50 road, view {turn}": 0.1 * turn for turn in range(8)}
    rows = [{"variant": "one view", "extra": extra}, {"variant": "main", "extra": {}}]
    (ax,) = views_figure(rows, [0.5] * 8).axes
    one, eight = ax.containers
    assert [bar.get_height() for bar in one] == pytest.approx([0.1 * turn for turn in range(8)])
    assert [bar.get_height() for bar in eight] == [0.5] * 8


def test_places_side_by_side(closed):
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0, 30, 20], [3, 4, 50, 40]])
    left, right = places_figure({"here": (image, boxes), "there": (image, boxes)}).axes
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["here", "there"]
    assert len(right.patches) == 2
