"""The page: one self-contained HTML file about a model's norms, rendered from plain data by a pure function.

Rules: texts of the model reach the page as escaped text or as escaped JSON, and scripts put them where text goes; the
page runs the one script whose hash its content security policy names, and loads nothing. Without scripts all but the
plots is there.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from .gap_report import Gap, LayerShare
from .html import Child, Html, tag

Figures = Mapping[str, Any]

LEVELS = ("error", "warning", "note")
SIGNS = {"error": "✗", "warning": "!", "note": "i", "ok": "✓"}
_MODEL = "(the model itself)"


def render(report: Mapping[str, Any], layers: Sequence[Figures], gap: Gap | None) -> str:
    """The page.

    report: `model` (what was looked at), `about` (label -> fact), `findings` (each as `Finding.to_json` has it).
    layers: as `figures` has them, in the order of the dataflow.
    """
    findings = sorted(report["findings"], key=lambda finding: LEVELS.index(finding["severity"]))
    by_layer: dict[str, list[Figures]] = {}
    for finding in findings:
        by_layer.setdefault(finding["where"], []).append(finding)
    shares = {share.layer: share.share for share in gap.shares} if gap else {}
    worst = [_worst(by_layer.get(layer["name"], ())) for layer in layers]
    anchors = {layer["name"]: f"layer-{i}" for i, layer in enumerate(layers)}
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    body = [
        _header(report, findings, gap),
        tag(
            "main",
            _strip(layers, worst, shares),
            _gap(gap, anchors) if gap else None,
            _findings(findings, anchors),
            _layers(layers, worst, by_layer, shares),
        ),
        _footer(report),
        tag("div", id="tip", role="status", hidden=True),
        tag("script", Html(embedded({"layers": list(layers)})), type="application/json", id="data"),
        tag("script", Html(script)),
    ]
    return "<!doctype html>\n" + tag("html", _head(report["model"], style, script), tag("body", body), lang="en")


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment there; ASCII only."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits, thousands apart, a real minus sign; "not finite" for None."""
    if value is None:
        return "not finite"
    text = f"{value:.{digits}g}"
    return (f"{float(text):,.0f}" if 1e3 <= abs(float(text)) < 1e6 else text).replace("-", "−")


def _head(model: str, style: str, script: str) -> Html:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"normkit doctor: {model}"),
        tag("style", Html(style)),
    )


def _header(report: Mapping[str, Any], findings: Sequence[Figures], gap: Gap | None) -> Html:
    counts = {level: sum(finding["severity"] == level for finding in findings) for level in LEVELS}
    said = [f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items() if count]
    lead = "Nothing is wrong with its normalization."
    if gap and gap.shares:
        lead = gap.shares[0].sentence()
    elif findings:
        lead = findings[0]["cause"]
    badges = [_badge(level, text) for level, text in zip([x for x in LEVELS if counts[x]], said, strict=True)]
    return tag(
        "header",
        tag("div", "normkit doctor", class_="brand"),
        tag("h1", report["model"], class_="name"),
        tag("p", badges or _badge("ok", "healthy"), class_="badges"),
        tag("p", lead, class_="lead"),
    )


def _strip(layers: Sequence[Figures], worst: Sequence[str], shares: Mapping[str, float]) -> Html | None:
    if not layers:
        return None
    cells = []
    for i, (layer, level) in enumerate(zip(layers, worst, strict=True)):
        part = max(0.0, min(1.0, shares.get(layer["name"], 0.0)))
        label = f"{layer['name'] or _MODEL}: {'nothing found' if level == 'ok' else level}"
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


def _gap(gap: Gap, anchors: Mapping[str, str]) -> Html:
    refused = gap.training_refused and f"not measured: {gap.training_refused}"
    rows = [
        tag("tr", tag("th", title, scope="row"), tag("td", value, class_="num"))
        for title, value in (
            ("running statistics", number(gap.running)),
            ("exact statistics", number(gap.exact)),
            ("the batch's own statistics", number(gap.batch)),
            ("exact statistics, all else in training mode", refused or number(gap.training)),
        )
    ]
    parts: list[tuple[float, Child]] = [(share.share, _share(share, anchors)) for share in gap.shares]
    if gap.shares and gap.others:
        parts.append((gap.others_share, gap.others_sentence()))
    whole = sum(max(0.0, part) for part, _ in parts) or 1.0
    hues = ["rest" if gap.others and i == len(gap.shares) else f"p{i % 4}" for i in range(len(parts))]
    widths = [f"width:{100 * max(0.0, part) / whole:.2f}%" for part, _ in parts]
    bar = [tag("span", class_=hue, style=width) for hue, width in zip(hues, widths, strict=True)]
    lines = [tag("li", tag("i", class_=f"key {hue}"), line) for hue, (_, line) in zip(hues, parts, strict=True)]
    head = tag("tr", tag("th", "evaluation under", scope="col"), tag("th", gap.unit, scope="col", class_="num"))
    return tag(
        "section",
        tag("h2", "The gap between training and evaluation"),
        tag("p", f"The gap is {number(gap.gap)}; batches differ by {number(gap.test.limit)}.", class_="muted"),
        tag("div", bar, class_="bar", aria_hidden="true") if parts else None,
        tag("ul", lines, class_="shares") if lines else tag("p", f"No shares: {gap.reason}."),
        tag("table", tag("thead", head), tag("tbody", rows)),
        class_="panel",
    )


