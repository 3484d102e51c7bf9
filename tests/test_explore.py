"""helpers.explore: controls, drawings and refusals, without a front end."""

import builtins

import matplotlib.pyplot as plt
import pytest

from helpers.explore import explore


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
        ({"box_size": (0, 1)}, "must be .min, max, step"),
        ({"box_size": ("a", "b", "c")}, "must hold numbers"),
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


def test_without_ipywidgets_one_sentence_is_printed(monkeypatch, capfd):
    real = builtins.__import__

    def no_widgets(name, *rest):
        if name == "ipywidgets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_widgets)
    explore(draw, box_size=(0, 1, 1))
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and "ipywidgets" in out and err == ""


def test_it_runs_in_a_kernel_without_a_front_end(tmp_path, monkeypatch):
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    from helpers import notebooks

    source = (
        "import matplotlib.pyplot as plt\nfrom helpers.explore import explore\n"
        "def draw(n):\n    figure, axes = plt.subplots()\n    return figure\n"
        "explore(draw, n=(0, 2, 1))"
    )
    path = tmp_path / "01_toy.ipynb"
    path.write_text(nbformat.writes(new_notebook(cells=[new_code_cell(source)])))
    monkeypatch.setenv("PYTHONPATH", str(notebooks.ROOT))
    assert notebooks.run(path)
    assert notebooks.read(path).cells[0].outputs == []
