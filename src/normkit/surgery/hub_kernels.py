"""normkit's kernels for `kernels.kernelize`, Hugging Face's way to exchange the forward of layers by their name.

One class is registered for the name "RMSNorm", and the classes that bear it are not one function: most cast back before
the weight multiplies, some after it. So the forward that is put in asks what the original class computes (one probe a
class, sizes and settings) and, where that is not known, calls the class's own forward.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import is_watched
from ..model.row_norm import RowNorm
from ..model.row_probe import row_norm_of
from .row_norms import RowForward

_KNOWN = "_normkit_row"  # on a module whose forward was exchanged: its `RowForward`, or why there is none


def hub_mapping() -> dict[str, dict[str, Any]]:
    """What normkit has for `kernels.kernelize`: layers' names -> devices -> repositories, of the local package.

    .. code-block:: python

        from kernels import Mode, kernelize, use_kernel_mapping

        with use_kernel_mapping(normkit.hub_mapping()):
            model = kernelize(model, mode=Mode.TRAINING, device="cpu")

    Every RMS norm of transformers that bears the name gets the kernels' forward and gives what it gave, in the order of
    weight and cast that its class has. It does not look for additions, and verifies nothing of the whole model:
    :func:`normkit.accelerate` does. Under torch.compile `kernelize` leaves the classes their own forward.
    """
    return {"RMSNorm": {"cpu": Repository()}}


class Repository:
    """Where `kernelize` finds the layer; equal to every other of its kind."""

    layer_name = "RMSNorm"

    def load(self) -> type[nn.Module]:
        """The class whose forward modules get."""
        return RMSNorm

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Repository)

    def __hash__(self) -> int:
        return hash(Repository)

    def __str__(self) -> str:
        return "normkit's layer `RMSNorm`"


class RMSNorm(nn.Module):
    """A forward for modules of other classes, which keep their class, parameters and settings."""

    can_torch_compile = False  # the first call probes
    has_backward = True

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states: (*, D)."""
        known = self.__dict__.get(_KNOWN)
        if known is None or (isinstance(known, RowForward) and known.owner is not self):  # a copy of a module
            known = self.__dict__[_KNOWN] = _found(self)
        if isinstance(known, str) or is_watched():
            return type(self).forward(self, hidden_states)
        return known(hidden_states)


def _found(module: nn.Module) -> RowForward | str:
    """How the module's class is computed by the kernels, or why it is not."""
    bare = copy.copy(module)
    bare.__dict__ = {name: value for name, value in module.__dict__.items() if name not in ("forward", _KNOWN)}
    with torch.no_grad():
        row = row_norm_of(bare)
    return RowForward(module, row) if isinstance(row, RowNorm) else row
