"""What a side of a comparison is: forward, backward, and the results for the check, by name.

Rule: what a contender needs once (compiling, converting inputs to its own tensors) happens before the clock.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from .problem import Inputs

Results = dict[str, Tensor]  # "output", and in training "dinput", "dresidual", "dweight", "dbias"


class Absent(Exception):
    """Why a peer has no figure for a case."""


class Contender(Protocol):
    """One side of a comparison; `index` picks the set of inputs."""

    def forward(self, index: int) -> Any:
        """The timed forward; what it returns is handed to `backward`."""
        ...

    def backward(self, outcome: Any, index: int) -> Any:
        """The timed backward: gradients of inputs and parameters."""
        ...

    def results(self, outcome: Any, gradients: Any) -> Results:
        """Both as plain tensors."""
        ...


def named(outcome: Tensor, gradients: tuple[Tensor, ...] | None, inputs: Inputs) -> Results:
    """Results by name, from gradients in the order of leaves and parameters."""
    if gradients is None:
        return {"output": outcome.detach()}
    names = ["dinput", "dweight", "dbias"] if inputs.residual is None else ["dinput", "dresidual", "dweight", "dbias"]
    return {"output": outcome.detach(), **dict(zip(names, gradients, strict=False))}  # RMS norm has no bias
