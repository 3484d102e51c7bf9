"""tools.student: the course without the solutions of its exercises."""

import os
import re
import shutil
import subprocess
import sys
import types

import pytest
from shared import PATIENCE, imported_exercises
from toy_notebooks import write

from helpers import lessons as tool
from helpers.records import ROOT
from tools import student as module
from tools.check import broken_links, text_of
from tools.publish import publish
from tools.student import CARRIED, FOLDED, LEFT_OUT, write_student_edition

NAMES = [path.name for path in tool.notebooks()]
ALONE = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}


def python(folder, *words):
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=folder, env=ALONE, capture_output=True, text=True, timeout=PATIENCE
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
    assert len(kept) == len(student.cells)
    assert bool(solutions) == (not imported_exercises(ROOT / "notebooks" / name))
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
    on_the_page = not imported_exercises(ROOT / "notebooks" / name)
    assert exercises and bool(tagged(student, "check")) == on_the_page
    assert all(cell.outputs[-1].text.startswith("… still to do") for cell in exercises)
    assert "solutions are folded" not in "\n".join(text_of(student)).lower()


def test_solutions_of_the_second_edition_stay_at_home(edition):
    """Checks and hints are there; what q1.solution() would print is not."""
    assert (edition.folder / "helpers" / "exercises" / "yolo.py").exists()
    assert not list(edition.folder.rglob("solutions"))
    code = "from helpers.exercises.yolo import q1; q1.check(...); q1.solution()"
    said = python(edition.folder, "-c", code).stdout.splitlines()
    assert said == ["… still to do", "This edition of the course leaves the solutions out."]


def test_it_keeps_the_rules_by_its_own_means(edition):
    """So its links lead somewhere, and its badges can be stamped with an address of its own."""
    done = python(edition.folder, "-m", "tools", "check")
    assert done.stdout.endswith("\nno problems\n"), done.stdout + done.stderr
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
        assert f"git clone -q {url}" in notebook.cells[1].source
        assert notebook.cells[1].source.count('"for-students"') == 2


def test_it_carries_the_tools_but_not_the_tests(edition):
    carried = {path.name for path in edition.folder.iterdir()}
    assert carried == {*CARRIED, "notebooks", "README.md"}
    assert not carried & {"tests", "experiments", ".git", "runs", "CONTRIBUTING.md"}
    assert not any((edition.folder / folder).exists() for folder in LEFT_OUT)
    assert not list(edition.folder.rglob("__pycache__"))
    assert os.access(edition.folder / "lectures", os.X_OK) == os.access(ROOT / "lectures", os.X_OK)


STUB = "def start(): print(__file__)\n"


@pytest.mark.parametrize("place", [".", "clone/runs"], ids=["outside", "inside"])
def test_the_setup_cell_finds_the_edition(edition, tmp_path, place):
    """Inside a clone, too, the nearest folder counts: nothing of the clone is imported."""
    (tmp_path / "clone" / "helpers").mkdir(parents=True)
    (tmp_path / "clone" / "helpers" / "setup.py").write_text("raise ImportError")
    folder = tmp_path / place / "edition"
    shutil.copytree(edition.folder, folder)
    setup = folder / "helpers" / "setup.py"
    setup.write_text(STUB)
    code = tool.read(folder / "notebooks" / NAMES[0]).cells[1].source
    done = python(folder / "notebooks", "-c", code)
    assert done.stdout.splitlines() == [str(setup.resolve())], done.stderr


# ---------------------------------------------------------------- where it may be written


@pytest.fixture
def course(tmp_path):
    """A course with one notebook, as far as the writer looks at it."""
    root = tmp_path / "course"
    for folder in ("helpers/exercises/solutions", "notebooks", "tests"):
        (root / folder).mkdir(parents=True)
    # An empty file belongs to the course, too.
    for name in ("helpers/exercises/__init__.py", f"{LEFT_OUT[0]}/x.py", "tests/test_x.py"):
        (root / name).touch()
    (root / "helpers" / "setup.py").write_text(STUB)
    shutil.copy(ROOT / "notebooks" / NAMES[0], root / "notebooks")
    return root


