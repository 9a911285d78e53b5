"""Run the doctor, and torch-audit beside it, on every net: the rows of docs/data/doctor_precision.json."""

from __future__ import annotations

import copy
import json
import logging
import time
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import normkit as nk
from normkit.doctor import Diagnosis, evidence
from normkit.doctor.finding import WHOLE
from normkit.doctor.follow import followers

from . import peer
from .faults import PLANTERS, Case
from .made import Batches
from .nets import NETS, net
from .parts import LINEAR, feeders
from .plan import EVERYWHERE, WITHOUT_NORM, Plan

NEEDS_FEEDER, WITHOUT_BIAS = ("NK201", "NK303", "NK407"), ("NK201", "NK407")


def healthy_row(name: str) -> dict[str, Any]:
    """One healthy net: what stands above a note, which is a false alarm, and what torch-audit raises."""
    one = net(name)
    began = time.process_time()
    _, _, found, said = _healthy(name)
    alarms = sorted({said_.rule for said_ in said if said_.alarm})
    return {
        "net": name, "how": one.how, "aside": one.aside, "norms": found.norms, "images": found.images,
        "above": [finding.key for finding in found.at_least("warning")],
        "notes": sorted({finding.code for finding in found.findings if finding.severity == "note"}),
        "peer": alarms, "peer_norms": [rule for rule in alarms if rule in peer.ABOUT_NORMS],
        "seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def sick_row(plan: Plan) -> dict[str, Any]:
    """One planted fault: whether it is named with its layer, and what else stands above a note."""
    began = time.process_time()
    model, batches, healthy, said = _healthy(plan.net)
    case = case_of(plan, copy.deepcopy(model), batches)
    planted = PLANTERS[plan.code](case)
    found = nk.diagnose(planted.model, planted.batches, **planted.options)
    key = f"{plan.code} {planted.where or WHOLE}"
    own = next((finding for finding in found.findings if finding.key == key), None)
    known = {finding.key for finding in healthy.findings}
    audited = peer.audit(planted.model, planted.batches, planted.options)
    return {
        "code": plan.code, "net": plan.net, "aside": net(plan.net).aside, "where": planted.where,
        "named": own is not None and key not in known, "severity": None if own is None else own.severity,
        "beside": beside(plan.code, planted.where, found),
        "peer": peer.names(audited, said, planted.where, *([case.feeder] if plan.code in NEEDS_FEEDER else [])),
        "seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def beside(code: str, where: str, found: Diagnosis) -> list[str]:
    """What stands above a note and neither is the fault planted nor follows from it."""
    own = [
        finding for finding in found.findings if finding.code == code and (finding.where == where or code in EVERYWHERE)
    ]
    explained = followers(own)
    return [f.key for f in found.at_least("warning") if f not in own and f.key not in explained]


@cache
def _healthy(name: str) -> tuple[nn.Module, Batches | None, Diagnosis, list[peer.Said]]:
    one = net(name)
    model, batches = one.healthy(), one.batches()
    return model, batches, nk.diagnose(model, batches), peer.audit(model, batches, {})


def case_of(plan: Plan, model: nn.Module, batches: Batches | None) -> Case:
    """The case with its layer: so far down among the batch norms that the data reach."""
    assert batches is not None
    found = list(feeders(model, batches[0]).items())
    if plan.code in NEEDS_FEEDER:
        found = [(norm, linear) for norm, linear in found if linear]
    if plan.code in WITHOUT_BIAS:
        found = [(norm, linear) for norm, linear in found if model.get_submodule(linear).bias is None]
    if not found and plan.code in WITHOUT_NORM:
        first = next(name for name, module in model.named_modules() if isinstance(module, LINEAR))
        return Case(net(plan.net), model, batches, "", first)
    layer, feeder = found[round(plan.place * (len(found) - 1))]
    return Case(net(plan.net), model, batches, layer, feeder)


def rows(wanted: list[Any], log: Path, commit: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of these plans and healthy nets, the rows of `log` among them: a run that was broken off goes on.

    One that raises is a row that says so, and counts as missed or as an alarm.
    """
    from . import run_more

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    known = {_key(row): row for row in map(json.loads, log.read_text("utf-8").splitlines())} if log.exists() else {}
    found: dict[str, list[dict[str, Any]]] = {"healthy": [], "sick": [], **{x: [] for x in run_more.SECTIONS.values()}}
    # the gap is about shares, not about findings, and takes most of the time
    with warnings.catch_warnings(), patch.object(evidence, "_gap", lambda *_: None):
        warnings.simplefilter("ignore")  # the libraries' own
        for one, more in wanted:
            about = run_more.about(one) if more else _about(one)
            row = known.get(_key(about))
            if row is None:
                row = {**_row(about, run_more.row if more else _first_row, one), "commit": commit}
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            found[about.get("part") or ("healthy" if isinstance(one, str) else "sick")].append(row)
    return found


def _about(one: Plan | str) -> dict[str, Any]:
    return {"net": one} if isinstance(one, str) else {"code": one.code, "net": one.net}


def _first_row(one: Plan | str) -> dict[str, Any]:
    return healthy_row(one) if isinstance(one, str) else sick_row(one)


def _key(row: dict[str, Any]) -> str:
    """What tells a row: its part, its net and what was done to it."""
    part = row.get("part", "")
    told = () if part == "graded" else (row.get("code"),)  # a graded row has its code beside its grade
    return json.dumps([part, row["net"], *told, row.get("grade"), row.get("codes"), row.get("story")])


def _row(about: dict[str, Any], make: Callable[[Any], dict[str, Any]], one: Any) -> dict[str, Any]:
    try:
        return make(one)
    except Exception as error:
        traceback.print_exc()
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        return {**about, "aside": net(about["net"]).aside, "error": what}


ALL = [one.name for one in NETS]
