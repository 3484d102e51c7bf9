"""Every section of the lecture text that has tests of its claims has one for each of them."""

import ast
from collections import defaultdict
from pathlib import Path

from tools.errata import TITLES

CLAIMS = {
    "rcnn": 42,
    "fast_rcnn": 37,
    "faster_rcnn": 38,
    "fpn_retinanet": 45,
    "yolo": 38,
    "ssd": 21,
    "fcos": 41,
    "detr": 21,
}


def numbered(text):
    """(section, number) of each decorator @claim in a module's text."""
    found = []
    for node in ast.walk(ast.parse(text)):
        for call in getattr(node, "decorator_list", []):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "claim":
                section, number = (ast.literal_eval(argument) for argument in call.args[:2])
                found.append((section, number))
    return found


def test_the_sections_have_all_statements_of_the_text():
    assert list(CLAIMS) == list(TITLES) and sum(CLAIMS.values()) == 283


def test_each_section_that_is_examined_is_examined_to_its_end():
    numbers = defaultdict(list)
    for path in Path(__file__).parent.glob("test_*.py"):
        for section, number in numbered(path.read_text(encoding="utf-8")):
            numbers[section].append(number)
    assert numbers
    for section, own in numbers.items():
        assert sorted(own) == list(range(1, CLAIMS[section] + 1)), section


def test_decorators_are_found():
    assert numbered('@claim("ssd", 2, 900, says="x", verdict="true")\ndef f(): ...') == [("ssd", 2)]