def _share(share: LayerShare, anchors: Mapping[str, str]) -> list[Child]:
    name = _linked(tag("span", share.layer or _MODEL, class_="name"), anchors.get(share.layer))
    return [tag("b", number(share.share, 2)), " of the gap is ", name, f": {share.cause}"]


def _findings(findings: Sequence[Figures], anchors: Mapping[str, str]) -> Html:
    items = [_finding(finding, anchors) for finding in findings]
    return tag("section", tag("h2", "Findings"), items or tag("p", "None."))


def _finding(finding: Figures, anchors: Mapping[str, str]) -> Html:
    where = tag("span", finding["where"] or _MODEL, class_="name")
    facts = [("fix", tag("code", finding["fix"])), ("rule", tag("span", finding["page"], class_="name"))]
    if finding["measured"] is not None:
        limit = "" if finding["limit"] is None else f", limit {number(finding['limit'])}"
        facts.insert(0, ("measured", tag("span", f"{number(finding['measured'])} {finding['unit']}{limit}")))
    if finding["follows"]:
        facts.append(("explains", tag("span", ", ".join(finding["follows"]), class_="name")))
    return tag(
        "article",
        tag("h3", _badge(finding["severity"], finding["code"]), " ", _linked(where, anchors.get(finding["where"]))),
        tag("p", finding["cause"]),
        tag("dl", [(tag("dt", label), tag("dd", fact)) for label, fact in facts]),
        class_=f"finding {finding['severity']}",
    )


def _layers(
    layers: Sequence[Figures], worst: Sequence[str], by_layer: Mapping[str, Any], shares: Mapping[str, float]
) -> Html | None:
    cards = [_card(i, layer, level, by_layer.get(layer["name"], ()), shares.get(layer["name"]))
             for i, (layer, level) in enumerate(zip(layers, worst, strict=True))]  # fmt: skip
    return tag("section", tag("h2", "Layer by layer"), cards) if cards else None


def _card(index: int, layer: Figures, level: str, found: Sequence[Figures], share: float | None) -> Html:
    facts = [("channels", str(layer["channels"]))]
    for label, key in (("distance from the data", "distance"), ("eps", "eps"), ("momentum", "momentum"),
                       ("batches counted", "counter")):  # fmt: skip
        if layer.get(key) is not None:
            facts.append((label, number(layer[key], 6 if key == "counter" else 3)))
    if layer.get("saturated") is not None:
        facts.append(("outputs beyond 4", f"{100 * layer['saturated']:.2g} %"))
    if share is not None:
        facts.append(("share of the gap", number(share, 2)))
    codes = [_badge(one["severity"], one["code"]) for one in found]
    summary = tag("summary", tag("span", layer["name"] or _MODEL, class_="name"), " ",
                  tag("span", layer["kind"], class_="muted name"), " ", codes)  # fmt: skip
    return tag(
        "details",
        summary,
        tag("dl", [tag("div", tag("dt", label), tag("dd", fact)) for label, fact in facts], class_="facts"),
        tag("div", class_="plots", data_layer=index),
        class_=f"layer {level}",
        id=f"layer-{index}",
        open=level in ("error", "warning"),
    )


def _footer(report: Mapping[str, Any]) -> Html:
    facts = [(tag("dt", label), tag("dd", str(fact))) for label, fact in report["about"].items()]
    text = (
        "Distances are root mean squares over the channels, in standard deviations of the running statistics, "
        "sqrt(running_var + eps). Outputs beyond 4 saturate a sigmoid or tanh. At most 512 channels of a layer are "
        "drawn, the farthest from the data among them."
    )
    return tag("footer", tag("p", text), tag("dl", facts))


def _badge(level: str, text: str) -> Html:
    return tag("span", tag("span", SIGNS[level], aria_hidden="true"), text, class_=f"badge {level}")


def _linked(text: str, anchor: str | None) -> Html | str:
    return text if anchor is None else tag("a", text, href=f"#{anchor}")


def _worst(findings: Sequence[Figures]) -> str:
    return next((level for level in LEVELS if any(one["severity"] == level for one in findings)), "ok")
