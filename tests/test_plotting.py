"""The drawing helpers: they draw what they are given, and refuse what they cannot draw."""

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.colors import to_rgb
from matplotlib_inline.config import InlineBackend
from PIL import Image
from pretend_cuda import pretend_cuda
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
    assert len(set(COLOURS)) == len(COLOURS) == 7 and len(set(LINE_STYLES)) == 5
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


def shown(ax):
    """The pixels (H, W, 3) that an image on `ax` is drawn with, 0..255."""
    (picture,) = ax.images
    return np.rint(255 * picture.to_rgba(picture.get_array())[..., :3]).astype(int)


BYTES = np.array([[0, 100, 101], [102, 200, 255]], np.uint8)
GREYS = {
    "bytes": (BYTES, BYTES),
    "low contrast": (BYTES[:, 1:2], BYTES[:, 1:2]),
    "dark": (BYTES * 0, BYTES * 0),
    "one channel": (BYTES[..., None], BYTES),
    "channel first": (torch.from_numpy(BYTES)[None], BYTES),
    "tensor": (torch.from_numpy(BYTES), BYTES),
    "channel last": (torch.from_numpy(BYTES)[..., None], BYTES),
    "float64": (BYTES / 255, BYTES),
    "float32": (torch.from_numpy(BYTES)[None] / 255, BYTES),
    "bfloat16": (torch.tensor([[0, 0.5, 1]]).bfloat16(), [[0, 128, 255]]),
    "float16": (torch.tensor([[0, 0.5, 1]]).half(), [[0, 128, 255]]),
    "gradient": (torch.tensor([[0, 0.2, 1]], requires_grad=True), [[0, 51, 255]]),
    "low floats": (np.array([[0.2, 0.4]]), [[51, 102]]),
    "mask": (BYTES > 100, [[0, 0, 255], [255, 255, 255]]),
    "masks of torch": (torch.from_numpy(BYTES > 100)[None], [[0, 0, 255], [255, 255, 255]]),
    "16 bits": (BYTES.astype(np.uint16) * 257, BYTES),
    "PIL": (Image.fromarray(BYTES), BYTES),
}


@pytest.mark.parametrize("image, expected", GREYS.values(), ids=GREYS)
def test_grey_is_shown_in_grey_and_as_bright_as_it_is(ax, image, expected):
    with plt.rc_context({"image.cmap": "viridis"}):
        show_image(ax, image)
    assert (shown(ax) == np.stack([expected] * 3, axis=2)).all()


@given(
    arrays(np.uint8, st.tuples(st.integers(5, 9), st.integers(5, 9), st.sampled_from([1, 3, 4]))),
)
def test_the_layout_does_not_change_the_picture(image):
    picture = as_image(image)
    assert picture.shape == (*image.shape[:2], 3) and picture.dtype == np.uint8
    first = image.transpose(2, 0, 1)
    for same in (torch.from_numpy(image), torch.from_numpy(first.copy()), image / 255):
        assert (as_image(same) == picture).all()
    if image.shape[2] != 4:  # four rows or four channels? torch alone puts them first
        assert (as_image(first) == picture).all()
    if image.shape[2] == 3:
        assert (picture == image).all()


@pytest.mark.parametrize("height", [1, 3, 4, 8])
@pytest.mark.parametrize("width", [1, 3, 4, 8])
def test_small_images_of_either_layout(height, width):
    image = np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)
    assert (as_image(image) == image).all()
    assert (as_image(torch.from_numpy(image.transpose(2, 0, 1).copy())) == image).all()


def test_a_transparent_picture_lies_on_white(ax):
    show_image(ax, np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8))
    assert shown(ax).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_what_cannot_be_shown_is_named(ax):
    for image, message in (
        (np.array([[0.0, 255.0]]), r"floats and they must lie in 0\.\.1, got 0\.\.255"),
        (torch.full((3, 4, 4), torch.nan), "must lie in 0..1, got nan"),
        (torch.zeros(3, 4, 4, dtype=torch.long), "must hold uint8, .* got int64"),
        ([[0, 1], [1, 0]], "image must be a NumPy array or a PIL image, got list"),
    ):
        with pytest.raises(ValueError, match=message):
            show_image(ax, image)


@pytest.mark.parametrize("height, width", [(40, 90), (90, 40)])
def test_boxes_lie_on_their_objects_in_an_image_that_is_no_square(height, width):
    image = torch.full((3, height, width), 255, dtype=torch.uint8)
    image[:, 10:20, 5:35] = 0  # rows, columns
    figure = plt.figure(figsize=(width / 10, height / 10), dpi=10)
    axes = figure.add_axes((0, 0, 1, 1))
    target = {"boxes": torch.tensor([[5.0, 10, 35, 20]])}
    show_detections(axes, image, target=target)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    assert (pixels[11:19, 6:34, :3] == 0).all()
    (x1, y2), (x2, y1) = axes.transData.transform([(4.5, 9.5), (34.5, 19.5)])
    assert [round(v) for v in (x1, height - y2, x2, height - y1)] == [5, 10, 35, 20]
    assert axes.patches[1].get_bbox().extents.tolist() == [4.5, 9.5, 34.5, 19.5]
    plt.close(figure)


