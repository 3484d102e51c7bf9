"""The benchmark as PNG and COCO JSON: what is written is what is in memory, nothing overwritten."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from helpers import shapes
from helpers.shapes import ShapesDataset, benchmark
from tools import export
from tools.__main__ import main


@pytest.fixture
def small_benchmark(monkeypatch):
    """The export with a few images per split, so that it is fast."""
    monkeypatch.setattr(shapes, "SPLITS", {"train": (4, 0), "val": (2, 1), "test": (3, 2)})
    monkeypatch.setattr(shapes, "benchmark", benchmark.__wrapped__)


def test_export_round_trip(tmp_path, small_benchmark, capsys):
    directory = tmp_path / "new" / "folder"
    assert main(["export", str(directory)]) == 0
    assert "the benchmark is in" in capsys.readouterr().out
    for split, (count, seed) in shapes.SPLITS.items():
        dataset = ShapesDataset(count, seed)
        coco = COCO(directory / f"{split}.json")
        assert sorted(coco.imgs) == list(range(count))
        assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == {
            1: "circle",
            2: "square",
            3: "triangle",
        }
        assert len(list((directory / split).iterdir())) == count
        for i, (image, target) in enumerate(dataset):
            entry = coco.imgs[i]
            pixels = np.array(Image.open(directory / split / entry["file_name"]))
            assert (pixels == image.permute(1, 2, 0).numpy()).all()
            assert (entry["height"], entry["width"]) == pixels.shape[:2]
            found = coco.loadAnns(coco.getAnnIds(imgIds=[i]))
            assert all(a["id"] > 0 and a["iscrowd"] == 0 for a in found)
            corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in found)]
            assert corners == target["boxes"].tolist()
            assert [a["area"] for a in found] == [a["bbox"][2] * a["bbox"][3] for a in found]
            assert [a["category_id"] - 1 for a in found] == target["labels"].tolist()


def test_export_refuses_to_overwrite(tmp_path, small_benchmark, capsys):
    precious = tmp_path / "notes.txt"
    precious.write_text("mine")
    with pytest.raises(FileExistsError, match=f"{tmp_path} is not an empty directory"):
        export.export(tmp_path)
    with pytest.raises(FileExistsError, match="notes.txt is not an empty directory"):
        export.export(precious)
    assert main(["export", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "is not an empty directory" in captured.err
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    assert precious.read_text() == "mine"


def test_export_accepts_an_empty_directory(tmp_path, small_benchmark):
    export.export(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        *shapes.SPLITS,
        *(f"{split}.json" for split in shapes.SPLITS),
    }


# COCO ground truth


def test_coco_dict_of_no_images_and_of_an_image_without_objects():
    assert export.coco_dict([], 128)["images"] == []
    nothing = {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.long)}
    ground_truth = export.coco_dict([nothing], 128)
    assert len(ground_truth["images"]) == 1 and ground_truth["annotations"] == []
    json.dumps(ground_truth)


TWO = torch.tensor([[0.0, 0, 10, 10], [50, 50, 80, 80]])
NAMES = torch.tensor([0, 2])
BAD_TRUTH = {  # test_datasets.py tries more
    "no labels": ({"boxes": TWO}, r" must have \['boxes', 'labels'\], got \['boxes'\]"),
    "no class": ({"labels": NAMES + 5}, r"\['labels'\] must lie in 0..2, got \[5, 7\], row 0 is 5"),
    "negative": ({"labels": -NAMES}, r"\['labels'\] must lie in 0..2, got \[0, -2\], row 1 is -2"),
    "few labels": ({"labels": NAMES[:1]}, r"\['labels'\] must have shape \(2,\), got \(1,\)"),
    "reversed": ({"boxes": TWO[:, [2, 3, 0, 1]]}, r"\['boxes'\] must have x1 <= x2 .* row 0"),
    "NaN": ({"boxes": TWO * float("nan")}, r"\['boxes'\] must be finite, row 0"),
    "a crowd": ({"iscrowd": NAMES}, r"\['iscrowd'\] must not be set: .* row 1 is 2"),
}


@pytest.mark.parametrize("bad", BAD_TRUTH)
def test_coco_dict_of_bad_targets_names_them(bad):
    change, message = BAD_TRUTH[bad]
    good = {"boxes": TWO, "labels": NAMES}
    second = change if bad == "no labels" else good | change
    with pytest.raises(ValueError, match=rf"^targets\[1\]{message}"):
        export.coco_dict([good, second], 128)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8, torch.int64])
def test_coco_dict_of_targets_of_any_type(dtype):
    target = {"boxes": TWO.to(dtype), "labels": NAMES.to(torch.uint8)}
    assert export.coco_dict([target], 128) == export.coco_dict(
        [{"boxes": TWO, "labels": NAMES}], 128
    )
