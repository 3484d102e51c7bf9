"""Where code lives: arrows run one way, nothing goes in circles, every module has its line.

The imports are read, not run: those inside functions and of optional packages count, too.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.lessons import notebooks, read
from helpers.records import ROOT

# What a folder's code may import of this repository.
ARROWS = {
    "helpers": {"helpers"},
    "experiments": {"helpers", "experiments"},
    "tools": {"helpers", "tools"},
}
OURS = {*ARROWS, "tests"}
MOST_LINES = 1500  # of helpers/, without what draws diagrams and knows answers


def modules(folder: str) -> dict[str, Path]:
    """Every module of a folder, by its name; a package goes by that of its folder."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


ALL = {name: path for folder in ARROWS for name, path in modules(folder).items()}


def imports(source: str, inside: str = "") -> Iterator[str]:
    """What `source`, the code of a module in the package `inside`, imports, dots and all.

    Of `from a import b` it is a.b where that is a module of ours, else a.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = inside.split(".")[: len(inside.split(".")) - node.level + 1]
            start = [*(parents if node.level else []), *filter(None, [node.module])]
            for alias in node.names:
                longer = ".".join([*start, alias.name])
                yield longer if longer in ALL else ".".join(start)


def imported_by(name: str) -> set[str]:
    package = name if ALL[name].name == "__init__.py" else name.rpartition(".")[0]
    return set(imports(ALL[name].read_text(encoding="utf-8"), package))


def folder_of(name: str) -> str:
    return name.split(".")[0]


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Some modules that import one another in a circle, in their order; none if there is none."""

    def walk(path: list[str]) -> list[str]:
        for following in sorted(arrows.get(path[-1], ())):
            if following in path:
                return [*path[path.index(following) :], following]
            if following not in done:
                found = walk([*path, following])
                if found:
                    return found
        done.add(path[-1])
        return []

    done: set[str] = set()
    return next(filter(None, (walk([name]) for name in sorted(arrows))), [])


# ---------------------------------------------------------------- the house


@pytest.mark.parametrize("folder", ARROWS)
def test_arrows_run_one_way(folder):
    wrong = {
        f"{name} imports {other}"
        for name in modules(folder)
        for other in imported_by(name)
        if folder_of(other) in OURS - ARROWS[folder]
    }
    assert wrong == set()


@pytest.mark.parametrize("folder", ARROWS)
def test_nothing_goes_in_circles(folder):
    arrows = {name: imported_by(name) & set(ALL) for name in modules(folder)}
    assert len(arrows) > 3 and any(arrows.values())
    assert circle(arrows) == []


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_lessons_import_only_helpers(path):
    cells = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    names = {name for source in cells for name in imports(source)}
    assert any(folder_of(name) == "helpers" for name in names)
    assert {name for name in names if folder_of(name) in OURS - {"helpers"}} == set()


@pytest.mark.parametrize("folder", ["helpers", "tools"])
def test_every_module_has_its_line(folder):
    text = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text("utf-8")))
    names = re.findall(r"^(\w+)  +\S", text, re.MULTILINE)
    own = {name.split(".")[1] for name in modules(folder) if name != folder} - {"__main__"}
    assert set(names) == own and len(names) == len(own)


def test_helpers_are_thin():
    files = [path for path in (ROOT / "helpers").glob("*.py") if path.name != "figures.py"]
    lines = [line for path in files for line in path.read_text("utf-8").splitlines()]
    count = sum(bool(line.strip()) for line in lines)
    assert count <= MOST_LINES, f"helpers/ has {count} lines: move, share or cut"


# ---------------------------------------------------------------- the test's own means


def test_imports_are_seen_wherever_they_stand():
    source = """
import os, helpers.boxes as b
def f():
    from helpers import nms, setup
    try:
        from tools.check import check
    except ImportError:
        from . import shapes
        from .exercises import patient
        from helpers.boxes import box_iou
"""
    assert set(imports(source, "helpers")) == {
        "os",
        "helpers.boxes",
        "helpers.nms",
        "helpers.setup",
        "tools.check",
        "helpers.shapes",
        "helpers.exercises",
    }
    assert list(imports("from .. import boxes", "helpers.exercises")) == ["helpers.boxes"]


@pytest.mark.parametrize(
    ("arrows", "found"),
    [
        ({}, []),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"a"}}, ["a", "a"]),
        ({"a": {"b"}, "b": {"a"}}, ["a", "b", "a"]),
        ({"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"b"}}, ["b", "c", "d", "b"]),
    ],
)
def test_circles_are_found(arrows, found):
    assert circle(arrows) == found