def test_boxes_are_drawn_where_pixels_are(ax):
    draw_boxes(ax, BOXES, ["a", ""], line_style="--")
    assert len(ax.patches) == 4  # a rim and an edge per box
    assert ax.patches[0].get_bbox().extents.tolist() == [-0.5, -0.5, 9.5, 4.5]
    assert [text.get_text() for text in ax.texts] == ["a"]
    assert {patch.get_linestyle() for patch in ax.patches} == {"--"}


@pytest.mark.parametrize(
    "boxes",
    [
        BOXES,
        BOXES.numpy(),
        BOXES.tolist(),
        BOXES.clone().requires_grad_(),
        BOXES.clone().requires_grad_().bfloat16(),
        list(BOXES),
        BOXES.long(),
    ],
)
def test_boxes_of_any_kind(ax, boxes):
    draw_boxes(ax, boxes, colours=COLOURS[:1])
    assert len(ax.patches) == 4
    assert ax.patches[2].get_bbox().extents.tolist() == [19.5, 19.5, 39.5, 59.5]


@pytest.mark.parametrize("boxes", [torch.empty(0, 4), [], np.empty((0, 4))])
def test_no_boxes(ax, boxes):
    draw_boxes(ax, boxes, [], [])
    assert len(ax.patches) == 0


@pytest.mark.parametrize(
    ("boxes", "texts", "message"),
    [
        (BOXES[0], None, r"boxes must have shape \(N, 4\), got \(4,\)"),
        (torch.zeros(2, 5), None, r"boxes must have shape \(N, 4\), got \(2, 5\)"),
        (torch.zeros(2, 2, 2), None, r"boxes must have shape \(N, 4\), got \(2, 2, 2\)"),
        ([[1, 2, 3, 4], [5, 6]], None, "boxes must hold numbers"),
        (None, None, "boxes must hold numbers"),
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


LOSSES = [torch.tensor(v, requires_grad=True) * 1 for v in (3.0, 2.5, 0.1)]
CURVES = {
    "floats": [3.0, 2.5, 0.1],
    "losses": LOSSES,
    "losses of one entry": [loss[None] for loss in LOSSES],
    "one tensor": torch.stack(LOSSES),
    "column": torch.stack(LOSSES)[:, None].detach(),
    "float64": torch.stack(LOSSES).double(),
    "float16": torch.stack(LOSSES).half(),
    "bfloat16": torch.stack(LOSSES).bfloat16(),
    "bfloat16 losses": [loss.bfloat16() for loss in LOSSES],
    "array": np.array([3.0, 2.5, 0.1], np.float32),
    "numbers of NumPy": [np.float32(3), np.float64(2.5), np.float16(0.1)],
    "mixed": [3, LOSSES[1], np.float32(0.1)],
    "whole": torch.tensor([3, 2, 1]),
    "flags": torch.tensor([True, False]),
    "tuple": (1, 2),
    "values of a dictionary": dict(a=1, b=LOSSES[0]).values(),
}


@pytest.mark.parametrize("values", CURVES.values(), ids=CURVES)
@pytest.mark.filterwarnings("error")
def test_curves_of_any_numbers_are_exact(ax, values):
    expected = [float(v.detach()) if isinstance(v, torch.Tensor) else float(v) for v in values]
    plot_curves(ax, {"y": values}, x=values)
    (line,) = ax.lines
    assert line.get_ydata().tolist() == line.get_xdata().tolist() == expected


def test_numbers_on_a_gpu_are_drawn(ax, monkeypatch):
    with pretend_cuda(monkeypatch):
        losses = torch.tensor([3.0, 2.0, 1.0], device="cuda", requires_grad=True)
        plot_curves(ax, {"tensor": losses, "list": [loss * 2 for loss in losses]})
        draw_boxes(ax, BOXES.to("cuda"))
        show_image(ax, torch.full((3, 4, 5), 7, dtype=torch.uint8, device="cuda"))
    assert [line.get_ydata().tolist() for line in ax.lines] == [[3, 2, 1], [6, 4, 2]]
    assert len(ax.patches) == 4 and (shown(ax) == 7).all()


@pytest.mark.parametrize(
    "values, message",
    [
        (torch.zeros(3, 2), r"'loss' must have shape \(N, 1\), got \(3, 2\)"),
        (torch.tensor(3.0), "'loss' must hold numbers"),
        (["a"], "'loss' must hold numbers"),
        (None, "'loss' must hold numbers"),
        ([1, [2, 3]], "'loss' must hold numbers"),
    ],
    ids=str,
)
def test_what_is_no_curve_is_named(ax, values, message):
    with pytest.raises(ValueError, match=message):
        plot_curves(ax, {"loss": values})


def test_curves_too_short_to_smooth_or_empty(ax):
    plot_curves(ax, {"short": [1.0], "empty": []}, smooth=9)
    assert [len(line.get_xdata()) for line in ax.lines] == [1, 0]
