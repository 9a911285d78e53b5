"""The tutorial's figures, drawn by the scripts of `normkit learn` in headless Chromium: `make docs` writes them.

    python -m tools.learn_figures [--check]

A figure is one or more plots of a section after some of its controls were set, in each language, as docs/images/learn/
NAME.LANGUAGE.svg. Rules: the width is fixed, numbers have two decimals and colours stand in the file, so it is the same
wherever it is made; it follows the reader's colour scheme by itself; --check writes nothing and fails on a difference.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.studies import browser

from normkit.learn import numbers, page

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "images" / "learn"
WIDTH, EDGE, TITLE = 680, 16, 26
LONG = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?")
SVG = "http://www.w3.org/2000/svg"
Titled = tuple[str, str]  # in English and in Chinese


@dataclass(frozen=True)
class Panel:
    """One plot of `section` with its controls set: a range to what its input holds, a choice to its value."""

    section: str
    plot: str
    settings: dict[str, str | float] = field(default_factory=dict)
    title: Titled = ("", "")


FIGURES: dict[str, tuple[Panel, ...]] = {
    "dots": (Panel("four-numbers", "dots"),),
    "block": (Panel("shared-mean", "block", {"norm": "batch", "image": 2, "channel": 3}),),
    "percentiles": (
        Panel("moving-target", "percentiles", {"norm": "none", "start": "3", "step": 0}, ("no norm", "无归一化")),
        Panel("moving-target", "percentiles", {"norm": "batch", "start": "3", "step": 0}, ("batch norm", "批归一化")),
    ),
    "one_step": (
        Panel("one-step", "arrows", {"depth": 16, "w": 1.4, "rate": -1.5}),
        Panel("one-step", "terms", {"depth": 16, "w": 1.4, "rate": -1.5}),
    ),
    "strip": (
        Panel("gradients", "strip", {"act": "sigmoid", "gain": 10, "norm": "none"}, ("no norm", "无归一化")),
        Panel("gradients", "strip", {"act": "sigmoid", "gain": 10, "norm": "batch"}, ("batch norm", "批归一化")),
    ),
    "scale": (Panel("scale", "gradient", {"a": -1, "eps": -3}),),
    "graph": (Panel("backward", "graph", {"step": 6}),),
    "rates": (Panel("race", "rates", {"batch": 1, "start": 1}),),
    "test_time": (Panel("test-time", "course"), Panel("test-time", "errors")),
}


def figures() -> Iterator[tuple[Path, str]]:
    """Path and text of every figure in every language."""
    with tempfile.TemporaryDirectory() as folder, browser.page(Path(folder, "profile")) as opened:
        html = Path(folder, "learn.html")
        html.write_text(page.render(numbers.collect(), "en"), encoding="utf-8")
        schemes = []
        for scheme in ("light", "dark"):
            opened.open(html)
            opened.colour_scheme(scheme)
            schemes.append(_colours(opened))
        for index, language in enumerate(page.LANGUAGES):
            opened.open(html)
            opened.evaluate(f"document.querySelector('[data-language={language}]').click()")
            for name, panels in FIGURES.items():
                drawn = [(panel.title[index], ET.fromstring(_drawn(opened, panel))) for panel in panels]
                yield FOLDER / f"{name}.{language}.svg", _stacked(drawn, *schemes)


def _drawn(opened: browser.Page, panel: Panel) -> str:
    settings = json.dumps(panel.settings)
    return str(
        opened.evaluate(
            f"const place = document.getElementById('{panel.section}');"
            f"for (const [name, value] of Object.entries({settings})) {{"
            "  if (typeof value === 'number') set(place, name, value);"
            '  else place.querySelector(`[data-name="${name}"][value="${value}"]`).checked = true; }'
            f"const plot = place.querySelector('[data-plot=\"{panel.plot}\"]');"
            f"plot.style.width = '{WIDTH - 2 * EDGE}px'; draw('{panel.section}');"
            "return new XMLSerializer().serializeToString(plot.querySelector('svg'))"
        )
    )


def _colours(opened: browser.Page) -> dict[str, str]:
    """The page's colours in the present scheme, by the names of its styles."""
    names = sorted(set(re.findall(r"(--[\w-]+): ?#", page.asset("style.css"))))
    styles = "const styles = getComputedStyle(document.documentElement);"
    asked = f"{styles} return {json.dumps(names)}.map(name => styles.getPropertyValue(name))"
    return {name: value.strip() for name, value in zip(names, opened.evaluate(asked), strict=True)}


