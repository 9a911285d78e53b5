"""The demo: is it right, is it fast, why normalize. Three acts with progress bars into one report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import find, gallery, speed
from .conduct import Outcome, about, conduct, prepare, publish
from .progress import bars

# the studies of act 3: those whose quick presets fit a demo together
SHOWN = ("linear_chain", "scale_invariance", "learning_rate", "small_batch", "train_test_gap")


def demo(out: Path) -> Outcome:
    """Run all three acts and write report.html and results.json into `out`."""
    store, preset = prepare(quick=True, seeds=None, source=None, out=out)
    scripts = gallery.scripts()
    titles = {"right": "1  Is it right?", "fast": "2  Is it fast?"}
    right: list[dict[str, Any]] = []
    fast: list[dict[str, Any]] = []
    with bars(titles, {"right": len(scripts), "fast": len(speed.SHAPES)}, dict.fromkeys(titles, 0)) as advance:
        for script in scripts:
            right.append(gallery.row(script).to_json())
            advance("right")
        for shape, layout in speed.SHAPES:
            fast.append(speed.measure(shape, layout).to_json())
            advance("fast")
    studies, plots = conduct([find(name) for name in SHOWN], preset, store)
    results = {"about": about(preset), "right": right, "fast": fast, "studies": studies}
    return publish(store, results, {**plots, "fast": speed.plot(fast)})
