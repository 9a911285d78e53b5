"""`make_fx` records a norm that trains: no value is looked at while it does, and the program moves the statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import normkit as nk
from tests.cases import EPS, MOMENTUM, gaussian, generator

Norm = Callable[..., Tensor]
f = nk.functional


def of_batch(name: str, **options: Any) -> Norm:
    def norm(x: Tensor, mean: Tensor, var: Tensor, **mask: Tensor) -> Tensor:
        return getattr(f, name)(x, mean, var, None, None, True, MOMENTUM, EPS, **options, **mask)

    return norm


NORMS: dict[str, Norm] = {
    "batch": of_batch("batch_norm"),
    "ghost": of_batch("ghost_batch_norm", virtual_batch_size=3),
    "renorm": of_batch("batch_renorm", r_max=1.5, d_max=0.5),
    "instance": of_batch("instance_norm"),
    "group": lambda x, mean, var, **mask: f.group_norm(x, 3, eps=EPS, **mask),
    "merged moments": lambda x, mean, var, **mask: f.normalize(
        x, nk.Moments.of(x, (0, 2)).merge(nk.Moments.of(2 * x, (0, 2))), eps=EPS
    ),
}


def draw(samples: int, positions: int, masked: bool) -> list[Tensor]:
    g = generator(samples)
    x, mean, var = gaussian((samples, 3, positions), g).float(), torch.full((3,), 0.5), torch.full((3,), 2.0)
    return [x, mean, var, *([torch.rand(samples, positions, generator=g) < 0.7] if masked else [])]


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", NORMS)
def test_a_recorded_norm_is_the_norm(name: str, mode: str, masked: bool) -> None:
    def norm(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return NORMS[name](x, mean, var)

    def norm_of_real(x: Tensor, mean: Tensor, var: Tensor, mask: Tensor) -> Tensor:
        return NORMS[name](x, mean, var, mask=mask)

    program = make_fx(norm_of_real if masked else norm, tracing_mode=mode)(*draw(8, 5, masked))
    sizes = [(8, 5)]
    if mode == "symbolic" and name != "ghost":  # whose slices are part of the program
        sizes.append((6, 7))
    for size in sizes:
        found, expected = draw(*size, masked), draw(*size, masked)
        y = norm_of_real(*expected) if masked else norm(*expected)
        torch.testing.assert_close(program(*found), y)
        torch.testing.assert_close(found, expected)  # the statistics among them


@pytest.mark.parametrize("mode", ["real", "fake"])
def test_lengths_are_not_looked_at_either(mode: str) -> None:
    program = make_fx(lambda lengths: nk.mask_from_lengths(lengths, 5), tracing_mode=mode)(torch.tensor([1, 4]))
    assert torch.equal(program(torch.tensor([2, 0])), nk.mask_from_lengths([2, 0], 5))


def test_the_only_value_under_a_mask_is_no_error_where_it_is_not_known_yet() -> None:
    mask = torch.arange(5).expand(3, 5) + torch.arange(3)[:, None] == 0
    x = torch.randn(3, 2, 5)

    def norm(x: Tensor, mask: Tensor) -> Tensor:
        return f.batch_norm(x, None, None, training=True, eps=EPS, mask=mask)

    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        norm(x, mask)
    assert (make_fx(norm)(x, mask)(x, mask) == 0).all()
