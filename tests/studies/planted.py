"""Planted runs: results made up so that a study's claim is true, false or open in them.

`planted(name, word)` gives runs of the study's own quick plan whose results carry an effect of the wanted sign; for
"undecided" half of the seeds carry the effect and half its opposite, and exact values miss their limit by little
(`clear` is false).
"""

from collections.abc import Callable

from normkit.studies import (
    STUDIES,
    Preset,
    Run,
    distribution_shift,
    learning_rate,
    linear_chain,
    precise_statistics,
    scale_invariance,
    small_batch,
    train_test_gap,
)
from normkit.studies.study import Params, Result

SEEDS = 6


def planted(name: str, word: str) -> list[Run]:
    plan = STUDIES[name].plan(Preset(quick=True, seeds=SEEDS, data="digits"))
    return [
        Run(params, RESULTS[name](params, _holds(word, params["seed"]), word != "undecided"), 0.1) for params in plan
    ]


def _holds(word: str, seed: int) -> bool:
    return word == "supported" or (word == "undecided" and seed % 2 == 0)


def _jitter(seed: int) -> float:
    return 0.001 * seed  # seeds of a real study differ too


def _linear_chain(params: Params, holds: bool, clear: bool) -> Result:
    depths, weights = range(len(linear_chain.DEPTHS)), range(len(linear_chain.WEIGHTS))
    growth = 2.5 if holds else 1.0
    missed = 0.05 if holds else 5.0 if clear else 0.5
    plain = [[0.5 * growth ** (d + w - 2) * (1 + _jitter(params["seed"])) for w in weights] for d in depths]
    return {"none": plain, "batch": [[missed for _ in weights] for _ in depths]}


def _scale_invariance(params: Params, holds: bool, clear: bool) -> Result:
    error = 1e-9 if holds else 1e-2 if clear else 5e-6
    rows = [
        {
            "output": error,
            "du": error,
            "dw": error,
            "radial": error,
            "dw_size": 1 / a,
            "turn": 1 / a**2 if holds else 1.0,
        }
        | {"scale": a}
        for a in scale_invariance.SCALES
    ]
    end = 1.2 + _jitter(params["seed"]) if holds else 0.9
    return {
        "scales": rows,
        "slope": -1.0,
        "measured": [1.0, end],
        "predicted": [1.0, end if holds else 2.0 if clear else end * 1.005],
        "every": 1,
    }


def _learning_rate(params: Params, holds: bool, clear: bool) -> Result:
    most = 3.0 if (params["norm"] == "batch") == holds else 0.1
    trains = params["rate"] <= most and (params["activation"] == "relu" or (params["norm"] == "batch") == holds)
    steps = 30 if (params["norm"] == "batch") == holds else 90
    accuracy = 0.8 + _jitter(params["seed"]) if trains else 0.1
    curve = [accuracy] * (params["steps"] // learning_rate.EVERY)
    return {"curve": curve, "accuracy": accuracy, "steps": steps if trains else None}


def _small_batch(params: Params, holds: bool, clear: bool) -> Result:
    small, large, group = (0.30, 0.10, 0.20) if holds else (0.10, 0.30, 0.20)
    share = small_batch.BATCHES.index(params["batch"]) / (len(small_batch.BATCHES) - 1)
    error = (
        small + share * (large - small) if params["norm"] == "batch" else group + (0.0 if holds else 0.1 * (1 - share))
    )
    error += _jitter(params["seed"])
    return {"error": error, "exact": error - (0.03 if holds else -0.03)}


def _train_test_gap(params: Params, holds: bool, clear: bool) -> Result:
    looks, shifts = params["looks"], train_test_gap.SHIFTS
    base = 0.1 + _jitter(params["seed"])
    worse = base + 0.3
    running, exact, batch = (worse, base, base) if holds else (base, worse if clear else base + 0.04, base)
    curve = {"running": [running] * len(looks), "exact": [exact] * len(looks), "batch": [batch] * len(looks)}
    fooled = [worse if holds else base] * len(shifts)
    return {
        "curve": curve,
        "loss": curve,
        "shifted": {"running": fooled, "exact": fooled, "batch": [base] * len(shifts)},
    }


def _precise_statistics(params: Params, holds: bool, clear: bool) -> Result:
    small = params["batch"] == precise_statistics.BATCHES[0]
    jitter = _jitter(params["seed"])

    def looks(distances: list[float], error: float = 0.2) -> list[list[float]]:
        return [[0.7 + d + jitter, error, d + jitter] for d in distances]

    fast = 0.3 if small == holds else 0.1
    average = [fast, 0.1, 0.2, 0.5] if holds else [fast, 0.1, 0.05, 0.01]
    samples = looks([0.4 if holds else 0.01, 0.2, 0.1, 0.05, 0.0])
    samples[precise_statistics.SAMPLES.index(1024)][precise_statistics.ERROR] += 0.0 if holds else 0.1 + jitter
    missed = 1e-9 if holds else 1e-2 if clear else 5e-4
    return {
        "exact": [0.7 if holds else 0.9, 0.2, 0.0],
        "average": looks(average),
        "samples": samples,
        "parallel": looks([0.2, 0.1, 0.05, 0.02] if holds else [0.02, 0.05, 0.1, 0.2]),
        "sequential": [[0.7, 0.2, missed] for _ in precise_statistics.MEASURED],
    }


def _distribution_shift(params: Params, holds: bool, clear: bool) -> Result:
    best, middle, worst = (0.1, 0.3, 0.5) if holds else (0.5, 0.3, 0.1)
    order = {
        "source": worst + 0.1 * (1 if holds else -1), "adapted, large batch": best, "adapted, small batch": middle,
        "small batch alone": worst, distribution_shift.GROUP: middle,
    }  # fmt: skip
    shifted = len(distribution_shift.SEVERITIES) - 1
    errors = {name: [0.1, *[error + _jitter(params["seed"])] * shifted] for name, error in order.items()}
    errors["adapted, large batch"][0] += 0.0 if holds else 0.1 + _jitter(params["seed"])
    return {"error": errors}


RESULTS: dict[str, Callable[[Params, bool, bool], Result]] = {
    "linear_chain": _linear_chain,
    "scale_invariance": _scale_invariance,
    "learning_rate": _learning_rate,
    "small_batch": _small_batch,
    "train_test_gap": _train_test_gap,
    "precise_statistics": _precise_statistics,
    "distribution_shift": _distribution_shift,
}
