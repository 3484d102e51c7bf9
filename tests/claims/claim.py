"""A statement of the lecture text as a test: what it says, what the paper says, what is true."""

from collections.abc import Callable

import pytest

# true: as it stands. imprecise: right at heart, but not as it stands. false: measured or printed
# otherwise. contradicts: another line of the text says the opposite. unverifiable: an opinion.
VERDICTS = ("true", "imprecise", "false", "contradicts", "unverifiable")


def claim(
    section: str, number: int, line: int, says: str, verdict: str, paper: str = "–"
) -> Callable[[Callable], Callable]:
    """Mark a test as the one that examines a statement.

    Args:
        section: of the lecture text, such as "yolo".
        number: of the statement in its section, from 1.
        line: where the text makes it.
        says: the statement, fairly, in our own words.
        verdict: one of VERDICTS; the test must fail if it were another.
        paper: what the paper says of it, with the place; a dash if nothing.
    """
    if verdict not in VERDICTS:
        raise ValueError(f"verdict must be one of {VERDICTS}, got {verdict!r}")
    if not says.strip() or line < 1 or number < 1:
        raise ValueError(
            f"a claim needs words, a line and a number, got {says!r}, {line}, {number}"
        )
    return pytest.mark.claim(
        section=section, number=number, line=line, says=says, paper=paper, verdict=verdict
    )
