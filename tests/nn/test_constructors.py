"""Every argument of a layer's constructor arrives, lazy layers' included: one argument at a time, at no default."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import _torch

SIZES = {"num_features": 6, "num_channels": 6, "num_groups": 3, "normalized_shape": 6, "domains": 3}


def tensors(layer: nn.Module) -> list[Tensor]:
    return [t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point()]


# argument -> (what is given; None: the opposite of the default, how the layer tells what it was given)
ARGUMENTS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "eps": (3e-3, lambda layer: layer.eps),
    "momentum": (0.37, lambda layer: layer.momentum),
    "affine": (None, lambda layer: layer.weight is not None),
    "elementwise_affine": (None, lambda layer: layer.weight is not None),
    "bias": (None, lambda layer: layer.bias is not None),
    "track_running_stats": (None, lambda layer: layer.running_var is not None),
    "process_group": ("a group", lambda layer: layer.process_group),
    "device": ("meta", lambda layer: tensors(layer)[-1].device.type),
    "dtype": (torch.float64, lambda layer: tensors(layer)[0].dtype),
    "activation": ("silu", lambda layer: layer.activation),
    "small_batch": ("running", lambda layer: layer.small_batch),
    "virtual_batch_size": (7, lambda layer: layer.virtual_batch_size),
    "r_max": (1.5, lambda layer: layer.r_max),
    "d_max": (0.25, lambda layer: layer.d_max),
    "threshold": (None, lambda layer: layer.threshold is not None),
    "shared_affine": (None, lambda layer: layer.shared_affine),
    "extra_eps": (0.25, lambda layer: layer.extra_eps.item()),
    "warm_up": ((2, 9, 5), lambda layer: layer.warm_up),
}
CASES = [
    pytest.param(name, argument, id=f"{name}, {argument}")
    for name in nk.nn.__all__
    for argument in inspect.signature(getattr(nk, name)).parameters
    if argument not in SIZES and (name[:-2], argument) != ("BatchRenorm", "track_running_stats")  # which it needs
]


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(("name", "argument"), CASES)
def test_an_argument_arrives(name: str, argument: str) -> None:
    parameters = inspect.signature(getattr(nk, name)).parameters
    value, told = ARGUMENTS[argument]
    given = {argument: not parameters[argument].default if value is None else value}
    # an instance norm has no parameters unless it is asked to
    options = {"affine": True, **given} if "Instance" in name and argument != "track_running_stats" else given
    if name.startswith("Lazy") and argument == "bias" and not _torch.takes_bias(_torch.LazyNormBase.__init__):
        with pytest.raises(TypeError, match="has no lazy norm without a bias"):
            getattr(nk, name)(bias=False)
        return
    layer = getattr(nk, name)(**{key: SIZES[key] for key in parameters if key in SIZES}, **options)
    if name.startswith("Lazy"):
        layer(torch.ones(2, 6, *[3] * int(name[-2]), device=given.get("device"), dtype=given.get("dtype")))
    own = argument in ("activation", "shared_affine")  # a domain batch norm has these itself, all else its norms have
    for part in layer.norms if name.startswith("Domain") and not own else [layer]:
        assert told(part) == given[argument]
