"""Every rule by its two examples: the planted fault is named with its layer, and nothing else stands above a note but
what follows from it; the healthy twin is healthy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import normkit as nk
from normkit.doctor import Diagnosis
from normkit.doctor.catalogue import KINDS, Rule, catalogue, chosen
from normkit.doctor.finding import WHOLE
from normkit.doctor.follow import followers

RULES = list(catalogue().values())
SECTIONS = ("What it checks: ", "Why: ", "Ignore it: ", "Sources: ")
ALWAYS_NOTES = {
    *("NK106", "NK109", "NK112", "NK113", "NK201", "NK202", "NK203", "NK204", "NK205", "NK208", "NK301", "NK302"),
    *("NK303", "NK305", "NK403", "NK406", "NK407", "NK408", "NK501", "NK502", "NK504", "NK505", "NK110", "NK111"),
    "NK105",
}
ONLY_IN_TRAINING = {"NK206", "NK304", "NK401", "NK402", "NK404", "NK405"}


def diagnosed(example: tuple[Any, ...]) -> Diagnosis:
    model, batches, *options = example
    return nk.diagnose(model, batches, **(options[0] if options else {}))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_the_planted_fault_is_named_and_nothing_else(rule: Rule) -> None:
    found = diagnosed(rule.sick()).findings
    own = [finding for finding in found if finding.code == rule.code]
    assert f"{rule.code} {rule.where or WHOLE}" in [finding.key for finding in own]
    explained = followers(own)
    assert [f.key for f in found if f.severity != "note" and f.code != rule.code and f.key not in explained] == []
    for finding in own:
        assert finding.cause
        assert finding.fix
        assert finding.page == f"docs/doctor/{rule.code}.md"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_the_healthy_twin_is_healthy(rule: Rule) -> None:
    found = diagnosed(rule.healthy())
    assert rule.code not in [finding.code for finding in found.findings]
    assert found.healthy


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_style_is_a_note_and_what_harms_training_a_warning(rule: Rule) -> None:
    severities = {f.severity for f in diagnosed(rule.sick()).findings if f.code == rule.code}
    if rule.code in ALWAYS_NOTES:
        assert severities == {"note"}
    if rule.code in ONLY_IN_TRAINING:
        assert severities == {"warning"}


@pytest.mark.parametrize("code", sorted(ONLY_IN_TRAINING))
def test_a_training_fault_is_no_warning_in_evaluation(code: str) -> None:
    model, batches, *_ = catalogue()[code].sick()
    found = nk.diagnose(model.eval(), batches, select=[code])
    assert all(finding.severity == "note" for finding in found.findings)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_page_has_its_sections(rule: Rule) -> None:
    paragraphs = rule.page.strip().split("\n\n")
    assert [paragraph[: len(section)] for paragraph, section in zip(paragraphs[1:], SECTIONS, strict=True)] == [
        *SECTIONS
    ]
    assert rule.title.endswith(".")
    assert re.match(rf"{rule.code.lower()}_\w+$", Path(str(rule.module.__file__)).stem)
    assert rule.code[:3] in KINDS


def test_rules_are_chosen_by_code_and_by_group() -> None:
    assert {rule.code for rule in chosen(["NK1"], ["NK103", "nk104"])} == {
        code for code in catalogue() if code.startswith("NK1") and code not in ("NK103", "NK104")
    }
    assert len(chosen(None, [])) == len(RULES)
    with pytest.raises(ValueError, match="no rule is called 'NK9'"):
        chosen(["NK9"], [])
    with pytest.raises(ValueError, match="no rule is called ''"):
        chosen(None, [""])
