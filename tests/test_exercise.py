"""The exercises' frame: answers in sentences, never an error, hints in turn, solutions apart."""

import pytest
import torch

from helpers.exercises import exercise
from helpers.exercises.exercise import TO_DO, Exercise, difference


def square_is_right(square):
    return None if square(3) == 9 else f"square(3) must be 9, got {square(3)}"


@pytest.fixture
def q(tmp_path, monkeypatch):
    monkeypatch.setattr(exercise, "SOLUTIONS", tmp_path)
    hints = ["think of a product", "of x and x"]
    return Exercise("toy.q1", "square", square_is_right, hints, "any side has an area")


@pytest.mark.parametrize(
    "answer, said",
    [
        (None, TO_DO),
        (..., TO_DO),
        (lambda x: ..., TO_DO),
        (lambda x: None, TO_DO),
        (lambda x: x * x, "✓ any side has an area"),
        (lambda x: x + x, "✗ square(3) must be 9, got 6"),
        (lambda x: 1 / 0, "✗ this answer ends in ZeroDivisionError: division by zero; call it"),
        (lambda: 9, "✗ this answer ends in TypeError"),
        (9, "✗ this answer ends in TypeError: 'int' object is not callable"),
    ],
)
def test_every_answer_gets_a_sentence(q, capsys, answer, said):
    q.check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith(said) and printed.count("\n") == 1
    assert q.verdict(answer) == printed[:-1]


def test_hints_get_stronger_and_the_last_one_stays(q, capsys):
    for _ in range(3):
        q.hint()
    said = capsys.readouterr().out.splitlines()
    assert said == ["think of a product (there is one more)", "of x and x", "of x and x"]


def test_a_solution_is_code_that_the_check_takes(q, tmp_path, capsys):
    q.solution()
    assert capsys.readouterr().out == "This edition of the course leaves the solutions out.\n"
    text = "# q1: the square\ndef square(x):\n    return x * x  # q2 is not here\n\n# q2\nx = 1\n"
    (tmp_path / "toy.py").write_text(text)
    q.solution()
    code = capsys.readouterr().out
    assert code == "def square(x):\n    return x * x  # q2 is not here\n"
    space = {}
    exec(code, space)
    assert q.verdict(space[q.answer]).startswith("✓")


@pytest.mark.parametrize(
    "got, said",
    [
        ([1, 2], "must be a torch tensor, got list"),
        (torch.zeros(3), "must have shape (2,), got (3,)"),
        (torch.tensor([1.0, float("nan")]), "holds NaN or infinity"),
        (torch.tensor([1.0, 3.0]), "differs in 1 of 2 places, first at [1]: 3 instead of 2"),
    ],
)
def test_a_difference_names_the_coarsest_first(got, said):
    assert said in difference(got, torch.tensor([1.0, 2.0]))


def test_no_difference():
    expected = torch.tensor([1.0, 2.0])
    for got in (expected, expected.double(), expected.long(), expected + 1e-6):
        assert difference(got, expected) is None
    mask = torch.tensor([True, False])
    assert difference(mask, mask) is None
    assert "must be of type bool, got int64" in difference(mask.long(), mask)
