"""requirements.txt and what the data card says about it."""

import re
from importlib import metadata

import pytest

from helpers.records import ROOT

LINES = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
REQUIREMENTS = [line for line in LINES if line and not line.startswith("#")]
NAMES = [re.match(r"[\w-]+", line)[0] for line in REQUIREMENTS]
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
