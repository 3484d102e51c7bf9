"""What every test starts from and leaves behind."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest
import torch
from pretend_cuda import pretend_cuda
from shared import browser_programs

from helpers.shapes import ShapesDataset


@pytest.fixture(autouse=True)
def same_numbers_whatever_ran_before() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    plt.close("all")


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU seems to be there; what would fail on a real one fails."""
    with pretend_cuda(monkeypatch):
        yield


@pytest.fixture(scope="session")
def few_images() -> ShapesDataset:
    """Four images of the benchmark's kind, for what trains or evaluates."""
    return ShapesDataset(4, seed=3)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests in a browser where there is none, and say so."""
    marked = [item for item in items if item.get_closest_marker("browser")]
    if not marked:
        return
    try:
        browser_programs()
    except LookupError as reason:
        items[:] = [item for item in items if item not in marked]
        config.hook.pytest_deselected(items=marked)
        terminal = config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:  # the processes that run the tests have none
            terminal.write_line(f"{len(marked)} tests in a browser are left out: {reason}")
