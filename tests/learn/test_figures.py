"""The figures of the tutorial stand alone; that they are what the page draws is checked by `make docs-check`."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from tools import learn_figures

from normkit.learn import page

FILES = [f"{name}.{language}.svg" for name in learn_figures.FIGURES for language in page.LANGUAGES]


def test_every_figure_is_there_and_no_other() -> None:
    assert sorted(path.name for path in learn_figures.FOLDER.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_figure_stands_alone_in_both_colour_schemes(name: str) -> None:
    text = (learn_figures.FOLDER / name).read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert "var(" not in text
    assert "NaN" not in text
    assert not re.search(r"(?:href|src)=", text)
    known = set(re.findall(r"\.([\w-]+)\{", text))
    used = set(" ".join(element.attrib.get("class", "") for element in root.iter()).split())
    assert used
    assert used <= known, "a colour without its dark one"
    words = "".join(root.itertext())
    assert bool(re.search(r"[\u4e00-\u9fff]", words)) == (".zh." in name and name.partition(".")[0] not in WORDLESS)


WORDLESS = {"dots", "block", "scale", "graph"}  # symbols and names only
