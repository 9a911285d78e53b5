"""The page's section about the gap between training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping

from .gap_report import Gap, LayerShare
from .html import Child, Html, tag
from .page_words import linked, name, number
from .page_words import share as part_of


def gap_section(gap: Gap, anchors: Mapping[str, str]) -> Html:
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
    layer = linked(name(share.layer), anchors.get(share.layer))
    return [tag("b", part_of(share.share)), " of the gap is ", layer, f": {share.cause}"]
