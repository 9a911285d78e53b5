"""Conduct studies: run what is missing with progress bars, judge, draw, and write results.json and report.html."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from .. import _files
from ..errors import UsageError
from ..info import collect, cpu_name, missing
from . import STUDIES, data, find
from .listing import duration, listing, per_run
from .progress import Task, shown
from .runner import cores, finished, run_studies
from .store import Store
from .study import Plot, Preset, Study

T = TypeVar("T")
FULL_SEEDS, QUICK_SEEDS = 10, 5
MOST_SEEDS, MOST_FIRST_SEED, MOST_JOBS = 1000, 10**9, 256  # far beyond, memory ends before the plan is made


@dataclass(frozen=True)
class Outcome:
    """What a command has to show for itself: the report section of results.json and where the two files lie."""

    results: dict[str, Any]
    html: Path
    json: Path


def study(
    names: Sequence[str],
    quick: bool,
    seeds: int | None,
    source: str | None,
    out: Path,
    *,
    first_seed: int = 0,
    jobs: int | None = None,
) -> Outcome:
    """`normkit study`: the studies called `names`, or all of them."""
    chosen = selected(names)
    store, preset = prepare(quick, seeds, source, out, first_seed, jobs)
    sections, plots = conduct(chosen, preset, store, jobs or cores())
    return publish(store, {"about": about(preset), "right": [], "fast": [], "studies": sections}, plots)


def selected(names: Sequence[str]) -> list[Study]:
    """The studies called `names`, each once, or all of them."""
    return [find(name) for name in dict.fromkeys(names)] or list(STUDIES.values())


def listed(names: Sequence[str], seeds: int | None, first_seed: int, jobs: int | None, width: int) -> str:
    """`normkit study --list`: names, claims, and how long each takes in both presets."""
    _verify(seeds, first_seed, jobs)
    presets = [_preset(quick, seeds, data.default(quick), first_seed) for quick in (True, False)]
    return listing(selected(names), presets, jobs or cores(), width)


def prepare(
    quick: bool, seeds: int | None, source: str | None, out: Path, first_seed: int = 0, jobs: int | None = None
) -> tuple[Store, Preset]:
    """Everything that can be refused is refused here, before the first run."""
    if absent := missing("studies"):
        raise UsageError(f"studies need {', '.join(absent)}: pip install 'normkit[studies]'")
    _verify(seeds, first_seed, jobs)
    preset = _preset(quick, seeds, data.default(quick) if source is None else source, first_seed)
    data.load(preset.data)
    return Store(out, made_with(preset)), preset


def conduct(
    chosen: Sequence[Study], preset: Preset, store: Store, jobs: int
) -> tuple[list[dict[str, Any]], dict[str, list[Plot]]]:
    """Run, judge and draw `chosen`; returns the report's sections and the pictures by study."""

    by_name = {study.name: study for study in chosen}

    @cache  # judged when its last run is finished, shown then and at the end
    def section(name: str) -> dict[str, Any]:
        return _section(by_name[name], preset, store)

    def outcome(name: str) -> str:
        made = section(name)
        return f"{made['verdict']['word']}, {made['runs']} runs, {duration(made['seconds'])} of CPU time"

    tasks = {
        study.name: Task(
            study.title,
            len(study.plan(preset)),
            per_run(study, preset),
            partial(outcome, study.name),
            len(finished(study, preset, store)),
        )
        for study in chosen
    }
    with shown(tasks, jobs) as advance:
        run_studies(chosen, preset, store, advance, jobs)
    plots = {study.name: _readable(study, store, partial(_drawn, study, preset, store)) for study in chosen}
    return [section(study.name) for study in chosen], plots


def publish(store: Store, results: dict[str, Any], plots: Mapping[str, Sequence[Plot]]) -> Outcome:
    """Write both files; the page is rendered from what the JSON file holds."""
    from .report import render

    store.write(report=results)
    report = store.document["report"]
    _files.update(store.page, lambda: render(report, plots))
    return Outcome(report, store.page, store.path)


def made_with(preset: Preset) -> str:
    """The versions that a run's numbers depend on, a user's own data among them."""
    facts = collect()
    own = data.fingerprint(preset.data)
    return f"normkit {facts['normkit']}, torch {facts['torch']}" + (f", data {own}" if own else "")


def about(preset: Preset) -> dict[str, Any]:
    """The facts printed at the foot of the report."""
    import torch

    facts = collect()
    return {
        "normkit": facts["normkit"],
        "torch": facts["torch"],
        "python": facts["python"],
        "machine": cpu_name(),
        "threads": torch.get_num_threads(),
        "native path": facts["native path"],
        "images": repr(data.load(preset.data)),
        "preset": f"{preset.name}, {preset.seeds} seeds from {preset.first_seed} on",
    }


def _verify(seeds: int | None, first_seed: int, jobs: int | None) -> None:
    for name, value, least, most in (
        ("--seeds", seeds, 1, MOST_SEEDS),
        ("--first-seed", first_seed, 0, MOST_FIRST_SEED),
        ("--jobs", jobs, 1, MOST_JOBS),
    ):
        if value is not None and value < least:
            raise UsageError(f"{name} must be at least {least}, got {value}")
        if value is not None and value > most:
            raise UsageError(f"{name} must be at most {most}, got {value}")


def _preset(quick: bool, seeds: int | None, source: str, first_seed: int) -> Preset:
    return Preset(quick, seeds or (QUICK_SEEDS if quick else FULL_SEEDS), source, first_seed)


def _readable(study: Study, store: Store, make: Callable[[], T]) -> T:
    """make(), which reads results; what fails over results out of the file is the file's fault, not a bug."""
    try:
        return make()
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        if not store.resumed(study.name):
            raise
        text = f"cannot resume from {store.path}: its runs of {study.name} hold something else than its results"
        raise UsageError(f"{text}; move it away or choose another folder with --out") from error


def _drawn(study: Study, preset: Preset, store: Store) -> list[Plot]:
    return study.plot(finished(study, preset, store))


def _section(study: Study, preset: Preset, store: Store) -> dict[str, Any]:
    runs = finished(study, preset, store)
    return {
        "name": study.name,
        "title": study.title,
        "claim": study.claim,
        "experiment": study.experiment,
        "rule": study.rule,
        "papers": list(study.papers),
        "verdict": _readable(study, store, lambda: study.judge(runs).to_json()),
        "runs": len(runs),
        "seconds": sum(run.seconds for run in runs),
    }
