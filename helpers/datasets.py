"""Images and targets: what a data set shows and says of its objects, checked before a training.

A target is a dict with `boxes` (M, 4) xyxy pixels and `labels` (M,) 0..C-1, as in torchvision; it
may have none. `iscrowd` (M,) may mark regions of many objects; all other keys are ignored.

Anybody's folder is read by Python alone, since its formats are JSON, XML and text: pycocotools
checks nothing, torchvision knows no YOLO, and supervision would bring a second OpenCV.
"""

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import torch
import yaml
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import clip_boxes_to_image

from helpers.boxes import check_boxes, check_numbers, check_sides, refuse_rows
from helpers.photos import as_rgb

Target = Mapping[str, Tensor]
KEYS = ("boxes", "labels")
PHOTOS = frozenset(".jpg .jpeg .png .bmp .tif .tiff .webp".split())
UNIT = (1, 1)  # the size of an image for whoever writes boxes in units of it
OVER = "its box reaches over the border"
Line = tuple[str, str, Sequence[float], bool]  # where it stands, class, box xyxy, to be ignored?
Found = tuple[str, tuple[int, int], list[Line]]  # photograph, stated (width, height), its lines


def check_images(images: Tensor, of_bytes: bool = True) -> None:
    """Raise ValueError unless `images` is a tensor (B, 3, H, W) with pixels, of uint8 if asked."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a torch tensor, got {type(images).__name__}")
    is_batch = images.ndim == 4 and images.shape[1] == 3 and 0 not in images.shape[2:]
    if not is_batch or (of_bytes and images.dtype != torch.uint8):
        got, kind = f"{images.dtype} {tuple(images.shape)}", "uint8 " if of_bytes else ""
        raise ValueError(f"images must be {kind}(B, 3, H, W), got {got}")


def checked_targets(targets: Sequence[Target], num_classes: int | None = None) -> list[Target]:
    """Targets to train on: `boxes` (M, 4) float32, `labels` (M,) int64, and nothing else.

    Boxes may reach over the border of their image and be smaller than a pixel, but each must have
    width and height: nobody can learn log 0. Crowds are refused, and labels beyond `num_classes`.
    """
    checked = [checked_objects(t, f"targets[{i}]", num_classes) for i, t in enumerate(targets)]
    refuse_crowds(checked)
    for i, target in enumerate(checked):
        name = f"targets[{i}]['boxes']"
        boxes = check_boxes(target["boxes"].float(), name)  # 1e300 is infinite in float32
        check_sides(boxes, name, "trained on")
        checked[i] = {"boxes": boxes, "labels": target["labels"]}
    return checked


def checked_objects(
    entry: Target, name: str, num_classes: int | None = None, keys: Sequence[str] = KEYS
) -> dict[str, Tensor]:
    """`keys` of an image's target or detections, boxes as floats, labels int64; and `iscrowd`."""
    if not isinstance(entry, Mapping) or not set(keys) <= set(entry):
        got = list(entry) if isinstance(entry, Mapping) else type(entry).__name__
        raise ValueError(f"{name} must have {list(keys)}, got {got}")
    objects = {"boxes": check_boxes(entry["boxes"], f"{name}['boxes']")}
    for key in [*keys[1:], *({"iscrowd"} & set(entry))]:
        check_numbers(entry[key], f"{name}['{key}']", len(objects["boxes"]))
        objects[key] = entry[key]
    objects["labels"] = _checked_labels(entry["labels"], f"{name}['labels']", num_classes)
    return objects


def _checked_labels(labels: Tensor, name: str, num_classes: int | None) -> Tensor:
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    if len(labels) and not whole:  # torch.tensor([]) holds no float that could be wrong
        raise ValueError(f"{name} must be integers, got {labels.dtype}")
    labels = labels.long()
    unknown = labels < 0 if num_classes is None else (labels < 0) | (labels >= num_classes)
    last = "" if num_classes is None else num_classes - 1
    refuse_rows(unknown, labels, f"{name} must lie in 0..{last}, got {labels.tolist()}")
    return labels


def coco_annotations(entries: Sequence[Target]) -> list[dict]:
    """COCO's row of every box of `entries` (checked, one per image); category_id is the label."""
    rows = []  # ids start at 1: pycocotools takes 0 for "not matched"
    for image_id, entry in enumerate(entries):
        columns = {key: values.tolist() for key, values in entry.items()}
        for i, (x1, y1, x2, y2) in enumerate(columns["boxes"]):
            row = {"id": len(rows) + 1, "image_id": image_id, "category_id": columns["labels"][i]}
            row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            row["iscrowd"] = int("iscrowd" in columns and columns["iscrowd"][i] != 0)
            rows.append(row | ({"score": columns["scores"][i]} if "scores" in columns else {}))
    return rows


