"""Photographs without a network, and every kind of picture that a user may bring."""

import io
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageOps

from helpers.photos import PHOTOS, as_rgb, photo


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something tried to open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_are_rgb_bytes(name):
    image = photo(name)
    assert image.ndim == 3 and image.shape[2] == 3 and min(image.shape[:2]) >= 300
    assert image.dtype == np.uint8 and image.std() > 20
    image[:] = 0  # a copy of one's own
    assert photo(name).any()
    assert (as_rgb(photo(name)) == photo(name)).all()


def test_an_unknown_photo_is_named():
    with pytest.raises(ValueError, match=r"name must be one of \['motorcycle'.*\], got 'dog'"):
        photo("dog")


def test_grey_becomes_three_equal_channels():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for image in (grey, grey[..., None]):
        rgb = as_rgb(image)
        assert rgb.shape == (2, 3, 3) and rgb.dtype == np.uint8
        assert all((rgb[..., channel] == grey).all() for channel in range(3))


def test_rgb_is_copied_writable_and_contiguous():
    image = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
    for source in (image, image[::-1, ::2], np.asfortranarray(image)):
        rgb = as_rgb(source)
        assert (rgb == source).all() and not np.shares_memory(rgb, source)
        assert rgb.flags.writeable and rgb.flags.c_contiguous


def test_alpha_is_blended_onto_white():
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    assert as_rgb(rgba).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]
    assert as_rgb(rgba / 255).tolist() == as_rgb(rgba).tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_scaled(dtype):
    image = np.array([[0, 0.5, 1]], dtype)
    assert as_rgb(image)[0, :, 0].tolist() == [0, 128, 255]


def test_booleans_are_black_and_white():
    assert as_rgb(np.array([[True, False]]))[0].tolist() == [[255] * 3, [0] * 3]


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (1, 1, 3), (1, 1, 4)])
def test_a_single_pixel(shape):
    assert as_rgb(np.full(shape, 255, np.uint8)).tolist() == [[[255, 255, 255]]]


@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_sixteen_bits_are_scaled_to_eight(grey):
    rgb = as_rgb(grey)
    assert (np.abs(rgb[..., 0] - grey / 257.0) <= 0.5).all() and (rgb == rgb[..., :1]).all()
    assert (as_rgb(grey.astype(">u2")) == rgb).all()
    assert (as_rgb(grey / 65535) == rgb).all()
    assert (as_rgb(np.stack([grey] * 3 + [np.full_like(grey, 65535)], axis=2)) == rgb).all()


def test_rounding_may_leave_the_range_of_floats_and_no_more():
    assert as_rgb(np.array([[-1e-6, 1 + 1e-6]])).min(axis=2).tolist() == [[0, 255]]
    for value in (-0.01, 1.01):
        with pytest.raises(ValueError, match=r"image holds floats .* in 0\.\.1"):
            as_rgb(np.array([[0.5, value]]))


# ---------------------------------------------------------------- PIL images

COLOURS = Image.fromarray(np.random.RandomState(0).randint(0, 256, (5, 7, 4)).astype(np.uint8))


def on_white(image):
    """What PIL shows of an image that lies on white paper, as signed numbers."""
    paper = Image.new("RGBA", image.size, "white")
    shown = Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
    return np.asarray(shown).astype(int)


