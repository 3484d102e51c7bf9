"""Stamp the repository's address into notebooks, set-up cell and README.

Command line: python -m helpers.publish https://github.com/OWNER/REPOSITORY
"""

import re
import sys
from pathlib import Path

from helpers.records import ROOT, write_atomic

_OWNER = r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}"
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
    cell = root / "helpers" / "setup_cell.py"
    old = _present_address(cell)
    # github.com/OWNER/NAME in links, github/OWNER/NAME in Colab's and nbviewer's addresses.
    pattern = re.compile(rf"(?<=github)(\.com)?/{re.escape(old)}(?![\w-])")
    # The set-up cell last: it tells the present address, so an interrupted call can be repeated.
    files = [*sorted(root.glob("notebooks/*.ipynb")), root / "README.md", cell]
    changed = []
    for path in (path for path in files if path.exists()):
        before = path.read_bytes().decode()
        after = pattern.sub(lambda found: f"{found[1] or ''}/{match[1]}", before)
        if after != before:
            write_atomic(path, after.encode())
            changed.append(path)
    return changed


def _present_address(cell: Path) -> str:
    match = re.search(r'^REPOSITORY = "https://github\.com/([^"]+)"$', cell.read_text(), re.M)
    if not match:
        raise ValueError(f'{cell} has no line REPOSITORY = "https://github.com/..."')
    return match[1]


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print("usage: python -m helpers.publish https://github.com/OWNER/REPOSITORY")
        return 2
    try:
        changed = publish(arguments[0])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(str(path.relative_to(ROOT)) for path in changed) or "nothing to change")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
