"""The contract's bounds: the one place where the fuzzer takes them from the project."""

from __future__ import annotations

from types import ModuleType


def contract() -> ModuleType:
    """The module that holds unit_roundoff, underflow, output_bound, input_gradient_bound, parameter_gradient_bound,
    MEAN_RELATIVE and VAR_RELATIVE."""
    from tests import tolerances

    return tolerances
