"""Docstrings as the site shows them: those that are made when a class is, formulas as MathML, references as links."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import griffe
from latex2mathml.converter import convert

from . import api

MATH = re.compile(r"^\.\. math::[ ](.*(?:\n[ ]+.*)*)", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|mod|meth):`~?([\w.]+)`")
LABEL = re.compile(r"^(Returns|Raises|Call|Yields): (?=\S)", re.MULTILINE)  # a line of prose, no section of Google's


class Docstrings(griffe.Extension):
    """mkdocstrings loads it by this module's name."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        self._visit(pkg)

    def _visit(self, of: griffe.Object) -> None:
        if of.docstring is None and of.is_class and "__doc__" in of.members:
            first, _, rest = getattr(importlib.import_module(of.module.path), of.name).__doc__.partition("\n")
            of.docstring = griffe.Docstring(f"{first}\n\n{inspect.cleandoc(rest)}", parent=of)
        if of.docstring is not None:
            of.docstring.value = shown(of.docstring.value)
        for member in of.members.values():
            if isinstance(member, griffe.Object):
                self._visit(member)


def shown(text: str) -> str:
    """A docstring in Markdown."""
    text = MATH.sub(lambda found: f"<div>{mathml(found[1])}</div>", text)
    text = LABEL.sub(r"**\1:** ", text)
    return ROLE.sub(_link, text)


def mathml(formula: str) -> str:
    r"""A formula that browsers show without a script. Words (\mathrm) stay words."""
    return convert(re.sub(r"\\mathrm(?=\{\w{2,}\})", r"\\text", " ".join(formula.split())), display="block")


def _link(found: re.Match[str]) -> str:
    path = api.target(found[1])
    shown = f"`{found[1].removeprefix('normkit.')}`"
    return f"[{shown}][{path}]" if path else shown
