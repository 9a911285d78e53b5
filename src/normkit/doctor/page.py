"""The page: one self-contained HTML file about a model's norms, rendered from plain data by a pure function.

Rules: texts of the model reach the page as escaped text or as escaped JSON, and scripts put them where text goes; the
page runs the one script whose hash its content security policy names, and loads nothing. Without scripts all but the
plots is there.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from importlib.resources import files
from typing import Any

from .finding import WHOLE, Finding
from .follow import followers
from .gap_report import Gap
from .html import Child, Html, tag
from .page_gap import gap_section
from .page_layers import Figures, findings_section, layers_section
from .page_words import LEVELS, badge, name


def render(
    title: str, about: Mapping[str, str], findings: Sequence[Finding], layers: Sequence[Figures], gap: Gap | None
) -> str:
    """The page.

    title: what was looked at. about: label -> fact, for the foot. layers: as `figures` has them, in the order of the
    dataflow.
    """
    under = followers(findings)
    ranked = sorted(findings, key=lambda finding: LEVELS.index(finding.severity))
    own = [finding for finding in ranked if finding.key not in under]
    by_layer: dict[str, list[Finding]] = {}
    for finding in ranked:
        by_layer.setdefault(finding.where, []).append(finding)
    shares = {share.layer: share.share for share in gap.shares} if gap else {}
    worst = [_worst(by_layer.get(layer["name"], ()), under) for layer in layers]
    anchors = {layer["name"]: f"layer-{i}" for i, layer in enumerate(layers)}
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    body = [
        _header(title, own, gap),
        tag(
            "main",
            _strip(layers, worst, shares),
            gap_section(gap, anchors) if gap else None,
            findings_section(own, {finding.key: finding for finding in findings}, anchors),
            layers_section(layers, worst, by_layer, shares),
        ),
        _footer(about),
        tag("div", id="tip", role="status", hidden=True),
        tag("script", Html(embedded({"layers": list(layers)})), type="application/json", id="data"),
        tag("script", Html(script)),
    ]
    return "<!doctype html>\n" + tag("html", _head(title, style, script), tag("body", body), lang="en")


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment there; ASCII only."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _head(title: str, style: str, script: str) -> Html:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"normkit doctor: {title}"),
        tag("style", Html(style)),
    )


def _header(title: str, own: Sequence[Finding], gap: Gap | None) -> Html:
    counts = {level: sum(finding.severity == level for finding in own) for level in LEVELS}
    badges = [badge(level, f"{count} {level}{'s' if count > 1 else ''}") for level, count in counts.items() if count]
    lead: list[Child] = ["Nothing is wrong with its normalization."]
    if gap and gap.shares:
        lead = [gap.shares[0].sentence()]
    elif own and own[0].severity != "note":
        lead = [name(own[0].where), f": {own[0].cause}"]
    return tag(
        "header",
        tag("div", "normkit doctor", class_="brand"),
        tag("h1", title, class_="name"),
        tag("p", badges or badge("ok", "healthy"), class_="badges"),
        tag("p", lead, class_="lead"),
    )


def _strip(layers: Sequence[Figures], worst: Sequence[str], shares: Mapping[str, float]) -> Html | None:
    if not layers:
        return None
    cells = []
    for i, (layer, level) in enumerate(zip(layers, worst, strict=True)):
        part = max(0.0, min(1.0, shares.get(layer["name"], 0.0)))
        label = f"{layer['name'] or WHOLE}: {'nothing found' if level == 'ok' else level}"
        bars = tag("span", class_=f"level {level}"), tag("span", class_="share", style=f"height:{100 * part:.0f}%")
        lanes = tag("span", bars[0], class_="lane"), tag("span", bars[1], class_="lane low") if shares else None
        cells.append(tag("a", lanes, href=f"#layer-{i}", class_="cell", data_layer=i, aria_label=label))
    reached = any(layer["data_mean"] is not None for layer in layers)
    order = "in the order in which the data reach them" if reached else "in the model's order"
    size = "few" if len(cells) <= 16 else "some" if len(cells) <= 40 else "many"
    keys = [tag("span", tag("i", class_=f"key {level}"), text) for level, text in
            (("error", "error"), ("warning", "warning"), ("note", "note"), ("ok", "nothing found"))]  # fmt: skip
    if shares:
        keys.append(tag("span", tag("i", class_="key p0"), "share of the train/eval gap"))
    return tag(
        "section",
        tag("h2", f"{len(layers)} norm{'s' if len(layers) != 1 else ''}, {order}"),
        tag("nav", cells, class_=f"strip {size}", aria_label="The norms in order"),
        tag("p", keys, class_="keys"),
    )


def _footer(about: Mapping[str, str]) -> Html:
    facts = [(tag("dt", label), tag("dd", fact)) for label, fact in about.items()]
    text = (
        "Distances are root mean squares over the channels, in standard deviations of the running statistics, "
        "sqrt(running_var + eps). Outputs beyond 4 saturate a sigmoid or tanh. At most 512 channels of a layer are "
        "drawn, the farthest from the data among them."
    )
    return tag("footer", tag("p", text), tag("dl", facts))


def _worst(findings: Sequence[Finding], under: Container[str]) -> str:
    """The severest of a layer's findings; what follows from another one is no more than a note here."""
    own = {finding.severity if finding.key not in under else "note" for finding in findings}
    return next((level for level in LEVELS if level in own), "ok")
