"""requirements.txt and what the data card says about it."""

import ast
import re
import sys
from importlib import metadata

import pytest

from helpers.records import ROOT
from helpers.setup import FOR_MAINTAINERS

LINES = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
REQUIREMENTS = [line for line in LINES if line and not line.startswith("#")]
NAMES = [re.match(r"[\w-]+", line)[0] for line in REQUIREMENTS]
FOR_LESSONS = NAMES[: len(re.findall(r"^\w.*>=", "\n".join(LINES).split(FOR_MAINTAINERS)[0], re.M))]
# What the code imports, too, and what brings it along: a requirement, or another of these.
BROUGHT = {
    "pillow": "matplotlib",
    "ipython": "ipywidgets",
    "jupyter-client": "nbval",
    "nbclient": "nbconvert",
    "matplotlib-inline": "ipython",
}
# How metadata names the licences of the card.
FAMILIES = {
    "Apache": "Apache",
    "BSD": "BSD",
    "MIT": "MIT",
    "MPL-2.0": "MPL-2.0",
    "PSF": "Python Software Foundation",
    "UNKNOWN": "UNKNOWN",
}


def licences():
    """{requirement: licence} of the card's table."""
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8").split("## Software")[1]
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", text.split("\n## ")[0], re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return dict(rows)


def stated(name):
    """All that a package's metadata says about its licence."""
    data = metadata.metadata(name)
    fields = [data.get("License-Expression"), data.get("License"), *data.get_all("Classifier", [])]
    return " ".join(field for field in fields if field and "Programming" not in field)


def test_the_card_names_every_requirement():
    assert list(licences()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_card_names_the_licence_that_the_package_states(name):
    named = [word for word in FAMILIES if word in licences()[name]]
    assert any(FAMILIES[word] in stated(name) for word in named)


def test_requirements_are_lower_bounds_only():
    """So that Colab and GPU machines keep what they have."""
    assert [line for line in REQUIREMENTS if not re.fullmatch(r"[\w-]+>=[\d.]+", line)] == []


def test_requirements_are_named_once_and_torch_comes_first():
    assert len(set(NAMES)) == len(NAMES) and NAMES[:2] == ["torch", "torchvision"]


def test_the_environment_file_takes_the_requirements_from_here():
    assert "- -r requirements.txt" in (ROOT / "environment.yml").read_text(encoding="utf-8")


def imported(folder):
    """The distributions whose modules a folder's code imports, wherever in the code."""
    modules = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add(node.module.split(".")[0])
    ours = {path.name for path in ROOT.iterdir()} | sys.stdlib_module_names
    owners = metadata.packages_distributions()
    return {owners[module][0].lower().replace("_", "-") for module in modules - ours}


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [("helpers", FOR_LESSONS), ("experiments", FOR_LESSONS), ("tools", NAMES)],
)
def test_what_the_code_imports_is_required(folder, allowed):
    """Colab gets only what stands above the heading for maintainers."""
    needed = imported(folder)
    while needed & BROUGHT.keys():
        needed = {BROUGHT.get(name, name) for name in needed}
    assert needed - set(allowed) == set()


def test_what_requirements_bring_along():
    for name, bringer in BROUGHT.items():
        required = " ".join(metadata.requires(bringer)).lower().replace("_", "-")
        assert re.search(rf"\b{name}\b", required), (name, bringer)
