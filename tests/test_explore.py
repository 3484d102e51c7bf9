"""helpers.explore: controls, drawings and refusals, without a front end."""

from fractions import Fraction

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.explore import _control, explore

ANY_STEP = st.sampled_from([1, 2, 5, 25, 75, 125, 333])


def draw(box_size, colour="red"):
    figure, axes = plt.subplots(figsize=(1, 1))
    if box_size == 3:
        raise RuntimeError("three is too many")
    axes.plot([0, box_size], color=colour)
    return figure


@pytest.fixture
def panel(monkeypatch):
    """A function that explores and returns the panel that was displayed."""
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)

    def make(draw, **ranges):
        explore(draw, **ranges)
        return shown.pop()

    yield make
    plt.close("all")


def test_controls_say_what_they_do_and_begin_where_told(panel):
    size, colour, *_ = panel(draw, box_size=(0, 8, 2, 4), colour=["red", "blue"]).children
    assert (size.value, size.min, size.max, size.step) == (4, 0, 8, 2)
    assert size.description == "box size" and not size.continuous_update
    assert type(size).__name__ == "IntSlider"
    assert colour.value == "red" and colour.options == ("red", "blue")
    (middle, *_) = panel(draw, box_size=(0.0, 1.0, 0.1)).children
    assert middle.value == pytest.approx(0.5) and type(middle).__name__ == "FloatSlider"


def test_a_control_redraws_and_leaves_no_figure_open(panel, capfd):
    size, message, picture = panel(draw, box_size=(0, 8, 1)).children
    before = bytes(picture.value)
    assert before.startswith(b"\x89PNG") and plt.get_fignums() == []
    size.value = 5
    after = bytes(picture.value)
    assert after.startswith(b"\x89PNG") and after != before and plt.get_fignums() == []
    size.value = 3
    assert message.value == "RuntimeError: three is too many"
    size.value = 6
    assert message.value == ""
    assert capfd.readouterr().err == ""


@pytest.fixture
def seen(panel):
    """A function that shows a control and returns it, and the values that `draw` has got."""
    values = []

    def record(value):
        values.append(value)
        return plt.figure(figsize=(1, 1))

    return lambda choice: (panel(record, value=choice).children[0], values)


ARRAY = np.arange(3)


@pytest.mark.parametrize(
    "options",
    [
        [(96, 160), (128, 128)],
        [("circle", 0), ("square", 1)],
        [[5, 0], [2, 1]],
        [("a", "b")],
        [1, True, 1.0, np.float32(1)],
        [0, False, "0", "0"],
        [None, 0],
        [{"a": 1}, {2}, ARRAY, ARRAY + 1],
        [(1, 2), "one of its own kind", (3, 4, 5)],
        [np.int64(3), np.float32(0.1)],
        [sum, "sum"],
    ],
    ids=str,
)
def test_every_option_reaches_draw_as_it_is(seen, options):
    control, values = seen(options)
    picks = [*range(1, len(options)), 0] if len(options) > 1 else []
    for i in picks:
        control.index = i
    assert len(values) == 1 + len(picks)
    assert all(a is options[i] for a, i in zip(values, [0, *picks]))
    assert control.options == tuple(str(option) for option in options)


@pytest.mark.parametrize(
    "values, shown",
    [
        ((0.0, 1.0, 0.05, 0.35), "0.35"),
        ((0.001, 0.01, 0.001, 0.004), "0.004"),
        ((0.0, 1e-3, 1e-4, 4e-4), "0.0004"),
        ((0.0, 0.01, 0.0005), "0.0050"),
        ((2.5e-6, 1e-5, 2.5e-6, 5e-6), "0.0000050"),
        ((0.0, 4.0, 0.5), "2.0"),
        ((0.0, 8.0, 2.0), "4"),
        ((0, 8.0, 2), "4"),
        ((1e5, 3e6, 1e5), "1500000"),
        ((0.25, 3.0, 1.0), "1.25"),  # the digits of what it begins with
        ((0.0, 3.0, 1.0, 0.75), "0.75"),
        ((-1.0, 1.0, 0.1, 0.3 - 1e-16), "0.3"),
        ((np.float32(0), np.float32(1), np.float32(0.1)), "0.5"),
        ((Fraction(0), Fraction(1), Fraction(1, 4)), "0.50"),
    ],
    ids=str,
)
def test_a_slider_shows_as_many_digits_as_its_step_has(seen, values, shown):
    control, drawn = seen(values)
    assert format(control.value, control.readout_format) == shown
    assert drawn == [control.value] and type(drawn[0]) is float