def _stacked(panels: list[tuple[str, ET.Element]], light: dict[str, str], dark: dict[str, str]) -> str:
    """The panels one below the other on a card, their colours as classes that know both schemes."""
    ET.register_namespace("", SVG)
    used: set[tuple[str, str]] = {("fill", "--card"), ("fill", "--ink")}
    top, made = float(EDGE), []
    for title, svg in panels:
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        for element in svg.iter():
            _coloured(element, light, used)
        if title:
            heading = ET.Element(
                f"{{{SVG}}}text", {"x": str(EDGE), "y": f"{top + 14:g}", "class": "fill-ink", "font-weight": "700"}
            )
            heading.text = title
            heading.attrib["fill"] = light["--ink"]
            made.append(heading)
            top += TITLE
        svg.attrib = {
            "x": str(EDGE),
            "y": f"{top:g}",
            "width": f"{width:g}",
            "height": f"{height:g}",
            "overflow": "visible",
        }
        made.append(svg)
        top += height + EDGE
    styles = "".join(f".{kind}-{name[2:]}{{{kind}:{dark[name]}}}" for kind, name in sorted(used))
    root = ET.Element(f"{{{SVG}}}svg", {"viewBox": f"0 0 {WIDTH} {top:g}", "width": str(WIDTH), "height": f"{top:g}"})
    root.attrib |= {
        "font-family": "system-ui, 'Noto Sans', 'PingFang SC', 'Noto Sans CJK SC', sans-serif",
        "font-size": "12.5",
    }
    ET.SubElement(root, f"{{{SVG}}}style").text = f"@media (prefers-color-scheme: dark){{{styles}}}"
    card = {"width": str(WIDTH), "height": f"{top:g}", "rx": "12", "fill": light["--card"], "class": "fill-card"}
    ET.SubElement(root, f"{{{SVG}}}rect", card)
    root.extend(made)
    for element in root.iter():
        element.attrib = {name: LONG.sub(_rounded, value) for name, value in element.attrib.items()}
    return ET.tostring(root, encoding="unicode").replace("><", ">\n<") + "\n"


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".replace("-0.00", "0.00")


def _coloured(element: ET.Element, light: dict[str, str], used: set[tuple[str, str]]) -> None:
    """A colour by name, in the style or by the page's rules for text, becomes an attribute and a class."""
    style = dict(re.findall(r"([\w-]+): ?([^;]+)", element.attrib.pop("style", "")))
    if element.tag == f"{{{SVG}}}text":
        style.setdefault("fill", "var(--muted)" if element.attrib.get("class") == "muted" else "var(--ink)")
    element.attrib.pop("class", None)
    element.attrib.pop("aria-hidden", None)
    classes = []
    for name, value in style.items():
        if found := re.fullmatch(r"var\((--[\w-]+)\)", value):
            element.attrib[name] = light[found[1]]
            classes.append(f"{name}-{found[1][2:]}")
            used.add((name, found[1]))
        elif name == "image-rendering":
            element.attrib["style"] = f"{name}:{value}"
        else:
            element.attrib[name] = value
    if classes:
        element.attrib["class"] = " ".join(classes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a figure has drifted")
    options = parser.parse_args()
    if reason := browser.missing():
        print(f"the figures of the tutorial stay as they are: {reason}", file=sys.stderr)
        return 1 if options.check and browser.required() else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    drifted = [
        (path, text) for path, text in figures() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in drifted:
        if not options.check:
            path.write_text(text, encoding="utf-8")
        said = "has drifted from the page; run `make docs`" if options.check else "written"
        print(f"{path.relative_to(ROOT)}: {said}")
    return 1 if drifted and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
