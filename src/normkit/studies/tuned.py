"""Arms that are compared fairly: each trained at every rate of a grid, its rate chosen on images that do not judge.

A run trains a deep network once. `tuned` gives the run of an arm whose rate ends best on the validation images of that
seed; what is judged is its accuracy on the test images, which chose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from . import data, training
from .study import Params, Result, Run, by_seed

BATCH = 64
LOOKS = 12  # looks at the validation accuracy over a training


def fitted(model: nn.Module, images: data.Images, params: Params, after: Callable[[int], Any] | None = None) -> Result:
    """Train by plain SGD at params["rate"] for params["steps"] steps.

    accuracy: on the test images, in eval mode, 0 for a run that diverged; valid: on the validation images; curve: the
    validation accuracy at LOOKS steps; diverged: whether the loss stopped being finite.
    """
    every = max(1, params["steps"] // LOOKS)
    curve: list[float] = []

    def right(x: Any, y: Any) -> float:
        model.eval()
        wrong = training.test(model, x, y)[1]
        model.train()
        return round(1 - wrong, 4)

    def look(step: int) -> None:
        if step % every == 0:
            curve.append(right(images.valid_x, images.valid_y))
        if after is not None:
            after(step)

    plan = training.Plan(params.get("batch", BATCH), params["steps"], params["rate"], momentum=0.0)
    finished = training.train(model, images, plan, params["seed"], look)
    curve += [0.0] * (params["steps"] // every - len(curve))
    return {
        "curve": curve,
        "valid": curve[-1] if finished else 0.0,
        "accuracy": right(images.test_x, images.test_y) if finished else 0.0,
        "diverged": not finished,
    }


def errors(model: nn.Module, images: data.Images) -> Result:
    """Of a trained model in eval mode. valid: accuracy on the validation images, which chooses the rate; error: on the
    test images, which judges."""
    model.eval()
    return {
        "valid": 1 - training.test(model, images.valid_x, images.valid_y)[1],
        "error": training.test(model, images.test_x, images.test_y)[1],
    }


def tuned(runs: Sequence[Run], **arm: Any) -> Run:
    """The run of one seed's arm at the rate that ends best on the validation images; of equals the smallest rate."""
    chosen = [run for run in runs if all(run.params.get(key) == value for key, value in arm.items())]
    return max(sorted(chosen, key=lambda run: run.params["rate"]), key=lambda run: run.result["valid"])


def accuracy(runs: Sequence[Run], **arm: Any) -> float:
    """Test accuracy of one seed's arm at its own rate, %."""
    return 100 * float(tuned(runs, **arm).result["accuracy"])


def per_rate(runs: Sequence[Run], rates: Sequence[float], **arm: Any) -> list[list[float]]:
    """Test accuracies of an arm in %, a list over seeds for each rate."""
    return [[100 * r.result["accuracy"] for r in by_seed(runs, rate=rate, **arm).values()] for rate in rates]
