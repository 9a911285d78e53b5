"""Jagged nested tensors through layer and RMS norm: what each sequence gives alone, in the input's offsets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import normkit as nk

SIZES = (5, 1, 7)
MAKE = {
    "layer": lambda **options: nk.LayerNorm(6, **options),
    "rms": lambda **options: nk.RMSNorm(6, **options),
    "layer of two axes": lambda **options: nk.LayerNorm((4, 6), **options),
}


def sequences(*inner: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(size, *inner, generator=random, dtype=dtype) for size in SIZES]


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("name", MAKE)
def test_each_sequence_is_as_alone(name: str, activation: str | None) -> None:
    norm = MAKE[name](activation=activation)
    nn.init.normal_(norm.weight)
    parts = [one.requires_grad_() for one in sequences(4, 6)]
    x = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
    y = norm(x)
    assert y.is_nested
    assert y.layout is torch.jagged
    y.sin().values().sum().backward()
    gradients = [one.grad.clone() for one in parts] + [p.grad.clone() for p in norm.parameters()]
    alone = [one.detach().requires_grad_() for one in parts]
    norm.zero_grad()
    results = [norm(one) for one in alone]
    sum(one.sin().sum() for one in results).backward()
    for one, other in zip(y.unbind(), results, strict=True):
        torch.testing.assert_close(one, other)
    expected = [one.grad for one in alone] + [p.grad for p in norm.parameters()]
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_output_has_the_inputs_offsets_and_adds_to_it() -> None:
    x = torch.nested.nested_tensor(sequences(6), layout=torch.jagged)
    y = nk.RMSNorm(6)(x)
    assert y.shape == x.shape
    assert (x + y).unbind()[2].shape == (7, 6)
    out, total = nk.functional.add_layer_norm(x, y, (6,))
    torch.testing.assert_close(out.unbind()[0], nk.functional.layer_norm(total.unbind()[0], (6,)))


def test_sequences_that_lie_on_another_axis_and_with_holes() -> None:
    parts = sequences(4, 6)
    x = torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)  # (N, 4, j, 6)
    y = nk.LayerNorm(6)(x)
    assert y.shape == x.shape
    for one, other in zip(y.unbind(), parts, strict=True):
        torch.testing.assert_close(one, nk.LayerNorm(6)(other.transpose(0, 1)))
    whole = torch.randn(3, 9, 6)
    holes = torch.nested.narrow(whole, 1, torch.zeros(3, dtype=torch.int64), torch.tensor(SIZES), layout=torch.jagged)
    for one, other, size in zip(nk.RMSNorm(6)(holes).unbind(), whole, SIZES, strict=True):
        torch.testing.assert_close(one, nk.RMSNorm(6)(other[:size]))


def test_a_mask_is_refused() -> None:
    x = torch.nested.nested_tensor(sequences(6), layout=torch.jagged)
    with pytest.raises(ValueError, match="holds real values alone: expected mask=None"):
        nk.LayerNorm(6)(x, mask=torch.ones(3, 7, dtype=torch.bool))
