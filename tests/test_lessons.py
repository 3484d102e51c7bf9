"""helpers.notebooks and helpers.hygiene on small notebooks of the test's own making."""

import base64
import inspect
import io
import json
import os
import traceback

import nbformat
import numpy as np
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from helpers import lessons as tool

# One black pixel.
PNG = {
    "image/png": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNg"
    "AAAAAgABSK+kcQAAAABJRU5ErkJggg=="
}


def write(path, *cells):
    """A notebook of `cells`; a string is the source of a code cell."""
    made = [new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    path.write_text(nbformat.writes(new_notebook(cells=made)))
    return path


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def executed(*outputs, source="1", **metadata):
    return new_code_cell(source, execution_count=7, outputs=list(outputs), metadata=metadata)


def only_cell(cell):
    return tool.canonicalise(new_notebook(cells=[cell])).cells[0]


# ---------------------------------------------------------------- find and load


def test_find_knows_names_numbers_and_paths(tmp_path, monkeypatch):
    path = write(tmp_path / "05_yolo.ipynb", "1")
    monkeypatch.setattr(tool.notebooks, "__defaults__", (tmp_path,))
    assert tool.find("05") == tool.find("05_yolo") == tool.find(str(path)) == path
    with pytest.raises(ValueError, match="no notebook 'yolo'; the choices are: 05_yolo"):
        tool.find("yolo")


def test_load_takes_definitions_and_leaves_the_rest(tmp_path):
    path = write(
        tmp_path / "01_toy.ipynb",
        "import math\ntry:\n    import nothing_of_that_name\nexcept ImportError:\n    pass",
        "SIZE, RATIO = 4, math.sqrt(2)\nNAMES: list = [str(i) for i in range(SIZE)]",
        "ran = True\nprint('executed')\nMODEL = train()\nWEIGHTS = MODEL + 1\nUSER = input()",
        "from dataclasses import dataclass\n@dataclass\nclass Box:\n    side: int = SIZE",
        "def area(box):\n    return box.side ** 2",
    )
    module = tool.load(path)
    assert module.NAMES == ["0", "1", "2", "3"] and module.RATIO == 2**0.5
    assert module.area(module.Box()) == 16 and module.Box.__module__ == "01_toy"
    assert not {"ran", "MODEL", "WEIGHTS", "USER"} & set(vars(module))


def test_load_lets_tracebacks_and_getsource_show_the_lines(tmp_path):
    module = tool.load(write(tmp_path / "01_toy.ipynb", "X = 1", "def f():\n    return 1 / 0"))
    assert inspect.getsource(module.f) == "def f():\n    return 1 / 0"
    with pytest.raises(ZeroDivisionError) as caught:
        module.f()
    shown = "".join(traceback.format_tb(caught.tb))
    assert "01_toy.ipynb[cell 2]" in shown and "return 1 / 0" in shown


@pytest.mark.parametrize("source", ["%matplotlib inline", "!ls", "files = !ls", "def f(:"])
def test_load_refuses_what_is_not_plain_python(tmp_path, source):
    with pytest.raises(ValueError, match=r"01_toy.ipynb\[cell 1\] is not plain Python"):
        tool.load(write(tmp_path / "01_toy.ipynb", source))


def test_load_names_a_definition_that_needs_more(tmp_path):
    path = write(tmp_path / "01_toy.ipynb", "device = 1", "def f(x=device): pass")
    with pytest.raises(ValueError, match=r"\[cell 2\], line 1.*NameError.*'device'"):
        tool.load(path)


def test_read_refuses_another_file(tmp_path):
    path = tmp_path / "01_toy.ipynb"
    path.write_text("not a notebook")
    with pytest.raises(ValueError, match="01_toy.ipynb is not a notebook"):
        tool.read(path)


# ---------------------------------------------------------------- canonicalise


def test_canonicalise_counts_ids_and_metadata():
    cells = [executed(source=str(i)) for i in range(3)] + [new_code_cell("  ")]
    for cell in cells:
        cell.id = "twice"
        cell.metadata = {"tags": ["exercise"], "trusted": True, "execution": {"x": 1}}
    result = tool.canonicalise(NotebookNode(cells=cells, metadata={"widgets": {}, "colab": {}}))
    assert [cell.execution_count for cell in result.cells] == [1, 2, 3]
    assert result.cells[0].id == "twice" and len({cell.id for cell in result.cells}) == 3
    assert all(cell.metadata == {"tags": ["exercise"]} for cell in result.cells)
    assert result.metadata == tool.METADATA and result.nbformat_minor == 5
    again = tool.canonicalise(result)
    assert tool.to_text(again) == tool.to_text(result)


def test_canonicalise_keeps_what_a_reader_needs():
    metadata = {"alt": "a box", "slideshow": {"slide_type": "slide"}, "tags": ["solution"]}
    folded = {"jupyter": {"source_hidden": True, "outputs_hidden": True}}
    cell = only_cell(executed(new_output("display_data", PNG), **metadata, **folded))
    assert cell.metadata == {**metadata, "jupyter": {"source_hidden": True}}
    assert cell.outputs[0].data == PNG


def test_canonicalise_joins_streams_and_resolves_progress_lines():
    cell = only_cell(executed(printed("0%\r50%"), printed("\r100%\ndone\r\n"), printed("ö")))
    assert [output.text for output in cell.outputs] == ["100%\ndone\nö"]
    assert "ö" in tool.to_text(tool.canonicalise(new_notebook(cells=[executed(printed("ö"))])))


def test_canonicalise_drops_widgets_with_their_text():
    view = {tool.WIDGET_VIEW: {"model_id": "x"}, "text/plain": "interactive(children=())"}
    assert only_cell(executed(new_output("display_data", view))).outputs == []


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (executed(printed("careful", "stderr")), "writes to stderr: 'careful'"),
        (executed(printed(f"{tool.ROOT}/x")), "shows a path of this machine"),
        (executed(printed("read /home/someone/x.png")), "this machine: /home/someone/x.png"),
        (executed(new_output("error", ename="E", evalue="v")), "error output: E: v"),
        (new_code_cell("1"), "was not executed"),
    ],
)
def test_canonicalise_refuses_what_must_not_be_hidden(cell, message):
    with pytest.raises(ValueError, match=r"cell \[1\] .*") as caught:
        only_cell(cell)
    assert message in str(caught.value)


