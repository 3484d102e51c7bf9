"""Mirrored and recoloured images: the boxes must go where the pixels went."""

import itertools

import pytest
import torch

from helpers.augmentation import flip_and_recolour

HEIGHT, WIDTH = 24, 40
NO_BOXES = torch.zeros(0, 4)


def painted(count, seed):
    """Images with three grey rectangles of different values in 1..3, and their boxes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, HEIGHT, WIDTH, dtype=torch.uint8)
    boxes = []
    for image in images:
        rows = []
        for value, left in enumerate((0, 13, 26), start=1):  # beside one another
            x = left + int(torch.randint(5, (), generator=generator))
            y = int(torch.randint(10, (), generator=generator))
            w, h = (torch.randint(1, 9, (2,), generator=generator)).tolist()
            image[:, y : y + h, x : x + w] = value
            rows.append([x, y, x + w, y + h])
        boxes.append(torch.tensor(rows).float())
    return images, boxes


def bounds(image, value):
    """Tight box of the pixels that have `value`."""
    mask = (image == value).all(dim=0)
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return [float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def flipped(seed, *given):
    torch.manual_seed(seed)
    return flip_and_recolour(*given)


@pytest.mark.parametrize("seed", range(10))
def test_boxes_move_with_their_pixels(seed):
    images, boxes = painted(8, seed)
    new, moved = flipped(seed, images, boxes)
    assert new.shape == images.shape and new.dtype == images.dtype
    for image, rows in zip(new, moved):
        assert rows.tolist() == [bounds(image, value) for value in (1, 2, 3)]
    mirrored = [not torch.equal(a, b) for a, b in zip(boxes, moved)]
    assert any(mirrored) and not all(mirrored)


def changes(image):
    """The twelve results that are allowed: mirrored or not, six orders of the channels."""
    orders = [list(order) for order in itertools.permutations(range(3))]
    return [image[order].flip(2) if flip else image[order] for flip in (0, 1) for order in orders]


def test_every_change_is_as_likely_as_it_should_be():
    image = torch.rand(3, 4, 5)
    new, moved = flipped(0, image.expand(600, 3, 4, 5), [torch.tensor([[1.0, 0, 2, 4]])] * 600)
    allowed = changes(image)
    kinds = [[torch.equal(result, one) for one in allowed].index(True) for result in new]
    for kind in range(12):
        assert 25 < kinds.count(kind) < 80  # 50 expected
    for kind, box in zip(kinds, moved):
        assert box.tolist() == ([[3.0, 0, 4, 4]] if kind >= 6 else [[1.0, 0, 2, 4]])


def test_nothing_is_changed_in_place():
    images, boxes = painted(6, 3)
    copies = images.clone(), [b.clone() for b in boxes]
    new, moved = flipped(1, images, boxes)
    assert torch.equal(images, copies[0])
    assert all(torch.equal(a, b) for a, b in zip(boxes, copies[1]))
    new += 1
    assert torch.equal(images, copies[0])


def test_several_lists_move_alike():
    images, boxes = painted(12, 4)
    halves = [b / 2 for b in boxes]  # fractions of pixels
    _, first, second, third = flipped(2, images, boxes, halves, [NO_BOXES] * 12)
    for old, new, half in zip(boxes, first, second):
        mirrored = not torch.equal(old, new)
        x1, y1, x2, y2 = (old / 2).T
        expected = torch.stack([WIDTH - x2, y1, WIDTH - x1, y2], dim=1) if mirrored else old / 2
        assert torch.equal(half, expected)
    assert all(t.shape == (0, 4) for t in third)


def test_images_alone_and_one_image():
    images, boxes = painted(1, 5)
    (alone,) = flipped(3, images)
    new, _ = flipped(3, images, boxes)
    assert torch.equal(alone, new)  # the boxes have no influence on the pixels
    assert any(torch.equal(alone[0], one) for one in changes(images[0]))


def test_a_border_box_stays_inside():
    boxes = [torch.tensor([[0.0, 0, WIDTH, HEIGHT], [0, 0, 1, 1]])] * 20
    _, moved = flipped(0, torch.zeros(20, 3, HEIGHT, WIDTH), boxes)
    corners = {tuple(rows[1].tolist()) for rows in moved}
    assert corners == {(0.0, 0.0, 1.0, 1.0), (WIDTH - 1.0, 0.0, float(WIDTH), 1.0)}
    assert all(torch.equal(rows[0], boxes[0][0]) for rows in moved)


def test_the_seed_decides():
    images, boxes = painted(8, 6)
    first, second, third = (flipped(seed, images, boxes) for seed in (7, 7, 8))
    assert torch.equal(first[0], second[0]) and not torch.equal(first[0], third[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_boxes_of_any_type_move_exactly(dtype):
    """On an image so wide that neither half precision nor a byte can count its columns."""
    boxes = [torch.tensor([[1, 2, 200, 4]], dtype=dtype)] * 20
    _, moved = flipped(0, torch.zeros(20, 3, 4, 4001), boxes)
    mirrored = {tuple(rows[0].tolist()) for rows in moved}
    assert mirrored == {(1, 2, 200, 4), (3801, 2, 4000, 4)}
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert {rows.dtype for rows in moved} == {expected}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_no_image_gives_no_image(dtype):
    none = torch.zeros(0, 3, HEIGHT, WIDTH, dtype=dtype)
    images, *lists = flip_and_recolour(none, [], [])
    assert images.shape == none.shape and images.dtype == dtype and lists == [[], []]


def test_images_may_lie_on_the_gpu(pretended_gpu):
    images, boxes = painted(6, 3)
    here, moved = flipped(1, images, boxes)
    there, _ = flipped(1, images.to("cuda"), boxes)
    assert there.device.type == "cuda" and torch.equal(there.cpu(), here)


def test_what_is_no_image_or_no_box_is_named():
    images, _ = painted(2, 0)
    with pytest.raises(ValueError, match=r"^images must be a torch tensor, got ndarray"):
        flip_and_recolour(images.numpy())
    bad = {
        r"must have shape \(N, 4\), got \(4,\)": torch.zeros(4),
        "must be a torch tensor": [[0, 0, 1, 1]],
        "must have x1 <= x2": torch.tensor([[3.0, 0, 1, 1]]),
        "must be finite, row 0": torch.tensor([[0, 0, 1, float("nan")]]),
        "must hold real numbers": torch.zeros(1, 4, dtype=torch.bool),
    }
    for message, rows in bad.items():
        with pytest.raises(ValueError, match=rf"^boxes\[1\]\[1\] {message}"):
            flip_and_recolour(images, [NO_BOXES] * 2, [NO_BOXES, rows])


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 8, 8, 3), (1, 2, 3, 8, 8)], ids=str)
def test_images_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match=r"^images must be \(B, 3, H, W\), got torch.float32 \("):
        flip_and_recolour(torch.zeros(shape))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_lists_of_another_length_are_named(count):
    right = [NO_BOXES] * 2
    with pytest.raises(ValueError, match=rf"^boxes\[1\] must have .* \(2\), got {count}"):
        flip_and_recolour(torch.zeros(2, 3, 8, 8), right, [NO_BOXES] * count)
