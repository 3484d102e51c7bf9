"""helpers.publish on a small copy of the course."""

import json
import shutil

import pytest

from helpers import publish as module
from tools.check import SETUP_CELL
from tools.publish import publish

URL = "https://github.com/some-one/detection.lectures"


@pytest.fixture
def course(tmp_path):
    (tmp_path / "helpers").mkdir()
    (tmp_path / "notebooks").mkdir()
    cell = 'REPOSITORY = "https://github.com/_owner_/object-detection-lectures"\nroot = "_owner_"\n'
    (tmp_path / "helpers" / "setup_cell.py").write_text(cell)
    colab = "https://colab.research.google.com/github/_owner_/object-detection-lectures/blob/main/x"
    notebook = {"cells": [{"source": [f"[badge]({colab})"]}, {"source": cell}]}
    (tmp_path / "notebooks" / "00_x.ipynb").write_text(json.dumps(notebook, indent=1))
    (tmp_path / "README.md").write_text(
        f"[![Colab](b.svg)]({colab}) `git clone https://github.com/_owner_/object-detection-lectures`"
        " https://github.com/_owner_/object-detection-lectures-2\n"
    )
    return tmp_path


def test_the_address_is_stamped_everywhere_and_only_once(course):
    changed = publish(URL, course)
    assert sorted(p.name for p in changed) == ["00_x.ipynb", "README.md", "setup_cell.py"]
    readme = (course / "README.md").read_text()
    assert "colab.research.google.com/github/some-one/detection.lectures/blob/main/x" in readme
    assert f"git clone {URL}`" in readme
    assert "_owner_/object-detection-lectures-2" in readme  # another repository
    cell = (course / "helpers" / "setup_cell.py").read_text()
    assert cell == f'REPOSITORY = "{URL}"\nroot = "_owner_"\n'
    assert (
        json.loads((course / "notebooks" / "00_x.ipynb").read_text())["cells"][1]["source"] == cell
    )
    assert publish(URL + "/", course) == publish(URL + ".git", course) == []


def test_the_course_can_move(course):
    publish(URL, course)
    publish("https://github.com/other/name", course)
    assert "some-one" not in "".join(p.read_text() for p in course.rglob("*.*") if p.is_file())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "github.com/a/b",
        "http://github.com/a/b",
        "https://gitlab.com/a/b",
        "https://github.com/a",
        "https://github.com/a/b/c",
        "https://github.com/_owner_/b",
        "https://github.com/a b/c",
        'https://github.com/a/b"',
        "https://github.com/-a/b",
        "https://github.com/a/..",
    ],
)
def test_another_address_is_refused(course, url):
    before = {p: p.read_bytes() for p in course.rglob("*.*")}
    with pytest.raises(ValueError, match="expected https://github.com/OWNER/REPOSITORY"):
        publish(url, course)
    assert before == {p: p.read_bytes() for p in course.rglob("*.*")}


def test_the_real_set_up_cell_can_be_stamped(course):
    shutil.copy(SETUP_CELL, course / "helpers" / "setup_cell.py")
    publish(URL, course)
    assert f'REPOSITORY = "{URL}"\n' in (course / "helpers" / "setup_cell.py").read_text()


def test_usage(capsys):
    assert module.main([]) == 2
    assert "usage: python -m tools publish" in capsys.readouterr().out
