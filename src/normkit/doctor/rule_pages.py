"""The pages of docs/doctor, made from the rules: each docstring, and both examples as code that runs as pasted."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from .catalogue import KINDS, Rule, catalogue

_HEADINGS = {"What it checks": "What it checks", "Why": "Why", "Ignore it": "When to ignore it", "Sources": "Sources"}
_NOTE = "<!-- generated from src/normkit/doctor/rules by `make docs`; do not edit -->"
_IMPORTS = (
    ("copy.", "import copy"),
    ("= fold(", "from normkit import fold"),
    ("checkpoint(", "from torch.utils.checkpoint import checkpoint"),
    ("torch.", "import torch"),
    ("nn.", "from torch import nn"),
    ("Tensor", "from torch import Tensor"),
    ("Any]", "from typing import Any"),
)


def pages() -> dict[str, str]:
    """file name -> text, one a rule, and the table of all."""
    found = {f"{code}.md": page(rule) for code, rule in catalogue().items()}
    return found | {"README.md": index()}


def index() -> str:
    """All rules by kind."""
    lines = [
        _NOTE,
        "",
        "# The rules of `normkit doctor`",
        "",
        "How it works, and how to use it: [doctor](../doctor.md).",
    ]
    for kind, title in KINDS.items():
        lines += ["", f"## {kind}xx: {title}", "", "| rule | |", "|---|---|"]
        lines += [f"| [{r.code}]({r.code}.md) | {r.title} |" for r in catalogue().values() if r.code.startswith(kind)]
    return "\n".join(lines) + "\n"


def page(rule: Rule) -> str:
    """One rule's page."""
    title, *paragraphs = rule.page.strip().split("\n\n")
    lines = [_NOTE, "", f"# {rule.code}: {title}"]
    sources: list[str] = []
    for paragraph in paragraphs:
        head, _, body = paragraph.partition(": ")
        section = ["", f"## {_HEADINGS[head]}", "", _sentence(body)]
        if head == "Sources":
            sources = section
        else:
            lines += section
    lines += ["", "## A model that triggers it", "", *_code(rule, rule.sick, True)]
    lines += ["", "## The model put right", "", *_code(rule, rule.healthy, False), *sources]
    return "\n".join(lines) + "\n"


def _code(rule: Rule, example: Callable[[], Any], is_sick: bool) -> list[str]:
    source = inspect.getsource(example).rstrip().replace(" -> Example", "")
    needed = [line for word, line in _IMPORTS if word in source]
    own = [name for name in ("images", "replicated", "settled", "small_net") if re.search(rf"\b{name}\(", source)]
    with_more = re.search(r", \{.*\}$", source.splitlines()[-1])
    given, options = ("model, batches, more", ", **more") if with_more else ("model, batches", "")
    imports = sorted(needed, key=lambda line: (line.startswith("from"), line))
    return [
        "```python",
        *([*imports, ""] if imports else []),
        "import normkit as nk",
        *([f"from normkit.doctor.examples import {', '.join(own)}"] if own else []),
        "",
        "",
        source,
        "",
        "",
        f"{given} = {example.__name__}()",
        f"diagnosis = nk.diagnose(model, batches{options})",
        "print(diagnosis)",
        f'assert "{rule.code}" {"in" if is_sick else "not in"} [finding.code for finding in diagnosis.findings]',
        "```",
    ]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
