"""A diagnosis as SARIF 2.1.0, which code hosts and editors read: a finding is a result, a layer a logical location.

The format: https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/sarif-v2.1.0-os.html (sections are named in the tests).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

from ..info import version
from .catalogue import catalogue
from .finding import WHOLE, Finding
from .report import Report

_UNRESERVED = frozenset(f"{ascii_letters}{digits}-._~/")  # RFC 3986; a colon is not: before one stands a scheme
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(report: Report, artifact: str | Path, line: int | None = None) -> str:
    """The log as JSON.

    artifact: the checkpoint, or the file of the factory; absolute, or relative to where the reader stands. line: where
    the factory begins, from 1.
    """
    codes = list(dict.fromkeys(finding.code for finding in report.findings))
    driver = {"name": "normkit doctor", "semanticVersion": version(), "rules": [_rule(code) for code in codes]}
    place: dict[str, Any] = {"artifactLocation": {"uri": _uri(artifact)}}
    if line is not None:
        place["region"] = {"startLine": line}
    results = [_result(finding, codes.index(finding.code), place) for finding in report.findings]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, allow_nan=False, indent=1)


def _rule(code: str) -> dict[str, Any]:
    rule = catalogue()[code]
    return {
        "id": code,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.page.strip()},
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


def _uri(artifact: str | Path) -> str:
    """Absolute as file:///..., relative as it is; with what a URI may not hold escaped."""
    path = Path(artifact)
    if path.is_absolute():
        return path.as_uri()
    return "".join(chr(b) if chr(b) in _UNRESERVED else f"%{b:02X}" for b in path.as_posix().encode())
