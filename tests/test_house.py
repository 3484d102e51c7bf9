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
# Modules, functions and constants of helpers/ that nothing needs but lectures of the first edition,
# and which of them. A new edition strikes its number; without any, the entry goes, and its code.
STILL_NEEDED = {
    "records.latest_records": "09",
    "records.latest_weights": "09",
    "records._right_records": "",  # of latest_records
    "records.contextlib": "",  # of latest_weights
    "tables._CLAIMS_HEADER": "",  # of claims_table and gathered_claims
    "tables._cells": "",
    "tables.claims_table": "09",
    "tables.gathered_claims": "09",
}
# What writes records and weights, and what it imports. It moves to experiments/ with lecture 09's
# second edition: the first is the last lecture that writes records itself. Then tools/adopt.py has
# nothing to adopt, and RECORDS no reader.
MOVES = {
    f"records.{name}"
    for name in (
        *("functools", "io", "math", "RECORDS"),
        *("_TEXT", "_COUNT", "_REAL", "_NUMBERS", "COLUMNS", "MORE_COLUMNS", "_SCHEMA"),
        *("make_row", "_measured", "write_records", "checked_row", "_validator", "row_key"),
        "save_weights",
    )
}
APART = MOVES | set(STILL_NEEDED)


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


def from_helpers(source: str) -> set[str]:
    """What `source` uses of helpers/: "boxes", "boxes.decode_boxes", "boxes.*" if by getattr."""
    tree, found, modules_by_name = ast.parse(source), set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias for alias in node.names if alias.name.startswith("helpers.")]
            modules_by_name |= {a.asname or a.name: a.name.removeprefix("helpers.") for a in names}
        elif isinstance(node, ast.ImportFrom) and node.module == "helpers":
            modules_by_name |= {a.asname or a.name: a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("helpers."):
            module = node.module.removeprefix("helpers.")
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            value, name = node.value, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            value, name = node.args[0], "*"
        else:
            continue
        if ast.unparse(value) in modules_by_name:
            found.add(f"{modules_by_name[ast.unparse(value)]}.{name}")
    return found | set(modules_by_name.values())


def taken_apart(path: Path) -> tuple[str, dict[str, str]]:
    """A module of helpers/ without what APART lists of it, and that, by its name."""
    source, listed = path.read_text("utf-8"), {}
    if path.stem in APART:
        return "", {path.stem: source}
    lines = source.splitlines()
    for node in ast.parse(source).body:
        is_constant = isinstance(node, ast.Assign)
        named = node.names[0] if isinstance(node, ast.Import) else node
        own = ast.unparse(node.targets[0]) if is_constant else getattr(named, "name", "")
        name = f"{path.stem}.{own}"
        if name in APART:
            decorators = getattr(node, "decorator_list", [])
            first = min([node.lineno, *(part.lineno for part in decorators)]) - 1
            listed[name] = "\n".join(lines[first : node.end_lineno])
            lines[first : node.end_lineno] = [""] * (node.end_lineno - first)
    return "\n".join(lines), listed


def count_lines(source: str) -> int:
    return sum(bool(line.strip()) for line in source.splitlines())


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


THIN = [path for path in sorted((ROOT / "helpers").glob("*.py")) if path.name != "figures.py"]


def test_helpers_are_thin():
    count = sum(count_lines(taken_apart(path)[0]) for path in THIN)
    assert count <= MOST_LINES, f"helpers/ has {count} lines: move, share or cut"


def uses_of_lectures() -> dict[str, set[str]]:
    """What each lecture uses of helpers/, by its number."""
    uses = {}
    for path in notebooks():
        cells = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
        uses[path.stem[:2]] = from_helpers("\n".join(cells))
    return uses


def test_what_stands_apart_is_there_and_the_rest_does_not_need_it():
    listed = set()
    for path in THIN:
        rest, parts = taken_apart(path)
        names = {node.id for node in ast.walk(ast.parse(rest)) if isinstance(node, ast.Name)}
        wanted = from_helpers(rest) | {f"{path.stem}.{name}" for name in names}
        assert wanted & APART == set(), f"{path.name} itself needs it"
        listed |= set(parts)
    assert APART - listed == set(), "no such name any more"
    for name, path in ALL.items():
        used = from_helpers(path.read_text("utf-8")) if path not in THIN else set()
        assert used & set(STILL_NEEDED) == set(), f"not only lectures need it: {name}"
        may_write = folder_of(name) == "experiments" or name == "tools.adopt"
        assert may_write or used & MOVES == set(), f"{name} could not have it from experiments/"


def test_what_moves_to_experiments_waits_for_lecture_09_alone():
    writing = {number for number, used in uses_of_lectures().items() if used & MOVES}
    assert writing == {"09"} if MOVES else writing == set(), "move it, and strike it here"


def test_only_the_lectures_that_are_named_still_need_it():
    uses = uses_of_lectures()
    for name, lectures in STILL_NEEDED.items():
        users = {number for number, used in uses.items() if name in used}
        assert users <= set(lectures.split()), f"{name} is used by {sorted(users)}"
        whole = f"{name.split('.')[0]}.*"
        asked = [uses[number] for number in lectures.split()]
        assert not lectures or any(used & {name, whole} for used in asked), f"delete {name}"


# ---------------------------------------------------------------- the test's own means


def test_what_is_used_of_helpers_is_seen():
    source = (
        "from helpers import boxes as b, setup\nimport helpers.tables\nimport helpers.shapes as s\n"
    )
    source += "from helpers.records import ROOT, make_row as row\n"
    source += "b.decode_boxes(1, boxes.encode_boxes)\n"
    source += "getattr(s, 'x')\nhelpers.tables.ap_table\nfrom torchvision import ops\nops.nms\n"
    assert from_helpers(source) == {
        *("boxes", "boxes.decode_boxes", "setup", "shapes", "shapes.*"),
        *("tables", "tables.ap_table", "records", "records.ROOT", "records.make_row"),
    }


def test_imports_are_seen_wherever_they_stand():
    source = """
import os, helpers.boxes as b
def f():
    from helpers import anchors, setup
    try:
        from tools.check import check
    except ImportError:
        from . import shapes
        from .exercises import patient
        from helpers.boxes import decode_boxes
"""
    assert set(imports(source, "helpers")) == {
        "os",
        "helpers.boxes",
        "helpers.anchors",
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
