"""The sliders of the section *Explore*, moved in a real browser.

nbval runs every cell of every notebook, but without a page: it cannot see whether JupyterLab shows
the notebook and its sliders, and whether the figure follows when one is moved. Here JupyterLab
serves a copy of the course on a free loopback port, and headless Chromium opens it.

Explore needs the lecture's trained model. Nothing here is about numbers, so nobody waits minutes
for it: only those statements are run before Explore on which it depends, in the page's own kernel,
and there every budget is TRAINING_STEPS steps. The set-up cell and the cells of Explore are run in
the page, as a reader runs them.

Selenium is imported where it is needed, since this file is read where it is missing, too.
"""

import ast
import json
import os
import shutil
import subprocess
import symtable
import sys
import time

import pytest
from shared import PATIENCE, browser_programs

from helpers.lessons import find, read
from helpers.records import ROOT

TRAINING_STEPS = 4

# Chromium finds nothing but this machine, so no test depends on the web. The one picture that
# lectures take from there, the Colab badge, is missed on the console; any other line is ours.
NO_WEB = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
BADGE_MISSING = "https://colab.research.google.com/assets/colab-badge.svg - Failed to load resource"

# ---------------------------------------------------------------- what Explore depends on

# These may leave a name as it was, or read it themselves: whoever set it before is needed, too.
MAY_STORE = (ast.AugAssign, ast.For, ast.If, ast.Try, ast.While, ast.With)


def sections(notebook):
    """Indices of the code cells before the section Explore, and of those in it."""
    before, inside = [], []
    current = before
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            current.append(index)
        elif cell.source.startswith("## "):
            if current is inside:
                break
            current = inside if cell.source.split("\n")[0].endswith(" Explore") else before
    return before, inside


def preparation(before, inside):
    """Those statements of the sources `before` on which the sources `inside` depend, as one source.

    Found backwards: a statement is kept if it sets a name that is needed later, and then the names
    that it reads are needed, too. So assertions go, and calls that only draw or print. What a name
    gets by a method call, or after the function that reads it, is missed, and fails the test.
    """
    cells = [(source, True) for source in before] + [(source, False) for source in inside]
    needed, kept = set(), []
    for source, optional in reversed(cells):
        for statement in reversed(ast.parse(source).body):
            stored, used = names(symtable.symtable(ast.unparse(statement), "statement", "exec"))
            if optional and not stored & needed:
                continue
            if optional:
                kept.append(ast.unparse(statement))
            needed = (needed if isinstance(statement, MAY_STORE) else needed - stored) | used
    return "\n".join(reversed(kept))


def names(table):
    """The module's names that a statement sets, and those that it or a function in it reads."""
    symbols = table.get_symbols()
    top = table.get_type() == "module"
    stored = {s.get_name() for s in symbols if top and (s.is_assigned() or s.is_imported())}
    used = {s.get_name() for s in symbols if s.is_referenced() and (top or s.is_global())}
    return stored, used.union(*(names(child)[1] for child in table.get_children()))


def test_the_preparation_is_what_explore_needs_and_no_more():
    before = [
        "import math\nimport os",
        "a = 1\nb = [a]\nassert a == 2\nprint(b)",
        "scale, lost = 2, a",
        "scale += 1\nother = len(b)",
        "def area(r):\n    return math.pi * scale * r**2",
        "a = 5",
    ]
    inside = ["b = a\ndef draw(x):\n    return area(x) + b", "draw(1)"]
    assert preparation(before, inside).splitlines() == [
        "import math",
        "a = 1",
        "scale, lost = (2, a)",
        "scale += 1",
        "def area(r):",
        "    return math.pi * scale * r ** 2",
        "a = 5",
    ]


def test_without_chromium_only_the_tests_in_a_browser_are_left_out(tmp_path):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", __file__]
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 tests in a browser are left out: th" in result.stdout
    assert "::test_explore" not in result.stdout and "::test_the_preparation" in result.stdout


# ---------------------------------------------------------------- JupyterLab and Chromium


