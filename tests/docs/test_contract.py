"""docs/contract.md says the numbers that normkit.contract computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from normkit import contract
from normkit.contract import KAPPA_OUTPUTS, KAPPA_STATISTICS
from tests.cases import gaussian, generator
from tests.docs.pages import PAGES
from tests.tolerances import assert_equal64

PAGE = PAGES["docs/contract.md"].read_text(encoding="utf-8")
# function -> (formula, kappa)
ROWS = {
    function: (formula, float(kappa))
    for formula, kappa, function in re.findall(r"^\| .+? \| `(.+?)` \| (\S+) \| `(\w+)` \|$", PAGE, re.MULTILINE)
}
ROUNDOFFS = re.findall(r"2\^-(\d+)\s+for\s+(float\d+|bfloat16)", PAGE)
U, AXES = 2.0**-24, (0,)
MEAN = contract.mean_over(AXES)


def drawn() -> dict[str, Tensor]:
    """What the formulas name: (33, 5) values, (5,) parameters and statistics, all of them of both signs or positive."""
    g = generator(4)
    values = {name: gaussian((33, 5), g) for name in ("x", "xhat", "dxhat", "dz", "terms", "residual")}
    parameters = {name: gaussian((5,), g) for name in ("weight", "bias", "mean")}
    return values | parameters | {name: 0.1 + gaussian((5,), g).square() for name in ("rstd", "var")}


CALLS: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "mean_bound": lambda v: contract.mean_bound(v["mean"], v["var"]),
    "variance_bound": lambda v: contract.variance_bound(v["var"]),
    "output_bound": lambda v: contract.output_bound(v["xhat"], v["weight"], v["bias"], U, v["residual"]),
    "centering_bound": lambda v: contract.centering_bound(v["x"], v["rstd"], v["weight"]),
    "input_gradient_bound": lambda v: contract.input_gradient_bound(v["dxhat"], v["xhat"], v["rstd"], MEAN, U),
    "residual_gradient_bound": lambda v: contract.residual_gradient_bound(v["dz"], U),
    "parameter_gradient_bound": lambda v: contract.parameter_gradient_bound(v["terms"], AXES, U),
    "float32_output_bound": lambda v: contract.float32_output_bound(v["xhat"], v["weight"]),
    "float32_gradient_bound": lambda v: contract.float32_gradient_bound(v["dxhat"], v["xhat"], v["rstd"], MEAN),
    "float32_parameter_bound": lambda v: contract.float32_parameter_bound(v["dz"], v["xhat"], AXES),
}


@pytest.mark.parametrize("function", CALLS)
def test_a_bound_is_computed_as_the_page_writes_it(function: str) -> None:
    values = drawn()
    language: dict[str, Any] = {
        "abs": torch.abs, "sqrt": torch.sqrt, "max": torch.maximum, "average": MEAN,
        "total": lambda terms: terms.sum(AXES), "u": U, "__builtins__": {},
    }  # fmt: skip
    expected = eval(ROWS[function][0], language, values)
    scale = expected.abs().max()
    assert_equal64(CALLS[function](values) / scale, expected / scale, factor=16)


def test_the_page_names_every_bound_and_how_far_it_reaches() -> None:
    assert set(ROWS) == set(CALLS)
    reach = {function: kappa for function, (_, kappa) in ROWS.items()}
    assert {reach.pop(name) for name in ("mean_bound", "variance_bound")} == {KAPPA_STATISTICS}
    assert set(reach.values()) == {KAPPA_OUTPUTS}
    assert {name for name in dir(contract) if name.endswith("_bound")} == {*CALLS, "roundings_bound"}


def test_the_unit_roundoffs_are_those_of_the_dtypes() -> None:
    assert len(ROUNDOFFS) == 4
    for power, dtype in ROUNDOFFS:
        assert contract.unit_roundoff(getattr(torch, dtype)) == 2.0 ** -int(power)
