"""The rows of the second part: harder nets, faults by size, two at once, stories. torch-audit is not asked again."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict
from functools import cache
from typing import Any

from torch import nn

import normkit as nk
from normkit.doctor import Diagnosis
from normkit.doctor.finding import WHOLE
from normkit.doctor.follow import followers

from . import grades, stories
from .faults import PLANTERS, Case, Planted
from .made import Batches
from .nets import net
from .parts import feeders
from .plan import Plan
from .plan_more import Graded, Healthy, More, Told, Two
from .run import beside, case_of

SECTIONS = {Healthy: "more_healthy", Plan: "more_sick", Graded: "graded", Two: "two", Told: "told"}


def about(one: More) -> dict[str, Any]:
    """What a row is of."""
    return {"part": SECTIONS[type(one)], **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(one).items()}}


def row(one: More) -> dict[str, Any]:
    began = time.process_time()
    made = {Healthy: _healthy_row, Plan: _sick_row, Graded: _graded_row, Two: _two_row, Told: _told_row}[type(one)]
    found = made(one)  # type: ignore[operator]  # each takes its own
    return {**about(one), "aside": net(one.net).aside, **found, "seconds": round(time.process_time() - began, 1)}


@cache
def _made(name: str) -> tuple[nn.Module, Batches]:
    one = net(name)
    model, batches = one.healthy(), one.batches()
    assert batches is not None
    return model, batches


@cache
def _healthy(name: str) -> tuple[nn.Module, Batches, Diagnosis]:
    model, batches = _made(name)
    return model, batches, nk.diagnose(model, batches)


def _healthy_row(one: Healthy) -> dict[str, Any]:
    _, _, found = _healthy(one.net)
    notes = sorted({finding.code for finding in found.findings if finding.severity == "note"})
    above = [finding.key for finding in found.at_least("warning")]
    return {"how": net(one.net).how, "norms": found.norms, "images": found.images, "above": above, "notes": notes}


def _sick_row(one: Plan) -> dict[str, Any]:
    model, batches, healthy = _healthy(one.net)
    planted = PLANTERS[one.code](case_of(one, copy.deepcopy(model), batches))
    return {"where": planted.where, **_judged(one.code, planted, healthy)}


def _graded_row(one: Graded) -> dict[str, Any]:
    """From large to small, until a size is not named."""
    model, batches, healthy = _healthy(one.net)
    grade = grades.BY_NAME[one.grade]
    plan = Plan(grade.code, one.net, one.place)
    sizes = []
    for size in grade.sizes:
        planted = grade.plant(case_of(plan, copy.deepcopy(model), batches), size)
        sizes.append({"size": size, **_judged(grade.code, planted, healthy)})
        if not sizes[-1]["named"]:
            break
    return {"code": grade.code, "where": planted.where, "sizes": sizes}


def _two_row(one: Two) -> dict[str, Any]:
    model, batches, healthy = _healthy(one.net)
    first = PLANTERS[one.codes[0]](case_of(Plan(one.codes[0], one.net, one.places[0]), copy.deepcopy(model), batches))
    layers = list(feeders(model, batches[0]).items())
    layer, feeder = layers[round(one.places[1] * (len(layers) - 1))]
    second = PLANTERS[one.codes[1]](Case(net(one.net), first.model, first.batches, layer, feeder))
    planted = Planted(second.model, second.batches, "", {**first.options, **second.options})
    found = nk.diagnose(planted.model, planted.batches, **planted.options)
    known = {finding.key for finding in healthy.findings}
    keys = [f"{code} {where}" for code, where in zip(one.codes, (first.where, second.where), strict=True)]
    severities = {finding.key: finding.severity for finding in found.findings if finding.key not in known}
    own = [finding for finding in found.findings if finding.key in keys]
    explained = followers(own)
    others = [f.key for f in found.at_least("warning") if f not in own and f.key not in explained]
    return {
        "where": [first.where, second.where],
        "named": [key in severities for key in keys],
        "severity": [severities.get(key) for key in keys],
        "beside": others,
    }


def _told_row(one: Told) -> dict[str, Any]:
    model, batches = _made(one.net)
    story = stories.BY_NAME[one.story]
    sick, given = story.tell(net(one.net), copy.deepcopy(model), batches)
    found = nk.diagnose(sick, given)
    own = [finding for finding in found.findings if finding.code in story.expected]
    explained = followers(own)
    above = found.at_least("warning")
    return {
        "named": any(finding in above for finding in own),
        "layers": len({finding.where for finding in own if finding in above}),
        "severity": max((f.severity for f in own), key=("note", "warning", "error").index, default=None),
        "change": found.change,
        "noise": found.noise,
        "beside": [f.key for f in above if f not in own and f.key not in explained],
    }


def _judged(code: str, planted: Planted, healthy: Diagnosis) -> dict[str, Any]:
    found = nk.diagnose(planted.model, planted.batches, **planted.options)
    key = f"{code} {planted.where or WHOLE}"
    own = next((finding for finding in found.findings if finding.key == key), None)
    named = own is not None and key not in {finding.key for finding in healthy.findings}
    return {
        "named": named,
        "severity": None if own is None else own.severity,
        "beside": beside(code, planted.where, found),
    }
