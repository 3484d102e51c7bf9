"""helpers.lessons on small notebooks of the test's own making."""

import inspect
import traceback

import pytest
from toy_notebooks import write

from helpers import lessons


def test_only_lectures_are_listed_in_their_order(tmp_path):
    others = ["Untitled.ipynb", "05_yolo-Copy1.ipynb", "05_Yolo.ipynb", "5_yolo.ipynb", "07_x.txt"]
    for name in ["10_your_own_data.ipynb", "05_yolo.ipynb", *others]:
        write(tmp_path / name)
    found = [path.name for path in lessons.notebooks(tmp_path)]
    assert found == ["05_yolo.ipynb", "10_your_own_data.ipynb"]


def test_find_knows_names_numbers_and_paths(tmp_path, monkeypatch):
    path = write(tmp_path / "05_yolo.ipynb", "1")
    mine = write(tmp_path / "Untitled.ipynb", "1")
    monkeypatch.setattr(lessons.notebooks, "__defaults__", (tmp_path,))
    for name in ("05", "05_yolo", "05_yolo.ipynb", str(path), path):
        assert lessons.find(name) == path
    assert lessons.find(mine) == mine  # by its path only
    for name in ("yolo", "5", "", "Untitled", "Untitled.ipynb", "05_yolo.txt"):
        with pytest.raises(ValueError, match=f"no notebook '{name}'; the choices are: 05_yolo"):
            lessons.find(name)


def test_find_says_so_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(lessons.notebooks, "__defaults__", (tmp_path,))
    with pytest.raises(ValueError, match="the choices are: none, the folder is empty"):
        lessons.find("05")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "JSON"),
        (b"not a notebook", "JSON"),
        (b'{"cells": [', "JSON"),
        (b"\xff\xfe", "utf-8"),
        (b"[]", "list"),
        (b"null", "NoneType"),
        (b"{}", "nbformat must be 4, got None"),
        (b'{"nbformat": 3, "worksheets": []}', "nbformat must be 4, got 3"),
        (b'{"nbformat": 4, "metadata": {}}', "cells"),
        (b'{"nbformat": 4, "cells": 3}', "int"),
    ],
)
def test_read_refuses_another_file(tmp_path, data, said):
    path = tmp_path / "01_toy.ipynb"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^01_toy.ipynb is not a notebook: .*{said}"):
        lessons.read(path)


def test_read_leaves_a_missing_file_to_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        lessons.read(tmp_path / "01_toy.ipynb")


def test_load_takes_definitions_and_leaves_the_rest(tmp_path):
    path = write(
        tmp_path / "01_toy.ipynb",
        "import math",
        "SIZE, RATIO = 4, math.sqrt(2)\nNAMES = [str(i) for i in range(SIZE)]",
        "ran = True\nprint('executed')\nMODEL = train()\nWEIGHTS = MODEL + 1\nUSER = input()",
        "from dataclasses import dataclass\n@dataclass\nclass Box:\n    side: int = SIZE",
        "def area(box):\n    return box.side ** 2",
    )
    module = lessons.load(path)
    assert module.NAMES == ["0", "1", "2", "3"] and module.RATIO == 2**0.5
    assert module.area(module.Box()) == 16 and module.Box.__module__ == "01_toy"
    assert not {"ran", "MODEL", "WEIGHTS", "USER"} & set(vars(module))


def test_load_lets_tracebacks_and_getsource_show_the_lines(tmp_path):
    module = lessons.load(write(tmp_path / "01_toy.ipynb", "X = 1", "def f():\n    return 1 / 0"))
    assert inspect.getsource(module.f) == "def f():\n    return 1 / 0"
    with pytest.raises(ZeroDivisionError) as caught:
        module.f()
    shown = "".join(traceback.format_tb(caught.tb))
    assert "01_toy.ipynb[cell 2]" in shown and "return 1 / 0" in shown


@pytest.mark.parametrize("source", ["%matplotlib inline", "!ls", "files = !ls", "def f(:"])
def test_load_refuses_what_is_not_plain_python(tmp_path, source):
    with pytest.raises(ValueError, match=r"01_toy.ipynb\[cell 1\] is not plain Python"):
        lessons.load(write(tmp_path / "01_toy.ipynb", source))


def test_load_names_a_definition_that_needs_more(tmp_path):
    path = write(tmp_path / "01_toy.ipynb", "device = 1", "def f(x=device): pass")
    with pytest.raises(ValueError, match=r"\[cell 2\], line 1.*NameError.*'device'"):
        lessons.load(path)
