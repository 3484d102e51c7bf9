# Find the course's helpers (on Colab: fetch them first), then set up plots and report versions.
import subprocess
import sys
from pathlib import Path

REPOSITORY = "https://github.com/_owner_/object-detection-lectures"
here = Path.cwd()
folders = (here, *here.parents, here / "object-detection-lectures")
root = next((folder for folder in folders if (folder / "helpers/setup.py").exists()), None)
fetch = root in (None, folders[-1]) or "google.colab" in sys.modules
if root is None:
    if "/_owner_/" in REPOSITORY:
        raise RuntimeError("This copy has no published address: open it in a clone of the course.")
    root = folders[-1]
    subprocess.run(["git", "clone", "-q", "--depth", "1", REPOSITORY, str(root)], check=True)
sys.path.insert(0, str(root))
from helpers import setup

if fetch:
    setup.install_missing()
setup.start()
