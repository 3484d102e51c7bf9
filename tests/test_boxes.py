"""Box deltas against torchvision, on random and on hostile boxes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from helpers import boxes as B

NUMBERS = st.integers(-50, 200) | st.floats(-50, 200, width=32, allow_subnormal=False)


@st.composite
def box_lists(draw, max_size, min_side):
    """Boxes (N, 4) float32 with sides of `min_side` or more."""
    rows = draw(st.lists(st.tuples(*[NUMBERS] * 4), max_size=max_size))
    corners = torch.tensor(rows, dtype=torch.float32).reshape(-1, 2, 2)
    top_left, bottom_right = corners.amin(1), corners.amax(1)
    return torch.cat([top_left, torch.maximum(bottom_right, top_left + min_side)], dim=1)


WEIGHTS = st.sampled_from([(1, 1, 1, 1), (10.0, 10.0, 5.0, 5.0)])


def paired(min_side=1.0):
    """Two lists of equal length: boxes and anchors."""
    both = box_lists(8, min_side)
    return both.map(lambda boxes: (boxes[: len(boxes) // 2], boxes[-(len(boxes) // 2) or 9 :]))


@given(paired(), WEIGHTS)
def test_encoding_is_torchvisions(pair, weights):
    boxes, anchors = pair
    expected = BoxCoder(weights).encode_single(boxes, anchors)
    torch.testing.assert_close(
        B.encode_boxes(boxes, anchors, weights), expected, atol=1e-3, rtol=1e-4
    )


@given(paired(), WEIGHTS, st.integers(1, 100))
def test_decoding_is_torchvisions(pair, weights, stretch):
    deltas, anchors = (pair[0] - 50) / 250 * stretch, pair[1]
    expected = BoxCoder(weights).decode_single(deltas, anchors)
    torch.testing.assert_close(
        B.decode_boxes(deltas, anchors, weights), expected, atol=1e-2, rtol=1e-4
    )


@given(paired(min_side=8.0), WEIGHTS)
def test_decoding_inverts_encoding(pair, weights):
    boxes, anchors = pair
    decoded = B.decode_boxes(B.encode_boxes(boxes, anchors, weights), anchors, weights)
    torch.testing.assert_close(decoded, boxes, atol=1e-2, rtol=1e-4)


def test_encoding_by_hand():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    boxes = torch.tensor([[5.0, 0.0, 25.0, 20.0]])  # centre 10 to the right, twice as wide
    deltas = B.encode_boxes(boxes, anchors)
    torch.testing.assert_close(deltas, torch.tensor([[1.0, 0.0, 0.6931472, 0.0]]))
    weighted = B.encode_boxes(boxes, anchors, (10, 10, 5, 5))
    torch.testing.assert_close(weighted, deltas * torch.tensor([10.0, 10.0, 5.0, 5.0]))


def test_a_wild_delta_does_not_overflow():
    anchors = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    box = B.decode_boxes(torch.tensor([[0.0, 0.0, 1e9, 1e9]]), anchors)
    torch.testing.assert_close(box, torch.tensor([[-492.0, -492.0, 508.0, 508.0]]))


GOOD = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 3.0, 5.0]])
BAD_TENSORS = {
    "not a tensor": ([[0, 0, 4, 4]], "must be a torch tensor, got list"),
    "none": (None, "must be a torch tensor, got NoneType"),
    "one box": (torch.zeros(4), r"must have shape \(N, 4\), got \(4,\)"),
    "five columns": (torch.zeros(2, 5), r"must have shape \(N, 4\), got \(2, 5\)"),
    "three axes": (torch.zeros(1, 2, 4), r"must have shape \(N, 4\), got \(1, 2, 4\)"),
    "truth values": (GOOD > 0, r"must hold real numbers \(pixels\), got torch.bool"),
    "complex": (GOOD + 0j, "must hold real numbers, got torch.complex64"),
    "nan": (torch.tensor([[0.0, 0, 1, float("nan")]]), r"must be finite, row 0 is .*nan"),
    "inf": (torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, float("inf")]]), "must be finite, row 1 is"),
    "inf in half": (torch.tensor([[0, 0, 1, 7e4]]).half(), "must be finite, row 0 is .*inf"),
}
REVERSED = torch.tensor([[0.0, 0.0, 1.0, 1.0], [3.0, 0.0, 2.0, 1.0]])
XYXY = {  # every argument that takes xyxy boxes: (name, call)
    "encode_boxes boxes": ("boxes", lambda x: B.encode_boxes(x, GOOD)),
    "encode_boxes anchors": ("anchors", lambda x: B.encode_boxes(GOOD, x)),
    "decode_boxes anchors": ("anchors", lambda x: B.decode_boxes(GOOD, x)),
}
DELTAS = {"decode_boxes deltas": ("deltas", lambda x: B.decode_boxes(x, GOOD))}


@pytest.mark.parametrize("bad", BAD_TENSORS)
@pytest.mark.parametrize("where", XYXY | DELTAS)
def test_bad_tensors_are_named(where, bad):
    name, call = (XYXY | DELTAS)[where]
    value, message = BAD_TENSORS[bad]
    with pytest.raises(ValueError, match=f"^{name} {message}"):
        call(value)


@pytest.mark.parametrize("where", XYXY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_reversed_corners_are_named(where, dtype):
    name, call = XYXY[where]
    message = rf"^{name} must have x1 <= x2 and y1 <= y2, row 1 is \[3.0, 0.0, 2.0, 1.0\]"
    with pytest.raises(ValueError, match=message):
        call(REVERSED.to(dtype))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: B.encode_boxes(GOOD, GOOD[:1]), r"boxes must be as many as .* \(1\), got 2"),
        (lambda: B.decode_boxes(GOOD[:1], GOOD), r"deltas must be as many as .* \(2\), got 1"),
        (lambda: B.encode_boxes(GOOD, GOOD * torch.tensor([1, 1, 1, 0])), "anchors must have x1"),
        (
            lambda: B.encode_boxes(GOOD, torch.tensor([[0.0, 0, 1, 1], [2, 2, 2, 3]])),
            r"anchors must have positive width and height .* row 1 is \[2.0, 2.0, 2.0, 3.0\]",
        ),
        (
            lambda: B.encode_boxes(torch.tensor([[0.0, 0, 0, 1]]), GOOD[:1]),
            r"boxes must have positive width and height .* row 0 is \[0.0, 0.0, 0.0, 1.0\]",
        ),
        (lambda: B.encode_boxes(GOOD, GOOD, (1, 1)), r"weights must be four .* got \(1, 1\)"),
        (lambda: B.decode_boxes(GOOD, GOOD, (1, 1, 0, 1)), r"weights must .* \(1, 1, 0, 1\)"),
    ],
)
def test_other_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


EVERY_CALL = {
    "encode_boxes": lambda x: B.encode_boxes(x, x, (10, 10, 5, 5)),
    "decode_boxes": lambda x: B.decode_boxes(x, x, (10, 10, 5, 5)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32])
@pytest.mark.parametrize("name", EVERY_CALL)
def test_results_stay_on_the_gpu_in_float32(name, dtype, pretended_gpu):
    result = EVERY_CALL[name](GOOD.to(dtype).to("cuda"))
    assert result.device.type == "cuda" and result.dtype == torch.float32
    assert torch.equal(result.cpu(), EVERY_CALL[name](GOOD))


# ---------------------------------------------------------------- number types

SHORT = (torch.float16, torch.bfloat16)
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@st.composite
def typed_boxes(draw, dtype, count, most=10_000):
    """Up to `count` boxes (N, 4) of `dtype` with area, up to `most` pixels wide."""
    low = -most
    if not dtype.is_floating_point:
        low, most = max(low, torch.iinfo(dtype).min), min(most, torch.iinfo(dtype).max)
    row = st.tuples(*[st.integers(8 * low, 8 * most)] * 4)
    rows = draw(st.lists(row, min_size=count, max_size=count))
    corners = (torch.tensor(rows, dtype=torch.float64) / 8).to(dtype).reshape(-1, 2, 2)
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]  # rounding may have closed some


def check_like(result, oracle, dtype, absolute):
    """float64 is computed in float64; everything else, on its exact numbers, in float32."""
    if dtype == torch.float64:
        torch.testing.assert_close(result, oracle, rtol=1e-9, atol=absolute * 1e-6)
    else:
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), oracle, rtol=1e-5, atol=absolute)


EVERY_TYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *SHORT, *WHOLE])


@EVERY_TYPE
@settings(max_examples=30)
@given(data=st.data(), weights=WEIGHTS)
def test_deltas_of_any_type_are_torchvisions(dtype, data, weights):
    boxes, anchors = data.draw(typed_boxes(dtype, 6)), data.draw(typed_boxes(dtype, 6))
    count = min(len(boxes), len(anchors))
    boxes, anchors = boxes[:count], anchors[:count]
    expected = BoxCoder(weights).encode_single(boxes.double(), anchors.double())
    scale = float(anchors.abs().max()) if count else 1.0
    check_like(B.encode_boxes(boxes, anchors, weights), expected, dtype, 1e-6 * scale * 80)
    deltas = (boxes.double() / 5000).to(dtype)  # -2..2
    expected = BoxCoder(weights).decode_single(deltas.double(), anchors.double())
    check_like(B.decode_boxes(deltas, anchors, weights), expected, dtype, 1e-6 * scale * 60)


PAIRS = {
    "encode_boxes": lambda a, b: B.encode_boxes(a, b, (0.1, 0.1, 0.2, 0.2)),
    "decode_boxes": lambda a, b: B.decode_boxes(a, b, (0.1, 0.1, 7.7, 7.7)),
}


@pytest.mark.parametrize("other", [torch.float32, torch.float16, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("name", PAIRS)
def test_two_types_are_computed_in_the_higher_one(name, other):
    low, high = GOOD.to(other), GOOD.flip(0).double() / 3
    expected = PAIRS[name](GOOD.double(), high), PAIRS[name](high, GOOD.double())
    for result, right in zip((PAIRS[name](low, high), PAIRS[name](high, low)), expected):
        assert result.dtype == torch.float64
        torch.testing.assert_close(result, right, rtol=1e-12, atol=1e-12)
    assert PAIRS[name](GOOD, GOOD.to(other)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [*SHORT, torch.float64])
@pytest.mark.parametrize("name", EVERY_CALL)
def test_gradients_reach_boxes_of_any_precision(name, dtype):
    boxes = (GOOD * 300).to(dtype).requires_grad_()
    EVERY_CALL[name](boxes).sum().backward()
    right = (GOOD * 300).double().requires_grad_()
    EVERY_CALL[name](right).sum().backward()
    assert boxes.grad.dtype == dtype
    torch.testing.assert_close(boxes.grad.double(), right.grad, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", EVERY_CALL)
def test_autocast_changes_nothing(name):
    with torch.autocast("cpu", torch.bfloat16):
        inside = EVERY_CALL[name](GOOD * 301)
    assert torch.equal(inside, EVERY_CALL[name](GOOD * 301))


def test_arguments_are_left_as_they_are():
    half = GOOD.half()
    assert B.check_boxes(GOOD) is GOOD and B.check_boxes(half).dtype == torch.float32
    assert half.dtype == torch.float16 and torch.equal(half, GOOD.half())


@pytest.mark.parametrize("name", EVERY_CALL)
def test_no_boxes_at_all(name):
    assert len(EVERY_CALL[name](torch.empty(0, 4))) == 0