def as_file(image, kind, **options):
    """The image as it comes back from a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_opaque_pil_images_look_as_pil_says(mode):
    image = COLOURS.convert("RGB").convert(mode)
    assert (as_rgb(image) == np.asarray(image.convert("RGB"))).all()
    assert as_rgb(image).std() > 20


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_transparent_pil_images_lie_on_white(mode):
    image = COLOURS.convert(mode)
    assert np.abs(as_rgb(image) - on_white(image)).max() <= 1
    if mode != "PA":  # PIL's own palette is opaque
        assert np.abs(as_rgb(image).astype(int) - as_rgb(COLOURS.convert("RGB"))).max() > 50


@pytest.mark.parametrize("mode, clear", [("P", 3), ("P", bytes([0, 99, 255])), ("L", 0), ("1", 0)])
def test_a_transparent_colour_of_a_png_is_white(mode, clear):
    image = COLOURS.convert("RGB").quantize(9) if mode == "P" else COLOURS.convert(mode)
    image.putpixel((2, 1), 0)
    read = as_file(image, "PNG", transparency=clear)
    assert np.abs(as_rgb(read) - on_white(read)).max() <= 1
    opaque = as_file(image, "PNG")
    assert (as_rgb(opaque) == np.asarray(image.convert("RGB"))).all()
    assert (as_rgb(read) != as_rgb(opaque)).any()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photograph_is_turned_upright(mode, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    image = COLOURS.convert("RGB").convert(mode).resize((60, 40))
    read = as_file(image, "JPEG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(read).convert("RGB"))
    assert upright.shape == ((60, 40, 3) if turn > 4 else (40, 60, 3))
    assert (as_rgb(read) == upright).all()
    assert read.getexif()[0x0112] == turn  # the caller's image is as it was


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_of_pil_are_scaled(mode):
    grey = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(2, 8)
    order = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, (8, 2), grey.astype(order).tobytes())
    assert (as_rgb(image) == as_rgb(grey)).all()
    assert (as_rgb(as_file(Image.fromarray(grey), "PNG")) == as_rgb(grey)).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_without_a_known_white_are_refused(mode):
    with pytest.raises(ValueError, match=f"photo must have 8 or 16 bits .* got PIL's mode {mode}"):
        as_rgb(Image.new(mode, (4, 2)), "photo")


@pytest.mark.parametrize("size", [(0, 3), (3, 0)])
def test_a_pil_image_without_pixels_is_refused(size):
    with pytest.raises(ValueError, match="at least one pixel"):
        as_rgb(Image.new("RGB", size))


@given(st.sampled_from(["L", "RGB", "RGBA"]), st.integers(1, 9), st.integers(1, 9))
def test_an_array_and_its_pil_image_are_the_same(mode, width, height):
    image = COLOURS.convert(mode).resize((width, height))
    rgb = as_rgb(image)
    assert rgb.shape == (height, width, 3) and rgb.flags.writeable
    assert (rgb == as_rgb(np.asarray(image))).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "photo must be a NumPy array or a PIL image, got NoneType"),
        ([[0, 1], [1, 0]], "photo must be a NumPy array or a PIL image, got list"),
        ([[0], [1, 0]], "photo must be a NumPy array or a PIL image, got list"),
        ("cat.png", "photo must be a NumPy array or a PIL image, got str"),
        (np.zeros((2, 2), np.uint32), "photo must hold uint8, .* or float .* got uint32"),
        (np.zeros((2, 2), np.int64), "photo must hold uint8, .* or float .* got int64"),
        (np.zeros((2, 2), np.int16), "photo must hold uint8, .* or float .* got int16"),
        (np.zeros((2, 2), complex), "photo must hold uint8, .* or float .* got complex128"),
        (np.full((2, 2), "a"), "photo must hold uint8, .* or float .* got <U1"),
        (np.full((2, 2), np.nan), r"photo holds floats .* in 0\.\.1, got nan\.\.nan"),
        (np.full((2, 2), np.inf), r"photo holds floats .* in 0\.\.1, got inf\.\.inf"),
        (np.array([[0.0, 255.0]]), r"photo holds floats .* in 0\.\.1, got 0\.\.255"),
        (np.array([[-0.5, 1.0]]), r"photo holds floats .* in 0\.\.1, got -0\.5\.\.1"),
        (np.zeros((0, 4, 3), np.uint8), r"photo must be an image .* got shape \(0, 4, 3\)"),
        (np.zeros((4, 0)), r"photo must be an image .* got shape \(4, 0, 1\)"),
        (np.zeros(5), r"photo must be an image .* got shape \(5,\)"),
        (np.zeros((2, 2, 2)), r"photo must be an image .* got shape \(2, 2, 2\)"),
        (np.zeros((3, 8, 8)), r"photo must be an image .* got shape \(3, 8, 8\)"),
        (np.zeros((1, 4, 4, 3)), r"photo must be an image .* got shape \(1, 4, 4, 3\)"),
    ],
)
def test_what_is_no_image_is_named(image, message):
    with pytest.raises(ValueError, match=message):
        as_rgb(image, "photo")
