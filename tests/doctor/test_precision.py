"""The table of docs/doctor.md: what its plan promises, what its data hold, and that one fault of it is still named."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from tools.precision import page, plan_more
from tools.precision.aside import ASIDE, ASIDE_BASES, OPEN_BASES
from tools.precision.grades import GRADES
from tools.precision.nets import BY_NAME, NETS, net
from tools.precision.plan import Plan, plans
from tools.precision.run_more import SECTIONS, about

from normkit.doctor.catalogue import catalogue
from tests.surgery.foreign import library

DATA = json.loads(page.DATA.read_text(encoding="utf-8"))


def test_every_rule_is_planted_in_three_nets_one_of_them_set_aside() -> None:
    nets: dict[str, list[str]] = {code: [] for code in catalogue()}
    for plan in plans():
        nets[plan.code].append(plan.net)
    assert len(NETS) >= 40
    assert len(plans()) >= 100
    for code, names in nets.items():
        assert len(set(names)) == 3, code
        assert [net(name).aside for name in names] == [False, False, True], code


def test_a_third_of_the_nets_is_set_aside() -> None:
    assert set(BY_NAME) >= {*ASIDE, *OPEN_BASES, *ASIDE_BASES}
    assert abs(len(ASIDE) / len(NETS) - 1 / 3) < 0.03
    assert not ASIDE & set(OPEN_BASES)
    assert set(ASIDE_BASES) <= ASIDE


def test_the_data_are_those_of_the_plan() -> None:
    assert [row["net"] for row in DATA["healthy"]] == [one.name for one in NETS]
    assert [(row["code"], row["net"]) for row in DATA["sick"]] == [(plan.code, plan.net) for plan in plans()]
    rows = [row for part in SECTIONS.values() for row in DATA[part]]
    planned = {json.dumps(about(one)) for one in plan_more.plans()}
    assert {json.dumps({key: row[key] for key in about_keys(row)}) for row in rows} == planned
    assert len(rows) == len(planned)
    assert all(row["aside"] is net(row["net"]).aside for row in (*DATA["healthy"], *DATA["sick"], *rows))


def about_keys(row: dict[str, Any]) -> list[str]:
    """What tells a row of the second part, in the order in which the plan has it."""
    kind = next(kind for kind, part in SECTIONS.items() if part == row["part"])
    return ["part", *(field.name for field in dataclasses.fields(kind))]


def test_the_second_part_plants_small_faults_pairs_and_whole_models_in_nets_of_which_some_are_set_aside() -> None:
    kinds: dict[type, list[bool]] = {kind: [] for kind in SECTIONS}
    for one in plan_more.plans():
        kinds[type(one)].append(net(one.net).aside)
    for kind, aside in kinds.items():
        assert len(aside) >= 18, kind
        assert 0.25 <= sum(aside) / len(aside) <= 0.45, kind
    assert {grade.code for grade in GRADES} <= set(catalogue())
    assert all(
        len(grade.sizes) >= 3 and sorted(grade.sizes) in (list(grade.sizes), list(grade.sizes)[::-1])
        for grade in GRADES
    )


def test_the_page_counts_the_rows() -> None:
    text = page.table()
    missed = sum(not row.get("named") for row in DATA["sick"])
    missed += sum(not row.get("named") for row in DATA["more_sick"])
    missed += sum(not all(row.get("named", [False])) for row in DATA["two"])
    missed += sum(row.get("change", 1) >= 0.05 and not row.get("named") for row in DATA["told"])
    assert text.count("- missed: ") == missed
    assert f"{len(DATA['healthy'])} healthy nets and {len(DATA['sick'])} planted faults" in text


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_a_row_is_made_as_the_data_say(tmp_path, one_thread) -> None:
    library("timm")
    pytest.importorskip("torch_audit")
    from tools.precision.run import rows

    plan = next(plan for plan in plans() if (plan.code, plan.net) == ("NK104", "timm test_resnet"))
    (row,) = rows([(plan, False)], tmp_path / "log.jsonl", "now")["sick"]
    (kept,) = [row for row in DATA["sick"] if (row["code"], row["net"]) == (plan.code, plan.net)]
    assert {key: row[key] for key in ("where", "named", "severity", "beside", "peer")} == {
        key: kept[key] for key in ("where", "named", "severity", "beside", "peer")
    }
    again = rows([(Plan(plan.code, plan.net, 0.0), False)], tmp_path / "log.jsonl", "later")["sick"]
    assert again == [row]  # what was made before a break is kept
