"""data/errata.md: what the lecture text says, what the paper says, what the tests measured."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from helpers.records import ROOT
from helpers.tables import markdown_table

PAGE = ROOT / "data" / "errata.md"
CLAIMS = ROOT / "tests" / "claims"
TITLES = {
    "rcnn": "R-CNN",
    "fast_rcnn": "Fast R-CNN",
    "faster_rcnn": "Faster R-CNN",
    "fpn_retinanet": "FPN and RetinaNet",
    "yolo": "YOLO",
    "ssd": "SSD",
    "fcos": "FCOS",
    "detr": "DETR",
}
MARKS = {"true": "✓", "imprecise": "≈", "false": "✗", "contradicts": "↯", "unverifiable": "?"}
HEAD = """# The lecture text, statement by statement

Written by `python -m tools errata` from the tests in `tests/claims`, each of which computes what it
says: for whoever owns the text. The words are ours; the lines are the text's.

✓ true · ≈ right at heart, but not as it stands · ✗ false · ↯ contradicts another line of the text ·
? nothing that can be tested
"""


def examined(folder: Path = CLAIMS) -> list[dict[str, str]]:
    """Run the tests of the claims; one row per claim, in the order of the text.

    Raises ValueError if a test fails, or if there is none.
    """
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        options = [
            "-q",
            "-n0",
            "-p",
            "no:cacheprovider",
            "-o",
            "junit_family=xunit1",
            f"--junitxml={report}",
            str(folder),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode != 0 or not report.exists():
            raise ValueError(f"tests of claims did not pass:\n{done.stdout[-2000:]}{done.stderr}")
        return rows(ET.parse(report).getroot())


def rows(report: ET.Element) -> list[dict[str, str]]:
    """The claims in a JUnit report, in the order of the text."""
    found = []
    for case in report.iter("testcase"):
        row = {p.get("name", ""): p.get("value", "") for p in case.iter("property")}
        if "verdict" in row:
            found.append(row)
    order = list(TITLES)
    return sorted(
        found, key=lambda row: (order.index(row["section"]), int(row["line"]), int(row["number"]))
    )


def page(claims: Sequence[dict[str, str]]) -> str:
    """The text of data/errata.md."""
    parts = [HEAD]
    for section, title in TITLES.items():
        own = [row for row in claims if row["section"] == section]
        if not own:
            continue
        counts = Counter(row["verdict"] for row in own)
        summary = ", ".join(f"{counts[v]} {v}" for v in MARKS if counts[v])
        table = markdown_table(
            ("Line", "It says", "The paper says", "We measured", ""),
            [(r["line"], r["says"], r["paper"], r["measured"], MARKS[r["verdict"]]) for r in own],
        )
        parts.append(f"## {title}\n\n{len(own)} statements: {summary}.\n\n{table.data}\n")
    return "\n".join(parts)
