"""Seeds, budgets, batches, the learning-rate schedule, the progress bar and the history."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import training
from helpers.training import (
    History,
    batches,
    budget,
    fit,
    pick_device,
    progress,
    seed_everything,
    warmup_cosine,
)


@pytest.fixture
def seed_variable(monkeypatch):
    """Set LECTURE_SEED; None removes it."""

    def set_to(text):
        monkeypatch.delenv("LECTURE_SEED", raising=False)
        if text is not None:
            monkeypatch.setenv("LECTURE_SEED", text)

    return set_to


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.mark.parametrize(("text", "expected"), [(None, 0), ("0", 0), ("17", 17)])
def test_the_seed_comes_from_the_environment(seed_variable, text, expected):
    seed_variable(text)
    assert seed_everything() == expected
    first = draw()
    assert seed_everything(expected) == expected
    assert draw() == first
    seed_everything(expected + 1)
    assert not set(draw()) & set(first)


def test_an_argument_wins_over_the_environment(seed_variable):
    seed_variable("nonsense")
    assert seed_everything(3) == 3


@pytest.mark.parametrize("text", ["", "-1", "1.5", "one", "²", " "])
def test_a_bad_seed_variable_is_named(seed_variable, text):
    seed_variable(text)
    with pytest.raises(ValueError, match=f"LECTURE_SEED must be a whole number, got '{text}'"):
        seed_everything()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_bad_seed_is_named(seed):
    with pytest.raises(ValueError, match=rf"seed must lie in 0\.\.2\*\*32 - 1, got {seed}"):
        seed_everything(seed)


def test_the_device_is_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device() == torch.device("cuda")


def test_a_bad_budget_is_named():
    assert budget(cpu=30) == 30
    with pytest.raises(ValueError, match="cpu must be at least 1 step, got 0"):
        budget(cpu=0)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 60), st.integers(0, 5))
def test_every_epoch_visits_each_item_at_most_once(count, batch_size, steps, seed):
    chosen = list(batches(count, batch_size, steps, seed))
    size = min(count, batch_size)
    assert len(chosen) == steps
    per_epoch = count // size
    for start in range(0, steps, per_epoch):
        epoch = torch.cat(chosen[start : start + per_epoch]).tolist()
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(range(count))
        if len(epoch) == per_epoch * size and count % size == 0:
            assert set(epoch) == set(range(count))
    assert all(batch.shape == (size,) and batch.dtype == torch.long for batch in chosen)


def test_batches_cover_all_items_also_where_the_last_batch_is_dropped():
    assert set(torch.cat(list(batches(10, 4, 40))).tolist()) == set(range(10))


def test_batches_depend_on_nothing_but_their_seed():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = torch.stack(list(batches(20, 5, 12, seed=1)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(first, torch.stack(list(batches(20, 5, 12, seed=1))))
    assert not torch.equal(first, torch.stack(list(batches(20, 5, 12, seed=2))))
    assert not torch.equal(first[:4], first[4:8])  # reshuffled


@pytest.mark.parametrize(("count", "size"), [(0, 4), (4, 0), (-1, -1)])
def test_bad_batches_are_named(count, size):
    message = f"count and batch_size must be at least 1, got {count} and {size}"
    with pytest.raises(ValueError, match=message):
        next(batches(count, size, 1))


def rates(steps, warmup, run=None):
    """The learning rate at each step, from a peak of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_cosine(optimizer, steps, warmup)
    seen = []
    for _ in range(run or steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_the_schedule_warms_up_and_decays():
    seen = rates(steps=100, warmup=9)
    assert seen[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert seen[9] == max(seen) == 1
    assert all(a > b > 0 for a, b in zip(seen[9:], seen[10:]))
    assert seen[9 + 45] == pytest.approx(0.5, abs=0.02)
    assert seen[-1] < 0.01


def test_the_schedule_without_warm_up_starts_at_its_peak():
    assert rates(steps=10, warmup=0)[0] == 1
    assert rates(steps=1, warmup=0) == [1]


def test_the_schedule_stays_at_zero_after_its_end():
    assert rates(steps=10, warmup=2, run=25)[10:] == pytest.approx([0] * 15)


@pytest.mark.parametrize(("steps", "warmup"), [(0, 0), (10, 10), (10, -1)])
def test_a_bad_schedule_is_named(steps, warmup):
    message = rf"warmup must lie in 0\.\.steps - 1, got {warmup} and {steps} steps"
    with pytest.raises(ValueError, match=message):
        rates(steps, warmup)


def test_the_progress_bar_is_quiet_on_request(monkeypatch, capsys):
    monkeypatch.setenv("LECTURE_QUIET", "1")
    assert list(progress(range(3), "training")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_the_progress_bar_writes_text_to_stdout(monkeypatch, capsys):
    monkeypatch.delenv("LECTURE_QUIET", raising=False)
    assert list(progress(iter("ab"), "training", total=2)) == ["a", "b"]
    out, err = capsys.readouterr()
    assert "training" in out and err == ""


def test_history_collects_columns(monkeypatch):
    now = iter([10.0, 12.5, 13.0, 99.0])
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(now))
    history = History()
    assert history.seconds == 0.0
    history.add(loss=2, box=torch.tensor(0.5))
    history.add(loss=torch.tensor([1.5]))
    assert history["loss"] == [2.0, 1.5] and history["box"] == [0.5]
    assert history.columns() == {"loss": [2.0, 1.5], "box": [0.5]}
    assert all(type(value) is float for value in history["loss"] + history["box"])
    assert history.seconds == 3.0  # to the last step: the clock is not asked again


@pytest.mark.filterwarnings("error")
def test_history_takes_a_loss_that_still_has_its_graph():
    history = History()
    history.add(loss=torch.ones(1, requires_grad=True).sum())
    assert history["loss"] == [1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [float, torch.tensor])
def test_history_refuses_a_diverged_training(bad, wrap):
    history = History()
    history.add(loss=1.0)
    with pytest.raises(FloatingPointError, match=f"loss is {bad} at step 1: training has diverged"):
        history.add(loss=wrap(bad))
    assert history["loss"] == [1.0]


def test_an_unknown_column_is_an_error_and_adds_none():
    history = History()
    history.add(loss=1.0)
    with pytest.raises(KeyError, match="los"):
        history["los"]
    assert list(history.columns()) == ["loss"]


# ---------------------------------------------------------------- fit


class Line(torch.nn.Module):
    """A straight line with dropout, so that its mode is seen; it notes the modes of its calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.weights, self.drop, self.modes = torch.nn.Linear(2, 1), torch.nn.Dropout(0.1), []

    def forward(self, x):
        self.modes.append(self.training)
        return self.weights(self.drop(x))[:, 0]

    def losses(self, x, y):
        error = self(x) - y
        return {"square": error.square().mean(), "slope": 0.1 * self.weights.weight.abs().sum()}


def pairs(steps, scale=1.0):
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        x = torch.randn(16, 2, generator=generator)
        yield x, scale * (x[:, 0] - 2 * x[:, 1] + 1)


def test_fit_minimises_the_sum_of_the_parts_and_leaves_evaluation_mode():
    model = Line().eval()
    history = fit(model, model.losses, pairs(300), 300, learning_rate=0.05)
    assert model.modes == [True] * 300 and not any(m.training for m in model.modules())
    assert list(history.columns()) == ["square", "slope"]
    assert len(history["square"]) == len(history["slope"]) == 300
    first, last = (np.mean(history["square"][part]) for part in (slice(20), slice(-20, None)))
    assert last < first / 5
    a, b = model.weights.weight[0].tolist()  # drawn a little towards 0 by the slope's part
    assert 0.7 < a < 1 and -2 < b < -1.7 and model.weights.bias.item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("steps", [1, 3, 9, 230])
@pytest.mark.parametrize("scale", [1.0, 1000.0])  # gradients below and above the clipping
def test_fit_is_the_loop_that_the_lectures_write_by_hand(steps, scale):
    model = Line()
    torch.manual_seed(7)
    history = fit(model, model.losses, pairs(steps, scale), steps, learning_rate=0.01)

    other = Line().train()
    torch.manual_seed(7)
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.01, fused=True)
    warmup, losses = min(50, steps // 4), []
    for step, (x, y) in enumerate(pairs(steps, scale)):
        done = (step - warmup) / (steps - warmup)
        rate = (step + 1) / (warmup + 1) if done < 0 else 0.5 * (1 + math.cos(math.pi * done))
        optimizer.param_groups[0]["lr"] = 0.01 * rate
        loss = sum(other.losses(x, y).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 10.0)
        optimizer.step()
        losses.append(loss.item())
    for mine, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, right)
    assert [a + b for a, b in zip(history["square"], history["slope"])] == pytest.approx(losses)


def test_fit_stops_where_the_training_diverges():
    model = Line()
    with pytest.raises(FloatingPointError, match="square is nan at step 0"):
        fit(model, model.losses, [(torch.full((1, 2), math.nan), torch.zeros(1))], 1)
