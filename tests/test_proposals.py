"""Selective search where it can be had, one plain sentence where it cannot."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import proposals as experiment
from helpers import proposals
from helpers.proposals import (
    COMMITTED,
    benchmark_proposals,
    selective_search,
    selective_search_module,
)
from helpers.records import ROOT
from helpers.shapes import SPLITS, ShapesDataset, benchmark


class Missing:
    """An import hook: OpenCV is installed, but a system library that it needs is not."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file")


def sentence() -> str:
    with pytest.raises(RuntimeError) as error:
        selective_search_module()
    assert error.value.__suppress_context__  # the reader sees no second stack trace
    message = str(error.value)
    assert message.startswith("Selective search needs OpenCV") and "\n" not in message
    return message


def test_the_module_segments_an_image():
    search = selective_search_module().createSelectiveSearchSegmentation()
    image = np.full((40, 60, 3), 255, np.uint8)
    image[10:30, 20:50] = 0
    search.setBaseImage(image)
    search.switchToSelectiveSearchFast(150, 150, 0.8)
    assert [20, 10, 30, 20] in search.process().tolist()


def test_opencv_is_imported_only_when_it_is_asked_for():
    code = "import sys, helpers.proposals; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "pip install opencv-contrib-python" in sentence()


def test_without_the_system_libraries(monkeypatch):
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing, *sys.meta_path])
    message = sentence()
    assert "libGL.so.1" in message and "apt-get install libgl1 libglib2.0-0" in message
    assert "pip" not in message


@pytest.mark.parametrize("has_ximgproc", [False, True])
def test_without_the_contrib_module(monkeypatch, has_ximgproc):
    plain = ModuleType("cv2")
    if has_ximgproc:  # but without `segmentation`
        plain.ximgproc = ModuleType("cv2.ximgproc")
    monkeypatch.setitem(sys.modules, "cv2", plain)
    message = sentence()
    assert "contrib module" in message
    assert "pip uninstall opencv-python" in message and "opencv-contrib-python" in message


# ---------------------------------------------------------------- selective search


@pytest.fixture(scope="module")
def images():
    return ShapesDataset(4, seed=11).images


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def opencvs_boxes(image):
    """OpenCV's own boxes of one image (3, H, W), those with small sides left out, as a set."""
    import cv2

    search = selective_search_module().createSelectiveSearchSegmentation()
    search.setBaseImage(cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2BGR))
    search.switchToSelectiveSearchFast(150, 150, 0.8)
    return {(x, y, x + w, y + h) for x, y, w, h in search.process().tolist() if min(w, h) >= 6}


def test_the_boxes_are_opencvs(images):
    for image, boxes in zip(images, selective_search(images)):
        assert boxes.dtype == torch.float32 and boxes.shape == (len(boxes), 4)
        assert {tuple(box) for box in boxes.tolist()} == opencvs_boxes(image)
        assert boxes.tolist() == sorted(boxes.tolist(), key=xywh)  # in OpenCV's own format


def xywh(box):
    return box[0], box[1], box[2] - box[0], box[3] - box[1]


