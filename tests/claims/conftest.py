"""What the tests of claims report, for `python -m tools errata` to gather."""

from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def measure(request: pytest.FixtureRequest, record_property: Callable) -> Iterator[Callable]:
    """`measure("0.47")` says what the test has found; each test of a claim must say something."""
    mark = request.node.get_closest_marker("claim")
    assert mark is not None, "a test in tests/claims needs the decorator @claim"
    said: list[str] = []
    yield said.append
    assert said, "a claim's test must say what it measured: measure(...)"
    for name, value in {**mark.kwargs, "measured": "; ".join(said)}.items():
        record_property(name, value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test of a claim that measures nothing, and two tests of one claim."""
    seen: dict[tuple[str, int], str] = {}
    for item in items:
        mark = item.get_closest_marker("claim")
        if mark is None:
            continue
        key = mark.kwargs["section"], mark.kwargs["number"]
        if "measure" not in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(f"{item.name} does not ask for the fixture measure")
        if seen.setdefault(key, item.originalname) != item.originalname:
            raise pytest.UsageError(f"{item.name} and {seen[key]} examine the same claim, {key}")
