"""tools.canonical: one form for a notebook, whatever machine and front end it comes from."""

import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from toy_notebooks import executed, figure, printed

from helpers.records import ROOT
from tools import canonical


def only_cell(cell):
    return canonical.canonicalise(new_notebook(cells=[cell])).cells[0]


def test_counts_ids_and_metadata():
    cells = [executed(source=str(i)) for i in range(3)] + [new_code_cell("  ")]
    for cell in cells:
        cell.id = "twice"
        cell.metadata = {"tags": ["exercise"], "trusted": True, "execution": {"x": 1}}
    notebook = NotebookNode(cells=cells, metadata={"widgets": {}, "colab": {}})
    result = canonical.canonicalise(notebook)
    assert [cell.execution_count for cell in result.cells] == [1, 2, 3]
    assert result.cells[0].id == "twice" and len({cell.id for cell in result.cells}) == 3
    assert all(cell.metadata == {"tags": ["exercise"]} for cell in result.cells)
    assert result.metadata == canonical.METADATA and result.nbformat_minor == 5
    again = canonical.canonicalise(result)
    assert canonical.to_text(again) == canonical.to_text(result)
    assert notebook.cells[0].metadata["trusted"]  # the notebook itself stays as it was


def test_what_a_reader_needs_is_kept():
    kept = {"alt": "a box", "slideshow": {"slide_type": "slide"}, "tags": ["solution"]}
    kept |= {"cellView": "form"}
    folded = {"jupyter": {"source_hidden": True, "outputs_hidden": True}}
    cell = only_cell(executed(figure(), **kept, **folded))
    assert cell.metadata == {**kept, "jupyter": {"source_hidden": True}}
    assert cell.outputs[0].data == figure().data


def test_streams_are_joined_and_progress_lines_show_their_last_state():
    cell = only_cell(executed(printed("0%\r50%"), printed("\r100%\ndone\r\n"), printed("ö")))
    assert [output.text for output in cell.outputs] == ["100%\ndone\nö"]
    assert "ö" in canonical.to_text(canonical.canonicalise(new_notebook(cells=[cell])))


def test_widgets_go_with_their_text():
    view = {canonical.WIDGET_VIEW: {"model_id": "x"}, "text/plain": "interactive(children=())"}
    assert only_cell(executed(new_output("display_data", view))).outputs == []


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (executed(printed("careful", "stderr")), "writes to stderr: 'careful'"),
        (executed(printed(f"{ROOT}/x")), "shows a path of this machine"),
        (executed(printed("read /home/someone/x.png")), "this machine: /home/someone/x.png"),
        (executed(new_output("error", ename="E", evalue="v")), "error output: E: v"),
        (new_code_cell("1"), "was not executed"),
    ],
)
def test_what_must_not_be_hidden_is_refused(cell, message):
    with pytest.raises(ValueError, match=r"cell \[1\] .*") as caught:
        only_cell(cell)
    assert message in str(caught.value)


def test_addresses_are_no_machine_paths():
    only_cell(executed(printed("https://example.org/home/page 3/tmp/4 and/or 1/2")))


def test_text_is_json_with_a_final_newline():
    text = canonical.to_text(canonical.canonicalise(new_notebook(cells=[executed()])))
    assert text.endswith("}\n") and text.startswith('{\n "cells"') and json.loads(text)


texts = st.text("ab \r\n")
outputs = st.lists(st.builds(printed, texts), max_size=3)
code = st.builds(lambda found, source: executed(*found, source=source), outputs, texts)
cells = st.lists(code | st.builds(new_markdown_cell, texts), max_size=4)


@given(cells)
def test_the_form_of_the_form_is_the_form(cells):
    once = canonical.canonicalise(new_notebook(cells=cells))
    assert canonical.to_text(canonical.canonicalise(once)) == canonical.to_text(once)
    assert [c.source for c in once.cells] == [c.source for c in cells if c.source.strip()]


def noisy_png(side: int = 64) -> str:
    pixels = np.random.RandomState(0).randint(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(("side", "most"), [(64, 256), (400, 24)])
def test_figures_get_a_palette_once(side, most):
    heavy = noisy_png(side)
    cell = only_cell(executed(new_output("display_data", {"image/png": heavy})))
    light = cell.outputs[0].data["image/png"]
    assert len(light) < len(heavy) / 2
    assert len(Image.open(io.BytesIO(base64.b64decode(light))).convert("RGB").getcolors()) <= most
    again = only_cell(executed(new_output("display_data", {"image/png": light})))
    assert again.outputs[0].data["image/png"] == light
