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
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import torch
import yaml
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from helpers.boxes import check_boxes, check_column, check_sides, refuse_rows
from helpers.photos import as_rgb

Target = Mapping[str, Tensor]
KEYS = ("boxes", "labels")
PHOTOS = frozenset(".jpg .jpeg .png .bmp .tif .tiff .webp".split())
# Folders that tell a format's parts apart: images/a.jpg and labels/a.txt belong together.
LAYOUT = frozenset("images labels annotations jpegimages".split())
UPRIGHT = 0x0112, 5  # EXIF's number for the orientation; from 5 on width and height change places
OVER = "its box reaches over the border"
Line = tuple[str, str, Sequence[float], bool]  # where it stands, class, box xyxy, to be ignored?
Found = tuple[str, list[Line], Sequence | None]  # photograph, lines, stated (width, height)


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
        if target["boxes"].dtype == torch.float64:  # 1e300 is infinite in float32
            target["boxes"] = check_boxes(target["boxes"].float(), name)
        check_sides(target["boxes"], name, "trained on")
        target.pop("iscrowd", None)
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
        check_column(entry[key], f"{name}['{key}']", len(objects["boxes"]))
        if key != "labels" and not torch.isfinite(entry[key]).all():
            raise ValueError(f"{name}['{key}'] must be finite, got {entry[key].tolist()}")
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


def forests() -> Path:
    """The folder of aerial photographs in the package deepforest, which is not imported."""
    package = find_spec("deepforest")
    if package is None:
        cure = "python -m pip install --no-deps deepforest==2.1.0"
        raise ModuleNotFoundError(f"the photographs of forests are in a package; to get it: {cure}")
    return Path(package.submodule_search_locations[0], "data")


def read_folder(
    folder: str | Path, classes: Sequence[str] | None = None, drop: bool = False
) -> PhotoDataset:
    """The photographs below `folder` and their objects, in COCO's, Pascal VOC's or YOLO's form.

    What is wrong (a box that is reversed, empty, NaN, over the border or of no known class, a file
    that cannot be read) is listed in a ValueError, by file and line. With `drop` it is left out,
    and boxes are cut at the border. `classes`: the names, where the files do not say them.
    """
    folder = Path(folder)
    names = {path: path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.*"))}
    seen = {path: name for path, name in names.items() if "/." not in f"/{name}" and path.is_file()}
    photos = {_key(name): path for path, name in seen.items() if path.suffix.lower() in PHOTOS}
    for end, reader in {".json": _coco, ".xml": _voc, ".txt": _yolo}.items():
        called = list(classes or (_yolo_classes(seen) if end == ".txt" else ()))
        used, wrong, found = set(), [], {}
        for path in [path for path in seen if path.suffix.lower() == end]:
            try:
                entries = reader(path.read_text("utf-8-sig"), seen[path], photos, called)
            except (OSError, ValueError, LookupError, TypeError, ElementTree.ParseError) as error:
                wrong.append(f"{seen[path]}: cannot be read, {error!r}")
                continue
            for name, lines, size in entries:
                photo = _photo(name, photos)
                if photo is None:
                    wrong.append(f"{seen[path]}: there is no photograph {name}")
                    continue
                used |= {path, photo}
                found[photo] = (found.get(photo, [[]])[0] + lines, size)
        if end == ".txt" and found:  # where YOLO has no file, there is no object
            found |= {photo: ([], None) for photo in photos.values() if photo not in found}
        said = [f"{name}: skipped" for path, name in seen.items() if path not in {*used, *found}]
        if found:
            if not called:  # VOC says no more than these, nor does YOLO without a list
                used = {line[1] for lines, _ in found.values() for line in lines}
                last = max(map(int, used), default=0) if end == ".txt" else -1
                called = [str(number) for number in range(last + 1)] or sorted(used)
            return _dataset(found, called, said, wrong, drop)
    raise ValueError(f"{folder} must hold photographs and .json, .xml or .txt files about them")


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
    found: Mapping[Path, tuple], classes: list, said: list, wrong: list, drop: bool
) -> PhotoDataset:
    """What is right of `found`; ValueError about what is `wrong`, unless it is to be dropped."""
    files, targets, wrong = [], [], list(wrong)
    for photo, (lines, stated) in found.items():
        try:
            size = _size(photo)
        except OSError as error:
            wrong.append(f"{photo.name}: cannot be read, {error}")
            continue
        if stated and tuple(stated) != size:
            wrong.append(f"{photo.name}: upright it has {size} pixels, its file says {stated}")
        faults = [_fault(line, size, classes) for line in lines]
        wrong += [f"{line[0]}: {fault}" for line, fault in zip(lines, faults) if fault]
        kept = [line for line, fault in zip(lines, faults) if not fault or fault == OVER]
        boxes = torch.tensor([box for _, _, box, _ in kept], dtype=torch.float32).reshape(-1, 4)
        files.append(photo)
        targets.append(
            {
                "boxes": boxes.clamp(min=0).minimum(torch.tensor(size * 2, dtype=torch.float32)),
                "labels": torch.tensor([classes.index(line[1]) for line in kept]).long(),
                "iscrowd": torch.tensor([line[3] for line in kept]).long(),
            }
        )
    if wrong and not drop:
        listed = "\n".join([*wrong[:20], *["..."] * (len(wrong) > 20)])
        raise ValueError(f"{len(wrong)} things are wrong; drop=True leaves them out:\n{listed}")
    return PhotoDataset(files, targets, classes, [*said, *wrong])


