"""A diagnosis, shown: plain text, rich, HTML. Whatever a name holds is shown literally."""

from __future__ import annotations

from html import escape
from typing import Any

from .finding import SEVERITIES, WHOLE, Finding
from .follow import followers
from .report import Report

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_COLOURS = {"error": "#c0392b", "warning": "#b7791f", "note": "#6b7280"}
SAID = 0.05  # of the gap: a layer's share below it is on the page and in the JSON
RAISES = "NK001"
FEW = 3  # layers of a note that are named
MANY = 5  # findings of one rule above a note: of more the FEW worst are shown, the others named


def plain(diagnosis: Report) -> str:
    return "\n".join(line for _, line in _lines(diagnosis))


def rich(diagnosis: Report) -> Any:
    from rich.text import Text

    whole = Text()
    for style, line in _lines(diagnosis):
        head, separator, rest = line.partition("  ") if style in ("error", "warning") else (line, "", "")
        whole.append(head, _STYLES.get(style, ""))
        whole.append(f"{separator}{rest}\n")
    whole.rstrip()
    return whole


def html(diagnosis: Report) -> str:
    colour = {style: f' style="color:{value}"' for style, value in _COLOURS.items()}
    lines = "".join(
        f"<div{colour.get(style, '')}>{escape(line).replace('  ', ' &nbsp;') or '&nbsp;'}</div>"
        for style, line in _lines(diagnosis)
    )
    return f'<div style="font-family:monospace;white-space:pre-wrap">{lines}</div>'


def _lines(diagnosis: Report) -> list[tuple[str, str]]:
    """(style, line): the head, what is above a note one by one, where a rule speaks of many layers the worst of them,
    the notes by rule."""
    under = followers(diagnosis.findings)
    by_key = {finding.key: finding for finding in diagnosis.findings}
    lines = [("head", line) for line in _head(diagnosis)]
    above = [finding for finding in diagnosis.findings if finding.severity != "note" and finding.key not in under]
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in above:
        groups.setdefault((finding.severity, finding.code), []).append(finding)
    for group in groups.values():
        few = group if len(group) <= MANY else _worst(group, diagnosis)
        for finding in few:
            lines += _one(finding, by_key)
        if len(few) < len(group):
            lines += _others([finding for finding in group if finding not in few])
    notes = [finding for finding in diagnosis.findings if finding.severity == "note" and finding.key not in under]
    if notes:
        lines.append(("", ""))
    for code in dict.fromkeys(finding.code for finding in notes):
        lines += _together([finding for finding in notes if finding.code == code])
    return [*lines, ("", ""), ("head", _summary(diagnosis))]


def _head(diagnosis: Report) -> list[str]:
    what = f"{diagnosis.model}: {diagnosis.norms} norm{'s' if diagnosis.norms != 1 else ''}"
    if diagnosis.norms == 0:
        return [f"{diagnosis.model} has no normalization layers: nothing to examine"]
    if not diagnosis.batches:
        raised = any(finding.code == RAISES for finding in diagnosis.findings)
        return [f"{what}, from the state alone{'' if raised else ': batches would tell what is off and by how much'}"]
    lines = [f"{what}, {diagnosis.images or diagnosis.batches} {'images' if diagnosis.images else 'batches'}"]
    if diagnosis.change is not None and diagnosis.noise is not None:
        lines.append(
            f"the running statistics move the answer by {diagnosis.change:.2g} of its deviation; "
            f"single batches differ by {diagnosis.noise:.2g}"
        )
    if diagnosis.gap is not None:
        lines += [share.sentence() for share in diagnosis.gap.shares if share.share >= SAID]
    return lines


def _one(finding: Finding, by_key: dict[str, Finding]) -> list[tuple[str, str]]:
    lines = [
        ("", ""),
        (finding.severity, f"{finding.severity} {finding.code}  {finding.where or WHOLE}{_number(finding)}"),
    ]
    lines += [("", f"  {finding.cause}"), ("", f"  fix: {finding.fix}")]
    for key in finding.follows:
        effect = by_key[key]
        lines.append(("note", f"  follows from it: {effect.code}{_number(effect)}: {effect.cause}"))
    return lines


def _worst(findings: list[Finding], diagnosis: Report) -> list[Finding]:
    """The FEW whose layers change the answer most, in the model's order."""
    change = {layer.name: layer.change or 0.0 for layer in diagnosis.layers}
    ranked = sorted(findings, key=lambda finding: -change.get(finding.where, 0.0))[:FEW]
    return [finding for finding in findings if finding in ranked]


def _others(findings: list[Finding]) -> list[tuple[str, str]]:
    first, names = findings[0], ", ".join(finding.where for finding in findings[:FEW])
    more = f" and {len(findings) - FEW} more" if len(findings) > FEW else ""
    return [("", ""), (first.severity, f"{first.severity} {first.code}  the same at {names}{more}")]


def _together(findings: list[Finding]) -> list[tuple[str, str]]:
    first = findings[0]
    if not first.where:
        return [("note", f"note {first.code}  {first.cause}")]
    names = ", ".join(finding.where for finding in findings[:FEW])
    more = f" and {len(findings) - FEW} more" if len(findings) > FEW else ""
    return [("note", f"note {first.code}  {names}{more}: {first.cause}")]


def _number(finding: Finding) -> str:
    if finding.measured is None:
        return ""
    limit = "" if finding.limit is None else f", limit {finding.limit:g}"
    return f"  [{finding.measured:g} {finding.unit}{limit}]"


def _summary(diagnosis: Report) -> str:
    under = followers(diagnosis.findings)
    own = [finding for finding in diagnosis.findings if finding.key not in under]
    counts = {severity: sum(finding.severity == severity for finding in own) for severity in reversed(SEVERITIES)}
    said = ", ".join(f"{count} {name}{'s' if count != 1 else ''}" for name, count in counts.items() if count)
    if diagnosis.healthy:
        verdict = "nothing above a note by the rules asked for" if diagnosis.narrowed else "healthy"
        return f"{verdict}{f' ({said})' if said else ''}"
    return f"{said}; `normkit explain {own[0].code}` says more"
