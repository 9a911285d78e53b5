"""Results for the report's tests: one of each kind of row, each with a name that attacks the page."""

from dataclasses import replace
from typing import Any

from normkit.studies import STUDIES, Plot, speed

from .planted import planted

HOSTILE = "<img src=x onerror=window.broken=1></script><script>window.broken=1</script>"
KINDS = {"step_sign": "supported", "small_batch": "not supported", "train_test_gap": "undecided"}


def results_and_plots() -> tuple[dict[str, Any], dict[str, list[Plot]]]:
    fast = [_timing(2.25), _timing(1.0)]
    plots = {name: STUDIES[name].plot(planted(name, word)) for name, word in KINDS.items()}
    plots = {name: [replace(plot, description=HOSTILE) for plot in drawn] for name, drawn in plots.items()}
    results = {
        "about": {"normkit": "1.0", "machine": HOSTILE, "threads": 2, "images": HOSTILE, HOSTILE: "a label"},
        "right": [_row(True), _row(False)],
        "fast": fast,
        "studies": [_study(name, word) for name, word in KINDS.items()],
    }
    return results, {**plots, "fast": speed.plot(fast)}


def _row(right: bool) -> dict[str, Any]:
    return {
        "name": HOSTILE,
        "title": HOSTILE,
        "measures": HOSTILE,
        "threads": ["1206", HOSTILE],
        "truth": 1.0,
        "torch": "nan",
        "normkit": 1.0 if right else HOSTILE,
        "torch_right": False,
        "normkit_right": right,
    }


def _timing(ratio: float) -> dict[str, Any]:
    shape = [32, 64, 56, 56]
    times = {"normkit_ms": 10.0, "torch_ms": 10 * ratio, "ratio": ratio, "low": ratio - 0.2, "high": ratio + 0.3}
    return {"shape": shape, "layout": "NCHW", "pairs": 20, "error": 0.4, **times}


def _study(name: str, word: str) -> dict[str, Any]:
    texts = dict.fromkeys(
        ("title", "claim", "who", "experiment", "rule", "paper", "doubt", "advice", "stable"), HOSTILE
    )
    facts = {"rule_sha256": "0" * 64, "date": "2026-01-01", "seeds": [0, 1, 2, 3, 4], "stability": None}
    verdict = STUDIES[name].judge(planted(name, word)).to_json()
    verdict["parts"][0]["claim"] = HOSTILE
    return {"name": name, **texts, **facts, "papers": [HOSTILE], "verdict": verdict, "runs": 5, "seconds": 1.5}
