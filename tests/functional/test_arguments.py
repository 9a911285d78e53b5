"""Every argument of a function counts: with all of them given, none at its default, it is the layer that has them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
from torch import Tensor, nn

import normkit as nk
from tests.cases import EPS, MOMENTUM
from tests.nn.formulas import CASES, D_MAX, R_MAX, SLOPE
from tests.tolerances import assert_same

f = nk.functional


def of_batch(layer: Any) -> tuple[Any, ...]:
    """What every norm over the batch takes after the input."""
    tensors = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    return (*tensors, layer.training, MOMENTUM, EPS)


# (layer, x, extras) -> y, by the layer's tensors and the options that it was made with
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "batch": lambda layer, x, **extras: f.batch_norm(x, *of_batch(layer), **extras),
    "ghost": lambda layer, x, **extras: f.ghost_batch_norm(x, *of_batch(layer), virtual_batch_size=3, **extras),
    "renorm": lambda layer, x, **extras: f.batch_renorm(x, *of_batch(layer), r_max=R_MAX, d_max=D_MAX, **extras),
    "group": lambda layer, x, **extras: f.group_norm(x, 3, layer.weight, layer.bias, EPS, **extras),
    "instance": lambda layer, x, **extras: f.instance_norm(x, None, None, layer.weight, layer.bias, eps=EPS, **extras),
    "instance, tracked": lambda layer, x, **extras: f.instance_norm(x, *of_batch(layer), **extras),
    "layer": lambda layer, x, **extras: f.layer_norm(x, (7,), layer.weight, layer.bias, EPS, **extras),
    "layer, two axes": lambda layer, x, **extras: f.layer_norm(x, (4, 7), layer.weight, layer.bias, EPS, **extras),
    "rms": lambda layer, x, **extras: f.rms_norm(x, (7,), layer.weight, EPS, **extras),
}


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("path", [nullcontext, partial(nk.backend, "composed")], ids=["as it comes", "composed"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_its_layer(name: str, training: bool, path: Callable[[], Any], masked: bool) -> None:
    case = CASES[name]
    layer, twin = (case.layer().train(training) for _ in range(2))
    x, residual, mask = case.draw()
    extras = {"residual": residual, "mask": mask if masked else None}
    given = {key: value for key, value in extras.items() if value is not None}
    with path():
        y = FUNCTIONS[name](twin, x, activation=nn.LeakyReLU(SLOPE), **given)
        assert_same(y, layer(x, **given))
    for key in ("running_mean", "running_var"):
        if getattr(layer, key, None) is not None:
            assert_same(getattr(twin, key), getattr(layer, key), key)
