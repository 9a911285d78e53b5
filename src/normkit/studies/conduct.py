"""Conduct studies: run what is missing with progress bars, judge, draw, and write results.json and report.html."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from .. import _files
from ..errors import UsageError
from ..info import collect, cpu_name, missing
from . import MORE, RENAMED, STUDIES, data, find, small_batch_ranks
from .listing import duration, listing, per_run
from .progress import Task, shown
from .record import rule_sha256
from .runner import cores, finished, run_studies
from .stability import APART, FRESH_SEEDS, Stability, stated
from .store import Store
from .study import Plot, Preset, Study, seeds_of
from .verdict import Verdict

T = TypeVar("T")
FULL_SEEDS, QUICK_SEEDS = 20, 10
UNMEASURED = "How stable this word is was not measured: --stability."
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
    stability: bool = False,
    ranks: int | None = None,
) -> Outcome:
    """`normkit study`: the studies called `names`, or all of them; with `stability` a fresh block of seeds as well.

    ranks: behind small_batch the same on so many processes.
    """
    chosen = selected(names, ranks)
    store, preset = prepare(quick, seeds, source, out, first_seed, jobs)
    sections, plots = conduct(chosen, blocks(preset) if stability else [preset], store, jobs or cores())
    return publish(store, {"about": about(preset), "right": [], "fast": [], "studies": sections}, plots)


def selected(names: Sequence[str], ranks: int | None = None) -> list[Study]:
    """The studies called `names`, each once, or all of them; an old name says what it is called now.

    With `ranks` small_batch is followed by its like on so many processes.
    """
    for name in names:
        if name in RENAMED:
            print(f"normkit: {name} is now {RENAMED[name]}", file=sys.stderr)
    chosen = {study.name: study for study in map(find, names)} or dict(STUDIES)
    if ranks is None:
        return list(chosen.values())
    if "small_batch" not in chosen:
        raise UsageError("--ranks is for small_batch: normkit study small_batch --ranks 4")
    return list({**chosen, small_batch_ranks.NAME: small_batch_ranks.study(ranks)}.values())


def blocks(preset: Preset) -> list[Preset]:
    """The seeds that are judged, and the fresh ones that the verdict is held against."""
    return [preset, preset.block(preset.first_seed + APART, FRESH_SEEDS)]


def listed(
    names: Sequence[str],
    seeds: int | None,
    first_seed: int,
    jobs: int | None,
    width: int,
    ranks: int | None = None,
) -> str:
    """`normkit study --list`: names, claims, and how long each takes in both presets."""
    _verify(seeds, first_seed, jobs)
    presets = [_preset(quick, seeds, data.DEFAULT, first_seed) for quick in (True, False)]
    return listing(selected(names, ranks), presets, jobs or cores(), width)


def prepare(
    quick: bool, seeds: int | None, source: str | None, out: Path, first_seed: int = 0, jobs: int | None = None
) -> tuple[Store, Preset]:
    """Everything that can be refused is refused here, before the first run."""
    if absent := missing("studies"):
        raise UsageError(f"studies need {', '.join(absent)}: pip install 'normkit[studies]'")
    _verify(seeds, first_seed, jobs)
    preset = _preset(quick, seeds, data.DEFAULT if source is None else source, first_seed)
    data.load(preset.data)  # a file that cannot serve is refused here
    return Store(out, made_with(preset), rules()), preset


def rules() -> dict[str, str]:
    """The hash of each study's experiment and rule: a run of another one is no run of this."""
    return {name: rule_sha256(study) for name, study in {**STUDIES, **MORE}.items()}


def conduct(
    chosen: Sequence[Study], presets: Sequence[Preset], store: Store, jobs: int
) -> tuple[list[dict[str, Any]], dict[str, list[Plot]]]:
    """Run, judge and draw `chosen`; returns the report's sections and the pictures by study.

    presets: the one that is judged, and behind it the fresh block where stability is measured.
    """

    by_name = {study.name: study for study in chosen}

    @cache  # judged when its last run is finished, shown then and at the end
    def section(name: str) -> dict[str, Any]:
        return _section(by_name[name], presets, store)

    def outcome(name: str) -> str:
        made = section(name)
        return f"{made['verdict']['word']}, {made['runs']} runs, {duration(made['seconds'])} of CPU time"

    tasks = {
        study.name: Task(
            study.title,
            sum(len(study.plan(preset)) for preset in presets),
            per_run(study, presets[0]),
            partial(outcome, study.name),
            sum(len(finished(study, preset, store)) for preset in presets),
        )
        for study in chosen
    }
    with shown(tasks, jobs) as advance:
        run_studies(chosen, presets, store, advance, jobs)
    plots = {study.name: _readable(study, store, partial(_drawn, study, presets[0], store)) for study in chosen}
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


def _section(study: Study, presets: Sequence[Preset], store: Store) -> dict[str, Any]:
    runs, *fresh = (finished(study, preset, store) for preset in presets)

    def judged() -> tuple[Verdict, Stability | None]:
        if fresh:
            return stated(study.parts, study.measure(runs), study.measure(fresh[0]))
        return study.judge(runs), None

    verdict, stability = _readable(study, store, judged)
    return {
        "name": study.name,
        "title": study.title,
        "claim": study.claim,
        "who": study.who,
        "experiment": study.experiment,
        "rule": study.rule,
        "rule_sha256": rule_sha256(study),
        "date": datetime.date.today().isoformat(),
        "seeds": seeds_of(runs),
        "paper": study.paper,
        "doubt": study.doubt,
        "advice": study.advice,
        "papers": list(study.papers),
        "verdict": verdict.to_json(),
        "stability": stability and stability.to_json(),
        "stable": stability.sentence if stability else UNMEASURED,
        "runs": len(runs) + sum(map(len, fresh)),
        "seconds": sum(run.seconds for block in (runs, *fresh) for run in block),
    }
