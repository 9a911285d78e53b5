"""The kernels of batch norm's forward.

    partial -> merge -> apply    statistics by parts of the batch, merged, and one elementwise pass
    whole -> move                where a channel's values stay in registers: the input is read once
    apply                        by given statistics

stats: float32 (5, C): mean, biased variance, 1 / sqrt(variance + eps), the rest of the mean, and how many values.
mask: (N, S) bytes; what it hides enters nothing, and y is zero there.
"""

import triton
import triton.language as tl

from ._activations import activate, is_open
from ._running import move_running
from ._tiles import (
    channel_moments,
    kept,
    load_real,
    merge_moments,
    merge_parts,
    pack,
    per_channel,
    place,
    place_bits,
    reciprocal_std,
    store_real,
)


@triton.jit
def affine(x, hi, lo, scale, shift):
    """(x - mean) * scale + shift, by the same instructions wherever it is computed again."""
    return tl.fma((x - per_channel(hi)) - per_channel(lo), per_channel(scale), per_channel(shift))


@triton.jit
def load_parameters(weight, bias, c, real, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """weight and bias of channels, 1 and 0 where there are none."""
    w = tl.where(real, 1.0, 0.0)
    b = tl.where(real, 0.0, 0.0)
    if HAS_WEIGHT:
        w = tl.load(weight + c, mask=real, other=0).to(tl.float32)
    if HAS_BIAS:
        b = tl.load(bias + c, mask=real, other=0).to(tl.float32)
    return w, b


@triton.jit
def load_stats(stats, C, c, real):
    """mean (two floats) and rstd of channels."""
    hi = tl.load(stats + c, mask=real, other=0)
    rstd = tl.load(stats + 2 * C + c, mask=real, other=0)
    return hi, tl.load(stats + 3 * C + c, mask=real, other=0), rstd


@triton.jit
def store_stats(stats, C, c, real, hi, lo, var, rstd, count):
    tl.store(stats + c, hi, mask=real)
    tl.store(stats + C + c, var, mask=real)
    tl.store(stats + 2 * C + c, rstd, mask=real)
    tl.store(stats + 3 * C + c, lo, mask=real)
    tl.store(stats + 4 * C + c, tl.zeros_like(hi) + count, mask=real)


@triton.jit
def finish(
    z, residual, y, bits, tile, channel, offset, inside, real, param, N, C, S, BN: tl.constexpr, BC: tl.constexpr,
    BS: tl.constexpr, LAST: tl.constexpr, MASKED: tl.constexpr, CODE: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    KEEPS_BITS: tl.constexpr,
):  # fmt: skip
    """Add the residual, keep the bits, apply the activation, store."""
    if HAS_RESIDUAL:
        z += tl.load(residual + offset, mask=inside, other=0).to(tl.float32)
    if KEEPS_BITS:
        at, there = place_bits(tile, channel, N, C, S, BN, BC, BS, LAST)
        tl.store(bits + at, pack(is_open(z, CODE) & inside, BN, BC, BS, LAST), mask=there)
    store_real(y + offset, activate(z, param, CODE), inside, real, MASKED)


@triton.jit
def partial(
    x, mask, parts, N, CU, SU, tiles, each, VC: tl.constexpr, VS: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
    BS: tl.constexpr, LAST: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The moments of one part of the batch. parts: (4, parts, C): count, mean, its rest, m2."""
    C, S = CU * VC, SU * VS
    channel, part = tl.program_id(0) * BC, tl.program_id(1)
    n, hi = 0.0, tl.zeros([BC], tl.float32)
    lo, m2 = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    for tile in range(part * each, tl.minimum(tiles, part * each + each)):
        offset, inside, count = place(tile, channel, N, C, S, BN, BC, BS, LAST)
        real, count = kept(mask, tile, inside, count, N, S, BN, BS, MASKED)
        values = load_real(x + offset, inside, real, MASKED)
        hi2, lo2, m22 = channel_moments(values, real, count)
        n, hi, lo, m2 = merge_moments(n, hi, lo, m2, count, hi2, lo2, m22)
    c = channel + tl.arange(0, BC)
    row, rows = part * C + c, tl.num_programs(1) * C
    tl.store(parts + row, n + tl.zeros([BC], tl.float32), mask=c < C)
    tl.store(parts + rows + row, hi, mask=c < C)
    tl.store(parts + 2 * rows + row, lo, mask=c < C)
    tl.store(parts + 3 * rows + row, m2, mask=c < C)


@triton.jit
def merge(parts, stats, C, count_parts, eps, PARTS: tl.constexpr, BC: tl.constexpr):
    """The statistics of the whole batch from those of its parts."""
    c, part = tl.program_id(0) * BC + tl.arange(0, BC), tl.arange(0, PARTS)
    real = (part[:, None] < count_parts) & (c[None, :] < C)
    row, rows = part[:, None] * C + c[None, :], count_parts * C
    n = tl.load(parts + row, mask=real, other=0)
    hi = tl.load(parts + rows + row, mask=real, other=0)
    lo = tl.load(parts + 2 * rows + row, mask=real, other=0)
    m2 = tl.load(parts + 3 * rows + row, mask=real, other=0)
    count, hi, lo, m2 = merge_parts(n, hi, lo, m2)
    var = m2 / tl.maximum(count, 1.0)
    store_stats(stats, C, c, c < C, hi, lo, var, reciprocal_std(var, eps), count)


@triton.jit
def apply(
    x, residual, mask, weight, bias, mean, var, stats, y, bits, running_mean, running_var, batches, N, CU, SU, tiles,
    each, eps, param, momentum, VC: tl.constexpr, VS: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
    BS: tl.constexpr, LAST: tl.constexpr, MASKED: tl.constexpr, CODE: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, KEEPS_BITS: tl.constexpr, GIVEN: tl.constexpr,
    MOVES: tl.constexpr, COUNTS: tl.constexpr, CUMULATIVE: tl.constexpr,
):  # fmt: skip
    """y by statistics: given ones (mean, var; stats is written), or stats. The first program moves the running ones."""
    C, S = CU * VC, SU * VS
    channel, part = tl.program_id(0) * BC, tl.program_id(1)
    c = channel + tl.arange(0, BC)
    if GIVEN:
        hi = tl.load(mean + c, mask=c < C, other=0).to(tl.float32)
        variance = tl.load(var + c, mask=c < C, other=0).to(tl.float32)
        lo, rstd = tl.zeros([BC], tl.float32), reciprocal_std(variance, eps)
        store_stats(stats, C, c, (c < C) & (part == 0), hi, lo, variance, rstd, 0.0)  # of no batch
    else:
        hi, lo, rstd = load_stats(stats, C, c, c < C)
    w, b = load_parameters(weight, bias, c, c < C, HAS_WEIGHT, HAS_BIAS)
    for tile in range(part * each, tl.minimum(tiles, part * each + each)):
        offset, inside, count = place(tile, channel, N, C, S, BN, BC, BS, LAST)
        real, _ = kept(mask, tile, inside, count, N, S, BN, BS, MASKED)
        z = affine(tl.load(x + offset, mask=inside, other=0).to(tl.float32), hi, lo, rstd * w, b)
        finish(
            z, residual, y, bits, tile, channel, offset, inside, real, param, N, C, S, BN, BC, BS, LAST, MASKED, CODE,
            HAS_RESIDUAL, KEEPS_BITS,
        )  # fmt: skip
    if MOVES:
        if tl.program_id(0) + part == 0:
            move_running(stats, running_mean, running_var, batches, momentum, C, COUNTS, CUMULATIVE)


@triton.jit
def whole(
    x, residual, mask, weight, bias, stats, y, bits, N, CU, SU, eps, param, VC: tl.constexpr, VS: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr, MASKED: tl.constexpr,
    CODE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    KEEPS_BITS: tl.constexpr,
):  # fmt: skip
    """Statistics and y of channels whose values one tile holds."""
    C, S = CU * VC, SU * VS
    channel = tl.program_id(0) * BC
    c = channel + tl.arange(0, BC)
    offset, inside, count = place(0, channel, N, C, S, BN, BC, BS, LAST)
    real, count = kept(mask, 0, inside, count, N, S, BN, BS, MASKED)
    values = load_real(x + offset, inside, real, MASKED)
    hi, lo, m2 = channel_moments(values, real, count)
    var = m2 / tl.maximum(count, 1.0)
    rstd = reciprocal_std(var, eps)
    store_stats(stats, C, c, c < C, hi, lo, var, rstd, count)
    w, b = load_parameters(weight, bias, c, c < C, HAS_WEIGHT, HAS_BIAS)
    z = affine(values, hi, lo, rstd * w, b)
    finish(
        z, residual, y, bits, 0, channel, offset, inside, real, param, N, C, S, BN, BC, BS, LAST, MASKED, CODE,
        HAS_RESIDUAL, KEEPS_BITS,
    )  # fmt: skip
