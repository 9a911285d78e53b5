"""Links of a built site: each leads to a file of it and to an id of that file, and none fetches from elsewhere."""

from __future__ import annotations

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {"script", "img", "iframe", "source", "object"}  # by the browser itself, as is what <link> names


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[tuple[str, str]] = []  # (tag, address)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        names = ("href", "src", "data") if found.get("rel") not in ("canonical", "alternate") else ("href",)
        self.targets += [(tag, found[name]) for name in names if name in found]


def read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def dead(site: Path) -> list[str]:
    """A line for each link that leads nowhere, and for each that a browser would fetch from another host."""
    found = {path: read(path) for path in sorted(site.rglob("*.html"))}
    lines = []
    for path, page in found.items():
        if path.name == "404.html":  # its addresses begin at the root of whoever publishes the site
            continue
        for tag, target in page.targets:
            if complaint := _complaint(path, tag, target, site, found):
                lines.append(f"{path.relative_to(site)}: {target} {complaint}")
    return lines


def _complaint(page: Path, tag: str, target: str, site: Path, found: dict[Path, _Page]) -> str:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        local = parts.scheme in ("data", "mailto") or tag not in FETCHED | {"link"}
        return "" if local else "is fetched from another host"
    file = page if not parts.path else Path(os.path.normpath(page.parent / unquote(parts.path)))
    if file.is_dir():
        file /= "index.html"
    if site not in file.parents or not file.exists():
        return "leads to no file"
    anchor = unquote(parts.fragment)
    known = anchor in ("", "__top") or file not in found or anchor in found[file].ids
    return "" if known else "leads to no such place of that page"
