"""tools.publish on a small copy of the course."""

import json
import shutil

import pytest
from toy_notebooks import executed, write

from tools.check import SETUP_CELL
from tools.publish import present_address, publish

OLD = present_address(SETUP_CELL)
FOLDER = OLD.split("/")[1]
URL = "https://github.com/some-one/detection.lectures"
COLAB = f"https://colab.research.google.com/github/{OLD}/blob/main/x"


@pytest.fixture
def course(tmp_path):
    """The real set-up cell, a lecture with it, somebody's own notebook, and a README."""
    for folder in ("tools", "notebooks"):
        (tmp_path / folder).mkdir()
    shutil.copy(SETUP_CELL, tmp_path / "tools" / "setup_cell.py")
    cell = executed(source=SETUP_CELL.read_text(encoding="utf-8").rstrip())
    own = f'# {COLAB}\npaths = map(os.path.abspath, ["{FOLDER}"])'
    for name in ("00_x.ipynb", "Untitled.ipynb"):
        write(tmp_path / "notebooks" / name, cell, own)
    (tmp_path / "README.md").write_text(
        f"[![Colab](b.svg)]({COLAB}) `git clone https://github.com/{OLD} {FOLDER}` or\n"
        f"https://github.com/{OLD}.git, see https://github.com/{OLD}. Another one is\n"
        f"https://github.com/{OLD}-2, https://github.com/{OLD}.io\n"
    )
    return tmp_path


def sources(course, name="00_x.ipynb"):
    cells = json.loads((course / "notebooks" / name).read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells]


def files(course):
    return {path: path.read_bytes() for path in course.rglob("*") if path.is_file()}


def test_the_address_is_stamped_everywhere_and_only_once(course):
    changed = publish(URL, course)
    assert [path.name for path in changed] == ["00_x.ipynb", "README.md", "setup_cell.py"]
    assert (course / "README.md").read_text() == (
        f"[![Colab](b.svg)]({COLAB.replace(OLD, 'some-one/detection.lectures')}) "
        f"`git clone {URL} {FOLDER}` or\n{URL}.git, see {URL}. Another one is\n"
        f"https://github.com/{OLD}-2, https://github.com/{OLD}.io\n"
    )
    before = files(course)
    assert publish(URL + "/", course) == publish(URL + ".git", course) == publish(URL, course) == []
    assert files(course) == before


def test_the_set_up_cell_looks_for_the_folder_that_git_makes(course):
    publish(URL, course)
    cell = (course / "tools" / "setup_cell.py").read_text()
    assert cell.count('"detection.lectures"') == 2 and FOLDER not in cell
    assert f"git clone -q {URL}" in cell
    compile(cell, "setup_cell.py", "exec")
    stamped, own = sources(course)
    assert stamped == cell.rstrip()
    assert own.endswith(f'map(os.path.abspath, ["{FOLDER}"])')  # no line of the set-up cell


def test_somebodys_own_notebook_is_not_touched(course):
    before = (course / "notebooks" / "Untitled.ipynb").read_bytes()
    publish(URL, course)
    assert (course / "notebooks" / "Untitled.ipynb").read_bytes() == before


# Names that occur in the set-up cell, too; a company's managed user; a name with every sign.
MOVES = ["a/helpers", "a/os", "octocat_acme/lectures", "A-b-9/x.y_z-1", f"z/{FOLDER}"]


@pytest.mark.parametrize("first", MOVES)
@pytest.mark.parametrize("second", MOVES)
def test_the_course_can_move(course, tmp_path_factory, first, second):
    copy = shutil.copytree(course, tmp_path_factory.mktemp("copy"), dirs_exist_ok=True)
    for address in (first, second):
        publish(f"https://github.com/{address}", course)
    publish(f"https://github.com/{second}", copy)
    for path, data in files(course).items():
        assert data == (copy / path.relative_to(course)).read_bytes()


@pytest.mark.parametrize("end", ["", "/", ".git", ".git/"])
@pytest.mark.parametrize("address", ["octocat_acme/lectures", "octocat/lectures", "9/_.-x"])
def test_addresses_of_github(course, address, end):
    publish(f"https://github.com/{address}{end}", course)
    assert present_address(course / "tools" / "setup_cell.py") == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "github.com/a/b",
        "http://github.com/a/b",
        "https://gitlab.com/a/b",
        "https://github.com/a",
        "https://github.com/a/b/c",
        "https://github.com/_owner_/b",
        "https://github.com/a b/c",
        'https://github.com/a/b"',
        "https://github.com/a/b;ls",
        "https://github.com/a/b\n",
        "https://github.com/-a/b",
        "https://github.com/a_/b",
        "https://github.com/a/..",
        "https://github.com/ä/b",
    ],
)
def test_another_address_is_refused(course, url):
    before = files(course)
    with pytest.raises(ValueError, match="expected https://github.com/OWNER/REPOSITORY"):
        publish(url, course)
    assert files(course) == before


def test_an_interrupted_call_can_be_repeated(course, monkeypatch):
    """The set-up cell, which says the present address, is written last."""

    def fail(path, data):
        if path.name == "README.md":
            raise OSError("disk full")
        path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr("tools.publish.write_atomic", fail)
        with pytest.raises(OSError, match="disk full"):
            publish(URL, course)
    assert [path.name for path in publish(URL, course)] == ["README.md", "setup_cell.py"]
    stamped, _ = sources(course)
    assert stamped == (course / "tools" / "setup_cell.py").read_text().rstrip()


def test_a_set_up_cell_without_an_address_is_named(course):
    (course / "tools" / "setup_cell.py").write_text("import os\n")
    with pytest.raises(ValueError, match="setup_cell.py has no line with git clone"):
        publish(URL, course)
