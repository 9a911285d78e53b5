"""Conduct studies: run what is missing with progress bars, judge, draw, and write results.json and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..info import collect, cpu_name, missing
from . import STUDIES, data, find
from .runner import cores, finished, run_studies
from .store import Store
from .study import Plot, Preset, Study

FULL_SEEDS, QUICK_SEEDS = 10, 5


@dataclass(frozen=True)
class Outcome:
    """What a command has to show for itself: the report section of results.json and where the two files lie."""

    results: dict[str, Any]
    html: Path
    json: Path


def study(names: Sequence[str], quick: bool, seeds: int | None, source: str | None, out: Path) -> Outcome:
    """`normkit study`: the studies called `names`, or all of them."""
    chosen = [find(name) for name in names] or list(STUDIES.values())
    store, preset = prepare(quick, seeds, source, out)
    sections, plots = conduct(chosen, preset, store)
    return publish(store, {"about": about(preset), "right": [], "fast": [], "studies": sections}, plots)


def prepare(quick: bool, seeds: int | None, source: str | None, out: Path) -> tuple[Store, Preset]:
    """Everything that can be refused is refused here, before the first run."""
    if absent := missing("studies"):
        raise UsageError(f"studies need {', '.join(absent)}: pip install 'normkit[studies]'")
    if seeds is not None and seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {seeds}")
    store = Store(out, made_with())
    preset = Preset(quick, seeds or (QUICK_SEEDS if quick else FULL_SEEDS), source or data.default(quick))
    data.load(preset.data)
    return store, preset


def conduct(
    chosen: Sequence[Study], preset: Preset, store: Store
) -> tuple[list[dict[str, Any]], dict[str, list[Plot]]]:
    """Run, judge and draw `chosen`; returns the report's sections and the pictures by study."""
    from .progress import bars

    counts = {study.name: len(study.plan(preset)) for study in chosen}
    done = {study.name: len(finished(study, preset, store)) for study in chosen}
    with bars({study.name: study.title for study in chosen}, counts, done) as advance:
        run_studies(chosen, preset, store, advance, cores())
    return [_section(study, preset, store) for study in chosen], {
        study.name: study.plot(finished(study, preset, store)) for study in chosen
    }


def publish(store: Store, results: dict[str, Any], plots: Mapping[str, Sequence[Plot]]) -> Outcome:
    """Write both files; the page is rendered from what the JSON file holds."""
    from .report import render

    store.write(report=results)
    html = store.path.with_name("report.html")
    html.write_text(render(store.document["report"], plots), encoding="utf-8")
    return Outcome(store.document["report"], html, store.path)


def made_with() -> str:
    facts = collect()
    return f"normkit {facts['normkit']}, torch {facts['torch']}"


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
        "preset": f"{preset.name}, {preset.seeds} seeds",
    }


def _section(study: Study, preset: Preset, store: Store) -> dict[str, Any]:
    runs = finished(study, preset, store)
    return {
        "name": study.name,
        "title": study.title,
        "claim": study.claim,
        "experiment": study.experiment,
        "rule": study.rule,
        "papers": list(study.papers),
        "verdict": study.judge(runs).to_json(),
        "runs": len(runs),
        "seconds": sum(run.seconds for run in runs),
    }
