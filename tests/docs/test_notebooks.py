"""The notebooks run from top to bottom in a fresh kernel, and their exercises have answers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from tools import notebooks

from normkit.learn import page
from tests.docs.pages import ROOT

FOLDER = ROOT / "docs" / "tutorials" / "notebooks"
NAMES = [f"{index:02d}_{name}" for index, (name, _) in enumerate(page.SECTIONS, 1)]
LIMIT = 300  # seconds for a cell, and for a kernel to start: a busy machine is slow


def cells(name: str) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return made


def code(name: str) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "code"]


@pytest.mark.notebook
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_draws_and_its_folded_answer_is_the_right_one(name: str, tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    folded = re.search(r"```python\n(.*?)\n```", notebook.cells[-1].source, re.DOTALL)
    assert folded, "the last cell holds the answer"
    notebook.cells.append(nbformat.v4.new_code_cell(folded[1]))
    place = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=LIMIT, startup_timeout=LIMIT, resources=place)
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path)})
    outputs = [[*cell.outputs] for cell in notebook.cells if cell.cell_type == "code"]
    made = [output for cell in outputs for output in cell]
    assert any("image/png" in output.get("data", {}) for output in made)
    assert [output.text for output in made if output.get("name") == "stderr"] == []
    first, solved = ("".join(output.text for output in cell) for cell in outputs[-2:])
    assert first.startswith("not yet"), first
    assert solved.startswith("right"), solved


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_have_the_same_code(name: str) -> None:
    assert code(name) == code(f"{name}.zh")
    assert len(cells(name)) == len(cells(f"{name}.zh"))
    for cell in cells(f"{name}.zh"):
        assert cell["cell_type"] == "code" or re.search(r"[\u4e00-\u9fff]", "".join(cell["source"]))


def test_every_section_of_the_tutorial_stands_in_one_notebook() -> None:
    taken = [
        anchor
        for name, _ in page.SECTIONS
        for kind, given, _ in notebooks.cells((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
        if kind == "tutorial"
        for anchor in given.split()
    ]
    tutorial = (ROOT / "docs" / "tutorials" / "batch_norm.md").read_text(encoding="utf-8")
    anchors = re.findall(r'<a id="([\w-]+)"></a>', tutorial)
    assert sorted(taken) == sorted(set(anchors) - {"exercises", "glossary", "papers"})


@pytest.mark.parametrize("name", [f"{name}{ending}" for name in NAMES for ending in ("", ".zh")])
def test_links_and_pictures_lead_somewhere(name: str) -> None:
    said = "\n".join("".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", re.sub(r"```.*?```", "", said, flags=re.DOTALL)):
        assert (FOLDER / target.partition("#")[0]).exists(), target
