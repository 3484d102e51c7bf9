"""Sliders for a figure that a notebook has already shown once without them.

The notebook defines a plain `draw(...)`, calls it (that figure is what GitHub and paper show) and
then writes `explore(draw, threshold=(0.0, 1.0, 0.05, 0.5))` for whoever runs it live.
"""

import inspect
import io
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

_WIDE = {"description_width": "14em"}


def explore(draw: Callable[..., Figure], **ranges: Any) -> None:
    """Show `draw(...)` under one control per keyword, redrawn when a control is released.

    Each range is a tuple (min, max, step) or (min, max, step, start) of numbers, which makes a
    slider (of integers if all are), or a list of options, which makes a drop-down menu. A slider
    without a start begins in the middle, a menu with its first option. Without ipywidgets one
    sentence is printed instead. Raises ValueError for a range that is empty or reversed and for a
    keyword that `draw` does not take; an error of the first drawing is raised as it is.
    """
    starts = {name: _start(name, values) for name, values in ranges.items()}
    try:
        inspect.signature(draw).bind(**starts)
    except TypeError as error:
        raise ValueError(f"ranges do not fit the arguments of draw: {error}") from None
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        print("The sliders need the package ipywidgets; the figure above shows one setting.")
        return
    from IPython.display import display

    display(_panel(draw, ranges, starts))


def _panel(draw: Callable[..., Figure], ranges: dict[str, Any], starts: dict[str, Any]) -> Any:
    import ipywidgets as widgets

    controls = {name: _control(name, ranges[name], starts[name]) for name in ranges}
    # A picture widget rather than an Output widget: nothing is printed into the cell, and an error
    # of the first drawing reaches whoever runs the notebook.
    # In its own size: a box would stretch it to the width of the page.
    own_size = widgets.Layout(align_self="flex-start", max_width="100%")
    picture = widgets.Image(value=_png(draw(**starts)), format="png", layout=own_size)
    message = widgets.Label()

    def redraw(_change: Any) -> None:
        values = {name: control.value for name, control in controls.items()}
        try:
            picture.value = _png(draw(**values))
            message.value = ""
        except Exception as error:  # a callback's error would vanish in the browser's console
            message.value = f"{type(error).__name__}: {error}"

    for control in controls.values():
        control.observe(redraw, names="value")
    return widgets.VBox([*controls.values(), message, picture])


def _control(name: str, values: Any, start: Any) -> Any:
    import ipywidgets as widgets

    look = {
        "description": name.replace("_", " "),
        "style": _WIDE,
        "layout": widgets.Layout(width="36em"),
    }
    if isinstance(values, list):
        return widgets.Dropdown(options=values, value=start, **look)
    low, high, step = values[:3]
    whole = all(isinstance(value, numbers.Integral) for value in values)
    slider = widgets.IntSlider if whole else widgets.FloatSlider
    return slider(value=start, min=low, max=high, step=step, continuous_update=False, **look)


def _start(name: str, values: Any) -> Any:
    """The value that the control begins with; ValueError if `values` is no usable range."""
    if isinstance(values, list):
        if not values:
            raise ValueError(f"{name}: the list of options is empty")
        return values[0]
    _check_range(name, values)
    if len(values) == 4:
        return values[3]
    low, high, step = values
    return low + step * round((high - low) / step / 2)


def _check_range(name: str, values: Sequence[Any]) -> None:
    if not isinstance(values, tuple) or len(values) not in (3, 4):
        raise ValueError(f"{name} must be (min, max, step[, start]) or a list, got {values!r}")
    if not all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{name} must hold numbers, got {values!r}")
    low, high, step = values[:3]
    if not low < high:
        raise ValueError(f"{name}: min {low} must be less than max {high}")
    if not 0 < step <= high - low:
        raise ValueError(f"{name}: step {step} must be positive and at most max - min")
    if len(values) == 4 and not low <= values[3] <= high:
        raise ValueError(f"{name}: start {values[3]} lies outside {low}..{high}")


def _png(figure: Figure) -> bytes:
    if not isinstance(figure, Figure):
        raise ValueError(f"draw must return a matplotlib Figure, got {type(figure).__name__}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)  # an open figure would be shown a second time when the cell ends
    return buffer.getvalue()
