"""python -m tools: every command's help, usage, exit status and words."""

import os
import re
import subprocess
import sys

import pytest
from nbformat.v4 import new_markdown_cell
from shared import PATIENCE
from toy_notebooks import SLIDE, executed, write

from helpers.lessons import read
from helpers.records import ROOT
from tools import __main__ as command
from tools import canonical

WITH_LECTURES = [name for name, (_, kind, _) in command.COMMANDS.items() if "lectures" in kind]
WITH_ONE = ["student", "publish", "export"]
WITH_CHECK = ["readme", "errata"]


@pytest.fixture
def calls(monkeypatch):
    """What the commands would be asked to do, instead of doing it."""
    asked = []
    for name, (_, *rest) in command.COMMANDS.items():
        monkeypatch.setitem(command.COMMANDS, name, (lambda o: asked.append(o) or 0, *rest))
    return asked


def usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


# ---------------------------------------------------------------- the command line


def test_the_module_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "tools", "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("usage: python -m tools [-h] COMMAND ...")
    for name, (_, _, text) in command.COMMANDS.items():
        assert re.search(rf"^ +{name} +{re.escape(text.split()[0])}", done.stdout, re.MULTILINE)


def test_every_command_is_tried_here():
    assert {*WITH_LECTURES, *WITH_ONE, *WITH_CHECK} == set(command.COMMANDS)
    assert WITH_LECTURES == ["run", "check", "slides", "adopt"]


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main([name, "--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"usage: python -m tools {name} ")
    assert command.COMMANDS[name][2] in said


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bake", "05"],
        ["run"],
        ["adopt"],
        ["student"],
        ["publish"],
        ["export"],
        ["student", "a", "b"],
        ["publish", "a", "b"],
        ["readme", "05"],
        ["errata", "--chekc"],
        ["run", "--fast", "05"],
    ],
    ids=" ".join,
)
def test_usage(arguments, calls, capsys):
    said = usage_error(arguments, capsys)
    assert said.startswith("usage: python -m tools") and "error:" in said and calls == []


@pytest.mark.parametrize("name", WITH_LECTURES)
def test_lectures_are_handed_on(name, calls):
    assert command.main([name, "05", "06_ssd"]) == 0
    assert [options.lectures for options in calls] == [["05", "06_ssd"]]


@pytest.mark.parametrize("name", ["check", "slides"])
def test_some_commands_take_all_lectures_by_default(name, calls):
    assert command.main([name]) == 0
    assert [options.lectures for options in calls] == [[]]


@pytest.mark.parametrize("name", WITH_CHECK)
def test_some_commands_only_look_if_asked(name, calls):
    assert command.main([name, "--check"]) == command.main([name]) == 0
    assert [options.check for options in calls] == [True, False]


@pytest.mark.parametrize("name", WITH_LECTURES)
def test_a_wrong_name_is_one_sentence(name, capsys):
    assert command.main([name, "no-such"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"no notebook 'no-such'; the choices are: 00_.+\n", said.err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["publish", "github.com/me"],
        ["publish", ""],
        ["student", __file__],
        ["student", f"{__file__}/out"],
        ["export", __file__],
        ["export", str(ROOT)],
    ],
)
def test_another_wrong_word_is_one_sentence(arguments, capsys):
    assert command.main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1


# ---------------------------------------------------------------- what the commands do and say


@pytest.fixture
def lecture(tmp_path):
    """A lecture that was not executed."""
    title = new_markdown_cell("# Title", metadata=SLIDE)
    return write(tmp_path / "01_toy.ipynb", title, "x = 1", "1 + 1")


def test_run(lecture, capfd):
    assert command.main(["run", str(lecture)]) == 0
    assert re.fullmatch(r"01_toy: \d+\.\d s in all, written\n", capfd.readouterr().out)
    cells = read(lecture).cells
    assert cells[2].outputs[0].data["text/plain"] == "2"


def test_run_stops_at_a_failure(lecture, tmp_path, capfd):
    bad = write(tmp_path / "02_bad.ipynb", "x = 1", "1 / 0")
    before = bad.read_bytes(), lecture.read_bytes()
    assert command.main(["run", str(bad), str(lecture)]) == 1
    said = capfd.readouterr().err
    assert "02_bad cell [2] failed" in said and "ZeroDivisionError" in said
    assert (bad.read_bytes(), lecture.read_bytes()) == before


