"""A record proves itself: its runs give its verdict again, and the hash tells whether the rule is still that one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from normkit.studies import STUDIES, Preset, record
from normkit.studies.record import blocks, is_current, judged, make, rule_sha256

from .planted import planted

FOLDER = Path(__file__).parents[2] / "docs" / "data" / "studies"
RECORDS = sorted(FOLDER.glob("*.json"))
FACTS = {"commit": "abcdef0123456789", "date": "2026-01-01", "made_with": "normkit 0, torch 0"}


def planted_record(name: str, word: str) -> dict[str, Any]:
    preset = Preset(quick=False, seeds=8, data="digits")
    runs, fresh = planted(name, word), planted(name, word, first_seed=10_000)
    return json.loads(json.dumps(make(STUDIES[name], preset, runs, fresh, FACTS), allow_nan=False))


@pytest.mark.parametrize("name", STUDIES)
def test_runs_come_back_from_a_record(name: str) -> None:
    runs = planted(name, "supported")
    judged_runs, fresh = blocks(planted_record(name, "supported"))
    assert [run.params for run in judged_runs] == [run.params for run in runs]
    assert [run.params["seed"] - 10_000 for run in fresh] == [run.params["seed"] for run in runs]


def test_a_record_holds_what_a_reader_asks_for() -> None:
    record = planted_record("step_sign", "not supported")
    assert record["verdict"]["word"] == record["verdict"]["rule_word"] == record["fresh"]["word"] == "not supported"
    assert record["preset"] == "full"
    assert record["seeds"] == list(range(8))
    assert record["fresh"]["seeds"] == list(range(10_000, 10_008))
    assert record["stability"] == 1.0
    assert len(record["parts"]) == len(STUDIES["step_sign"].parts)
    assert {"rule_sha256", "commit", "date", "made_with", "rule"} <= set(record)


def test_the_hash_is_the_rule_s() -> None:
    study = STUDIES["step_sign"]
    assert rule_sha256(replace(study, claim="another text")) == rule_sha256(study)
    moved = (replace(study.parts[0], margin=49.0), *study.parts[1:])
    assert rule_sha256(replace(study, parts=moved)) != rule_sha256(study)
    assert len({rule_sha256(study) for study in STUDIES.values()}) == len(STUDIES)


def test_the_hash_covers_the_experiment_and_neither_plots_nor_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    study, before = STUDIES["step_sign"], rule_sha256(STUDIES["step_sign"])
    read = record._source

    def changed(old: str, new: str) -> str:
        def source(module: str) -> str:
            text = read(module)
            if module == "step_sign":
                assert old in text
                text = text.replace(old, new)
            return text

        monkeypatch.setattr(record, "_source", source)
        return rule_sha256(study)

    assert changed("RATES = [0.03, 0.1, 0.3]", "RATES = [0.03, 0.1, 0.4]") != before
    assert changed('"depth m", "over the first-order term"', '"m", "over the other"') == before
    assert changed("    draws = range(", "    # a comment\n    draws = range(") == before


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_committed_record_gives_its_verdict_again(path: Path) -> None:
    """No training: the rule over the committed runs says what the record says, or the record is of another rule."""
    study, record = STUDIES[path.stem], json.loads(path.read_text("utf-8"))
    assert record["preset"] == "full"
    assert len(record["seeds"]) >= 20
    assert len(record["fresh"]["seeds"]) >= 10
    assert not set(record["seeds"]) & set(record["fresh"]["seeds"])
    if not is_current(study, record):
        return  # its page states no word
    verdict, stability = judged(study, record)
    assert (verdict.word, stability.rule) == (record["verdict"]["word"], record["verdict"]["rule_word"])
    assert (stability.fresh.word, stability.share) == (record["fresh"]["word"], record["stability"])
    assert [part.word for part in verdict.parts] == [part["word"] for part in record["parts"]]
