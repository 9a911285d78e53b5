"""The pages of the public names: one for each module of layers, one for each other package, from their docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

# package or module -> title of its page; the layers have pages of their own
TITLES = {
    "functional": "Functions",
    "surgery": "Surgery",
    "statistics": "Statistics",
    "doctor": "The doctor",
    "testing": "For your tests",
    "padding": "Padded batches",
    "parametrizations": "Normalized weights",
    "frameworks": "Norms from other frameworks",
    "model": "A model's norms",
    "moments": "Moments",
}
WHOLE = ("functional", "surgery", "statistics", "doctor")  # whose own __all__ says what is public


class Name(NamedTuple):
    """A public name as a user writes it, where it is defined, and what it is."""

    shown: str
    path: str
    value: Any

    @classmethod
    def of(cls, shown: str, value: Any) -> Name:
        return cls(shown, f"{value.__module__}.{value.__qualname__}", value)

    def summary(self) -> str:
        """The first line of its docstring, for a cell of a table."""
        line = (inspect.getdoc(self.value) or "").splitlines()[0]
        return re.sub(r":\w+:(?=`)", "", line).replace("|", "\\|")


@cache
def public() -> dict[str, list[Name]]:
    """Page -> the names on it."""
    import normkit

    found: dict[str, list[Name]] = {}
    for package in WHOLE:
        module = importlib.import_module(f"normkit.{package}")
        found[package] = [Name.of(f"normkit.{package}.{name}", getattr(module, name)) for name in module.__all__]
    known = {name.path for names in found.values() for name in names}
    for word in normkit.__all__:
        value = getattr(normkit, word)
        if inspect.ismodule(value):
            if word in TITLES and word not in WHOLE:
                found[word] = [Name.of(f"normkit.{word}.{f.__name__}", f) for f in _functions(value)]
            continue
        name = Name.of(f"normkit.{word}", value)
        if name.path not in known:
            _, part, *rest = value.__module__.split(".")
            page = f"nn/{rest[0].replace('domain_call', 'domain_batch_norm')}" if part == "nn" else part
            found.setdefault(page, []).append(name)
    first = {page: "/" in page for page in found}  # layers: the classes; elsewhere the functions
    return {page: sorted(names, key=lambda n: inspect.isclass(n.value) != first[page]) for page, names in found.items()}


def write(folder: Path) -> None:
    """The pages and a table of all names."""
    rows: dict[str, list[str]] = {}
    for page, names in public().items():
        title = TITLES[page] if page in TITLES else ", ".join(name.shown.rpartition(".")[2] for name in names)
        parts = [f"# {title}\n", *(f"::: {name.path}\n    options: {{heading: {name.shown}}}\n" for name in names)]
        path = folder / f"{page}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(parts), encoding="utf-8")
        table = rows.setdefault(TITLES.get(page, "Layers"), [])
        table += [f"| [`{name.shown}`]({page}.md#{name.path}) | {name.summary()} |" for name in names]
    text = ["# The public names", ""]
    for section in ("Layers", *TITLES.values()):
        text += [f"## {section}", "", "| name | |", "|---|---|", *rows[section], ""]
    (folder / "README.md").write_text("\n".join(text), encoding="utf-8")


def target(reference: str) -> str | None:
    """Where a docstring's reference leads: `normkit.BatchNorm2d`, `adapt`, `Moments.of`; None: to no public name."""
    for names in public().values():
        for name in names:
            for written in {name.shown, name.shown.rpartition(".")[2]}:
                if reference == written or reference.startswith(f"{written}."):
                    return name.path + reference.removeprefix(written)
    return None


def _functions(module: Any) -> list[Any]:
    return [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
