"""Anchors on a grid: lecture 03's own two generators and torchvision's are the oracles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared import notebook_code
from torchvision.models.detection.anchor_utils import AnchorGenerator

from helpers.anchors import grid_anchors

SIZES = st.lists(st.floats(1, 500) | st.integers(1, 64), min_size=1, max_size=4)
RATIOS = st.lists(st.floats(0.1, 10) | st.integers(1, 4), min_size=1, max_size=4)
STRIDES = st.sampled_from([1, 4, 7, 16, 32, 0.5])
SIDES = st.integers(1, 6)


@pytest.fixture(scope="module")
def lecture_03():
    with notebook_code("03_faster_rcnn") as module:
        yield module


@given(sizes=SIZES, ratios=RATIOS, stride=STRIDES, rows=SIDES, columns=SIDES)
def test_anchors_are_lecture_03s(lecture_03, sizes, ratios, stride, rows, columns):
    anchors = grid_anchors((rows, columns), stride, sizes, ratios)
    scales = [size / stride for size in sizes]
    layer = lecture_03.AnchorGeneratorTorch(scales, ratios, stride)
    torch.testing.assert_close(anchors, layer((rows, columns)), atol=4e-3, rtol=1e-5)
    loops = lecture_03.AnchorGenerator(scales, ratios, stride).generate_anchors(
        (rows, columns), (rows * stride, columns * stride)
    )
    torch.testing.assert_close(anchors, torch.from_numpy(loops).float(), atol=4e-3, rtol=1e-5)


@given(sizes=SIZES, ratios=RATIOS, stride=STRIDES, rows=SIDES, columns=SIDES)
def test_each_anchor_has_its_place_area_and_ratio(sizes, ratios, stride, rows, columns):
    anchors = grid_anchors((rows, columns), stride, sizes, ratios)
    assert anchors.shape == (rows * columns * len(sizes) * len(ratios), 4)
    assert anchors.dtype == torch.float32
    grid = anchors.double().view(rows, columns, len(sizes), len(ratios), 4).numpy()
    w, h = grid[..., 2] - grid[..., 0], grid[..., 3] - grid[..., 1]
    x, y = (grid[..., 0] + grid[..., 2]) / 2, (grid[..., 1] + grid[..., 3]) / 2
    places = np.ix_(np.arange(rows) + 0.5, np.arange(columns) + 0.5, sizes, ratios)
    i, j, size, ratio = np.broadcast_arrays(*places)
    np.testing.assert_allclose(x, j * stride, atol=2e-3)
    np.testing.assert_allclose(y, i * stride, atol=2e-3)
    np.testing.assert_allclose(w, size / np.sqrt(ratio), atol=2e-3, rtol=1e-4)
    np.testing.assert_allclose(h, size * np.sqrt(ratio), atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("rows, columns, stride", [(14, 14, 16), (3, 5, 8), (5, 3, 32), (1, 1, 16)])
def test_anchors_are_torchvisions(rows, columns, stride):
    """It rounds its templates and puts them on the corners of the cells."""
    sizes, ratios = (32.0, 64.0, 128.0), (0.5, 1.0, 2.0)
    oracle = AnchorGenerator((sizes,), (ratios,))
    steps = [(torch.tensor(stride), torch.tensor(stride))]
    theirs = oracle.grid_anchors([(rows, columns)], steps)[0] + stride / 2
    theirs = theirs.view(-1, 3, 3, 4).transpose(1, 2).reshape(-1, 4)  # ours: ratios innermost
    ours = grid_anchors((rows, columns), stride, sizes)
    assert (ours - theirs).abs().max() <= 0.5 + 1e-4
    assert torch.equal(ours[1::3], theirs[1::3])  # squares need no rounding


def test_anchors_by_hand():
    anchors = grid_anchors((1, 2), 8, (4, 8), (1, 4))
    left = [[2, 2, 6, 6], [3, 0, 5, 8], [0, 0, 8, 8], [2, -4, 6, 12]]
    right = [[x1 + 8, y1, x2 + 8, y2] for x1, y1, x2, y2 in left]
    assert anchors.tolist() == left + right


def halves(values):
    return torch.tensor(values, dtype=torch.float16)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, halves, np.float16])
def test_sizes_of_any_kind_and_the_size_of_a_map(kind):
    anchors = grid_anchors(torch.zeros(1, 7, 3, 2).shape[2:], 8, kind([4.0, 8.0]))
    assert torch.equal(anchors, grid_anchors((3, 2), 8, (4, 8), (0.5, 1.0, 2.0)))


GOOD = {"feature_size": (2, 3), "stride": 8, "sizes": (16.0,), "aspect_ratios": (1.0,)}
BAD = [
    *({"feature_size": size} for size in ((0, 3), (2, 0), (-1, 3), (2,), (1, 2, 3))),
    *({"feature_size": (2, side)} for side in (1.5, math.nan, math.inf)),
    *({"stride": stride} for stride in (0, -8, math.nan)),
    *({name: v} for name in ("sizes", "aspect_ratios") for v in ((), (0,), (1, -1), (math.nan,))),
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_anchors_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        grid_anchors(**GOOD | bad)
