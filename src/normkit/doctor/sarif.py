"""A diagnosis as SARIF 2.1.0, the form that code hosts show beside the lines of a change.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import json
from typing import Any

from ..info import version
from .catalogue import catalogue
from .finding import WHOLE, Finding
from .report import Report

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(report: Report, artifact: str) -> str:
    """artifact: the checkpoint, or the file of the factory, as a relative path or URI. The layer is the logical
    location."""
    codes = list(dict.fromkeys(finding.code for finding in report.findings))
    rules = [
        {
            "id": code,
            "shortDescription": {"text": catalogue()[code].title},
            "fullDescription": {"text": catalogue()[code].page.strip()},
        }
        for code in codes
    ]
    driver = {"name": "normkit doctor", "semanticVersion": version(), "rules": rules}
    results = [_result(finding, codes.index(finding.code), artifact) for finding in report.findings]
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
    return json.dumps(document, allow_nan=False, indent=1)


def _result(finding: Finding, index: int, artifact: str) -> dict[str, Any]:
    numbers = {"measured": finding.measured, "limit": finding.limit, "unit": finding.unit, "follows": finding.follows}
    return {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": finding.severity,
        "message": {"text": f"{finding.where or WHOLE}: {finding.cause}. Fix: {finding.fix}"},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": artifact}},
                "logicalLocations": [{"fullyQualifiedName": finding.where or WHOLE, "kind": "member"}],
            }
        ],
        "partialFingerprints": {"finding/v1": finding.key},
        "properties": numbers,
    }
