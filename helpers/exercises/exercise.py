"""An exercise as a page uses it: q1.check(answer), q1.hint(), q1.solution()."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

SOLUTIONS = Path(__file__).parent / "solutions"
TO_DO = "… still to do"


class Exercise:
    """One exercise of a lecture, which answers in sentences and never raises.

    Args:
        place: lecture and number, such as "yolo.q1"; the solution is kept under this name.
        answer: the name of the function or variable that the page asks for.
        diagnose: takes the answer; returns None if it is right, else what is wrong, as a sentence
            that names the mistake. It may fail on a broken answer: that becomes a sentence, too.
        hints: pushes, from the gentlest on; each call of `hint` shows the next.
        praise: what a right answer has shown.
    """

    def __init__(
        self,
        place: str,
        answer: str,
        diagnose: Callable[[Any], str | None],
        hints: Sequence[str],
        praise: str = "right",
    ) -> None:
        self.place, self.answer, self.diagnose = place, answer, diagnose
        self.hints, self.praise = tuple(hints), praise
        self._shown = 0

    def verdict(self, answer: Any) -> str:
        """What `check` prints: it begins with ✓, ✗ or, for the stub as it stands, with …"""
        if answer is None or answer is ...:
            return TO_DO
        try:
            wrong = self.diagnose(_asked(answer) if _is_function(answer) else answer)
        except _StillToDo:
            return TO_DO
        except Exception as error:  # a reader's code may fail in any way
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            where = "; call it yourself to see where" if callable(answer) else ""
            return f"✗ this answer ends in {reason}{where}"
        return f"✗ {wrong}" if wrong else f"✓ {self.praise}"

    def check(self, answer: Any) -> None:
        """Say whether `answer` is right, and if not, what is wrong with it."""
        print(self.verdict(answer))

    def hint(self) -> None:
        """Give a push; the next call gives a stronger one, if there is one."""
        number = min(self._shown, len(self.hints) - 1)
        self._shown = number + 1
        more = " (there is one more)" if number + 1 < len(self.hints) else ""
        print(f"{self.hints[number]}{more}")

    def solution(self) -> None:
        """Print code that solves it."""
        print(self.solution_code() or "This edition of the course leaves the solutions out.")

    def solution_code(self) -> str:
        """The solution, or nothing where it was left out."""
        lecture, name = self.place.split(".")
        path = SOLUTIONS / f"{lecture}.py"
        if not path.exists():
            return ""
        parts = re.split(r"^# (q\d+)\b.*\n", path.read_text(encoding="utf-8"), flags=re.M)
        return dict(zip(parts[1::2], parts[2::2]))[name].strip()


def mistake(
    got: Any, expected: torch.Tensor, name: str, slips: Mapping[str, torch.Tensor]
) -> str | None:
    """`difference`, said as the sentence of the slip that gives the same wrong tensor."""
    wrong = difference(got, expected, name)
    for sentence, slip in slips.items():
        if wrong and difference(got, slip) is None:
            return sentence
    return wrong


def difference(got: Any, expected: torch.Tensor, name: str = "the result") -> str | None:
    """What tells the tensor `got` from `expected`, the coarsest first; None if they agree."""
    if not isinstance(got, torch.Tensor):
        return f"{name} must be a torch tensor, got {type(got).__name__}"
    if got.shape != expected.shape:
        return f"{name} must have shape {tuple(expected.shape)}, got {tuple(got.shape)}"
    if got.dtype == torch.bool or expected.dtype == torch.bool:
        if got.dtype != expected.dtype:
            kinds = (
                str(expected.dtype).removeprefix("torch."),
                str(got.dtype).removeprefix("torch."),
            )
            return f"{name} must be of type {kinds[0]}, got {kinds[1]}"
    if got.is_floating_point() and not got.isfinite().all():
        return f"{name} holds NaN or infinity"
    far = ~torch.isclose(got.double(), expected.double(), rtol=1e-4, atol=1e-5)
    if not far.any():
        return None
    place = tuple(far.nonzero()[0].tolist())
    value, wanted = got[place].item(), expected[place].item()
    count = f"{int(far.sum())} of {far.numel()} places"
    return f"{name} differs in {count}, first at {list(place)}: {value:g} instead of {wanted:g}"


class _StillToDo(Exception):
    """The answer is a function whose stub has not been filled in."""


def _is_function(answer: Any) -> bool:
    return callable(answer) and not isinstance(answer, (type, torch.nn.Module))


def _asked(function: Callable[..., Any]) -> Callable[..., Any]:
    def ask(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        if result is None or result is ...:
            raise _StillToDo
        return result

    return ask