@given(
    step=st.builds(lambda digits, power: float(f"{digits}e{power}"), ANY_STEP, st.integers(-9, 4)),
    count=st.integers(1, 50),
    first=st.integers(-50, 50),
)
def test_no_two_positions_of_a_slider_look_the_same(step, count, first):
    values = (first * step, (first + count) * step, step)
    control = _control("x", values)
    texts = {format((first + i) * step, control.readout_format) for i in range(count + 1)}
    assert len(texts) == count + 1
    assert all(abs(float(t) / step - round(float(t) / step)) < 1e-3 for t in texts)


def test_numbers_of_numpy_make_sliders_of_pythons(seen):
    control, drawn = seen(tuple(np.array([-100, 100, 50], np.int8)))
    assert (control.min, control.max, control.step, control.value) == (-100, 100, 50, 0)
    assert type(control).__name__ == "IntSlider" and type(drawn[0]) is int


def test_a_step_as_wide_as_the_range(seen):
    control, _ = seen((0.2, 0.3, 0.1))  # 0.3 - 0.2 < 0.1
    assert (control.min, control.max) == (0.2, 0.3)


def test_an_error_of_the_first_drawing_is_raised(panel):
    with pytest.raises(RuntimeError, match="three"):
        panel(draw, box_size=(0, 8, 1, 3))


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"box_size": (1, 1, 1)}, "box_size: min 1 must be less than max 1"),
        ({"box_size": (2, 1, 1)}, "must be less than"),
        ({"box_size": (0, 1, 0)}, "step 0 must be positive"),
        ({"box_size": (0, 1, 2)}, "step 2 must be positive and at most"),
        ({"box_size": (0, 1, 1, 2)}, "start 2 lies outside 0..1"),
        ({"box_size": (0, 1)}, "must be numbers .min, max, step"),
        ({"box_size": ("a", "b", "c")}, "must be numbers .min, max, step"),
        ({"box_size": (0, 1, True)}, "must be numbers .min, max, step"),
        ({"box_size": 3}, "box_size must be numbers .* or a list of options, got 3"),
        ({"box_size": (0.0, float("inf"), 1.0)}, "min 0.0 must be less than max inf, and both"),
        ({"box_size": (float("-inf"), 0.0, 1.0)}, "less than max 0.0, and both finite"),
        ({"box_size": (0, 1, 1, float("nan"))}, "start nan lies outside"),
        ({"box_size": []}, "the list of options is empty"),
        ({"box_size": (0, 1, 1), "radius": [1]}, "ranges do not fit.*radius"),
        ({"colour": ["red"]}, "ranges do not fit.*box_size"),
        ({"box_size": (float("nan"), 1, 1)}, "must be less than"),
    ],
)
def test_bad_ranges(ranges, message):
    with pytest.raises(ValueError, match=message):
        explore(draw, **ranges)


def test_draw_must_return_a_figure(panel):
    with pytest.raises(ValueError, match="must return a matplotlib Figure, got int"):
        panel(lambda size: size, size=(0, 1, 1))


def test_it_runs_in_a_kernel_without_a_front_end(tmp_path, monkeypatch):
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    from helpers.lessons import ROOT, read
    from tools.run import run

    source = (
        "import matplotlib.pyplot as plt\nfrom helpers.explore import explore\n"
        "def draw(n):\n    figure, axes = plt.subplots()\n    return figure\n"
        "explore(draw, n=(0, 2, 1))"
    )
    path = tmp_path / "01_toy.ipynb"
    path.write_text(nbformat.writes(new_notebook(cells=[new_code_cell(source)])))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert run(path)
    assert read(path).cells[0].outputs == []