def wait_for(what, answer):
    """The first true value of `answer()`, asked again and again until PATIENCE is at its end."""
    end = time.monotonic() + PATIENCE
    while not (value := answer()):
        assert time.monotonic() < end, f"waited {PATIENCE} s for {what}"
        time.sleep(0.2)
    return value


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that serves a copy of the course; "{}" stands for the notebook.

    All that it would read from or write to the user's home is in a folder of its own.
    """
    folder = tmp_path_factory.mktemp("lab")
    for part in ("helpers", "notebooks", "data"):
        shutil.copytree(ROOT / part, folder / "course" / part)
    # Else a question about news covers a part of the page.
    settings = folder / "CONFIG" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    no_news = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(no_news))
    own = {f"JUPYTER_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            lab_command(folder / "course"),
            env={**os.environ, **own, "LECTURE_RUNS": str(folder / "runs")},
            stdout=log,
            stderr=log,
        )
    try:
        info = wait_for("JupyterLab to start", lambda: server_info(folder / "RUNTIME"))
        yield f"{info['url']}lab/tree/notebooks/{{}}?reset&token={info['token']}"
    finally:
        server.terminate()
        server.wait(PATIENCE)


def lab_command(course):
    return [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        "--expose-app-in-browser",  # as window.jupyterapp, which the scripts below ask
        "--ServerApp.ip=127.0.0.1",  # the port is the next free one, the token a random one
        f"--ServerApp.root_dir={course}",
        "--LabApp.extension_manager=readonly",  # the other one asks PyPI
    ]


def server_info(runtime):
    """What the server says about itself once it listens; None before."""
    for path in runtime.glob("jpserver-*.json"):
        try:
            return json.loads(path.read_text())
        except ValueError:  # not yet written to its end
            return None


@pytest.fixture(scope="module")
def chromium():
    from selenium import webdriver

    program, driver = browser_programs()
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        "--window-size=1400,1000",
        "--no-sandbox",  # root has none, and the page is our own
        "--disable-dev-shm-usage",  # it is small in containers
        "--disable-background-networking",
        NO_WEB,
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With both programs named, Selenium looks for none and fetches none.
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.set_script_timeout(PATIENCE)
    yield browser
    browser.quit()


@pytest.fixture
def page(lab, chromium):
    """A function that opens a notebook; its kernel ends with the test."""

    def open_notebook(path):
        chromium.get(lab.format(path.name))
        wait_for(f"{path.name} to open", lambda: chromium.execute_script(NOTEBOOK_IS_OPEN))
        return chromium

    yield open_notebook
    chromium.execute_async_script(END_KERNEL)


# ---------------------------------------------------------------- the page, asked in JavaScript

NOTEBOOK_IS_OPEN = """
const panel = window.jupyterapp?.shell.currentWidget;
return Boolean(panel?.content?.model?.cells.length && panel.sessionContext?.session?.kernel);
"""
RUN_HIDDEN = """
const [code, done] = arguments;
const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
const request = kernel.requestExecute({code, silent: true});
request.done.then(reply => done(reply.content));
"""
RUN_CELL = """
const [index, done] = arguments;
const notebook = jupyterapp.shell.currentWidget.content;
notebook.deselectAll();
notebook.activeCellIndex = index;
jupyterapp.commands.execute("notebook:run-cell").then(() => done());
"""
OUTPUTS = """
const cells = [...jupyterapp.shell.currentWidget.content.model.cells];
return cells.flatMap(cell => cell.type === "code" ? cell.outputs.toJSON() : []);
"""
# By index, not by element: JupyterLab detaches cells out of sight, and attaches them again.
SHOW = """
const [index, done] = arguments;
jupyterapp.shell.currentWidget.content.scrollToItem(index, "center").finally(done);
"""
HANDLE = """
const cell = jupyterapp.shell.currentWidget.content.widgets[arguments[0]].node;
return cell.isConnected ? cell.querySelector(".noUi-handle") : null;
"""
# Not the picture's address, which is a new one even if the same picture is sent again.
PIXELS = """
const cell = jupyterapp.shell.currentWidget.content.widgets[arguments[0]].node;
const picture = cell.querySelector("img.widget-image");
if (!picture?.complete || !picture.naturalWidth) return null;
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
canvas.getContext("2d").drawImage(picture, 0, 0);
return canvas.toDataURL();
"""
END_KERNEL = """
const done = arguments[0];
jupyterapp.shell.currentWidget.sessionContext.shutdown().finally(done);
"""


@pytest.mark.browser
@pytest.mark.parametrize("number", ["00", "03", "05", "08"])
def test_explore(page, number):
    path = find(number)
    notebook = read(path)
    before, inside = sections(notebook)
    browser = page(path)
    browser.execute_async_script(RUN_CELL, before[0])
    prepare(browser, [[notebook.cells[i].source for i in part] for part in (before, inside)])
    moved = 0
    for index in inside:
        browser.execute_async_script(RUN_CELL, index)
        assert problems(browser) == []
        if "explore(" in notebook.cells[index].source:
            move_first_slider(browser, index)
            moved += 1
    assert moved > 0
    check_page(browser)


def prepare(browser, parts):
    few_steps = f"helpers.training.budget = lambda *_, **__: {TRAINING_STEPS}"
    code = f"import helpers.training\n{few_steps}\n{preparation(*parts)}"
    reply = browser.execute_async_script(RUN_HIDDEN, code)
    assert reply["status"] == "ok", "\n".join(reply["traceback"])


def move_first_slider(browser, index):
    """Move it by one step with the arrow key, and see another figure."""
    browser.execute_async_script(SHOW, index)
    figure = wait_for(f"the figure of cell {index}", lambda: browser.execute_script(PIXELS, index))
    handle = wait_for(f"the slider of cell {index}", lambda: browser.execute_script(HANDLE, index))
    handle.send_keys("\ue014")  # the right arrow
    wait_for(
        f"another figure of cell {index}",
        lambda: browser.execute_script(PIXELS, index) not in (None, figure),
    )


def problems(browser):
    """What the cells of the page show of errors and warnings."""
    outputs = browser.execute_script(OUTPUTS)
    return [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


def check_page(browser):
    """No cell shows an error, no dialog or notice covers the page, and its console is clean."""
    assert problems(browser) == []
    covers = browser.find_elements("css selector", ".jp-Dialog, .Toastify__toast")
    assert [cover.text for cover in covers] == []
    errors = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert [message for message in errors if not message.startswith(BADGE_MISSING)] == []
