"""Stamp the repository's address into notebooks, set-up cell and README."""

import json
import re
from pathlib import Path

from helpers.lessons import notebooks
from helpers.records import ROOT, write_atomic

# A company's managed users carry its short name behind an underscore: octocat_acme.
_OWNER = r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}(?:_[A-Za-z0-9]+)?"
_URL = re.compile(rf"https://github\.com/({_OWNER}/[\w.-]+?)(?:\.git)?/?", re.ASCII)


def publish(url: str, root: str | Path = ROOT) -> list[Path]:
    """Replace the present address by `url` in links, badges and set-up cells.

    Returns the files that changed: none if `url` is the present address. Raises ValueError if `url`
    is not of the form https://github.com/OWNER/REPOSITORY.
    """
    match = _URL.fullmatch(url)
    if not match or match[1].endswith(("/.", "/..")):
        raise ValueError(f"expected https://github.com/OWNER/REPOSITORY, got {url!r}")
    root = Path(root)
    cell = root / "tools" / "setup_cell.py"
    old, source = present_address(cell), cell.read_text(encoding="utf-8")
    # The set-up cell last: it tells the present address, so an interrupted call can be repeated.
    files = [*notebooks(root / "notebooks"), root / "README.md", cell]
    changed = []
    for path in (path for path in files if path.exists()):
        before = path.read_bytes().decode()
        after = _with_folder(_with_links(before, old, match[1]), source, old, match[1])
        if after != before:
            write_atomic(path, after.encode())
            changed.append(path)
    return changed


def _with_links(text: str, old: str, new: str) -> str:
    # github.com/OWNER/NAME in links, github/OWNER/NAME in Colab's and nbviewer's addresses; what
    # goes on is another repository, unless with .git or the end of a sentence.
    link = re.compile(rf"(?<=github)(\.com)?/{re.escape(old)}(?![\w-]|\.(?!git\b)\w)")
    return link.sub(lambda found: f"{found[1] or ''}/{new}", text)


def _with_folder(text: str, cell: str, old: str, new: str) -> str:
    """Let the set-up cell look for the folder that git makes: the last word of two of its lines."""
    before, after = (f'"{address.split("/")[1]}' for address in (old, new))
    for line in (line for line in cell.split("\n") if "map(os.path." in line and before in line):
        head, _, tail = line.rpartition(before)
        stamped = f"{head}{after}{tail}"
        text = text.replace(line, stamped)
        text = text.replace(json.dumps(line)[1:-1], json.dumps(stamped)[1:-1])
    return text


def present_address(cell: Path) -> str:
    """OWNER/REPOSITORY, as the set-up cell in the file `cell` has it."""
    match = re.search(
        r'git clone .*https://github\.com/([^\s"]+)', cell.read_text(encoding="utf-8")
    )
    if not match:
        raise ValueError(f"{cell} has no line with git clone ... https://github.com/...")
    return match[1]
