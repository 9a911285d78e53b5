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
    group_count,
    precise_statistics,
    scale_invariance,
    step_sign,
    train_test_gap,
    tuned,
    vanishing_gradient,
)
from normkit.studies.study import Params, Result

SEEDS = 8  # 1/2^8 = 0.0039, seven times that is still under 0.05


def planted(name: str, word: str, seeds: int = SEEDS, first_seed: int = 0) -> list[Run]:
    plan = STUDIES[name].plan(Preset(quick=True, seeds=seeds, data="digits", first_seed=first_seed))
    return [
        Run(params, RESULTS[name](params, _holds(word, params["seed"]), word != "undecided"), 0.1) for params in plan
    ]


def _holds(word: str, seed: int) -> bool:
    return word == "supported" or (word == "undecided" and seed % 2 == 0)


def _jitter(seed: int) -> float:
    return 0.001 * (seed % 100)  # seeds of a real study differ too


def _step_sign(params: Params, holds: bool, clear: bool) -> Result:
    jitter = _jitter(params["seed"])
    wrong = [[1.0 if holds and depth >= 16 and weight >= 1.2 else 0.0 for weight in step_sign.WEIGHTS]
             for depth in step_sign.DEPTHS]  # fmt: skip
    if not holds:
        wrong = [[0.3 + jitter] * len(step_sign.WEIGHTS) for _ in step_sign.DEPTHS]
    often, seldom = (0.8 + jitter, 0.2) if holds else (0.2, 0.8 + jitter)
    cells = len(step_sign.GAINS)
    return {
        "chain": [wrong] * len(step_sign.RATES),
        "second": [[(10.0 if holds else 0.1) + jitter] * len(step_sign.WEIGHTS) for _ in step_sign.DEPTHS],
        "net": {"none": [[often] * cells] * 3, "batch": [[seldom] * cells] * 3},
        "alive": 5.0 + jitter if holds else 0.01 + 0.01 * jitter,
        "erased": 1e-30,
    }


def _vanishing_gradient(params: Params, holds: bool, clear: bool) -> Result:
    layers, jitter = vanishing_gradient.DEPTH, _jitter(params["seed"])
    sigmoid, arm = params["activation"] == "sigmoid", params["arm"]
    lost = (sigmoid and arm == "default, no norm") == holds
    first = 1e-6 * (1 + jitter) if lost else 0.5 + jitter
    if params["activation"] == "relu":
        first = 5.0 + jitter if holds else 0.2 + jitter
    stuck = 0.5 + jitter if (arm == "unit, no norm") == holds else 0.01 + 0.01 * jitter
    gradient = [first, *[1.0] * (layers - 1)]
    looks = len(params["looks"])
    return {"gradient": [gradient] * looks, "saturated": [[stuck] * layers] * looks, "accuracy": 0.5}


def _trained(accuracy: float, reached: bool = True, diverged: bool = False) -> Result:
    curve = [accuracy if reached or i >= 9 else 0.1 for i in range(tuned.LOOKS)]
    return {"curve": curve, "valid": accuracy, "accuracy": accuracy, "diverged": diverged}


def _initialization(params: Params, holds: bool, clear: bool) -> Result:
    robust = (params["norm"] == "batch") == holds
    good = robust or params["gain"] == 1.0
    return _trained(0.8 + _jitter(params["seed"]) if good else 0.1)


def _scale_invariance(params: Params, holds: bool, clear: bool) -> Result:
    error = 1e-9 if holds else 1e-2 if clear else 5e-6
    jitter = _jitter(params["seed"])
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
    end = 1.2 + jitter if holds else 0.9
    return {
        "scales": rows,
        "default_eps": [0.002 + jitter / 1000 if holds else 0.2 + jitter] * len(rows),
        "measured": [1.0, end],
        "predicted": [1.0, end if holds else 2.0 if clear else end * 1.005],
        "every": 1,
    }


def _learning_rate(params: Params, holds: bool, clear: bool) -> Result:
    arm, rate = params["arm"], params["rate"]
    normed = arm.endswith("batch norm")
    if arm.startswith("relu"):
        strong = normed == holds
        trains = rate <= (3.2 if strong else 0.1)
        return _trained(0.8 + _jitter(params["seed"]) if trains else 0.1, reached=strong, diverged=not trains)
    good = (normed or arm.endswith("its own start")) == holds
    return _trained(0.8 + _jitter(params["seed"]) if good else 0.1)


def _small_batch(params: Params, holds: bool, clear: bool) -> Result:
    small, large, group = (0.30, 0.10, 0.20) if holds else (0.10, 0.30, 0.20)
    error = (small if params["batch"] == 2 else large) if params["norm"] == "batch" else group
    error += _jitter(params["seed"])
    return {"valid": 1 - error, "error": error, "exact": error - (0.03 if holds else -0.03)}


def _group_count(params: Params, holds: bool, clear: bool) -> Result:
    best = params["groups"] == group_count.SOME and params["order"] == "kept"
    error = (0.20 if best == holds else 0.30) + _jitter(params["seed"])
    return {"valid": 1 - error, "error": error, "alike": 0.2 + _jitter(params["seed"]) if holds else -0.2}


def _train_test_gap(params: Params, holds: bool, clear: bool) -> Result:
    looks = len(params["looks"])
    base = 0.1 + _jitter(params["seed"])
    worse = base + 0.3
    running, exact = (worse, base) if holds else (base, worse)
    curve = {"running": [running] * looks, "debiased": [running] * looks, "exact": [exact] * looks,
             "batch": [base] * looks}  # fmt: skip
    fooled, own = (worse, base) if holds else (base, base + 0.1)
    shifts, blurs = len(train_test_gap.SHIFTS), len(train_test_gap.BLURS)

    def under(count: int) -> dict[str, list[float]]:
        return {"running": [fooled] * count, "debiased": [fooled] * count, "exact": [fooled] * count,
                "batch": [own] * count}  # fmt: skip

    order = [base, worse] if holds else [worse, base]
    return {"curve": curve, "loss": curve, "shifted": under(shifts), "blurred": under(blurs), "sorted": order}


