"""The benchmark as PNG and COCO JSON: what is written is what is in memory, nothing overwritten."""

import numpy as np
import pytest
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
