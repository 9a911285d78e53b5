"""The demo: is it right, is it fast, why normalize. Three acts with progress bars into one report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import find, gallery, progress, speed
from .conduct import Outcome, about, conduct, prepare, publish
from .progress import Task, shown
from .runner import cores

RIGHT_SECONDS = 0.5  # of a script of act 1
# the studies of act 3: those whose quick presets fit a demo together
SHOWN = ("step_sign", "scale_invariance", "learning_rate", "small_batch", "train_test_gap")


def demo(out: Path) -> Outcome:
    """Run all three acts and write report.html and results.json into `out`."""
    store, preset = prepare(quick=True, seeds=None, source=None, out=out)
    scripts = gallery.scripts()
    right: list[dict[str, Any]] = []
    fast: list[dict[str, Any]] = []
    tasks = {
        "right": Task("1  Is it right?", len(scripts), RIGHT_SECONDS, lambda: progress.right(right)),
        "fast": Task("2  Is it fast?", len(speed.SHAPES), 2 * speed.SECONDS, lambda: progress.fast(fast)),
    }
    with shown(tasks, jobs=1) as advance:
        for script in scripts:
            right.append(gallery.row(script).to_json())
            advance("right")
        for shape, layout in speed.SHAPES:
            fast.append(speed.measure(shape, layout).to_json())
            advance("fast")
    studies, plots = conduct([find(name) for name in SHOWN], [preset], store, cores())
    results = {"about": about(preset), "right": right, "fast": fast, "studies": studies}
    return publish(store, results, {**plots, "fast": speed.plot(fast)})
