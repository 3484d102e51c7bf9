"""helpers.student: the course without the solutions of its exercises."""

import os
import re
import shutil
import subprocess
import sys
import types

import pytest

from helpers import lessons as tool
from helpers.records import ROOT
from tools.check import broken_links, text_of
from tools.publish import publish
from tools.student import FOLDED, write_student_edition

NAMES = [path.name for path in tool.notebooks()]
ALONE = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}


def python(folder, *words):
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=ALONE, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def edition(tmp_path_factory):
    """The student edition of the course, outside of the clone."""
    folder = tmp_path_factory.mktemp("students") / "an edition"
    return types.SimpleNamespace(folder=folder, written=write_student_edition(folder))


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_all_notebooks_are_there(edition):
    assert [path.name for path in edition.written] == NAMES == sorted(NAMES)
    assert {path.parent for path in edition.written} == {edition.folder / "notebooks"}


@pytest.mark.parametrize("name", NAMES)
def test_only_the_solutions_are_missing(edition, name):
    course = tool.read(ROOT / "notebooks" / name)
    student = tool.read(edition.folder / "notebooks" / name)
    solutions, checks = tagged(course, "solution"), tagged(course, "check")
    kept = [cell for cell in course.cells if cell not in solutions]
    assert len(kept) == len(student.cells) < len(course.cells)
    for cell, before in zip(student.cells, kept):
        folded = {"jupyter": {"source_hidden": True}} if before in checks else {}
        assert (cell.id, cell.metadata) == (before.id, before.metadata | folded)
        assert cell.source == before.source.replace(FOLDED, "")
        for output, old in zip(cell.get("outputs", []), before.get("outputs", []), strict=True):
            assert output.get("data", output.get("text")) == old.get("data", old.get("text"))
    counts = [cell.execution_count for cell in student.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_exercises_show_that_they_are_still_to_do(edition, name):
    student = tool.read(edition.folder / "notebooks" / name)
    exercises = [cell for cell in tagged(student, "exercise") if cell.cell_type == "code"]
    assert exercises and tagged(student, "check")
    assert all(cell.outputs[-1].text.startswith("… still to do") for cell in exercises)
    assert "solutions are folded" not in "\n".join(text_of(student)).lower()


def test_it_keeps_the_rules_by_its_own_means(edition):
    """So its links lead somewhere, and its badges can be stamped with an address of its own."""
    done = python(edition.folder, "-m", "helpers.notebooks", "check")
    assert done.stdout == "no problems\n", done.stdout + done.stderr
    text = (edition.folder / "README.md").read_text(encoding="utf-8")
    assert broken_links(text, edition.folder) == []
    assert all(f"](notebooks/{name})" in text for name in NAMES)
    assert "[05 · YOLO: detection as one regression](notebooks/05_yolo.ipynb)" in text


def test_it_can_be_published_as_a_course_of_its_own(edition, tmp_path):
    url = "https://github.com/some-one/for-students"
    shutil.copytree(edition.folder, tmp_path / "edition")
    changed = publish(url, tmp_path / "edition")
    assert [path.name for path in changed] == [*NAMES, "setup_cell.py"]
    for path in changed[:-1]:
        notebook = tool.read(path)
        assert "/github/some-one/for-students/blob/main/notebooks/" in notebook.cells[0].source
        assert f'REPOSITORY = "{url}"\n' in notebook.cells[1].source


def test_it_carries_the_tools_but_not_the_tests(edition):
    carried = {path.name for path in edition.folder.iterdir()}
    assert {"helpers", "data", "lectures", "requirements.txt", "LICENSE"} <= carried
    assert not carried & {"tests", ".git", "runs", "CONTRIBUTING.md"}
    assert not list(edition.folder.rglob("__pycache__"))
    assert os.access(edition.folder / "lectures", os.X_OK) == os.access(ROOT / "lectures", os.X_OK)


STUB = 'def start(): print("start")\ndef install_missing(): print("install")\n'


@pytest.mark.parametrize("place", [".", "clone/runs"], ids=["outside", "inside"])
def test_the_setup_cell_finds_the_edition(edition, tmp_path, place):
    """Inside a clone, too, the nearest folder counts: nothing of the clone is imported."""
    (tmp_path / "clone" / "helpers").mkdir(parents=True)
    (tmp_path / "clone" / "helpers" / "setup.py").write_text("raise ImportError")
    folder = tmp_path / place / "edition"
    shutil.copytree(edition.folder, folder)
    (folder / "helpers" / "setup.py").write_text(STUB)
    code = tool.read(folder / "notebooks" / NAMES[0]).cells[1].source + "\nprint(root)"
    done = python(folder / "notebooks", "-c", code)
    assert done.stdout.splitlines() == ["start", str(folder.resolve())], done.stderr


# ---------------------------------------------------------------- where it may be written


@pytest.fixture
def course(tmp_path):
    """A course with one notebook, as far as the writer looks at it."""
    root = tmp_path / "course"
    for folder in ("helpers", "notebooks"):
        (root / folder).mkdir(parents=True)
    (root / "helpers" / "setup.py").write_text(STUB)
    shutil.copy(ROOT / "notebooks" / NAMES[0], root / "notebooks")
    return root


@pytest.mark.parametrize("place", ["new/and/deep", "helpers/inside", "notebooks/inside"])
def test_a_new_folder_may_lie_anywhere(course, place):
    (notebook,) = write_student_edition(course / place, course)
    assert notebook == course / place / "notebooks" / NAMES[0]
    copied = {p.relative_to(course / place).as_posix() for p in (course / place).rglob("*.py")}
    assert copied == {"helpers/setup.py"}


def test_an_empty_folder_may_be_filled_once(course, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_student_edition(out, course)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    with pytest.raises(ValueError, match="out is not a new or empty folder; nothing was written"):
        write_student_edition(out, course)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}


def test_a_file_is_no_folder(course, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="not a new or empty folder"):
        write_student_edition(tmp_path / "out", course)
    assert (tmp_path / "out").read_text() == "mine"


def test_nothing_is_written_from_a_notebook_that_was_not_executed(course, tmp_path):
    path = course / "notebooks" / NAMES[0]
    text = path.read_text(encoding="utf-8")
    text = re.sub(r'"execution_count": 3\b', '"execution_count": null', text)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"00_boxes_and_ap.*cell \[3\] was not executed"):
        write_student_edition(tmp_path / "out", course)
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path, capsys):
    out = tmp_path / "out"
    assert tool.main(["student", str(out)]) == 0
    assert capsys.readouterr().out == f"{len(NAMES)} notebooks are in {out}\n"
    assert tool.main(["student", str(out)]) == 1
    assert capsys.readouterr().err == f"{out} is not a new or empty folder; nothing was written\n"
    (tmp_path / "file").touch()
    assert tool.main(["student", str(tmp_path / "file" / "out")]) == 1  # the system's own reason
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], [""], ["a", "b"]])
def test_usage(arguments, capsys):
    assert tool.main(["student", *arguments]) == 2
    assert "student OUT" in capsys.readouterr().err
