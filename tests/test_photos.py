"""Photographs without a network, and every kind of picture that a user may bring."""

import socket

import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1"])
def test_pil_images(mode):
    rgb = as_rgb(Image.new(mode, (4, 2)))
    assert rgb.shape == (2, 4, 3) and rgb.dtype == np.uint8


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "photo must be a NumPy array or a PIL image, got NoneType"),
        ([[0, 1], [1, 0]], "photo must be a NumPy array or a PIL image, got list"),
        ([[0], [1, 0]], "photo must be a NumPy array or a PIL image, got list"),
        ("cat.png", "photo must be a NumPy array or a PIL image, got str"),
        (np.zeros((2, 2), np.uint16), "photo must hold uint8, bool or float .* got uint16"),
        (np.zeros((2, 2), np.int64), "photo must hold uint8, bool or float .* got int64"),
        (np.zeros((2, 2), complex), "photo must hold uint8, bool or float .* got complex128"),
        (np.full((2, 2), "a"), "photo must hold uint8, bool or float .* got <U1"),
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
