"""The shared tables of inputs: shapes, layouts, dtypes and values, each with an id and the regime it stands for.

Rules: a table is a dict from id to what it holds, so `parametrize("shape", SHAPES.values(), ids=SHAPES)` names each
case; a generator is seeded by its caller, so a failing case can be repeated alone. Channels are at axis 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Shape = tuple[int, ...]

# Not the defaults, so that a layer that ignores its own shows: beside a variance of about 1 this eps changes an output
# by 1e-3 of it, far beyond every tolerance. A default stands in a test only where the default is what is tested.
EPS, MOMENTUM = 3e-3, 0.37

# Small on purpose: a regime is what matters, not a size. Two shapes at the end are large enough for threads.
SHAPES: dict[str, Shape] = {
    "nc_two_rows": (2, 3),  # m = 2: the smallest legal batch
    "nc_one_channel": (33, 1),  # odd m, and C below any vector width
    "nc_wide": (5, 67),  # more channels than values each; C leaves a tail of every vector width
    "ncl": (3, 5, 11),  # one spatial axis, nothing a power of two
    "ncl_unit": (7, 4, 1),  # a spatial axis of size 1: contiguous and channels-last at once
    "nchw": (4, 6, 5, 7),  # the plain image
    "nchw_vectors": (2, 16, 8, 8),  # everything a multiple of 8 and 16: no tails at all
    "nchw_one_sample": (1, 8, 3, 3),  # N = 1: m from space alone
    "nchw_row": (3, 9, 1, 17),  # one row: two layouts agree on strides
    "ncdhw": (2, 4, 3, 2, 5),  # three spatial axes
}
LARGE_SHAPES: dict[str, Shape] = {
    "nchw_threads": (8, 32, 28, 28),  # several blocks per channel and per thread
    "nc_threads": (1027, 129),  # a tall matrix with tails in both directions
}

DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
}

# (shape, num_groups): one group (layer norm), C groups (instance norm) and what lies between.
GROUPS: dict[str, tuple[Shape, int]] = {
    "nchw_one_group": ((3, 6, 4, 5), 1),
    "nchw_two_groups": ((3, 6, 4, 5), 2),
    "nchw_each_channel": ((3, 6, 4, 5), 6),
    "nchw_one_sample": ((1, 8, 3, 3), 4),
    "nc_two_groups": ((5, 12), 2),
    "ncl_three_groups": ((2, 9, 11), 3),
    "ncdhw_two_groups": ((2, 4, 3, 2, 5), 2),
}


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _strided(x: Tensor) -> Tensor:
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    return wide[..., ::2]


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def _offset(x: Tensor) -> Tensor:
    flat = x.new_zeros(x.numel() + 1)
    flat[1:] = x.reshape(-1)
    return flat[1:].view(x.shape)


# Each makes a tensor of the same values in another memory layout.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": _channels_last,  # NHWC, NDHWC and NLC; for (N, C) it is contiguous
    "strided": _strided,  # a slice with gaps
    "transposed": _transposed,  # dense, but in no memory format that has a name
    "offset": _offset,  # contiguous, with a storage offset that breaks vector alignment
}


def gaussian(shape: Shape, generator: torch.Generator, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Independent normal values in float64."""
    return mean + std * torch.randn(shape, generator=generator, dtype=torch.float64)


def _constant(shape: Shape, generator: torch.Generator) -> Tensor:
    x = gaussian(shape, generator)
    x[:, 0] = 0.1  # not a binary fraction: a mean that is rounded early leaves a trace
    return x


def _outlier(shape: Shape, generator: torch.Generator) -> Tensor:
    x = gaussian(shape, generator)
    x[0] *= 1e4
    return x


# Each gives float64 values of a shape; the caller rounds them to its dtype before anything is computed.
VALUES: dict[str, Callable[[Shape, torch.Generator], Tensor]] = {
    "standard": gaussian,
    "kappa_1e2": lambda shape, g: gaussian(shape, g, mean=100.0),  # kappa = |mean|/std
    "kappa_1e4": lambda shape, g: gaussian(shape, g, mean=-1e4),  # the edge of the bounds on statistics
    "kappa_1e6": lambda shape, g: gaussian(shape, g, mean=1e6),  # the edge of the bounds on outputs
    "constant_channel": _constant,  # channel 0 has variance 0: xhat must be exactly 0
    "huge": lambda shape, g: gaussian(shape, g, std=1e30),  # the square overflows float32
    "denormal": lambda shape, g: gaussian(shape, g, std=1e-40),  # below the normal numbers of float32
    "outlier": _outlier,  # one sample 1e4 times larger than the rest
}


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator of its own: a test draws from no global state."""
    return torch.Generator().manual_seed(seed)


def affine(num_channels: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """weight, bias: (C,) in float64; the first weight is negative, so that a forgotten sign shows."""
    weight = 0.5 + torch.rand(num_channels, generator=g, dtype=torch.float64)
    weight[0] = -weight[0]
    return weight, gaussian((num_channels,), g)


def random_mask(shape: Shape, g: torch.Generator, keep: float = 0.6) -> Tensor:
    """A bool mask (N, *) of x: (N, C, *) that keeps two values at least, and drops one if there are three."""
    mask = torch.rand((shape[0], *shape[2:]), generator=g) < keep
    flat = mask.reshape(-1)
    flat[:2] = True
    flat[2:3] = False
    return flat.view(mask.shape)
