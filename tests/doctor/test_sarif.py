"""A diagnosis as SARIF 2.1.0: against the schema of what we use of it, and the rules that no schema can state."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from normkit.doctor.finding import Finding
from normkit.doctor.report import Report
from normkit.doctor.sarif import sarif
from tests.doctor.pages import HOSTILE
from tests.doctor.schema import violations

SCHEMA = json.loads((Path(__file__).parent / "sarif_schema.json").read_text())
FINDING = Finding(
    "NK103", "layer3.1.bn2", "error", 0.73, 0.1, "sqrt(var + eps)", "The running statistics are far from the data's",
    "nk.recalibrate(model, batches)", "docs/doctor/NK103.md", ("NK104 layer3.1.bn2",),
)  # fmt: skip
FINDINGS = [
    FINDING,
    replace(FINDING, code="NK104", severity="warning", follows=()),
    replace(FINDING, where="", severity="note", measured=None, limit=None),
    replace(FINDING, where=HOSTILE, cause=HOSTILE, fix=HOSTILE),
]


def log(findings: list[Finding] = FINDINGS, file: str | Path = "models/net.py", line: int | None = None) -> Any:
    return json.loads(sarif(Report(tuple(findings), "Net", 3), file, line))


def test_the_log_satisfies_the_schema():
    assert list(violations(log(), SCHEMA)) == []
    assert list(violations(log(line=12), SCHEMA)) == []
    assert list(violations(log([]), SCHEMA)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), "2.0.0"),
        (("runs", 0, "results", 0, "level"), "fatal"),
        (("runs", 0, "results", 0, "ruleIndex"), -1),
        (("runs", 0, "results", 0, "message"), {}),
        (("runs", 0, "results", 0, "locations", 0, "physicalLocation", "artifactLocation", "uri"), "a b.pt"),
        (("runs", 0, "results", 0, "locations", 0, "physicalLocation", "region"), {"startLine": 0}),
        (("runs", 0, "tool", "driver", "name"), ""),
        (("runs", 0, "extra"), 1),
    ],
)
def test_the_schema_can_be_broken(path, value):
    broken = log()
    place: Any = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert list(violations(broken, SCHEMA)) != []


def test_a_rule_is_there_once_and_each_result_points_to_its_own():
    """3.27.6: the ruleId of the descriptor at ruleIndex is the result's."""
    run = log()["runs"][0]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert rules == ["NK103", "NK104"]
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])


def test_layers_are_logical_locations():
    names = [
        result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] for result in log()["runs"][0]["results"]
    ]
    assert names == ["layer3.1.bn2", "layer3.1.bn2", "(the model itself)", HOSTILE]


def test_findings_keep_their_fingerprints_and_no_two_share_one():
    prints = [result["partialFingerprints"]["normkit/finding/v1"] for result in log()["runs"][0]["results"]]
    assert len(set(prints)) == len(prints)
    assert prints == [r["partialFingerprints"]["normkit/finding/v1"] for r in log(line=3)["runs"][0]["results"]]


def test_levels_are_severities_and_numbers_travel():
    result = log()["runs"][0]["results"][0]
    assert result["level"] == "error"
    assert result["properties"]["measured"] == 0.73
    assert result["properties"]["follows"] == ["NK104 layer3.1.bn2"]
    assert result["message"]["text"] == (
        "layer3.1.bn2: The running statistics are far from the data's. Fix: nk.recalibrate(model, batches)"
    )


@pytest.mark.parametrize(
    ("file", "uri"),
    [
        ("models/net.py", "models/net.py"),
        ("a b/ü<x>.pt", "a%20b/%C3%BC%3Cx%3E.pt"),
        (Path("/data/run 1/w.pt"), "file:///data/run%201/w.pt"),
        ("c:weights.pt", "c%3Aweights.pt"),
    ],
)
def test_the_file_is_a_uri(file, uri):
    found = log(file=file)
    place = found["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": uri}}
    assert list(violations(found, SCHEMA)) == []
