"""What training loops need and no lesson is about: device, seed, budget, batches, schedule."""

import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from helpers.records import ROOT


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seed_everything(seed: int | None = None) -> int:
    """Seed Python, NumPy and torch; by default with LECTURE_SEED (0 if unset). Returns the seed."""
    if seed is None:
        text = os.environ.get("LECTURE_SEED", "0")
        if not text.isdecimal():
            raise ValueError(f"LECTURE_SEED must be a whole number, got {text!r}")
        seed = int(text)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in 0..2**32 - 1, got {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def budget(cpu: int) -> int:
    """Training steps of a lecture: what a CPU takes while people watch; a GPU takes as many."""
    if cpu < 1:
        raise ValueError(f"cpu must be at least 1 step, got {cpu}")
    return cpu


def batches(count: int, batch_size: int, steps: int, seed: int = 0) -> Iterator[Tensor]:
    """Yield `steps` index tensors (batch_size,) that run through `count` items, epoch by epoch.

    Each epoch is shuffled afresh; its incomplete last batch is dropped, unless it is the only one.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"count and batch_size must be at least 1, got {count} and {batch_size}")
    generator = torch.Generator().manual_seed(seed)
    size, order = min(batch_size, count), torch.empty(0)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(count, generator=generator)
        yield order[:size]
        order = order[size:]


def warmup_cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int = 0):
    """Schedule with one `.step()` per training step: linear warm-up, then half a cosine to 0."""
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup must lie in 0..steps - 1, got {warmup} and {steps} steps")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1, (step - warmup) / (steps - warmup))
        return 0.5 * (1 + math.cos(math.pi * done))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def progress(items: Iterable, description: str = "", total: int | None = None) -> Iterable:
    """`items` with a text progress bar; quiet where LECTURE_QUIET is set, as tests and runs do."""
    from tqdm import tqdm

    look = {"file": sys.stdout, "ncols": 80, "leave": False}
    return tqdm(items, description, total, disable="LECTURE_QUIET" in os.environ, **look)


class History(dict[str, list[float]]):
    """Numbers by step: `history.add(loss=..., box=...)`; `history["loss"]` is the list so far."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()

    def add(self, **values: float | Tensor) -> None:
        """Append one value to each named column; FloatingPointError if it is NaN or infinite."""
        for name, value in values.items():
            column = self.setdefault(name, [])
            number = float(value.detach() if isinstance(value, Tensor) else value)
            if not math.isfinite(number):
                where = f"at step {len(column)}"
                raise FloatingPointError(f"{name} is {number} {where}: training has diverged")
            column.append(number)
        self._last = time.perf_counter()

    columns = dict.copy  # all columns by name

    @property
    def seconds(self) -> float:
        """Seconds from making the history to its last step; what came after does not count."""
        return self._last - self._start


def fit(
    model: torch.nn.Module,
    losses: Callable[..., dict[str, Tensor]],
    data: Iterable[tuple],
    steps: int,
    learning_rate: float = 0.002,
    groups: Iterable[dict] | None = None,
) -> History:
    """Train `model` on `data`, `steps` batches, and leave it in evaluation mode.

    The loop of all lectures: AdamW, a warm-up and half a cosine, gradients clipped to length 10.
    `losses` makes of a batch the parts of the loss to minimise; `groups` have rates of their own.
    """
    optimizer = torch.optim.AdamW(groups or model.parameters(), learning_rate, fused=True)
    schedule = warmup_cosine(optimizer, steps, warmup=min(50, steps // 4))
    history, model = History(), model.train()
    for batch in data:
        parts = losses(*batch)
        optimizer.zero_grad()
        sum(parts.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        history.add(**parts)
    model.eval()
    return history


def repeat_experiment(lecture: str, variant: str, seed: int) -> None:
    """Train one variant of a recorded experiment again and print what came of it."""
    words = ["-m", "experiments", lecture, "--variants", variant, "--seeds", str(seed), "--again"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout or done.stderr, end="")