def _precise_statistics(params: Params, holds: bool, clear: bool) -> Result:
    jitter = _jitter(params["seed"])

    def looks(distances: list[float], error: float = 0.2) -> list[list[float]]:
        return [[0.7 + d + jitter, error, d + jitter] for d in distances]

    average = [0.3, 0.1, 0.2, 0.5] if holds else [0.1, 0.3, 0.05, 0.01]
    samples = looks([0.9 if holds else 0.01, 0.2, 0.1, 0.05])
    samples[precise_statistics.SAMPLES.index(1024)][precise_statistics.ERROR] += 0.0 if holds else 0.1 + jitter
    missed = 1e-9 if holds else 1e-2 if clear else 5e-4
    return {
        "exact": [0.7 if holds else 1.9, 0.2, 0.0],
        "average": looks(average),
        "debiased": looks(average),
        "samples": samples,
        "parallel": looks([0.2, 0.1, 0.05, 0.02] if holds else [0.02, 0.05, 0.1, 0.2]),
        "sequential": [[0.7, 0.2, missed] for _ in precise_statistics.MEASURED],
    }


def _distribution_shift(params: Params, holds: bool, clear: bool) -> Result:
    jitter = _jitter(params["seed"])
    source, large, group = (0.5, 0.2, 0.3) if holds else (0.2, 0.5, 0.4)
    small = [0.4, 0.3, 0.2, 0.25] if holds else [0.3, 0.35, 0.45, 0.5]

    def table(value: object) -> list[list[object]]:
        return [[value] * len(distribution_shift.SEVERITIES)] * len(distribution_shift.NAMES)

    return {
        "source": table(source + jitter),
        "large": table(large),
        "group": table(group),
        "small": table([error + jitter * (1 + i) for i, error in enumerate(small)]),
        "chosen": table(small),
        "clean": [0.1, 0.1 + (0.001 if holds else 0.1) + jitter / 10, 0.1],
        "sorted": [0.1, *[0.6 + jitter if holds else 0.05] * len(distribution_shift.PRIORS)],
    }


def _affine_ablation(params: Params, holds: bool, clear: bool) -> Result:
    arm, jitter = params["arm"], _jitter(params["seed"])
    good = arm == "both" or (arm == "beta" and holds)
    ahead = 0.0 if good else 0.1 if holds or arm == "beta" else -0.1
    return _trained(0.7 - ahead + jitter * (arm != "both"))


def _convergence(params: Params, holds: bool, clear: bool) -> Result:
    strong = (params["norm"] == "batch") == holds
    return _trained(0.8 + _jitter(params["seed"]) if strong else 0.2)


def _depth(params: Params, holds: bool, clear: bool) -> Result:
    strong = (params["norm"] == "batch") == holds
    return _trained(0.8 + _jitter(params["seed"]) if strong or params["depth"] <= 5 else 0.2)


def _placement(params: Params, holds: bool, clear: bool) -> Result:
    best = "before" if holds else "both"
    return _trained(0.8 + _jitter(params["seed"]) if params["place"] == best else 0.6 if params["place"] == "after"
                    else 0.5)  # fmt: skip


def _covariate_shift(params: Params, holds: bool, clear: bool) -> Result:
    arm, jitter = params["arm"], _jitter(params["seed"])
    if holds:
        drift, accuracy = {"none": (0.4, 0.7), "batch norm": (0.1, 0.8), "noisy batch norm": (0.9, 0.6)}[arm]
    else:
        drift, accuracy = {"none": (0.1, 0.7), "batch norm": (0.4, 0.6), "noisy batch norm": (0.9, 0.9)}[arm]
    marks = [[-1.0, 0.0, 1.0]] * tuned.LOOKS
    moved = {"percentiles": marks, "drift": drift + jitter, "range": drift + jitter, "turn": 1.0}
    return {**_trained(accuracy + jitter * (arm == "noisy batch norm")), **moved}


def _regularization(params: Params, holds: bool, clear: bool) -> Result:
    arm, jitter = params["arm"], _jitter(params["seed"])
    good = (arm == "batch norm, 8") == holds
    accuracy = 0.8 + jitter * (arm == "batch norm, 8") if good else 0.6
    return {**_trained(accuracy), "trained": 0.9}


def _weight_decay_on_gamma(params: Params, holds: bool, clear: bool) -> Result:
    alone = params["decayed"] == "weights"
    error = (0.20 if alone == holds else 0.30) + _jitter(params["seed"])
    return {"valid": 1 - error, "error": error, "gain": 2.0 + _jitter(params["seed"]) if alone == holds else 1.0}


RESULTS: dict[str, Callable[[Params, bool, bool], Result]] = {
    "step_sign": _step_sign,
    "vanishing_gradient": _vanishing_gradient,
    "initialization": _initialization,
    "regularization": _regularization,
    "covariate_shift": _covariate_shift,
    "scale_invariance": _scale_invariance,
    "learning_rate": _learning_rate,
    "convergence": _convergence,
    "depth": _depth,
    "placement": _placement,
    "affine_ablation": _affine_ablation,
    "weight_decay_on_gamma": _weight_decay_on_gamma,
    "small_batch": _small_batch,
    "group_count": _group_count,
    "train_test_gap": _train_test_gap,
    "precise_statistics": _precise_statistics,
    "distribution_shift": _distribution_shift,
}
