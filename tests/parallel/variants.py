"""Synchronised batch norm in every dtype and layout, on two ranks and as one process with both batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.cases import DTYPES, EPS, LAYOUTS, MOMENTUM, gaussian, generator, random_mask

SPACES = {"nc": (), "ncl": (5,), "nchw": (4, 3), "ncdhw": (2, 3, 2)}
SIZES = {"uneven": (5, 3), "one_empty": (6, 0)}
CHANNELS = 7  # leaves a tail of every vector width


class Variant(NamedTuple):
    dtype: str
    layout: str
    space: str
    sizes: str
    fused: bool  # a residual and a ReLU
    masked: bool


def variants() -> Iterator[Variant]:
    """Masks want a spatial axis or samples alike; layouts differ only where there is space."""
    for dtype, layout, space, sizes, fused, masked in product(
        DTYPES, LAYOUTS, SPACES, SIZES, (False, True), (False, True)
    ):
        if space == "nc" and layout not in ("contiguous", "strided"):
            continue
        yield Variant(dtype, layout, space, sizes, fused, masked)


def step(norm: type[nn.Module], variant: Variant, rank: int | None) -> dict[str, Tensor]:
    """One training step; rank: whose samples, None: all."""
    g, sizes, dtype = generator(3), SIZES[variant.sizes], DTYPES[variant.dtype]
    shape = (sum(sizes), CHANNELS, *SPACES[variant.space])
    x, r, dy = (gaussian(shape, g, mean=mean).to(dtype) for mean in (2.0, 0.0, 0.0))
    mask = random_mask(shape, g) if variant.masked else None
    layer = norm(CHANNELS, EPS, MOMENTUM, activation="relu" if variant.fused else None).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(gaussian((CHANNELS,), g, mean=1.0))
        layer.bias.copy_(gaussian((CHANNELS,), g))
    if rank is not None:
        x, r, dy = (t.split(sizes)[rank] for t in (x, r, dy))
        mask = None if mask is None else mask.split(sizes)[rank]
    if x.numel():
        x, r, dy = (LAYOUTS[variant.layout](t) for t in (x, r, dy))
    inputs = [t.detach().requires_grad_() for t in ((x, r) if variant.fused else (x,))]
    y = layer(*inputs, mask=mask)
    y.backward(dy)
    found = {"y": y.detach()} | {name: t.grad for name, t in zip(("dx", "dr"), inputs, strict=False)}
    found |= {f"d{name}": p.grad for name, p in layer.named_parameters()}
    found |= {name: b.clone() for name, b in layer.named_buffers()}
    return {name: value for name, value in found.items() if value is not None}
