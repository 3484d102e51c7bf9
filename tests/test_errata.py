"""data/errata.md is made from tests that measure; a claim's test cannot be silent."""

import shutil

import pytest

from helpers.records import ROOT
from tools import errata

GOOD = """
from claim import claim

@claim("ssd", 2, 900, says="a | bar", verdict="false", paper="no, section 3")
def test_it_is_otherwise(measure):
    measure("4")
    measure("5")
    assert 2 + 2 == 4

@claim("yolo", 1, 716, says="seven cells", verdict="true")
def test_seven(measure):
    measure("7")
"""


@pytest.fixture
def claims(tmp_path):
    """A folder of claims with the conftest of tests/claims, and a function that examines it."""
    for name in ("claim.py", "conftest.py"):
        shutil.copy(ROOT / "tests" / "claims" / name, tmp_path)

    def examine(text):
        (tmp_path / "test_them.py").write_text(text)
        return errata.examined(tmp_path)

    return examine


def test_the_page_has_each_claim_in_the_order_of_the_text(claims):
    rows = claims(GOOD)
    assert [(row["section"], row["measured"]) for row in rows] == [("yolo", "7"), ("ssd", "4; 5")]
    text = errata.page(rows)
    assert text.index("## YOLO") < text.index("## SSD") and "1 statements: 1 true." in text
    assert "| 900 | a \\| bar | no, section 3 | 4; 5 | ✗ |" in text


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("== 4", "== 5", "assert"),
        ('measure("7")', "pass", "must say what it measured"),
        ("test_seven(measure)", "test_seven()", "does not ask for the fixture measure"),
        ('("yolo", 1', '("ssd", 2', "examine the same claim"),
        ('verdict="true"', 'verdict="right"', "verdict must be one of"),
        ('says="seven cells"', 'says=" "', "a claim needs words"),
        ('@claim("yolo", 1, 716, says="seven cells", verdict="true")', "", "needs the decorator"),
    ],
)
def test_what_is_no_examined_claim_is_refused(claims, old, new, said):
    assert old in GOOD
    with pytest.raises(ValueError, match="did not pass") as caught:
        claims(GOOD.replace(old, new))
    assert said in str(caught.value)
