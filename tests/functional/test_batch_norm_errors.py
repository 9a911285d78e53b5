"""What batch norm refuses: the class and text of torch, call by call, on the installed torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normkit as nk

ONES = torch.ones
# Each gives (arguments after input of the functional form), and must fail alike in both libraries.
FUNCTIONAL: dict[str, tuple[Any, ...]] = {
    "one_value": (ONES(1, 3, 1, 1), None, None, None, None, True),
    "one_row": (ONES(1, 3), None, None, None, None, True),
    "mean_too_short": (ONES(2, 4), ONES(3), ONES(4), None, None, True),
    "var_too_short": (ONES(2, 4), ONES(4), ONES(3), None, None, True),
    "weight_too_short": (ONES(2, 4), None, None, ONES(3), None, True),
    "bias_too_long": (ONES(2, 4), None, None, None, ONES(5), True),
    "evaluation_without_mean": (ONES(2, 4), None, ONES(4), None, None, False),
    "evaluation_without_var": (ONES(2, 4), ONES(4), None, None, None, False),
    "eps_zero_in_training": (ONES(2, 4), None, None, None, None, True, 0.1, 0.0),
    "eps_negative": (ONES(2, 4), ONES(4), ONES(4), None, None, False, 0.1, -1.0),
    "integers": (ONES(2, 4, dtype=torch.int64), None, None, None, None, True),
    "complex": (ONES(2, 4, dtype=torch.complex64), None, None, None, None, True),
}
LAYERS: dict[str, tuple[str, tuple[int, ...]]] = {
    "1d_of_4d": ("BatchNorm1d", (2, 3, 4, 4)),
    "1d_of_1d": ("BatchNorm1d", (3,)),
    "2d_of_2d": ("BatchNorm2d", (2, 3)),
    "2d_of_5d": ("BatchNorm2d", (2, 3, 4, 4, 4)),
    "3d_of_4d": ("BatchNorm3d", (2, 3, 4, 4)),
    "2d_one_value": ("BatchNorm2d", (1, 3, 1, 1)),
    "1d_one_row": ("BatchNorm1d", (1, 3)),
    "wrong_channels": ("BatchNorm2d", (2, 4, 5, 5)),
}


def failure(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def expect_alike(ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    """That both fail, in the same words and for whoever catches torch's class."""
    expected = failure(theirs)
    if expected is None:
        pytest.skip(f"torch {torch.__version__} takes it")
    found = failure(ours)
    assert isinstance(found, type(expected))
    assert str(found) == str(expected)


@pytest.mark.parametrize("arguments", FUNCTIONAL.values(), ids=FUNCTIONAL)
def test_the_function_fails_as_torchs(arguments: tuple[Any, ...]) -> None:
    expect_alike(lambda: nk.functional.batch_norm(*arguments), lambda: F.batch_norm(*arguments))


@pytest.mark.parametrize(("name", "shape"), LAYERS.values(), ids=LAYERS)
def test_the_layer_fails_as_torchs(name: str, shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    ours, theirs = getattr(nk, name)(3), getattr(nn, name)(3)
    expect_alike(lambda: ours(x), lambda: theirs(x))


@pytest.mark.parametrize(
    ("dtype", "parameters"),
    [(torch.float32, torch.float64), (torch.float64, torch.float32), (torch.float16, torch.float64)],
    ids=["f32_with_f64", "f64_with_f32", "f16_with_f64"],
)
def test_dtypes_that_do_not_go_together_fail(dtype: torch.dtype, parameters: torch.dtype) -> None:
    x, weight = torch.ones(4, 3, dtype=dtype), torch.ones(3, dtype=parameters)
    ours = failure(lambda: nk.functional.batch_norm(x, None, None, weight, None, True))
    theirs = failure(lambda: F.batch_norm(x, None, None, weight, None, True))
    assert type(ours) is type(theirs) is RuntimeError
    assert str(ours).startswith("mixed dtype (CPU)")


def test_what_torch_has_no_text_for_names_the_expectation_and_what_came() -> None:
    x = torch.ones(2, 3, 4)
    norm = nk.BatchNorm1d(3)
    with pytest.raises(ValueError, match=r"residual must have the input's shape \(2, 3, 4\), got \(2, 3, 1\)"):
        norm(x, residual=torch.ones(2, 3, 1))
    with pytest.raises(TypeError, match="residual must be floating point"):
        norm(x, residual=torch.ones(2, 3, 4, dtype=torch.int32))
    with pytest.raises(TypeError, match=r"mask must be a bool tensor .* got torch.float32: use mask.bool\(\)"):
        norm(x, mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"mask of shape \(4, 2\) does not fit .* expected \(2, 4\)"):
        norm(x, mask=torch.ones(4, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="tells channels apart"):
        norm(x, mask=torch.ones(2, 3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="activation 'swoosh' is not known"):
        nk.BatchNorm1d(3, activation="swoosh")
    with pytest.raises(ValueError, match="small_batch must be 'error'"):
        nk.BatchNorm1d(3, small_batch="skip")
    with pytest.raises(ValueError, match="backend must be one of"), nk.backend("cudnn"):
        pass


def test_an_empty_batch_passes_where_torchs_does() -> None:
    for shape in ((0, 3), (0, 3, 4), (2, 3, 0)):
        x = torch.ones(shape, requires_grad=True)
        y = nk.BatchNorm1d(3)(x)
        y.sum().backward()
        assert y.shape == x.shape
        assert x.grad is not None
        assert x.grad.shape == x.shape


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (1, 4, 1)], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm", "ghost_batch_norm", "batch_renorm"])
def test_running_statistics_are_vectors(name: str, masked: bool, training: bool, shape: tuple[int, ...]) -> None:
    x, mean, var = torch.randn(3, 4, 5), torch.zeros(shape), torch.ones(shape)
    mask = {"mask": torch.arange(5).expand(3, 5) < 4} if masked else {}
    with pytest.raises(RuntimeError, match=rf"running_mean must have the shape \(4,\), got {re.escape(str(shape))}"):
        getattr(nk.functional, name)(x, mean, var, None, None, training, **mask)
    assert (mean == 0).all() and (var == 1).all()  # noqa: PT018
    if hasattr(F, name):
        assert isinstance(failure(lambda: getattr(F, name)(x, mean, var, None, None, training)), RuntimeError)


def test_parameters_of_an_instance_norm_are_vectors_and_those_of_a_batch_norm_any_shape() -> None:
    x, weight = torch.randn(3, 4, 5), torch.full((4, 1), 2.0)
    assert isinstance(failure(lambda: F.instance_norm(x, weight=weight)), RuntimeError)
    with pytest.raises(RuntimeError, match=r"weight must have the shape \(4,\), got \(4, 1\)"):
        nk.functional.instance_norm(x, weight=weight)
    with pytest.raises(RuntimeError, match=r"bias must have the shape \(0,\), got \(0, 2\)"):
        nk.functional.instance_norm(torch.ones(3, 0, 5), bias=torch.ones(0, 2))
    for library in (nk.functional, F):
        library.instance_norm(x[:, :1], weight=torch.tensor(2.0))  # torch repeats it
        library.batch_norm(x, None, None, weight, training=True)
