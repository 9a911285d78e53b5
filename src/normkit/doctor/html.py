"""HTML made of tags and texts: every text is escaped, here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias


class Html(str):
    """Text that is HTML already. Only `tag` makes it of what comes from outside."""

    __slots__ = ()


Child: TypeAlias = "str | Iterable[Child] | None"

_EMPTY = frozenset(("br", "link", "meta"))


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """`<name attributes>children</name>`. `class_` is class, `data_x` data-x; False and None leave an attribute out.

    Children are texts, tags, lists of both; None is nothing.
    """
    parts = []
    for key, value in attributes.items():
        if value is not None and value is not False:
            word = key.rstrip("_").replace("_", "-")
            parts.append(f" {word}" if value is True else f' {word}="{_escaped(str(value))}"')
    inside = "" if name in _EMPTY else f"{_joined(children)}</{name}>"
    return Html(f"<{name}{''.join(parts)}>{inside}")


def _joined(children: Child) -> str:
    if children is None or isinstance(children, Html):
        return children or ""
    return _escaped(children) if isinstance(children, str) else "".join(map(_joined, children))


def _escaped(text: str) -> str:
    return escape(text.encode("utf-8", "replace").decode("utf-8"), quote=True)  # a name may hold half a surrogate pair
