"""The page: one self-contained HTML file, joined from the sections, the assets and the numbers by a pure function.

Rules: no address is loaded, which the page's content security policy also forbids; JSON cannot end its own element; a
page that is served may speak to its own server and to nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from . import markup

LANGUAGES = ("en", "zh")
SECTIONS = (  # (file, anchor), in the order of the page
    ("four_numbers", "four-numbers"),
    ("shared_mean", "shared-mean"),
    ("moving_target", "moving-target"),
    ("one_step", "one-step"),
    ("gradients", "gradients"),
    ("scale", "scale"),
    ("backward", "backward"),
    ("race", "race"),
    ("test_time", "test-time"),
    ("my_problem", "my-problem"),
)
SCRIPTS = ("core.js", "plot.js", "page.js")


def render(numbers: Mapping[str, Any], language: str, *, served: bool = False) -> str:
    """The whole page, opening in `language`; `served`: its server answers at /compute."""
    parts = [_section(index, name, anchor) for index, (name, anchor) in enumerate(SECTIONS, 1)]
    scripts = [asset(name) for name in SCRIPTS] + [_read("sections", f"{name}.js") for name, _ in SECTIONS]
    fields = {
        "language": language,
        "connect": "'self'" if served else "'none'",
        "served": " data-served" if served else "",
        "styles": asset("style.css"),
        "contents": "".join(_entry(index, name, anchor) for index, (name, anchor) in enumerate(SECTIONS, 1)),
        "sections": "\n".join(parts),
        "numbers": embedded(numbers),
        "scripts": "\n".join(scripts) + "\nstart();",
        "about": "commit {commit}, rule {rule}".format(**numbers["about"]),
        "version": str(numbers["normkit"]),
    }
    made = markup.expand(asset("page.html"), "page")
    for name, value in fields.items():
        made = made.replace(f"<!--{name}-->", value)
    return made


def embedded(numbers: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment there."""
    text = json.dumps(numbers, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _section(index: int, name: str, anchor: str) -> str:
    title, lead, side, show, foot = _parts(name)
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><header><p class="eyebrow">{index:02d}</p>'
        f'<h2 id="{anchor}-title"><a href="#{anchor}">{markup.expand(title, anchor)}</a></h2>'
        f'<p class="lead">{markup.expand(lead, anchor)}</p></header>'
        f'<div class="columns"><div class="side">{markup.expand(side, anchor)}</div>'
        f'<div class="show">{markup.expand(show, anchor)}</div></div>'
        f'<div class="foot">{markup.expand(foot, anchor)}</div></section>'
    )


def _entry(index: int, name: str, anchor: str) -> str:
    return f'<li><a href="#{anchor}"><b>{index}</b> {markup.expand(_parts(name)[0], anchor)}</a></li>'


def _parts(name: str) -> tuple[str, str, str, str, str]:
    """Title, sentence, left column, right column and foot: a section's text is cut at lines of ===."""
    title, lead, side, show, foot = text(name).split("\n===\n")
    return title, lead, side, show, foot


def text(name: str) -> str:
    """A section as it is written, for `markup`."""
    return _read("sections", f"{name}.html")


def asset(name: str) -> str:
    """A file of assets/, as it is."""
    return _read("assets", name)


def _read(folder: str, name: str) -> str:
    return files(__package__).joinpath(folder, name).read_text(encoding="utf-8")
