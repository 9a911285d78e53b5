"""The page's findings, and its card for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .finding import Finding
from .html import Html, tag
from .page_words import badge, linked, name, number
from .page_words import share as part_of

Figures = Mapping[str, Any]


NAMED = 6  # layers of a note that are named; all are in the strip


def findings_section(own: Sequence[Finding], by_key: Mapping[str, Finding], anchors: Mapping[str, str]) -> Html:
    """What is above a note one by one, the notes of each rule together and folded. own: those that follow from no
    other."""
    items = [_finding(finding, by_key, anchors) for finding in own if finding.severity != "note"]
    notes: dict[str, list[Finding]] = {}
    for finding in own:
        if finding.severity == "note":
            notes.setdefault(finding.code, []).append(finding)
    items += [_note(alike, by_key, anchors) for alike in notes.values()]
    return tag("section", tag("h2", "Findings"), items or tag("p", "None."))


def _finding(finding: Finding, by_key: Mapping[str, Finding], anchors: Mapping[str, str]) -> Html:
    return tag(
        "article",
        tag("h3", badge(finding.severity, finding.code), " ", linked(name(finding.where), anchors.get(finding.where))),
        tag("p", finding.cause),
        _facts([finding], by_key, anchors),
        class_=f"finding {finding.severity}",
    )


def _note(alike: Sequence[Finding], by_key: Mapping[str, Finding], anchors: Mapping[str, str]) -> Html:
    """The notes of one rule; the first speaks for all."""
    first, where = alike[0], f"{len(alike)} layers" if len(alike) > 1 else name(alike[0].where)
    summary = tag("summary", badge("note", first.code), " ", tag("span", first.cause, class_="cause"), " ",
                  tag("span", where, class_="muted"))  # fmt: skip
    return tag("details", summary, _facts(alike, by_key, anchors), class_="finding note")


def _facts(alike: Sequence[Finding], by_key: Mapping[str, Finding], anchors: Mapping[str, str]) -> Html:
    finding, facts = alike[0], []
    if len(alike) > 1:
        places = [linked(name(one.where), anchors.get(one.where)) for one in alike[:NAMED]]
        names = [part for place in places for part in (", ", place)][1:]
        more = f" and {len(alike) - NAMED} more" if len(alike) > NAMED else ""
        facts.append(("layers", tag("span", names, more)))
    elif finding.measured is not None:
        facts.append(("measured", tag("span", _measured(finding))))
    facts += [("fix", tag("code", finding.fix)), ("more", tag("code", f"normkit explain {finding.code}"))]
    for key in finding.follows:
        effect = by_key[key]
        words = [linked(name(effect.where), anchors.get(effect.where)), f": {effect.cause}"]
        facts.append(("follows from it", tag("span", badge("note", effect.code), " ", words)))
    return tag("dl", [(tag("dt", label), tag("dd", fact)) for label, fact in facts])


def _measured(finding: Finding) -> str:
    limit = "" if finding.limit is None else f", limit {number(finding.limit)}"
    return f"{number(finding.measured)} {finding.unit}{limit}"


def layers_section(
    layers: Sequence[Figures],
    worst: Sequence[str],
    by_layer: Mapping[str, Sequence[Finding]],
    shares: Mapping[str, float],
) -> Html | None:
    cards = [_card(i, layer, level, by_layer.get(layer["name"], ()), shares.get(layer["name"]))
             for i, (layer, level) in enumerate(zip(layers, worst, strict=True))]  # fmt: skip
    return tag("section", tag("h2", "Layer by layer"), cards) if cards else None


def _card(index: int, layer: Figures, level: str, found: Sequence[Finding], share: float | None) -> Html:
    facts = [("channels", str(layer["channels"]))]
    for label, key in (("distance from the data", "distance"), ("eps", "eps"), ("momentum", "momentum"),
                       ("batches counted", "counter")):  # fmt: skip
        if layer.get(key) is not None:
            facts.append((label, number(layer[key], 6 if key == "counter" else 3)))
    if layer.get("saturated") is not None:
        facts.append(("outputs beyond 4", f"{100 * layer['saturated']:.2g} %"))
    if share is not None:
        facts.append(("share of the gap", part_of(share)))
    codes = [badge(one.severity, one.code) for one in found]
    summary = tag("summary", name(layer["name"]), " ",
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
