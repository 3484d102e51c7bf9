"""What every test starts from and leaves behind."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest
import torch

from helpers.shapes import ShapesDataset


@pytest.fixture(autouse=True)
def same_numbers_whatever_ran_before() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def few_images() -> ShapesDataset:
    """Four images of the benchmark's kind, for what trains or evaluates."""
    return ShapesDataset(4, seed=3)