def git(root, *words):
    who = [f"GIT_{role}_{what}" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")]
    plain = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(
        ["git", *words],
        cwd=root,
        env={**os.environ, **dict.fromkeys(who, "a@b.c"), **plain},
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )


@pytest.fixture
def clone(course):
    """The course in git, and beside it what one works on in a clone."""
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "The course"]):
        git(course, *words)
    write(course / "notebooks" / "11_private.ipynb", "1 / 0")
    (course / "notebooks" / "Untitled.ipynb").touch()
    (course / "helpers" / "notes.txt").write_text("exam questions")
    (course / "data").mkdir()
    (course / "data" / "marks.csv").write_text("name,mark\n")
    return course


def contents(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


OWN = {
    "README.md",
    "helpers/setup.py",
    "helpers/exercises/__init__.py",
    f"notebooks/{NAMES[0]}",
}


def test_of_a_clone_only_what_git_knows_of_is_shipped(clone, tmp_path):
    (clone / "helpers" / "__init__.py").touch()
    git(clone, "add", "helpers/__init__.py")  # new, and not committed yet
    (notebook,) = write_student_edition(tmp_path / "out", clone)
    assert notebook.name == NAMES[0]
    assert contents(tmp_path / "out") == {*OWN, "helpers/__init__.py"}


def test_what_was_deleted_is_not_missed(clone, tmp_path):
    (clone / "helpers" / "setup.py").unlink()
    write_student_edition(tmp_path / "out", clone)
    assert contents(tmp_path / "out") == OWN - {"helpers/setup.py"}


def test_outside_of_a_clone_all_lectures_are_shipped_but_nothing_else_of_the_folder(
    course, tmp_path
):
    (course / "notebooks" / "Untitled.ipynb").touch()
    (course / "notebooks" / "old").mkdir()
    write(course / "notebooks" / "old" / NAMES[0], "1 / 0")
    (course / "helpers" / "__pycache__").mkdir()
    (course / "helpers" / "__pycache__" / "setup.pyc").touch()
    write_student_edition(tmp_path / "out", course)
    assert contents(tmp_path / "out") == OWN


def test_a_clone_that_git_cannot_read_ships_nothing(clone, tmp_path):
    """Its folder may hold private files, and only git knows which."""
    (clone / ".git" / "HEAD").write_text("damaged")
    with pytest.raises(ValueError, match="git cannot say what belongs to .*; nothing was written"):
        write_student_edition(tmp_path / "out", clone)
    assert not (tmp_path / "out").exists()


def test_a_course_without_lectures_is_refused(course, tmp_path):
    (course / "notebooks" / NAMES[0]).unlink()
    with pytest.raises(ValueError, match="notebooks holds no lecture; nothing was written"):
        write_student_edition(tmp_path / "out", course)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("empty", [False, True], ids=["a new folder", "an empty folder"])
@pytest.mark.parametrize("step", ["copy", "_write"])
def test_a_failure_in_the_middle_leaves_nothing_behind(course, tmp_path, monkeypatch, step, empty):
    out = tmp_path / "deep" / "out"
    if empty:
        out.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    owner = module.shutil if step == "copy" else module
    real, calls = getattr(owner, step), []

    def fail(*arguments, **more):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError("disk full")
        return real(*arguments, **more)

    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_student_edition(out, course)
    assert len(calls) == 2 and sorted(tmp_path.rglob("*")) == before
    monkeypatch.undo()
    write_student_edition(out, course)
    assert contents(out) == OWN


@pytest.mark.parametrize("place", ["new/and/deep", "helpers/inside", "notebooks/inside"])
def test_a_new_folder_may_lie_anywhere(course, place):
    (notebook,) = write_student_edition(course / place, course)
    assert notebook == course / place / "notebooks" / NAMES[0]
    assert contents(course / place) == OWN


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
