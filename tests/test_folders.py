"""Anybody's folder: COCO, Pascal VOC and YOLO, read, checked and written, with nasty ones."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.datasets import PhotoDataset, read_folder, write_coco

NAN = float("nan")


def picture(path, size=(40, 30), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path, **options)
    return path


def voc(path, *objects, filename=None, size=None):
    """Write VOC's XML: objects are (name, xmin, ymin, xmax, ymax) or those and difficult."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["<annotation>"]
    if filename:
        lines.append(f"<filename>{filename}</filename>")
    if size:
        lines.append(f"<size><width>{size[0]}</width><height>{size[1]}</height></size>")
    for name, *numbers in objects:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), numbers)
        box = "".join(f"<{side}>{number}</{side}>" for side, number in sides)
        more = f"<difficult>{numbers[4]}</difficult>" if len(numbers) > 4 else ""
        lines += ["<object>", f"<name>{name}</name>{more}", f"<bndbox>{box}</bndbox>", "</object>"]
    path.write_text("\n".join([*lines, "</annotation>"]), "utf-8")


def coco(path, images, annotations, names=("cat", "dog")):
    """Write COCO's JSON: annotations are rows of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), "utf-8")


def row(number, bbox, image=1, category=10, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox} | more


def yolo(folder, text, names="names: [cat, dog]\n", name="a"):
    picture(folder / "images" / f"{name}.jpg")
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / f"{name}.txt").write_text(text)
    if names:
        (folder / "data.yaml").write_text(names)


# ---------------------------------------------------------------- the three formats


def test_coco(tmp_path):
    picture(tmp_path / "train" / "a.jpg")
    picture(tmp_path / "train" / "b.png")
    images = [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}]
    images.append({"id": 1, "file_name": "b.png"})
    rows = [row(1, [1, 2, 10, 20], image=7), row(2, [3, 4, 5, 6], category=20, iscrowd=1)]
    rows.append(row(3, [0, 0, 9, 9], ignore=1))
    coco(tmp_path / "annotations" / "train.json", images, rows)
    found = read_folder(tmp_path)
    assert [file.name for file in found.files] == ["a.jpg", "b.png"]
    assert found.classes == ["cat", "dog"]
    assert found.targets[0]["boxes"].tolist() == [[1, 2, 11, 22]]
    assert found.targets[1]["labels"].tolist() == [1, 0]
    assert found.targets[1]["iscrowd"].tolist() == [1, 1]


def test_voc(tmp_path):
    picture(tmp_path / "JPEGImages" / "a.jpg")
    objects = (("dog", 1, 2, 10, 20), ("cat", 3.5, 4, 5, 6, 1))
    voc(tmp_path / "Annotations" / "a.xml", *objects, filename="a.jpg", size=(40, 30))
    found = read_folder(tmp_path)
    assert found.classes == ["cat", "dog"] and found.targets[0]["labels"].tolist() == [1, 0]
    assert found.targets[0]["boxes"].tolist() == [[1, 2, 10, 20], [3.5, 4, 5, 6]]
    assert found.targets[0]["iscrowd"].tolist() == [0, 1]  # difficult: neither learnt nor counted
    assert read_folder(tmp_path, classes=["dog", "cat"]).targets[0]["labels"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "names",
    ["names: [cat, dog]\n", "names:\n  0: cat\n  1: dog\n", "nc: 2\nnames:\n- cat\n- dog\n"],
)
def test_yolo(tmp_path, names):
    yolo(tmp_path, "1 0.5 0.5 0.5 1\n\n0 0.25 0.5 0.5 0.2\n", names)
    yolo(tmp_path, "", names, name="empty")
    picture(tmp_path / "images" / "bare.jpg")
    found = read_folder(tmp_path)
    by_name = dict(zip([file.stem for file in found.files], found.targets))
    assert found.classes == ["cat", "dog"] and by_name["a"]["labels"].tolist() == [1, 0]
    assert by_name["a"]["boxes"].tolist() == [[10, 0, 30, 30], [0, 12, 20, 18]]
    assert len(by_name["bare"]["boxes"]) == len(by_name["empty"]["boxes"]) == 0


def test_yolo_without_names_takes_numbers_and_with_classes_txt_those(tmp_path):
    yolo(tmp_path, "2 0.5 0.5 0.5 0.5\n", names="")
    assert read_folder(tmp_path).classes == ["0", "1", "2"]
    (tmp_path / "classes.txt").write_text("cat\nbig dog\nbird\n")
    assert read_folder(tmp_path).classes == ["cat", "big dog", "bird"]


def test_what_is_hidden_or_something_else_is_skipped_with_a_word(tmp_path):
    yolo(tmp_path, "0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "labels" / ".DS_Store").write_text("")
    (tmp_path / "images" / "._a.jpg").write_text("")
    (tmp_path / "README.txt").write_text("0 is a cat\n")
    (tmp_path / "notes.docx").write_text("")
    (tmp_path / "package.json").write_text("{}")
    found = read_folder(tmp_path)
    assert len(found) == 1
    assert {line for line in found.said if "README" in line or "docx" in line}
    assert not [line for line in found.said if "DS_Store" in line or "._a" in line]


# ---------------------------------------------------------------- which photograph is meant


def boxes_by_file(folder):
    found = read_folder(folder)
    names = [file.relative_to(folder).as_posix() for file in found.files]
    return {name: target["boxes"].tolist() for name, target in zip(names, found.targets)}


def test_of_photographs_of_one_name_the_folders_decide(tmp_path):
    for number, split in enumerate(("train", "val")):
        picture(tmp_path / "yolo" / "images" / split / "a.jpg")
        (tmp_path / "yolo" / "labels" / split).mkdir(parents=True)
        line = f"0 0.5 0.5 0.5 {0.2 + 0.4 * number}\n"
        (tmp_path / "yolo" / "labels" / split / "a.txt").write_text(line)
        picture(tmp_path / "voc" / split / "JPEGImages" / "a.jpg")
        voc(tmp_path / "voc" / split / "Annotations" / "a.xml", ("cat", 1, 2, 3, 4 + number))
        picture(tmp_path / "coco" / split / "a.jpg")
        images = [{"id": 1, "file_name": f"{split}/a.jpg"}]
        coco(tmp_path / "coco" / f"{split}.json", images, [row(1, [1, 2, 2, 2 + number])])
    assert boxes_by_file(tmp_path / "yolo") == {
        "images/train/a.jpg": [[10, 12, 30, 18]],
        "images/val/a.jpg": [[10, 6, 30, 24]],
    }
    assert boxes_by_file(tmp_path / "voc") == {
        "train/JPEGImages/a.jpg": [[1, 2, 3, 4]],
        "val/JPEGImages/a.jpg": [[1, 2, 3, 5]],
    }
    assert boxes_by_file(tmp_path / "coco") == {
        "train/a.jpg": [[1, 2, 3, 4]],
        "val/a.jpg": [[1, 2, 3, 5]],
    }


def test_where_two_photographs_may_be_meant_none_is(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / split / "a.jpg")
    coco(tmp_path / "all.json", [{"id": 1, "file_name": "a.jpg"}], [row(1, [1, 2, 3, 4])])
    picture(tmp_path / "b.jpg")
    voc(tmp_path / "b.xml", ("cat", 1, 2, 3, 4))
    with pytest.raises(ValueError, match=r"all.json: there is no photograph a.jpg"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("filename", "meant"),
    [
        ("a.tif", "a.tif"),
        ("a.png", "a.png"),
        ("other/a.tif", "a.tif"),
        ("renamed.png", "a.png"),
        (None, "a.png"),
    ],
)
def test_vocs_filename_chooses_among_photographs_of_its_own_name(tmp_path, filename, meant):
    picture(tmp_path / "a.png")
    if meant == "a.tif":
        picture(tmp_path / "a.tif")
    voc(tmp_path / "a.xml", ("cat", 1, 2, 3, 4), filename=filename)
    assert boxes_by_file(tmp_path) == {meant: [[1, 2, 3, 4]]}


# ---------------------------------------------------------------- photographs of all kinds


def test_photographs_of_every_mode_come_as_rgb_bytes(tmp_path):
    for mode, end in (("L", "png"), ("P", "png"), ("1", "png"), ("RGBA", "png"), ("CMYK", "jpg")):
        picture(tmp_path / f"{mode}.{end}", mode=mode)
        (tmp_path / f"{mode}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    deep = np.full((30, 40), 65535, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (tmp_path / "deep.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    found = read_folder(tmp_path)
    assert len(found) == 6
    for i, file in enumerate(found.files):
        image, _ = found[i]
        assert image.shape == (3, 30, 40) and image.dtype == torch.uint8, file
        assert file.stem != "deep" or (image == 255).all()


def test_a_photograph_that_exif_turns_is_upright_and_so_are_its_boxes(tmp_path):
    picture(tmp_path / "a.jpg", size=(40, 30), exif=turned_by(6))
    (tmp_path / "a.txt").write_text("0 0.5 0.5 1 1\n")
    found = read_folder(tmp_path)
    assert found[0][0].shape == (3, 40, 30)
    assert found.targets[0]["boxes"].tolist() == [[0, 0, 30, 40]]


def turned_by(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# ---------------------------------------------------------------- nasty folders


def bad_line(text):
    return lambda folder: yolo(folder, f"0 0.5 0.5 0.5 0.5\n{text}\n")


def bad_box(*box):
    return lambda folder: (
        picture(folder / "a.jpg"),
        voc(folder / "a.xml", ("cat", 1, 2, 3, 4), ("cat", *box)),
    )


def bad_row(**change):
    def make(folder):
        picture(folder / "a.jpg")
        good, bad = row(1, [0, 0, 9, 9]), row(2, [0, 0, 9, 9]) | change
        coco(folder / "a.json", [{"id": 1, "file_name": "a.jpg"}], [good, bad])

    return make


def wrong_size(folder):
    picture(folder / "a.jpg", exif=turned_by(6))
    voc(folder / "a.xml", ("cat", 1, 2, 3, 4), filename="a.jpg", size=(40, 30))


def broken_photo(folder):
    yolo(folder, "0 0.5 0.5 0.5 0.5\n")
    (folder / "images" / "b.jpg").write_bytes(b"no picture")


def broken_xml(folder):
    picture(folder / "a.jpg")
    voc(folder / "a.xml", ("cat", 1, 2, 3, 4))
    (folder / "b.xml").write_text("<annotation><object>")


def broken_yaml(folder):
    yolo(folder, "0 0.5 0.5 0.5 0.5\n")
    (folder / "other.yaml").write_text("names: [cat")


def missing_photo(folder):
    picture(folder / "a.jpg")
    voc(folder / "a.xml", ("cat", 1, 2, 3, 4))
    voc(folder / "gone.xml", ("cat", 1, 2, 3, 4), filename="gone.jpg")


# How it is made, what is said of it, and how many boxes stay when it is dropped.
NASTY = {
    "YOLO: reversed": (bad_line("0 0.5 0.5 -0.5 0.5"), r"labels/a.txt, line 2: .* reversed", 1),
    "YOLO: empty": (bad_line("0 0.5 0.5 0 0.5"), r"labels/a.txt, line 2: .* empty", 1),
    "YOLO: NaN": (bad_line("0 nan 0.5 0.5 0.5"), r"labels/a.txt, line 2: .* four finite", 1),
    "YOLO: few numbers": (bad_line("0 0.5 0.5 0.5"), r"labels/a.txt, line 2: .* four finite", 1),
    "YOLO: a polygon": (bad_line("0 0.1 0.1 0.9 0.1 0.5 0.9"), r"line 2: .* four finite", 1),
    "YOLO: words": (bad_line("0 a b c d"), r"labels/a.txt, line 2: .* four finite", 1),
    "YOLO: class": (bad_line("2 0.5 0.5 0.5 0.5"), r"line 2: there is no class '2'", 1),
    "YOLO: negative class": (bad_line("-1 0.5 0.5 0.5 0.5"), r"there is no class '-1'", 1),
    "YOLO: outside": (bad_line("0 1.5 0.5 0.5 0.5"), r"line 2: .* outside", 1),
    "YOLO: in pixels": (bad_line("0 20 15 10 10"), r"line 2: .* outside", 1),
    "YOLO: over the border": (bad_line("0 0.9 0.5 0.5 0.5"), r"line 2: .* over the border", 2),
    "YOLO: a name": (bad_line("Cat 0.5 0.5 0.5 0.5"), r"line 2: there is no class 'Cat'", 1),
    "VOC: reversed": (bad_box(9, 9, 3, 4), r"a.xml, line 6: .* reversed", 1),
    "VOC: words": (bad_box("", 2, 3, 4), r"a.xml, line 6: .* four finite", 1),
    "VOC: outside": (bad_box(41, 2, 50, 9), r"a.xml, line 6: .* outside", 1),
    "VOC: size": (wrong_size, r"a.jpg: upright it has \(30, 40\) pixels", 1),
    "VOC: broken": (broken_xml, r"b.xml: cannot be read", 1),
    "VOC: no photograph": (missing_photo, r"gone.xml: there is no photograph gone", 1),
    "COCO: reversed": (bad_row(bbox=[9, 9, -3, 4]), r"a.json, annotation 2: .* reversed", 1),
    "COCO: NaN": (bad_row(bbox=[NAN, 0, 1, 1]), r"a.json, annotation 2: .* four finite", 1),
    "COCO: no box": (bad_row(bbox=None), r"annotation 2: .* four finite", 1),
    "COCO: class": (bad_row(category_id=99), r"annotation 2: there is no class", 1),
    "COCO: image": (bad_row(image_id=99), r"there is no photograph with the id 99", 1),
    "YAML: broken": (broken_yaml, r"other.yaml: cannot be read", 1),
    "a broken photograph": (broken_photo, r"b.jpg: cannot be read", 1),
}


@pytest.mark.parametrize("name", NASTY)
def test_what_is_wrong_is_listed_and_dropped_only_when_asked(tmp_path, name):
    make, message, left = NASTY[name]
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path)
    found = read_folder(tmp_path, drop=True)
    assert sum(len(target["boxes"]) for target in found.targets) == left
    assert any(re.search(message, line) for line in found.said)
    for i in range(len(found)):
        image, target = found[i]
        sides = target["boxes"].reshape(-1, 2, 2)
        assert (sides >= 0).all() and (
            sides <= torch.tensor([image.shape[2], image.shape[1]])
        ).all()


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: picture(folder / "a.jpg")])
def test_a_folder_without_anything(tmp_path, make):
    make(tmp_path)
    with pytest.raises(ValueError, match=r"must hold photographs and \.json, \.xml or \.txt files"):
        read_folder(tmp_path)
    with pytest.raises(ValueError):
        read_folder(tmp_path / "nowhere")


def test_a_pixel_over_the_border_is_rounding(tmp_path):
    picture(tmp_path / "a.jpg")
    voc(tmp_path / "a.xml", ("cat", -1, 0, 41, 31))
    assert read_folder(tmp_path).targets[0]["boxes"].tolist() == [[0, 0, 40, 30]]


def test_many_faults_are_not_all_printed(tmp_path):
    yolo(tmp_path, "9 0.5 0.5 0.5 0.5\n" * 500)
    with pytest.raises(ValueError) as error:
        read_folder(tmp_path)
    assert str(error.value).startswith("500 things are wrong") and len(str(error.value)) < 2000


# ---------------------------------------------------------------- from form to form


def as_voc(dataset, folder):
    for file, target in zip(dataset.files, dataset.targets):
        objects = [
            (dataset.classes[label], *box, crowd)
            for label, box, crowd in zip(
                target["labels"].tolist(), target["boxes"].tolist(), target["iscrowd"].tolist()
            )
        ]
        Image.open(file).save(folder / file.name)
        voc(folder / f"{file.stem}.xml", *objects, filename=file.name)


def as_yolo(dataset, folder):
    (folder / "data.yaml").write_text(f"names: {json.dumps(dataset.classes)}\n")
    for file, target in zip(dataset.files, dataset.targets):
        width, height = Image.open(file).size
        Image.open(file).save(folder / file.name)
        lines = []
        for label, (x1, y1, x2, y2) in zip(target["labels"].tolist(), target["boxes"].tolist()):
            numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
            numbers += [(x2 - x1) / width, (y2 - y1) / height]
            lines.append(" ".join([str(label), *(f"{n:.6f}" for n in numbers)]))
        (folder / f"{file.stem}.txt").write_text("\n".join(lines))


def as_coco(dataset, folder):
    files = []
    for file in dataset.files:
        Image.open(file).save(folder / file.name)
        files.append(folder / file.name)
    write_coco(PhotoDataset(files, dataset.targets, dataset.classes), folder / "annotations.json")


@st.composite
def photographs(draw):
    """Sizes, and boxes of classes 0..2 inside them, at least a pixel wide."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        width, height = draw(st.integers(2, 300)), draw(st.integers(2, 300))
        boxes, labels = [], []
        for _ in range(draw(st.integers(0, 5))):
            x, y = (draw(st.integers(0, 8 * (n - 1))) / 8 for n in (width, height))
            w, h = (draw(st.integers(8, int(8 * n))) / 8 for n in (width - x, height - y))
            boxes.append([x, y, x + w, y + h])
            labels.append(draw(st.integers(0, 2)))
        found.append(((width, height), boxes, labels))
    return found


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(photographs())
def test_every_box_survives_coco_voc_and_yolo_to_half_a_pixel(tmp_path_factory, photos):
    folder = tmp_path_factory.mktemp("photos")
    files, targets, classes = [], [], ["ant", "bee", "cow"]
    for number, (size, boxes, labels) in enumerate(photos):
        files.append(picture(folder / f"{number}.png", size))
        boxes = torch.tensor(boxes).reshape(-1, 4)
        columns = {
            "labels": torch.tensor(labels).long(),
            "iscrowd": torch.zeros(len(labels)).long(),
        }
        targets.append({"boxes": boxes} | columns)
    dataset = PhotoDataset(files, targets, classes)
    for write in (as_coco, as_voc, as_yolo):
        folder = tmp_path_factory.mktemp(write.__name__)
        write(dataset, folder)
        dataset = read_folder(folder, classes=classes)
    assert [file.name for file in dataset.files] == [file.name for file in files]
    for target, original in zip(dataset.targets, targets, strict=True):
        assert target["labels"].tolist() == original["labels"].tolist()
        if len(original["boxes"]):
            assert (target["boxes"] - original["boxes"]).abs().max() <= 0.5


def test_pycocotools_reads_what_is_written(tmp_path):
    from pycocotools.coco import COCO

    yolo(tmp_path, "1 0.5 0.5 0.5 1\n0 0.25 0.5 0.5 0.2\n")
    write_coco(read_folder(tmp_path), tmp_path / "out.json")
    truth = COCO(str(tmp_path / "out.json"))
    assert [a["bbox"] for a in truth.loadAnns(truth.getAnnIds())] == [
        [10, 0, 20, 30],
        [0, 12, 20, 6],
    ]
    (image,) = truth.loadImgs(truth.getImgIds())
    assert (tmp_path / image["file_name"]).is_file() and image["width"] == 40


def test_paths_may_be_texts(tmp_path):
    yolo(tmp_path, "0 0.5 0.5 0.5 0.5\n")
    assert len(read_folder(str(tmp_path))) == 1 and isinstance(read_folder(tmp_path).files[0], Path)
