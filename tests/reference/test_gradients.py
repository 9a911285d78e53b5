"""Every hand-derived backward against autograd, central differences and gradcheck of its own forward.

Batch norm has the same tests over more shapes in test_batch_norm.py; here are one or two small cases for each family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from normkit import reference
from tests.cases import GROUPS, Shape, affine, gaussian, generator, random_mask
from tests.reference.derivatives import autograd_of, central_difference
from tests.tolerances import assert_equal64, assert_within

EPS = 1e-3
Gradients = tuple[Tensor, ...]


@dataclass(frozen=True)
class Family:
    """forward(x, mask, *parameters) -> y and backward(dy, x, mask, *parameters) -> (dx, dweight[, dbias])."""

    shape: Shape
    parameter_shape: Shape
    mask_view: Shape  # the mask's shape with an axis of size 1 wherever x has one that the mask has not
    forward: Callable[..., Tensor]
    backward: Callable[..., Gradients]
    has_bias: bool = True

    @property
    def mask_shape(self) -> Shape:
        """mask_view without the axes it does not have in x: channels, or the normalized ones."""
        return tuple(m for m, n in zip(self.mask_view, self.shape, strict=True) if m == n)


def on_channels(shape: Shape, forward: Callable[..., Tensor], backward: Callable[..., Gradients]) -> Family:
    return Family(shape, (shape[1],), (shape[0], 1, *shape[2:]), forward, backward)


def group(shape: Shape, groups: int, backward: Callable[..., Gradients]) -> Family:
    return on_channels(
        shape,
        lambda x, mask, w, b: reference.group_norm(x, groups, w, b, EPS, mask)[0],
        lambda dy, x, mask, w, b: backward(dy, x, groups, w, EPS, mask),
    )


def instance(shape: Shape) -> Family:
    return on_channels(
        shape,
        lambda x, mask, w, b: reference.instance_norm(x, w, b, EPS, mask)[0],
        lambda dy, x, mask, w, b: reference.instance_norm_backward(dy, x, w, EPS, mask),
    )


def layer(shape: Shape, k: int) -> Family:
    normalized = shape[-k:]
    return Family(
        shape,
        normalized,
        (*shape[:-k], *[1] * k),
        lambda x, mask, w, b: reference.layer_norm(x, normalized, w, b, EPS, mask)[0],
        lambda dy, x, mask, w, b: reference.layer_norm_backward(dy, x, normalized, w, EPS, mask),
    )


def rms(shape: Shape, k: int) -> Family:
    normalized = shape[-k:]
    return Family(
        shape,
        normalized,
        (*shape[:-k], *[1] * k),
        lambda x, mask, w: reference.rms_norm(x, normalized, w, EPS, mask)[0],
        lambda dy, x, mask, w: reference.rms_norm_backward(dy, x, normalized, w, EPS, mask),
        has_bias=False,
    )


def ghost(shape: Shape, virtual_batch_size: int) -> Family:
    return on_channels(
        shape,
        lambda x, mask, w, b: reference.ghost_batch_norm(x, w, b, EPS, virtual_batch_size, mask)[0],
        lambda dy, x, mask, w, b: reference.ghost_batch_norm_backward(dy, x, w, EPS, virtual_batch_size, mask),
    )


def inference(shape: Shape) -> Family:
    mean = gaussian((shape[1],), generator(1))
    var = mean**2 + 0.3
    return on_channels(
        shape,
        lambda x, mask, w, b: reference.batch_norm_inference(x, mean, var, w, b, EPS, mask),
        lambda dy, x, mask, w, b: reference.batch_norm_inference_backward(dy, x, mean, var, w, EPS, mask),
    )


FAMILIES: dict[str, Family] = {
    **{f"group_norm-{name}": group(*case, reference.group_norm_backward) for name, case in GROUPS.items()},
    "group_norm-collapsed": group((2, 6, 2, 3), 3, reference.group_norm_backward_collapsed),
    "instance_norm-ncl": instance((2, 3, 4)),
    "instance_norm-nchw": instance((2, 3, 2, 4)),
    "layer_norm-last": layer((3, 2, 5), 1),
    "layer_norm-last_two": layer((3, 2, 4), 2),
    "layer_norm-no_leading": layer((6,), 1),
    "layer_norm-channels": on_channels(
        (2, 5, 2, 3),
        lambda x, mask, w, b: reference.layer_norm_2d(x, w, b, EPS, mask)[0],
        lambda dy, x, mask, w, b: reference.layer_norm_2d_backward(dy, x, w, EPS, mask),
    ),
    "rms_norm-last": rms((3, 2, 5), 1),
    "rms_norm-last_two": rms((3, 2, 4), 2),
    "rms_norm-no_leading": rms((6,), 1),
    "ghost_batch_norm-uneven": ghost((7, 2, 3), 3),
    "ghost_batch_norm-one_slice": ghost((3, 2, 3), 2),
    "batch_norm-inference": inference((3, 2, 4)),
}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
masked = pytest.mark.parametrize("with_mask", [False, True], ids=["all", "masked"])


def draw(family: Family, with_mask: bool) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
    g = generator(7)
    x, dy = gaussian(family.shape, g, mean=1.0, std=2.0), gaussian(family.shape, g)
    parameters = [v.reshape(family.parameter_shape) for v in affine(torch.Size(family.parameter_shape).numel(), g)]
    mask = torch.ones(family.mask_shape, dtype=torch.bool)
    if with_mask and family.mask_shape:
        mask = random_mask((family.mask_shape[0], 1, *family.mask_shape[1:]), g)
    return x, dy, mask if with_mask else None, parameters if family.has_bias else parameters[:1]


@masked
@families
def test_backward_equals_autograd(family: Family, with_mask: bool) -> None:
    x, dy, mask, parameters = draw(family, with_mask)
    expected = autograd_of(lambda x, *p: family.forward(x, mask, *p), dy, x, *parameters)
    for i, (a, b) in enumerate(zip(family.backward(dy, x, mask, *parameters), expected, strict=True)):
        assert_equal64(a, b, f"gradient {i}")


@masked
@pytest.mark.parametrize("name", [name for name in FAMILIES if "nchw" not in name and "ncdhw" not in name])
def test_backward_equals_central_differences(name: str, with_mask: bool) -> None:
    family = FAMILIES[name]
    # The larger shapes are left to autograd: a difference costs two forwards an element.
    x, dy, mask, parameters = draw(family, with_mask)
    expected = central_difference(lambda x, *p: family.forward(x, mask, *p), dy, x, *parameters)
    for i, (a, b) in enumerate(zip(family.backward(dy, x, mask, *parameters), expected, strict=True)):
        # h = 1e-5: truncation is h^2 * a third derivative of some hundreds, rounding 1e-16/h times the sum
        assert_within(a, b, 1e-7 * max(1.0, b.abs().max().item()), f"gradient {i}")


@pytest.mark.parametrize(
    "name", ["instance_norm-ncl", "layer_norm-last", "rms_norm-last", "ghost_batch_norm-one_slice"]
)
def test_forward_passes_gradgradcheck(name: str) -> None:
    x, _, mask, parameters = draw(FAMILIES[name], True)
    inputs = [v.requires_grad_() for v in (x, *parameters)]
    assert torch.autograd.gradgradcheck(lambda x, *p: FAMILIES[name].forward(x, mask, *p), inputs)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e300], ids=str)
@pytest.mark.parametrize("name", [name for name in FAMILIES if "no_leading" not in name])
def test_values_under_the_mask_never_leak(name: str, poison: float) -> None:
    family = FAMILIES[name]
    x, dy, mask, parameters = draw(family, True)
    assert mask is not None
    hidden = ~mask.reshape(family.mask_view)
    bad_x, bad_dy = x.masked_fill(hidden, poison), dy.masked_fill(hidden, poison)
    clean = (family.forward(x, mask, *parameters), *family.backward(dy, x, mask, *parameters))
    dirty = (family.forward(bad_x, mask, *parameters), *family.backward(bad_dy, bad_x, mask, *parameters))
    assert hidden.any()
    for i, (a, b) in enumerate(zip(dirty, clean, strict=True)):
        assert_within(a, b, 0.0, f"result {i}")
    for what in dirty[:2]:
        assert not what[hidden.expand_as(what)].any()
