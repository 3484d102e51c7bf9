"""What the checks of the exercises share."""

import functools
from collections.abc import Callable
from typing import Any


def patient(check: Callable[[Any], str]) -> Callable[[Any], str]:
    """`check`, which now answers in a sentence even if the reader's answer makes it fail.

    A traceback would show the check's lines, as if the mistake were there.
    """

    @functools.wraps(check)
    def verdict(answer: Any) -> str:
        try:
            return check(answer)
        except Exception as error:  # a reader's code may fail in any way
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            hint = "; call it yourself to see where" if callable(answer) else ""
            return f"✗ this answer ends in {reason}{hint}"

    return verdict
