"""A diagnosis as SARIF 2.1.0, which code hosts and editors read: a finding is a result, a layer a logical location.

The format: https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/sarif-v2.1.0-os.html (sections are named in the tests).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..info import version
from .finding import WHOLE, Finding

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(findings: Iterable[Finding], titles: Mapping[str, str], file: str | Path, line: int | None = None) -> Any:
    """The log, as what `json.dump` takes.

    titles: code -> the rule in a sentence, of every code that the findings have. file: the checkpoint, or the file of
    the factory, relative to where the reader stands or absolute. line: where the factory begins, from 1.
    """
    found = list(findings)
    codes = list(dict.fromkeys(finding.code for finding in found))
    driver = {
        "name": "normkit doctor",
        "semanticVersion": version(),
        "rules": [{"id": code, "shortDescription": {"text": titles[code]}} for code in codes],
    }
    place: dict[str, Any] = {"artifactLocation": {"uri": _uri(file)}}
    if line is not None:
        place["region"] = {"startLine": line}
    results = [_result(finding, codes.index(finding.code), place) for finding in found]
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
    }


def _result(finding: Finding, rule: int, place: Mapping[str, Any]) -> dict[str, Any]:
    name = finding.where or WHOLE
    text = f"{name}: {finding.cause.rstrip('.')}. Fix: {finding.fix}"
    return {
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": finding.severity,
        "message": {"text": text},
        "locations": [
            {"physicalLocation": place, "logicalLocations": [{"fullyQualifiedName": name, "kind": "member"}]}
        ],
        "partialFingerprints": {"normkit/finding/v1": finding.key},  # the same finding in the next run
        "properties": {
            "measured": finding.measured,
            "limit": finding.limit,
            "unit": finding.unit,
            "fix": finding.fix,
            "follows": list(finding.follows),
        },
    }


def _uri(file: str | Path) -> str:
    """Absolute as file:///..., relative as it is; with what a URI may not hold escaped."""
    path = Path(file)
    if path.is_absolute():
        return path.as_uri()
    return quote(path.as_posix())  # a colon too: what stands before one would be a scheme
