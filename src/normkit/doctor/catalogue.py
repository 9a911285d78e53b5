"""All rules, by code: found by the names of their files, and which of them a request means."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType

from . import rules
from .evidence import Evidence
from .examples import Example
from .finding import Finding

KINDS = {
    "NK0": "the run",
    "NK1": "statistics",
    "NK2": "placement",
    "NK3": "numerics",
    "NK4": "training",
    "NK5": "deployment",
}


@dataclass(frozen=True)
class Rule:
    """code: "NK103". title: a sentence. page: the whole docstring. check: evidence -> findings. sick, healthy: the
    examples. where: the layer that sick() has spoiled. module: the file."""

    code: str
    title: str
    page: str
    check: Callable[[Evidence], Iterator[Finding]]
    sick: Callable[[], Example]
    healthy: Callable[[], Example]
    where: str
    module: ModuleType


@cache
def catalogue() -> Mapping[str, Rule]:
    """code -> rule, in the order of the codes."""
    names = sorted(found.name for found in pkgutil.iter_modules(rules.__path__) if found.name.startswith("nk"))
    found = [import_module(f"{rules.__name__}.{name}") for name in names]
    return {
        rule.CODE: Rule(
            rule.CODE, str(rule.__doc__).partition("\n")[0], str(rule.__doc__), rule.check, rule.sick, rule.healthy,
            rule.WHERE, rule,
        )
        for rule in found
    }  # fmt: skip


def chosen(select: Iterable[str] | None, ignore: Iterable[str]) -> list[Rule]:
    """The rules that `select` names (codes or their beginnings; None: all) and `ignore` does not. ValueError for a code
    that no rule has."""
    wanted, unwanted = None if select is None else list(select), list(ignore)
    for code in [*(wanted or ()), *unwanted]:
        if not code or not any(known.startswith(code.upper()) for known in catalogue()):
            raise ValueError(
                f"no rule is called {code!r}; `normkit rules` lists them, and a beginning (NK1) is a group"
            )
    return [
        rule for rule in catalogue().values() if (wanted is None or _meant(rule, wanted)) and not _meant(rule, unwanted)
    ]


def _meant(rule: Rule, codes: list[str]) -> bool:
    return any(rule.code.startswith(code.upper()) for code in codes)