def test_addresses_are_no_machine_paths():
    only_cell(executed(printed("https://example.org/home/page 3/tmp/4 and/or 1/2")))


# ---------------------------------------------------------------- run


def test_run_writes_a_canonical_notebook_back(tmp_path, capfd):
    source = (
        "import os\nprint(os.environ['LECTURE_QUIET'], os.path.basename(os.getcwd()), os.getpid())"
    )
    path = write(tmp_path / "01_toy.ipynb", "x = 1", source)
    assert tool.run(path)
    assert "01_toy: " in capfd.readouterr().out
    notebook = tool.read(path)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    quiet, folder, process = notebook.cells[1].outputs[0].text.split()
    assert (quiet, folder) == ("1", tmp_path.name)
    with pytest.raises(ProcessLookupError):  # the kernel has ended
        os.kill(int(process), 0)
    assert path.read_text() == tool.to_text(tool.canonicalise(notebook))


def test_run_leaves_the_file_alone_after_a_failure(tmp_path, capfd):
    path = write(tmp_path / "01_toy.ipynb", "x = 1", "1 / 0")
    before = path.read_bytes()
    assert tool.main(["run", str(path)]) == 1
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    error = capfd.readouterr().err
    assert "01_toy cell [2] failed" in error and "ZeroDivisionError" in error


@pytest.mark.parametrize("arguments", [[], ["run"], ["bake", "05"], ["list", "05"]])
def test_usage(arguments, capsys):
    assert tool.main(arguments) == 2
    assert "python -m tools run 05" in capsys.readouterr().err


def test_a_wrong_name_is_one_sentence(capsys):
    assert tool.main(["check", "no-such"]) == 1
    assert capsys.readouterr().err.startswith("no notebook 'no-such'")


# ---------------------------------------------------------------- check

SLIDE = {"slideshow": {"slide_type": "slide"}}
BADGE = (
    "https://colab.research.google.com/github/_owner_/object-detection-lectures/blob/main/"
    "notebooks/01_toy.ipynb"
)


@pytest.fixture
def good(tmp_path, monkeypatch):
    """The cells of a notebook that keeps every rule, and a function that checks such a list."""
    setup_cell = tmp_path / "setup_cell.py"
    setup_cell.write_text('REPOSITORY = "https://github.com/_owner_/object-detection-lectures"\n')
    monkeypatch.setattr("tools.check.SETUP_CELL", setup_cell)
    cells = [
        new_markdown_cell(f"# Title\n[open in Colab]({BADGE}) [Part](#Part)", metadata=SLIDE),
        executed(source=setup_cell.read_text().rstrip()),
        new_markdown_cell("## Part", metadata=SLIDE),
        executed(new_output("display_data", PNG), source="draw()"),
        new_markdown_cell("The figure shows a box.\n\n```\n# no heading [x](y.md)\n```"),
        executed(printed("3\n"), source="print(3)", tags=["nbval-check-output"]),
        executed(source="def f(): ...", tags=["exercise"]),
        executed(source="f = 1", tags=["solution"], jupyter={"source_hidden": True}),
    ]

    def check(cells, canonical=True):
        notebook = new_notebook(cells=cells)
        notebook = tool.canonicalise(notebook) if canonical else notebook
        path = tmp_path / "01_toy.ipynb"
        path.write_text(tool.to_text(notebook))
        return tool.check(path)

    return cells, check


