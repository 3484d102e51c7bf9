"""README.md: its commands, its links and its table of results."""

import json
import re
import shlex

import pytest

from helpers.lessons import notebooks
from helpers.records import ROOT, make_row, write_records
from tools import __main__ as command
from tools import readme
from tools.check import SETUP_CELL, broken_links
from tools.publish import present_address

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^ *```(?:bash|powershell)\n(.*?)^ *```", TEXT, re.DOTALL | re.MULTILINE)
METRICS = {"AP": 0.5, "AP50": 0.8, "AP75": 0.6, "AP_small": 0.25, "AP_medium": 0.5}


def row(notebook="05_yolo", model="YOLO", variant="main", **changes):
    made = make_row(
        notebook,
        model,
        variant,
        METRICS,
        parameters=1_234_567,
        steps=3,
        train_seconds=61.4,
        ms_per_image=2.04,
        device="cpu",
        seed=0,
    )
    return {**made, "threads": 2, **changes}


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of the test's own, of which the command is, too."""
    monkeypatch.setattr(command, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    (tmp_path / "data" / "reference").mkdir(parents=True)
    return tmp_path


def write(course, *rows):
    return write_records(rows[0]["notebook"], rows, course / "data" / "reference")


def table(course):
    """The table's cells, row by row and without the header, and the notes below it."""
    text, problems = readme.results(course)
    assert problems == []
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert cells[0] == list(readme.HEADER) and {len(line) for line in cells} == {len(cells[0])}
    return cells[2:], [line for line in text.splitlines() if line and not line.startswith("|")]


# ---------------------------------------------------------------- the real README


def test_the_table_is_up_to_date():
    made, problems = readme.results()
    assert problems == []
    assert readme.updated(TEXT, made) == TEXT, "run python -m tools readme"


def test_the_two_commands():
    usage = (ROOT / "lectures").read_text()
    assert [block.strip() for block in BLOCKS[:2]] == ["./lectures open", "./lectures test"]
    assert set(re.findall(r"\./lectures (\w+)", TEXT)) <= set(
        re.findall(r"\./lectures (\w+) ", usage)
    )
    # The same system packages as in CI, and those that the script asks for.
    (packages,) = re.findall(r"apt-get install -y (.+)", "\n".join(BLOCKS))
    assert packages == "libgl1 libglib2.0-0"
    for script in (usage, (ROOT / ".ci" / "run").read_text()):
        assert packages in script
    assert "python3-venv" in usage and "python3-venv" in TEXT


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_commands_name_what_exists(number):
    for line in BLOCKS[number].strip().splitlines():
        for word in shlex.split(line.replace("\\", "/")):
            path = word.split("=")[-1]
            if path.endswith((".ipynb", ".txt", ".yml", ".py")) or word == "./lectures":
                assert (ROOT / path).is_file(), line
        clone = re.search(r"git clone (\S+)", line)
        assert clone is None or clone[1].endswith(f"github.com/{present_address(SETUP_CELL)}")
        environment = re.search(r"conda activate (\S+)", line)
        if environment:
            assert f"name: {environment[1]}\n" in (ROOT / "environment.yml").read_text()


def test_commands_that_are_named_exist():
    for path in ("README.md", "CONTRIBUTING.md", "data/README.md"):
        text = (ROOT / path).read_text("utf-8")
        for name in re.findall(r"python -m tools (\w+)", text):
            assert name in command.COMMANDS, f"{path}: {name}"
        for name in re.findall(r"python -m ((?:helpers|tools|experiments)[.\w]*)", text):
            places = [ROOT / f"{name.replace('.', '/')}{end}" for end in (".py", "/__main__.py")]
            assert any(place.is_file() for place in places), f"{path}: python -m {name}"


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_every_notebook_is_linked_with_its_badge(path):
    (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {path.stem[:2]} |")]
    assert f"](notebooks/{path.name})" in line and "to come" not in line
    assert f"/github/{present_address(SETUP_CELL)}/blob/main/notebooks/{path.name})" in line


def test_the_map_names_all_eleven():
    assert re.findall(r"^\| (\d\d) \|", TEXT, re.MULTILINE) == [f"{i:02}" for i in range(11)]


# test_check.py follows the links of README.md and CONTRIBUTING.md.
def test_the_data_card_links_lead_somewhere():
    assert broken_links((ROOT / "data" / "README.md").read_text("utf-8"), ROOT / "data") == []


# ---------------------------------------------------------------- made-up records


def test_one_row_per_main_model(course):
    write(course, row(), row(variant="no prior", AP=0.1), row(model="YOLO | wide <!--"))
    write(course, row("06_ssd", "SSD", AP_large=None, ms_per_image=None, device="cuda", threads=1))
    lines, notes = table(course)
    ap = ["0.500", "0.800", "0.600", "0.250", "0.500", "–"]
    cpu = ["1,234,567", "61", "2.0", "cpu, 2 threads", "1"]
    assert lines[0] == ["05", "YOLO", *ap, *cpu]
    assert lines[1] == ["05", r"YOLO \| wide &lt;!--", *ap, *cpu]
    assert lines[2] == ["06", "SSD", *ap, "1,234,567", "61", "–", "cuda, 1 thread", "1"]
    assert len(lines) == 3 and notes == []


def test_seeds_are_averaged(course):
    values = (0.4, 0.5, 0.6)
    write(course, *(row(seed=s, AP=ap, train_seconds=60.0 + s) for s, ap in enumerate(values)))
    ((_, _, ap, ap50, *_, seconds, _, device, seeds),), notes = table(course)
    assert ap == "0.500 ± 0.100"  # n - 1 in the denominator; with n it were 0.082
    assert ap50 == "0.800 ± 0.000"
    assert (seconds, device, seeds) == ("61", "cpu, 2 threads", "3")
    assert len(notes) == 1 and "sample standard deviation" in notes[0]


def test_a_value_that_one_seed_lacks_is_averaged_over_the_others(course):
    write(course, row(AP_small=None), row(seed=1, AP_small=0.3, threads=4))
    ((*_, device, _),) = lines = table(course)[0]
    assert lines[0][5] == "0.300" and device == "cpu, 2 threads / cpu, 4 threads"


def test_devices_are_not_averaged(course):
    write(course, row(), row(seed=1, device="cuda", AP=0.7))
    lines, _ = table(course)
    assert [line[2] for line in lines] == ["0.500", "0.700"]


def test_rcnn_has_its_own_protocol(course):
    write(course, row("01_rcnn", "R-CNN"))
    write(course, row())
    lines, (note,) = table(course)
    assert [line[1] for line in lines] == ["R-CNN<sup>1</sup>", "YOLO"]
    assert note.startswith("<sup>1</sup> R-CNN") and "50" in note and "ImageNet" in note


def test_a_notebook_that_exists_is_linked(course):
    (course / "notebooks").mkdir()
    (course / "notebooks" / "05_yolo.ipynb").touch()
    write(course, row())
    assert table(course)[0][0][0] == "[05](notebooks/05_yolo.ipynb)"


@pytest.mark.parametrize("empty", ["no folder", "no file", "no row"])
def test_without_records_one_line_says_so(course, empty):
    if empty == "no folder":
        (course / "data" / "reference").rmdir()
    if empty == "no row":
        (course / "data" / "reference" / "05_yolo.json").write_text("[]")
    assert readme.results(course) == (readme.NOTHING, [])


def test_bad_files_are_named_and_the_rest_is_shown(course, capsys):
    good = write(course, row())
    folder = good.parent
    (folder / "06_ssd.json").write_text(good.read_text()[:-30])
    (folder / "07_fcos.json").write_text(good.read_text())
    (folder / "08_detr.json").write_bytes(b"\xff\xfe")
    (folder / "latency.json").write_text(json.dumps({"name": "no lecture's"}))
    (folder / "04_fpn_retinanet.json").mkdir()
    write(course, row("03_faster_rcnn", "Faster R-CNN", "no anchors"))
    assert command.main(["readme"]) == 0
    said = capsys.readouterr().err.splitlines()
    names = ["04_fpn_retinanet", "06_ssd", "07_fcos", "08_detr", "03_faster_rcnn"]
    assert [line.split(": ")[1] for line in said] == [f"{name}.json" for name in names]
    assert "variant main" in said[-1]
    assert "| 05 | YOLO |" in (course / "README.md").read_text()


def test_a_seed_that_occurs_twice_counts_once(course):
    path = write(course, row())
    path.write_text(json.dumps([row(), row(AP=0.9)]))
    text, (problem,) = readme.results(course)
    assert "| 0.500 |" in text and "second row of YOLO, seed 0" in problem


# ---------------------------------------------------------------- the command


def test_the_table_is_written_once_and_checked(course, capsys):
    write(course, row())
    path = course / "README.md"
    old = path.read_bytes()
    assert command.main(["readme", "--check"]) == 1
    assert path.read_bytes() == old and "stale" in capsys.readouterr().err
    assert command.main(["readme"]) == 0
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert command.main(["readme", "--check"]) == command.main(["readme"]) == 0
    assert path.read_text() == text
    assert sorted(p.name for p in course.iterdir()) == ["README.md", "data"]  # nothing temporary
    write(course, row(AP=0.9))
    assert command.main(["readme", "--check"]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        readme.BEGIN,
        f"{readme.END}\n{readme.BEGIN}",
        f"{readme.BEGIN}\n{readme.BEGIN}\n{readme.END}",
    ],
)
def test_markers_must_stand_once_and_in_order(course, capsys, text):
    (course / "README.md").write_text(text)
    assert command.main(["readme"]) == 1
    assert "must hold once" in capsys.readouterr().err
    assert (course / "README.md").read_text() == text


def test_no_readme(course, capsys):
    (course / "README.md").unlink()
    assert command.main(["readme"]) == 1 and "README.md" in capsys.readouterr().err