def test_two_calls_agree_and_batches_do_not_matter(images):
    first = selective_search(images)
    assert same(first, selective_search(images))
    assert same(first, [selective_search(image[None])[0] for image in images])
    assert same(first, selective_search(images.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("height, width", [(40, 90), (90, 40), (37, 53)])
def test_boxes_are_inside_an_image_of_any_form(images, height, width):
    for boxes in selective_search(images[:2, :, :height, :width]):
        assert len(boxes) and (boxes >= 0).all()
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 6).all()
        assert len(boxes.unique(dim=0)) == len(boxes)


def test_it_finds_an_object_where_it_is():
    image = torch.full((1, 3, 60, 80), 235, dtype=torch.uint8)
    image[0, :, 20:40, 10:50] = torch.tensor([200, 40, 40])[:, None, None]
    (boxes,) = selective_search(image)
    assert [10.0, 20, 50, 40] in boxes.tolist()
    (boxes,) = selective_search(image.transpose(2, 3))  # higher than wide
    assert [20.0, 10, 40, 50] in boxes.tolist()


def test_little_to_search():
    assert selective_search(torch.zeros(0, 3, 30, 30, dtype=torch.uint8)) == []
    for height, width in ((1, 1), (5, 50), (50, 5)):  # nothing of 6 x 6 pixels fits
        (boxes,) = selective_search(torch.zeros(1, 3, height, width, dtype=torch.uint8))
        assert boxes.shape == (0, 4) and boxes.dtype == torch.float32
    (boxes,) = selective_search(torch.zeros(1, 3, 30, 40, dtype=torch.uint8))
    assert boxes.tolist() == [[0.0, 0, 40, 30]]


BAD = {
    "floats": (torch.zeros(1, 3, 9, 9), r"uint8 \(B, 3, H, W\), got torch.float32 \(1, 3, 9, 9\)"),
    "an array": (np.zeros((1, 3, 9, 9), np.uint8), "a torch tensor, got ndarray"),
    "None": (None, "a torch tensor, got NoneType"),
    "one image": (torch.zeros(3, 9, 9, dtype=torch.uint8), r"got torch.uint8 \(3, 9, 9\)"),
    "grey": (torch.zeros(1, 1, 9, 9, dtype=torch.uint8), r"got torch.uint8 \(1, 1, 9, 9\)"),
    "channels last": (
        torch.zeros(1, 9, 9, 3, dtype=torch.uint8),
        r"got torch.uint8 \(1, 9, 9, 3\)",
    ),
    "no rows": (torch.zeros(1, 3, 0, 9, dtype=torch.uint8), r"got torch.uint8 \(1, 3, 0, 9\)"),
}


@pytest.mark.parametrize("bad, says", BAD.values(), ids=BAD)
def test_what_are_no_images_is_named(bad, says):
    with pytest.raises(ValueError, match=f"^images must .*{says}"):
        selective_search(bad)


# ---------------------------------------------------------------- the files of proposals


def contents(path):
    with np.load(path, allow_pickle=False) as file:  # holds no pickled object
        return dict(file)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in the place of data/proposals."""
    monkeypatch.setattr(proposals, "COMMITTED", tmp_path)
    return tmp_path


def test_what_is_written_is_what_is_read(images, folder, monkeypatch):
    pixels = images[:2, :, :40, :50].clone()
    monkeypatch.setattr(experiment, "benchmark", lambda split: SimpleNamespace(images=pixels))
    path = experiment.write("train", folder)
    assert list(folder.iterdir()) == [path]
    boxes = benchmark_proposals("train")
    assert same(boxes, selective_search(pixels)) and {b.dtype for b in boxes} == {torch.float32}


def test_images_without_proposals_come_back(images, folder, monkeypatch):
    boxes = [torch.zeros(0, 4), torch.tensor([[1.0, 2, 30, 40]]), torch.zeros(0, 4)]
    monkeypatch.setattr(experiment, "benchmark", lambda split: SimpleNamespace(images=images[:3]))
    monkeypatch.setattr(proposals, "selective_search", lambda pixels: boxes)
    experiment.write("val", folder)
    assert same(benchmark_proposals("val"), boxes)


@pytest.mark.parametrize("change", ["pixel", "SCALE", "SIGMA", "MIN_SIDE", "shape"])
def test_the_key_covers_pixels_and_settings(images, monkeypatch, change):
    before, pixels = experiment.key(images), images.clone()
    assert experiment.key(pixels) == before
    if change == "pixel":
        pixels[0, 0, 0, 0] ^= 1
    elif change == "shape":  # the same bytes
        pixels = pixels.view(4, 3, 64, 256)
    else:
        monkeypatch.setattr(proposals, change, getattr(proposals, change) * 2)
    assert experiment.key(pixels) != before


@pytest.mark.parametrize("split", SPLITS)
def test_the_committed_files_hold_what_selective_search_finds(split):
    pixels, boxes = benchmark(split).images, benchmark_proposals(split)
    assert len(boxes) == len(pixels) and {b.dtype for b in boxes} == {torch.float32}
    file = contents(COMMITTED / f"selective_search_{split}.npz")
    assert str(file["key"]) == experiment.key(pixels), "python -m experiments.proposals"
    some = list(range(0, len(pixels), len(pixels) // 8))
    pairs = list(zip([boxes[i].tolist() for i in some], selective_search(pixels[some])))
    again = sum(box in found.tolist() for own, found in pairs for box in own)
    assert again >= 0.9 * sum(len(own) for own, _ in pairs)  # other versions differ in a few boxes


def test_the_files_are_read_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert len(benchmark_proposals("val")) == SPLITS["val"][0]


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match=r"split must be one of \['train'.*\], got 'holiday'"):
        benchmark_proposals("holiday")