def test_a_good_notebook_has_no_problems(good):
    cells, check = good
    assert check(cells) == []


def append(*more):
    return lambda cells: cells + list(more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells[1:], "the first cell must be text"),
        (lambda cells: cells[:1] + cells[2:], "must equal helpers/setup_cell.py"),
        (lambda cells: cells[:3] + cells[-1:], "does not follow its exercise"),
        (append(executed(source="%time f()")), "cell [6] is not plain Python"),
        (append(executed(source="x = 1\n" * 36)), "has 37 lines, more than 35"),
        (append(executed(source="class A:\n" + "    x = 1\n" * 46)), "more than 45"),
        (append(executed(source="from tqdm.notebook import tqdm")), "uses tqdm.notebook"),
        (append(executed(source="clear_output()")), "uses clear_output"),
        (append(executed(source="# NBVAL_SKIP\n1")), "comment marker"),
        (append(executed(tags=["nbval-skip"])), "the tag 'nbval-skip'"),
        (append(executed(tags=["raises-exception"])), "the tag 'raises-exception'"),
        (append(executed(tags=["nbval-check-output"])), "no output to compare"),
        (append(executed(tags=["exercise"]), executed(tags=["solution"])), "solution and must be"),
        (append(executed(tags=["check"])), "cell [6] is a check and must be folded"),
        (append(new_markdown_cell("# Again", metadata=SLIDE)), "second heading of level 1"),
        (append(new_markdown_cell("#### Deep")), "level 4 follows one of level 2"),
        (append(new_markdown_cell("## Part")), "needs a slide type"),
        (append(new_markdown_cell("[next](02_none.ipynb)")), "02_none.ipynb leads nowhere"),
        (append(executed(), executed(new_output("display_data", PNG))), "cell [7] draws a figure"),
        (
            append(
                executed(), executed(new_output("display_data", PNG)), new_markdown_cell("### A")
            ),
            "cell [7] draws a figure",
        ),
        (append(new_markdown_cell("![ ](https://x.y/z.png)")), "picture without an alt text"),
        (append(new_markdown_cell('<img src="https://x.y/z.png">')), "picture without an alt"),
        (append(new_markdown_cell("## More `code`", metadata=SLIDE)), "differ in More-code"),
        (lambda cells: cells[:2] + cells[4:], "sections differ in Part"),
        (append(executed(printed("x" * 1_200_000))), "more than 1,200,000"),
        (lambda cells: [new_markdown_cell("# Title", metadata=SLIDE), *cells[1:]], "Colab badge"),
    ],
)
def test_check_names_the_problem(good, change, message):
    cells, check = good
    assert any(message in problem for problem in check(change(cells)))


def test_the_contents_keep_the_order(good):
    cells, check = good
    last = new_markdown_cell("## Last", metadata=SLIDE)
    cells[0].source += " [Last](#Last)"
    assert check([*cells, last]) == []
    cells[0].source = cells[0].source.replace("[Part](#Part) [Last](#Last)", "[](#Last) [](#Part)")
    assert ["another order" in problem for problem in check([*cells, last])] == [True]


def test_a_picture_with_an_alt_text_is_no_problem(good):
    cells, check = good
    pictures = '![a box](https://x.y/z.png) <img src="https://x.y/z.png" alt="a box"> `![](x)`'
    assert check([*cells, new_markdown_cell(pictures)]) == []


def test_check_sees_what_canonicalise_would_mend(good):
    cells, check = good
    found = check([*cells, executed(printed("oops", "stderr"))], canonical=False)
    assert "the execution counts are not 1..N: run it from top to bottom" in found
    assert "cell [6] writes to stderr: 'oops'; mend the cause" in found
    assert any("canonical form" in problem for problem in check(cells, canonical=False))


def test_check_asks_for_links_to_the_neighbours(good, tmp_path):
    cells, check = good
    write(tmp_path / "00_before.ipynb", "1")
    write(tmp_path / "02_after.ipynb", "1")
    assert check(cells) == [
        "no link to the neighbour 00_before.ipynb",
        "no link to the neighbour 02_after.ipynb",
    ]


def test_text_is_json_with_a_final_newline(good, tmp_path):
    cells, check = good
    check(cells)
    text = (tmp_path / "01_toy.ipynb").read_text()
    assert text.endswith("}\n") and text.startswith('{\n "cells"') and json.loads(text)


def noisy_png() -> str:
    pixels = np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_figures_get_a_palette_once():
    heavy = noisy_png()
    cell = only_cell(executed(new_output("display_data", {"image/png": heavy})))
    light = cell.outputs[0].data["image/png"]
    assert len(light) < len(heavy) / 2
    assert len(Image.open(io.BytesIO(base64.b64decode(light))).convert("RGB").getcolors()) <= 256
    again = only_cell(executed(new_output("display_data", {"image/png": light})))
    assert again.outputs[0].data["image/png"] == light