def refuse_crowds(targets: Sequence[Target]) -> None:
    """Raise ValueError if the `iscrowd` of a target is set anywhere."""
    for i, target in enumerate(targets):
        if "iscrowd" in target:
            message = f"targets[{i}]['iscrowd'] must not be set: leave crowds out, box and label"
            refuse_rows(target["iscrowd"] != 0, target["iscrowd"], message)


class PhotoDataset(Dataset):
    """Photographs of any size: `self[i]` is (image (3, H, W) uint8, target), read when asked for.

    `files`, `targets`, `classes` are lists; `said` has a sentence for all that was left out.
    """

    def __init__(self, files: list, targets: list, classes: list, said: Sequence[str] = ()) -> None:
        self.files, self.targets, self.classes, self.said = files, targets, classes, list(said)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        with Image.open(self.files[index]) as picture:
            image = as_rgb(picture, self.files[index].name)
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), self.targets[index]


def read_folder(
    folder: str | Path, classes: Sequence[str] | None = None, drop: bool = False
) -> PhotoDataset:
    """The photographs below `folder` and their objects, in COCO's, Pascal VOC's or YOLO's form.

    What is wrong (a box that is reversed, empty, NaN, over the border or of no known class, a file
    that cannot be read) is listed in a ValueError, by file and line. With `drop` it is left out,
    and boxes are cut at the border. `classes`: the names, where the files do not say them.
    """
    folder, wrong, places = Path(folder), [], {}
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*.*")) if path.is_file()]
    paths = [path for path in paths if not any(part[0] == "." for part in path.parts)]  # hidden
    photos = [path for path in paths if path.suffix.lower() in PHOTOS]
    for path in photos:
        places.setdefault(path.stem, []).append(path)
    for reader, ends in FORMS.items():
        found, names, said = {}, [], []
        own = [path for path in paths if path.suffix.lower() in ends]
        for path in own:
            try:
                entries = reader((folder / path).read_text("utf-8-sig"), path.as_posix(), names)
            except Exception as error:  # JSON, XML and YAML have each their own
                wrong.append(f"{path.as_posix()}: cannot be read, {error!r}")
                continue
            for name, stated, lines in entries:
                photo = _photo(name, places)
                if photo:
                    found.setdefault(photo, (stated, []))[1].extend(lines)
                else:  # of a text it is said only: it may be a README
                    lost = f"{path.as_posix()}: there is no photograph {name}"
                    (said if reader is _yolo else wrong).append(lost)
        if found:
            if reader is _yolo:  # where there is no text, there is no object
                found |= {photo: (UNIT, []) for photo in photos if photo not in found}
            rest = [path for path in paths if path not in found and path not in own]
            said += [f"{path.as_posix()}: skipped" for path in rest]
            return _dataset(folder, found, list(classes or names or _met(found)), said, wrong, drop)
    message = f"{folder} must hold photographs and .json, .xml or .txt files about them"
    raise ValueError("\n".join([message, *wrong[:20]]))


def write_coco(dataset: PhotoDataset, path: str | Path) -> None:
    """Write COCO's JSON about `dataset` to `path`; the photographs stay where they are."""
    images = []
    for i, file in enumerate(dataset.files):
        name = Path(os.path.relpath(file, Path(path).parent)).as_posix()
        images.append({"id": i, "file_name": name} | dict(zip(("width", "height"), _size(file))))
    content = {"images": images, "annotations": coco_annotations(dataset.targets)}
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(dataset.classes)]
    Path(path).write_text(json.dumps(content), encoding="utf-8")


def _dataset(
    folder: Path, found: Mapping[Path, tuple], names: list, said: list, wrong: list, drop: bool
) -> PhotoDataset:
    """What is right of `found`; ValueError about what is `wrong`, unless it is to be dropped."""
    files, targets = [], []
    for photo, (stated, lines) in found.items():
        try:
            size = _size(folder / photo)
        except OSError as error:
            wrong.append(f"{photo.as_posix()}: cannot be read, {error}")
            continue
        in_units = stated == UNIT
        if all(stated) and stated not in (UNIT, size):
            upright = f"upright it has {size} pixels, its file says {stated}"
            wrong.append(f"{photo.as_posix()}: {upright}")
        known = {str(i) if in_units else name: i for i, name in enumerate(names)}
        kept = []
        for where, name, box, ignored in lines:
            box = [n * side for n, side in zip(box, size * 2)] if in_units else box
            fault = _fault(*box, *size) if name in known else f"there is no class {name!r}"
            wrong += [f"{where}: {fault}"] if fault else []
            if fault in ("", OVER):
                kept.append([*box, known[name], ignored])
        columns = torch.tensor(kept, dtype=torch.float64).reshape(-1, 6)
        boxes = clip_boxes_to_image(columns[:, :4].float(), size[::-1])
        labels, crowds = columns[:, 4:].long().unbind(dim=1)
        files.append(folder / photo)
        targets.append({"boxes": boxes, "labels": labels, "iscrowd": crowds})
    if wrong and not drop:
        listed = "\n".join([*wrong[:20], *["..."] * (len(wrong) > 20)])
        raise ValueError(f"{len(wrong)} things are wrong; drop=True leaves them out:\n{listed}")
    return PhotoDataset(files, targets, names, [*said, *wrong])