def _fault(line: Line, size: tuple[int, int], classes: Sequence[str]) -> str:
    """What is wrong with a line, or nothing; a pixel over the border is only rounding."""
    _, name, (x1, y1, x2, y2), _ = line
    if name not in classes:
        return f"there is no class {name!r}"
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        return "its box is not of four finite numbers"
    if x1 >= x2 or y1 >= y2:
        return f"its box {x1, y1, x2, y2} is reversed or empty"
    if x1 >= size[0] or y1 >= size[1] or x2 <= 0 or y2 <= 0:
        return f"its box {x1, y1, x2, y2} lies outside the photograph"
    over = min(x1, y1) < -1 or x2 > size[0] + 1 or y2 > size[1] + 1
    return OVER if over else ""


def _size(file: Path) -> tuple[int, int]:
    """Width and height of a photograph, upright."""
    with Image.open(file) as picture:
        sideways = picture.getexif().get(UPRIGHT[0], 1) >= UPRIGHT[1]
        return picture.size[::-1] if sideways else picture.size


def _key(name: str) -> str:
    """What a photograph and its annotations have in common."""
    parts = Path(name).with_suffix("").parts
    return "/".join(part for part in parts if part.lower() not in LAYOUT)


def _photo(name: str, photos: Mapping[str, Path]) -> Path | None:
    """The photograph in this place, or the only one of this name."""
    same = [path for path in photos.values() if path.stem == Path(name).stem]
    return photos.get(_key(name)) or (same[0] if len(same) == 1 else None)


def _numbers(values: Iterable) -> list[float]:
    """Four numbers; NaN each where there are not four."""
    try:
        one, two, three, four = map(float, values)
    except (TypeError, ValueError):
        return [math.nan] * 4
    return [one, two, three, four]


def _coco(text: str, where: str, photos: Mapping, classes: list) -> list[Found]:
    content = json.loads(text)
    if not isinstance(content, dict) or not {"images", "annotations"} <= set(content):
        return []
    named = {row["id"]: row["name"] for row in content["categories"]}
    classes += [named[number] for number in sorted(named) if named[number] not in classes]
    images = {row["id"]: row for row in content["images"]}
    lines = {number: [] for number in images}
    for row in content["annotations"]:
        x, y, w, h = _numbers(row.get("bbox", ()))
        line = (f"{where}, annotation {row.get('id')}", named.get(row["category_id"], "?"))
        crowd = bool(row.get("iscrowd") or row.get("ignore"))
        lines.setdefault(row["image_id"], []).append((*line, (x, y, x + w, y + h), crowd))
    sizes = {
        i: [image.get(side) or 0 for side in ("width", "height")] for i, image in images.items()
    }
    strangers = [(f"with id {i}", own, None) for i, own in lines.items() if i not in images]
    return strangers + [
        (images[i]["file_name"], lines[i], all(sizes[i]) and sizes[i]) for i in images
    ]


def _voc(text: str, where: str, photos: Mapping, classes: list) -> list[Found]:
    root = ElementTree.fromstring(text)
    if root.tag != "annotation":
        return []
    before = [part.count("\n") for part in text.split("<object>")]
    size = [int(root.findtext(f"size/{side}", "0")) for side in ("width", "height")]
    lines = []
    for number, thing in zip(itertools.accumulate(before), root.iter("object")):
        corners = [thing.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        ignored = thing.findtext("difficult", "0").strip() == "1"
        line = (f"{where}, line {number + 1}", thing.findtext("name", "").strip())
        lines.append((*line, _numbers(corners), ignored))
    own = Path(where).with_name(Path(root.findtext("filename") or where).name).as_posix()
    return [(own if _photo(own, photos) else where, lines, all(size) and size)]


def _yolo(text: str, where: str, photos: Mapping, classes: list) -> list[Found]:
    photo = photos.get(_key(where))
    if photo is None:  # classes.txt, README.txt, ...
        return []
    width, height = _size(photo)
    lines = []
    for number, words in enumerate(map(str.split, text.splitlines()), 1):
        if not words:
            continue
        index = int(words[0])
        x, y, w, h = _numbers(words[1:5])
        box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        name = classes[index] if 0 <= index < len(classes) else str(index)
        pixels = [v * side for v, side in zip(box, (width, height) * 2)]
        lines.append((f"{where}, line {number}", name, pixels, False))
    return [(where, lines, None)]


def _yolo_classes(seen: Mapping[Path, str]) -> list[str]:
    """The names in data.yaml or classes.txt, or else the numbers in use."""
    for path in seen:
        if path.suffix in (".yaml", ".yml"):
            content = yaml.safe_load(path.read_text("utf-8"))
            names = content.get("names") if isinstance(content, dict) else None
            if names:
                return [str(n) for n in (names.values() if isinstance(names, dict) else names)]
        if path.name in ("classes.txt", "obj.names"):
            return path.read_text("utf-8").split()
    return []
