"""Sliders for a figure that a notebook has already shown once, as GitHub and paper show it:

`draw(...)`, and then `explore(draw, threshold=(0.0, 1.0, 0.05, 0.5))` for whoever runs it live.
"""

import inspect
import io
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
from IPython import display
from matplotlib.figure import Figure


def explore(draw: Callable[..., Figure], **ranges: Any) -> None:
    """Show `draw(...)` under one control per keyword, redrawn when a control is released.

    A tuple of numbers (min, max, step[, start]) makes a slider (of integers if all are), which
    begins in the middle if not told; a list of options of any kind makes a menu. An error of the
    first drawing is raised as it is.
    """
    try:
        inspect.signature(draw).bind(**ranges)
    except TypeError as error:
        raise ValueError(f"ranges do not fit the arguments of draw: {error}") from None
    display.display(_panel(draw, ranges))


def _panel(draw: Callable[..., Figure], ranges: dict[str, Any]) -> widgets.Widget:
    controls = {name: _control(name, values) for name, values in ranges.items()}
    menus = {name: options for name, options in ranges.items() if isinstance(options, list)}

    def drawn() -> bytes:
        values = {name: control.value for name, control in controls.items()}
        values |= {name: options[controls[name].index] for name, options in menus.items()}
        return _png(draw(**values))

    # A picture, not an Output widget: nothing is printed into the cell, and an error of the first
    # drawing is raised. In its own size: a box would stretch it to the width of the page.
    own_size = widgets.Layout(align_self="flex-start", max_width="100%")
    picture = widgets.Image(value=drawn(), format="png", layout=own_size)
    message = widgets.Label()

    def redraw(_change: Any) -> None:
        try:
            picture.value, message.value = drawn(), ""
        except Exception as error:  # a callback's error would vanish in the browser's console
            message.value = f"{type(error).__name__}: {error}"

    for name, control in controls.items():
        control.observe(redraw, names="index" if name in menus else "value")
    return widgets.VBox([*controls.values(), message, picture])


def _control(name: str, values: Any) -> widgets.Widget:
    look = {"description": name.replace("_", " "), "style": {"description_width": "14em"}}
    look["layout"] = widgets.Layout(width="36em")
    if isinstance(values, list):
        if not values:
            raise ValueError(f"{name}: the list of options is empty")
        # Only the words: ipywidgets takes pairs apart and confuses options that are equal.
        return widgets.Dropdown(options=[str(value) for value in values], **look)
    low, high, step, start = _range(name, values)
    look |= {"min": low, "max": high, "step": step, "value": start, "continuous_update": False}
    if isinstance(step, int):
        return widgets.IntSlider(**look)
    # The most digits after the point, of six in all: a seventh may be float32's rounding.
    texts = [np.format_float_positional(v, 6, True, False, "-") for v in (low, step, start)]
    digits = max(len(text.partition(".")[2]) for text in texts)
    return widgets.FloatSlider(readout_format=f".{digits}f", **look)


def _range(name: str, values: Any) -> tuple[float, float, float, float]:
    """Min, max, step and start, all Python's integers or all its floats."""
    is_tuple = isinstance(values, tuple) and len(values) in (3, 4)
    if not is_tuple or not all(isinstance(v, Real) and not isinstance(v, bool) for v in values):
        expected = "numbers (min, max, step[, start]) or a list of options"
        raise ValueError(f"{name} must be {expected}, got {values!r}")
    kind = int if all(isinstance(v, Integral) for v in values) else float
    low, high, step, *start = map(kind, values)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"{name}: min {low} must be less than max {high}, and both finite")
    if not 0 < step <= (high - low) * (1 + 1e-9):  # 0.3 - 0.2 is less than 0.1
        raise ValueError(f"{name}: step {step} must be positive and at most max - min")
    start = start[0] if start else low + step * round((high - low) / step / 2)
    if not low <= start <= high:
        raise ValueError(f"{name}: start {start} lies outside {low}..{high}")
    return low, high, step, start


def _png(figure: Figure) -> bytes:
    if not isinstance(figure, Figure):
        raise ValueError(f"draw must return a matplotlib Figure, got {type(figure).__name__}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)  # an open figure would be shown a second time when the cell ends
    return buffer.getvalue()
