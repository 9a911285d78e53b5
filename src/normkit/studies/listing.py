"""What there is to run and about how long it takes: `normkit study --list`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .study import Preset, Study

START = 5.0  # seconds until the workers have imported torch


def listing(chosen: Sequence[Study], presets: Sequence[Preset], jobs: int, width: int) -> str:
    """A paragraph per study: its name and title, its claim, and the runs and the time of each preset."""
    pages = []
    for study in chosen:
        costs = [f"{p.name}: {len(study.plan(p))} runs, about {duration(estimate([study], p, jobs))}" for p in presets]
        lines = [f"{study.name}: {study.title}", *textwrap.wrap(study.claim, width - 4), "; ".join(costs)]
        pages.append("\n    ".join(lines))
    whole = ", ".join(f"{p.name} about {duration(estimate(chosen, p, jobs))}" for p in presets)
    note = f"Together: {whole}; with {jobs} {'worker' if jobs == 1 else 'workers'} (--jobs), on data of mnist5k's size."
    return "\n\n".join([*pages, textwrap.fill(note, width)])


def estimate(chosen: Sequence[Study], preset: Preset, jobs: int) -> float:
    """Seconds from start to end, from what the runs took where they were measured."""
    return START + sum(len(study.plan(preset)) * per_run(study, preset) for study in chosen) / jobs


def per_run(study: Study, preset: Preset) -> float:
    """CPU seconds of one run."""
    quick, full = study.seconds
    return quick if preset.quick else full


def duration(seconds: float) -> str:
    """A time as one says it: 40 s, 3 min, 1 h 20 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
