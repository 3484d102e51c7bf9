"""The drawing helpers: they draw what they are given, and refuse what they cannot draw."""

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib_inline.config import InlineBackend
from skimage.color import deltaE_ciede2000, rgb2lab

from helpers.plotting import (
    COLOURS,
    LINE_STYLES,
    as_image,
    draw_boxes,
    image_grid,
    plot_curves,
    show_detections,
    show_image,
    use_lecture_style,
)
from helpers.shapes import ShapesDataset

BOXES = torch.tensor([[0.0, 0.0, 10.0, 5.0], [20.0, 20.0, 40.0, 60.0]])
EMPTY = {
    "boxes": torch.empty(0, 4),
    "scores": torch.empty(0),
    "labels": torch.empty(0, dtype=torch.long),
}


@pytest.fixture
def ax():
    """Axes that are drawn and closed afterwards."""
    figure, axes = plt.subplots()
    yield axes
    figure.canvas.draw()
    plt.close(figure)


@pytest.fixture(autouse=True)
def nothing_is_left_open():
    with mpl.rc_context():
        yield
    assert plt.get_fignums() == []


def test_the_style_is_large_and_png():
    backend = InlineBackend.instance()
    use_lecture_style()
    assert plt.rcParams["font.size"] >= 13
    assert "svg" not in backend.figure_formats
    assert backend.print_figure_kwargs["metadata"] == {"Software": None}
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLOURS)


def simulate_deuteranopia(rgb):
    """Machado et al. 2009, severity 1, on linear RGB."""
    matrix = np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ]
    )
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ matrix.T).clip(0, 1)
    return np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("eye", [lambda rgb: rgb, simulate_deuteranopia], ids=["normal", "deutan"])
def test_colours_can_be_told_apart(eye):
    assert len(set(COLOURS)) == len(COLOURS) == 7 and len(set(LINE_STYLES)) == 4
    lab = rgb2lab(eye(np.array([to_rgb(colour) for colour in COLOURS])))
    for i in range(len(lab)):
        for j in range(i):
            assert deltaE_ciede2000(lab[i], lab[j]) > 10, (COLOURS[i], COLOURS[j])


def test_class_colours_are_those_of_the_shapes():
    from helpers.shapes import LECTURE_COLOURS

    drawn = [tuple(round(255 * part) for part in to_rgb(colour)) for colour in COLOURS[:3]]
    assert tuple(drawn) == LECTURE_COLOURS


def test_images_in_either_layout():
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    assert (as_image(picture) == picture).all()
    assert (as_image(tensor) == picture).all()
    assert (as_image(tensor.numpy()) == picture).all()
    assert as_image(torch.ones(3, 2, 2, requires_grad=True)).shape == (2, 2, 3)
    assert as_image(torch.zeros(3, 8, 3)).shape == (8, 3, 3)  # three pixels wide
    assert as_image(np.zeros((3, 8, 3))).shape == (3, 8, 3)  # three pixels high


def test_boxes_are_drawn_where_pixels_are(ax):
    draw_boxes(ax, BOXES, ["a", ""], line_style="--")
    assert len(ax.patches) == 4  # a rim and an edge per box
    assert ax.patches[0].get_bbox().extents.tolist() == [-0.5, -0.5, 9.5, 4.5]
    assert [text.get_text() for text in ax.texts] == ["a"]
    assert {patch.get_linestyle() for patch in ax.patches} == {"--"}


@pytest.mark.parametrize(
    "boxes", [BOXES, BOXES.numpy(), BOXES.tolist(), BOXES.clone().requires_grad_()]
)
def test_boxes_of_any_kind(ax, boxes):
    draw_boxes(ax, boxes, colours=COLOURS[:1])
    assert len(ax.patches) == 4


@pytest.mark.parametrize("boxes", [torch.empty(0, 4), [], np.empty((0, 4))])
def test_no_boxes(ax, boxes):
    draw_boxes(ax, boxes, [], [])
    assert len(ax.patches) == 0


@pytest.mark.parametrize(
    ("boxes", "texts", "message"),
    [
        (BOXES[0], None, r"boxes must have shape \(N, 4\), got \(4,\)"),
        (torch.zeros(2, 5), None, r"boxes must have shape \(N, 4\), got \(2, 5\)"),
        (BOXES, ["one"], r"texts must have one entry per box \(2\), got 1"),
    ],
)
def test_bad_boxes_are_named(ax, boxes, texts, message):
    with pytest.raises(ValueError, match=message):
        draw_boxes(ax, boxes, texts)


def test_an_image_has_no_ticks(ax):
    assert show_image(ax, np.zeros((4, 5, 3)), "title") is ax
    assert ax.get_title() == "title" and not ax.axison


def test_detections_above_the_threshold_carry_class_and_score(ax):
    image, target = ShapesDataset(1)[0]
    detection = {"boxes": BOXES, "scores": torch.tensor([0.5, 0.2]), "labels": torch.tensor([2, 0])}
    show_detections(ax, image, detection, target)
    assert [text.get_text() for text in ax.texts] == ["triangle 0.50"]
    assert len(ax.patches) == 2 * (1 + len(target["boxes"]))


def test_nothing_found_and_nothing_to_find(ax):
    image, _ = ShapesDataset(1)[0]
    show_detections(ax, image)
    show_detections(ax, image, EMPTY, EMPTY, title="empty")
    assert len(ax.patches) == len(ax.texts) == 0 and ax.get_title() == "empty"


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_grids_have_as_many_axes_as_asked(count):
    figure, axes = image_grid(count, columns=4)
    assert len(axes) == count and all(ax.axison for ax in axes)
    assert sum(ax.axison for ax in figure.axes) == count
    plt.close(figure)


@pytest.mark.parametrize(("count", "columns"), [(0, 4), (4, 0)])
def test_bad_grids_are_named(count, columns):
    message = f"count and columns must be at least 1, got {count} and {columns}"
    with pytest.raises(ValueError, match=message):
        image_grid(count, columns)


def test_curves_differ_in_colour_and_line_style(ax):
    plot_curves(ax, {name: [3, 2, 1] for name in "abcdefg"}, ylabel="cost")
    looks = {(line.get_color(), line.get_linestyle()) for line in ax.lines}
    assert len(looks) == 7 and ax.get_ylabel() == "cost"
    assert len(ax.get_legend().get_texts()) == 7


def test_smoothing_averages_the_steps_up_to_each_point(ax):
    plot_curves(ax, {"loss": [0, 2, 4, 6]}, x=[10, 20, 30, 40], smooth=2)
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [20, 30, 40]
    assert line.get_ydata().tolist() == [1, 3, 5]
    assert ax.get_legend() is None  # one curve needs none


def test_curves_too_short_to_smooth_or_empty(ax):
    plot_curves(ax, {"short": [1.0], "empty": []}, smooth=9)
    assert [len(line.get_xdata()) for line in ax.lines] == [1, 0]