def _fault(x1: float, y1: float, x2: float, y2: float, width: int, height: int) -> str:
    """What is wrong with a box, or nothing; a pixel over the border is only rounding."""
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        return "its box is not of four finite numbers"
    if x1 >= x2 or y1 >= y2:
        return f"its box {x1:g}, {y1:g}, {x2:g}, {y2:g} is reversed or empty"
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return f"its box {x1:g}, {y1:g}, {x2:g}, {y2:g} lies outside the photograph"
    return OVER if min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1 else ""


def _size(file: Path) -> tuple[int, int]:
    """Width and height of a photograph, upright."""
    with Image.open(file) as picture:
        sideways = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return picture.size[::-1] if sideways else picture.size


def _photo(name: str, places: Mapping[str, list[Path]]) -> Path | None:
    """The one photograph that `name` can mean, whatever its suffix: the folders decide."""
    parts = set(Path(name).parts)
    near = [(len(parts & {*photo.parts}), photo) for photo in places.get(Path(name).stem, ())]
    best = [photo for shared, photo in near if shared == max(near)[0]]
    return best[0] if len(best) == 1 else None


def _numbers(values: Iterable) -> list[float]:
    """Four numbers; NaN each where there are not four."""
    try:
        one, two, three, four = map(float, values)
    except (TypeError, ValueError):
        return [math.nan] * 4
    return [one, two, three, four]


def _coco(text: str, where: str, names: list[str]) -> list[Found]:
    content = json.loads(text)
    if not isinstance(content, dict) or not {"images", "annotations"} <= set(content):
        return []
    named = {row["id"]: row["name"] for row in content["categories"]}
    names += [named[number] for number in sorted(named) if named[number] not in names]
    images = {}
    for row in content["images"]:
        size = (row.get("width") or 0, row.get("height") or 0)
        images[row["id"]] = (row["file_name"], size, [])
    for row in content["annotations"]:
        x, y, w, h = _numbers(row.get("bbox"))
        line = (f"{where}, annotation {row.get('id')}", named.get(row.get("category_id"), "?"))
        ignored = bool(row.get("iscrowd") or row.get("ignore"))
        image = images.setdefault(row["image_id"], (f"with the id {row['image_id']}", (0, 0), []))
        image[2].append((*line, (x, y, x + w, y + h), ignored))
    return list(images.values())


def _voc(text: str, where: str, names: list[str]) -> list[Found]:
    root = ElementTree.fromstring(text)
    before = itertools.accumulate(part.count("\n") for part in text.split("<object>"))
    width, height = (int(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    lines = []
    for number, thing in zip(before, root.iter("object")):
        box = _numbers(thing.findtext(f"bndbox/{side}") for side in "xmin ymin xmax ymax".split())
        ignored = thing.findtext("difficult", "0").strip() == "1"
        line = (f"{where}, line {number + 1}", thing.findtext("name", "").strip())
        lines.append((*line, box, ignored))
    said = Path(root.findtext("filename") or where)  # often it tells of another machine
    name = Path(where).with_name(said.name if said.stem == Path(where).stem else Path(where).name)
    return [(name.as_posix(), (width, height), lines)] if root.tag == "annotation" else []


def _yolo(text: str, where: str, names: list[str]) -> list[Found]:
    listed = text.strip().splitlines() if Path(where).name in ("classes.txt", "obj.names") else []
    if Path(where).suffix in (".yaml", ".yml"):
        content = yaml.safe_load(text)
        listed = content.get("names") if isinstance(content, dict) else []
        listed = listed.values() if isinstance(listed, dict) else listed or []
    names[:] = names or map(str, listed)
    lines = []
    for number, words in enumerate(map(str.split, text.splitlines()), 1):
        if words:
            x, y, w, h = _numbers(words[1:])
            box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            lines.append((f"{where}, line {number}", words[0], box, False))
    return [(where, UNIT, lines)] if where.endswith(".txt") and not listed else []


# Of each form, what reads a file, and which files it reads.
FORMS = {_coco: [".json"], _voc: [".xml"], _yolo: [".txt", ".yaml", ".yml", ".names"]}


def _met(found: Mapping[Path, tuple]) -> list[str]:
    """The classes where no list says them: names in their order, or all numbers in use."""
    names = {line[1] for _, lines in found.values() for line in lines}
    numbers = [int(name) for name in names if name.isdecimal()]
    return [str(number) for number in range(max(numbers) + 1)] if numbers else sorted(names)
