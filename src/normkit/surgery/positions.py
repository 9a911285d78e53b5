"""How many axes a layer sees after (N, C), where its class leaves that open (sync, group and foreign frozen layers).

Rules: nothing is guessed from what other layers of the model are. Known is what a run on example inputs has shown, what
the steps of a plain nn.Sequential before the layer say, and which ranks a foreign forward takes at all.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from .._torch import ADAPTIVE_POOLS, POOLS, ConvBase
from ..model.dataflow import flow_of, refuse_lazy
from ..model.families import author_of_forward, channels, family, has_convolution, rank
from ..model.restore import Restored
from .fused_call import is_sequential, steps

# Steps that keep the rank: activations, dropout, and norms, whose own rank counts where they have one.
_KEEPS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Dropout, nn.Identity, nn.Linear),
)
_BY_RANK = (ConvBase, *POOLS)
_ADAPTIVE = ADAPTIVE_POOLS


class Positions:
    """Axes after (N, C): 0 for rows, 2 for images. None where it is not known, or differs from call to call."""

    def __init__(self, model: nn.Module, example_inputs: Any = None) -> None:
        self._seen = _by_order(model) if example_inputs is None else _by_run(model, example_inputs)
        self._tokens = has_convolution(model, 1)

    def spatial(self, norm: nn.Module) -> int | None:
        """1, 2 or 3 as in the names of classes: rows are of rank 1."""
        known = norm.__dict__.get("_normkit_spatial") or rank(norm)
        if known is not None:
            return int(known)
        seen = self._of(norm)
        return max(seen, 1) if seen is not None else _by_trial(norm)

    def flat(self, norm: nn.Module) -> bool | None:
        """Whether a layer of rank 1 sees rows, (N, C)."""
        seen = self._of(norm)
        return None if seen is None else seen == 0

    def probably_flat(self, norm: nn.Module) -> bool:
        """`flat`; where it is not known, whether no convolution of the model makes anything else of rank 1."""
        known = self.flat(norm)
        return not self._tokens if known is None else known

    def _of(self, norm: nn.Module) -> int | None:
        seen = self._seen.get(norm, set())
        return next(iter(seen)) if len(seen) == 1 else None


def _by_run(model: nn.Module, example_inputs: Any) -> dict[nn.Module, set[int]]:
    refuse_lazy(model)
    modules = dict(model.named_modules())
    with Restored(model, evaluating=True) as restored, restored:  # torch's sync layers do not train on a CPU
        flow = flow_of(model, example_inputs)
    found: dict[nn.Module, set[int]] = {}
    for call in flow.calls:
        if call.module in modules and family(modules[call.module]) is not None and call.inputs:
            found.setdefault(modules[call.module], set()).add(len(flow.values[call.inputs[0]].shape) - 2)
    return found


def _by_order(model: nn.Module) -> dict[nn.Module, set[int]]:
    found: dict[nn.Module, set[int]] = {}
    for container in model.modules():
        axes: int | None = None
        for step in steps(container) if is_sequential(container) else ():
            if family(step) is not None and axes is not None:
                found.setdefault(step, set()).add(axes)
            axes = _behind(step, axes)
    return found


def _behind(step: nn.Module, axes: int | None) -> int | None:
    """The axes that follow (N, C) after a step that got so many."""
    if isinstance(step, (*_BY_RANK, *_ADAPTIVE)):
        return rank(step)
    if family(step) is not None:
        known = rank(step)
        return known if axes is None and known != 1 else axes
    if type(step) is nn.Flatten:
        return 0 if (step.start_dim, step.end_dim) == (1, -1) else None
    if type(step) is nn.Linear and axes is None:
        return 0  # what a norm of as many channels sees after it
    return axes if isinstance(step, _KEEPS) else None


def _by_trial(norm: nn.Module) -> int | None:
    """The one rank that a forward of somebody else takes, giving back what is of the same shape."""
    if author_of_forward(norm):
        return None
    size = 3 if channels(norm) == 2 else 2
    fits = [dims for dims in range(4) if _takes(norm, (5, channels(norm), *[size] * dims))]
    return fits[0] if len(fits) == 1 and fits[0] > 0 else None


def _takes(norm: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        probe = copy.deepcopy(norm).float().cpu().eval()
        with Restored(probe) as restored, restored:
            return bool(probe.forward(torch.ones(shape)).shape == shape)
    except Exception:
        return False
