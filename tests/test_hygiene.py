"""The rules that the committed files keep."""

import re

import pytest

from helpers import hygiene, notebooks

PAGES = [
    p for p in (notebooks.ROOT / "README.md", notebooks.ROOT / "CONTRIBUTING.md") if p.exists()
]


@pytest.mark.parametrize("path", notebooks.notebooks(), ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    problems = notebooks.check(path)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    assert hygiene.broken_links(path.read_text(encoding="utf-8"), path.parent) == []


def test_requirements_pin_nothing():
    text = (notebooks.ROOT / "requirements.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+>=[0-9.]+", line), f"a lower bound only, please: {line}"
    names = [line.split(">=")[0] for line in lines]
    assert len(names) == len(set(names)) and {"torch", "torchvision"} <= set(names)


def test_broken_links_are_found(tmp_path):
    (tmp_path / "there.md").touch()
    text = "[a](there.md#part) ![b](gone.png) [c](https://x.y) [d](#e)\n```\n[f](code.md)\n```\n"
    text += '<a href="also-gone.md">g</a> `[h](inline.md)` [i](mailto:a@b.c)'
    assert hygiene.broken_links(text, tmp_path) == ["gone.png", "also-gone.md"]
