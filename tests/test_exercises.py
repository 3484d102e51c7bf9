"""What the exercises have in common whose checks stand on the page; of each in test_nbNN.py.

Those that come from helpers.exercises are in test_exercises_of_lectures.py.
"""

import ast
import re

import pytest
import torch
from shared import NONSENSE, imported_exercises, raising

from helpers import lessons as tool
from helpers.exercises import patient
from helpers.records import ROOT
from tools.check import text_of

PATHS = {path.stem: path for path in tool.notebooks() if not imported_exercises(path)}


def code_cells(name):
    return [cell for cell in tool.read(PATHS[name]).cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def exercises(name):
    """The cells of each exercise: its check, the stub, the solution."""
    cells = code_cells(name)
    return [cells[i - 1 : i + 2] for i, cell in enumerate(cells) if "exercise" in tags(cell)]


def called_check(cell):
    """The check that the last line of an exercise or a solution calls."""
    return re.findall(r"\bcheck_\w+", cell.source.strip().split("\n")[-1])


@pytest.mark.parametrize("name", PATHS)
def test_three_to_five_exercises_with_a_check_and_a_solution(name):
    found = exercises(name)
    assert 3 <= len(found) <= 5
    text = "\n".join(text_of(tool.read(PATHS[name])))
    section = re.split(r"^## \d+ ", text.split(" Exercises\n")[-1], flags=re.MULTILINE)[0]
    assert len(re.findall(r"^### ", section, re.MULTILINE)) == len(found)
    for check, stub, solution in found:
        (called,) = called_check(stub)
        assert "check" in tags(check) and f"def {called}(" in check.source
        assert stub.source.split("\n")[-1].startswith(f"print({called}(")
        assert stub.outputs[-1].text.startswith("… still to do")
        assert "solution" in tags(solution) and called_check(solution) == [called]
        assert re.search(rf'^assert {called}\(.+\)\.startswith\("✓"\)\Z', solution.source, re.M)


def names(tree, context):
    """The variables in `tree` that are set (ast.Store) or used (ast.Load)."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in nodes if isinstance(node.ctx, context)}


def defined(cells):
    """What `cells` leave behind: functions, classes and variables."""
    statements = [node for cell in cells for node in ast.parse(cell.source).body]
    kinds = (ast.FunctionDef, ast.ClassDef)
    own = {node.name for node in statements if isinstance(node, kinds)}
    return own.union(*(names(n, ast.Store) for n in statements if not isinstance(n, kinds)))


@pytest.mark.parametrize("name", PATHS)
def test_nothing_needs_a_solution(name):
    """Otherwise the student edition would not run."""
    solutions = [cell for cell in code_cells(name) if "solution" in tags(cell)]
    others = [cell for cell in code_cells(name) if "solution" not in tags(cell)]
    only_there = defined(solutions) - defined(others)
    assert len(only_there) >= len(solutions)
    used = set().union(*(names(ast.parse(cell.source), ast.Load) for cell in others))
    assert not used & only_there


@pytest.mark.parametrize("name", PATHS)
def test_every_check_is_fed_with_typical_mistakes(name):
    """By a test of that notebook: one of its own, or the table ANSWERS."""
    tree = ast.parse((ROOT / "tests" / f"test_nb{name[:2]}.py").read_text(encoding="utf-8"))
    fed = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and "the_mistake" in node.name:
            fed |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ANSWERS":
            fed |= {f"check_{key.value}" for key in node.value.keys}
    assert {check for _, stub, _ in exercises(name) for check in called_check(stub)} <= fed


def test_patient_tells_what_the_answer_ends_in():
    @patient
    def check_sign(sign) -> str:
        """Diagnose a function."""
        return "✓" if sign(-2) == -1 else "✗ minus"

    assert check_sign(lambda x: -1) == "✓" and check_sign(lambda x: 1) == "✗ minus"
    assert check_sign.__name__ == "check_sign" and check_sign.__doc__ == "Diagnose a function."
    where = "; call it yourself to see where"
    ends = "✗ this answer ends in "
    assert check_sign(lambda x: [][x]) == f"{ends}IndexError: list index out of range{where}"
    assert check_sign(3) == f"{ends}TypeError: 'int' object is not callable"


def module_of(function):
    """A network without parameters, which calls `function`."""
    return type("Module", (torch.nn.Module,), {"forward": function, "__init__": init})


def init(self, *_):
    torch.nn.Module.__init__(self)


def wrong_answers(stub):
    """Nonsense of the kind that the cell with the stub asks for, and what raises IndexError."""
    first = ast.parse(stub.source).body[0]
    if isinstance(first, ast.Assign):
        return [*NONSENSE, raising], []
    functions = [lambda *_, value=value: value for value in NONSENSE]
    if isinstance(first, ast.FunctionDef):
        return [3, lambda: 1, *functions], [raising]
    return [3, type("NoModule", (), {}), *map(module_of, functions)], [module_of(raising)]


@pytest.mark.parametrize("name", PATHS)
def test_every_check_answers_nonsense_in_a_sentence(name):
    notebook = tool.load(name)
    for _, stub, _ in exercises(name):
        (called,) = called_check(stub)
        wrong, broken = wrong_answers(stub)
        for answer in wrong:
            message = getattr(notebook, called)(answer)
            assert message.startswith("✗") and "NameError" not in message, (called, answer, message)
        for answer in broken:
            message = getattr(notebook, called)(answer)
            assert message.startswith("✗") and "IndexError: list index out of" in message, message
