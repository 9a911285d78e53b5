"""The notebooks of the tutorial, one per section of `normkit learn` and language: `make docs` writes them.

Nothing is written twice. Title, guess and exercise come from the section of the page, prose and code from the sections
of the tutorial that the source names, and only the plot and the check of the exercise from the source itself:
docs/tutorials/notebooks/NAME.py, in cells.

    # %% [tutorial] ANCHOR ...   these sections of the tutorial
    # %% [markdown]              text in both languages, as comments: [[one || 一]]
    # %%                         code
    # %% [exercise]              the page's exercise, or the question and the answer that follow as comments
    # %% [answer]                code that solves it; the notebook folds it away
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from normkit.learn import markup, page

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "docs" / "tutorials" / "notebooks"
IMPORTS = "import torch\nfrom torch import nn\n\nimport normkit as nk\nfrom normkit import reference"
CELL = re.compile(r"^# %%(?: \[(\w+)\])?(.*)\n", re.MULTILINE)
WORDS = {
    "en": (
        "Guess first",
        "Exercise",
        "Answer",
        "To play with it: `normkit learn`, section",
        "in Chinese",
        ".zh",
    ),
    "zh": ("先猜一猜", "练习", "答案", "想动手玩：`normkit learn`，见", "英文版", ""),
}


def pages(tutorials: Mapping[str, str]) -> dict[Path, str]:
    """Path to text of every notebook; `tutorials`: the text of the tutorial by language."""
    return {
        SOURCES / f"{index:02d}_{name}{'' if language == 'en' else '.zh'}.ipynb": _notebook(
            list(_cells(index, name, anchor, language, tutorials[language]))
        )
        for index, (name, anchor) in enumerate(page.SECTIONS, 1)
        for language in page.LANGUAGES
    }


def cells(source: str) -> list[tuple[str, str, str]]:
    """(kind, arguments, body) of each cell of a source; code has the kind ""."""
    parts = CELL.split(source)[1:]
    return [
        (kind or "", given.strip(), body.strip("\n"))
        for kind, given, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]


def _notebook(cells: list[tuple[str, str]]) -> str:
    made = [
        {"cell_type": kind, "id": f"{number:02d}", "metadata": {}, "source": text.splitlines(keepends=True)}
        | ({"execution_count": None, "outputs": []} if kind == "code" else {})
        for number, (kind, text) in enumerate(cells)
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    whole: dict[str, Any] = {"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _cells(index: int, name: str, anchor: str, language: str, tutorial: str) -> Iterator[tuple[str, str]]:
    """(type, text) of each cell."""
    guess, exercise, answer, play, other, ending = WORDS[language]
    section = page.text(name)
    title, lead = (markup.markdown(part, language) for part in section.split("\n===\n")[:2])
    beside = f"[{other}]({index:02d}_{name}{ending}.ipynb)"
    yield "markdown", f"# {index}. {title}\n\n{lead}\n\n{play} `#{anchor}`. ({beside})"
    question = markup.markdown(markup.texts(section, "guess")[0], language)
    yield "markdown", f"**{guess}.** {question}"
    yield "code", f"{IMPORTS}\n\ntorch.manual_seed(0)"
    asked, solved = (markup.markdown(text, language) for text in markup.texts(section, "exercise"))
    for kind, given, body in cells((SOURCES / f"{name}.py").read_text(encoding="utf-8")):
        if kind == "tutorial":
            for wanted in given.split():
                yield from _tutorial(wanted, tutorial)
        elif kind == "markdown":
            yield "markdown", _spoken(body, language)
        elif kind == "exercise":
            if body:
                asked, solved = (_spoken(f"# [[{text}", language) for text in body.split("# [[")[1:])
            yield "markdown", f"## {exercise}\n\n{asked}"
        elif kind == "answer":
            folded = f"<details><summary>{answer}</summary>\n\n{solved}\n\n```python\n{body}\n```\n\n</details>"
            yield "markdown", folded
        else:
            yield "code", body


def _spoken(comments: str, language: str) -> str:
    """The text of comments, in one language."""
    text = re.sub(r"^# ?", "", comments, flags=re.MULTILINE)
    return markup.markdown(text, language).strip()


def _tutorial(anchor: str, text: str) -> Iterator[tuple[str, str]]:
    """A section of the tutorial: its prose as text, its Python as code."""
    found = re.search(rf'<a id="{anchor}"></a>\n(.*?)(?=<a id=|\Z)', text, re.DOTALL)
    if not found:
        raise ValueError(f"the tutorial has no section called {anchor}")
    prose = re.sub(r"<!--.*?-->", "", found[1])
    prose = re.sub(r"\]\((?!\w+:|#)", "](../", prose)
    for part in re.split(r"(^```python\n.*?^```$)", prose, flags=re.MULTILINE | re.DOTALL):
        if part.startswith("```python"):
            yield "code", part.removeprefix("```python\n").removesuffix("\n```")
        elif part.strip():
            yield "markdown", part.strip()