def test_check_prints_the_measures_and_the_problems(lecture, capsys):
    assert command.main(["check", str(lecture)]) == 1
    head, bounds, measures, *found = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["cells", "lines"] and bounds.split()[0] == "<=60"
    assert measures.split()[:3] == ["01_toy", "2", "2"]
    assert found and all(line.startswith("01_toy: ") for line in found)
    assert "01_toy: cell [1] was not executed" in found


def test_check_says_that_there_are_no_problems(lecture, capsys, monkeypatch):
    monkeypatch.setattr(command.check, "check", lambda path: [])
    assert command.main(["check", str(lecture)]) == 0
    assert capsys.readouterr().out.endswith("\nno problems\n")


def test_slides_are_broken_once(tmp_path, capsys):
    title, section = (new_markdown_cell(text, metadata=SLIDE) for text in ("# Title", "## 1 It"))
    code = [executed(source="x = 1\n" * 20) for _ in range(2)]
    path = write(tmp_path / "01_toy.ipynb", title, section, *code)
    assert command.main(["slides", str(path)]) == 0
    once = path.read_bytes()
    assert [cell.metadata.get("slideshow", {}).get("slide_type") for cell in read(path).cells] == [
        *("slide", "slide", None, "subslide"),
    ]
    assert command.main(["slides", str(path)]) == 0
    assert path.read_bytes() == once == canonical.to_text(read(path)).encode()
    assert capsys.readouterr().out == "01_toy: 3 slides\n" * 2


def test_student(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command.student, "write_student_edition", lambda folder: ["a", "b"])
    assert command.main(["student", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"2 lectures are in {tmp_path / 'out'}\n"


def test_publish(capsys, monkeypatch):
    changed = [ROOT / "README.md", ROOT / "tools" / "setup_cell.py"]
    monkeypatch.setattr(command.publish, "publish", lambda address: changed)
    assert command.main(["publish", "https://github.com/a/b"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "README.md",
        os.path.join("tools", "setup_cell.py"),
    ]
    changed.clear()
    assert command.main(["publish", "https://github.com/a/b"]) == 0
    assert capsys.readouterr().out == "nothing to change\n"


def test_the_readme_is_up_to_date(capsys):
    assert command.main(["readme", "--check"]) == 0, "run python -m tools readme"
    assert capsys.readouterr().out == "README.md is up to date\n"


def test_errata_are_written_once_and_checked(tmp_path, capsys, monkeypatch):
    page = tmp_path / "data" / "errata.md"
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command.errata, "PAGE", page)
    monkeypatch.setattr(command.errata, "examined", lambda: [])
    name = page.relative_to(tmp_path)
    assert command.main(["errata", "--check"]) == 1 and not page.exists()
    assert capsys.readouterr().err == f"{name} is stale: run python -m tools errata\n"
    assert command.main(["errata"]) == 0
    assert page.read_text(encoding="utf-8") == command.errata.page([])
    assert command.main(["errata"]) == command.main(["errata", "--check"]) == 0
    said = capsys.readouterr().out
    assert said == f"{name} was written\n" + f"{name} is up to date\n" * 2


def test_adopt(capsys, monkeypatch):
    monkeypatch.setattr(command.adopt, "adopt", lambda name: [f"rows of {name}", "weights"])
    monkeypatch.setattr(command.adopt, "adopt_experiment", lambda name: [f"main rows of {name}"])
    assert command.main(["adopt", "05", "09"]) == 0  # 05 has an experiment
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "05_yolo: main rows of 05_yolo"
    assert said[1] == "09_comparison: rows of 09_comparison; weights"
    assert said[2] == "now: python -m tools readme"


def test_export(tmp_path, capsys, monkeypatch):
    done = []
    monkeypatch.setattr("tools.export.export", done.append)
    assert command.main(["export", str(tmp_path)]) == 0
    assert done == [str(tmp_path)] and capsys.readouterr().out.endswith(f"is in {tmp_path}\n")
