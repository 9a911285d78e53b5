"""The kernels of batch norm's forward.

    partial -> merge -> apply    statistics by parts of the batch, merged, and one elementwise pass
    whole -> move                where a channel's values stay in registers: the input is read once
    apply                        by given statistics
    merge_slices -> move         what slices with statistics of their own move the running ones by

stats: float32 (5, sets): mean, biased variance, 1 / sqrt(variance + eps), the rest of the mean, and how many values.
mask: (N, S) bytes; what it hides enters nothing, and y is zero there.
"""

import triton
import triton.language as tl

from ._activations import activate, is_open
from ._running import move_running
from ._tiles import (
    bytes_of_bits,
    channel_moments,
    count_tiles,
    kept,
    load_real,
    merge_moments,
    merge_parts,
    pack,
    per_channel,
    place,
    place_bits,
    reciprocal_std,
    slice_of,
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
def load_stats(stats, sets, at, real):
    """mean (two floats) and rstd of sets of values."""
    row = tl.cast(sets, tl.int64)
    hi = tl.load(stats + at, mask=real, other=0)
    rstd = tl.load(stats + 2 * row + at, mask=real, other=0)
    return hi, tl.load(stats + 3 * row + at, mask=real, other=0), rstd


@triton.jit
def load_count(stats, sets, at, real):
    """How many values each set has, at least 1."""
    return tl.maximum(tl.load(stats + 4 * tl.cast(sets, tl.int64) + at, mask=real, other=0), 1.0)


@triton.jit
def store_stats(stats, sets, at, real, hi, lo, var, rstd, count):
    row = tl.cast(sets, tl.int64)
    tl.store(stats + at, hi, mask=real)
    tl.store(stats + row + at, var, mask=real)
    tl.store(stats + 2 * row + at, rstd, mask=real)
    tl.store(stats + 3 * row + at, lo, mask=real)
    tl.store(stats + 4 * row + at, tl.zeros_like(hi) + count, mask=real)


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
    x, mask, parts, N, CU, SU, longer, each, VC: tl.constexpr, VS: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
    BS: tl.constexpr, LAST: tl.constexpr, SLICED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The moments of one part of the batch, or of a slice. parts: (4, parts, sets): count, mean, its rest, m2."""
    C, positions = CU * VC, SU * VS
    channel, before, sets, first, N, S = slice_of(N, C, positions, longer, BC, LAST, SLICED)
    if SLICED:
        x += first * C * positions
        mask += first * positions
    part = tl.program_id(1)
    n, hi = 0.0, tl.zeros([BC], tl.float32)
    lo, m2 = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    for tile in range(part * each, tl.minimum(count_tiles(N, S, BN, BS), part * each + each)):
        offset, inside, count = place(tile, channel, N, C, S, BN, BC, BS, LAST)
        real, count = kept(mask, tile, inside, count, N, S, BN, BS, MASKED)
        values = load_real(x + offset, inside, real, MASKED)
        hi2, lo2, m22 = channel_moments(values, real, count)
        n, hi, lo, m2 = merge_moments(n, hi, lo, m2, count, hi2, lo2, m22)
    c = channel + tl.arange(0, BC)
    row, rows = tl.cast(part, tl.int64) * sets + before + c, tl.cast(tl.num_programs(1), tl.int64) * sets
    tl.store(parts + row, n + tl.zeros([BC], tl.float32), mask=c < C)
    tl.store(parts + rows + row, hi, mask=c < C)
    tl.store(parts + 2 * rows + row, lo, mask=c < C)
    tl.store(parts + 3 * rows + row, m2, mask=c < C)


@triton.jit
def merge(parts, stats, sets, count_parts, eps, PARTS: tl.constexpr, BC: tl.constexpr):
    """The statistics of the whole batch, or of each slice, from those of its parts."""
    c, part = tl.program_id(0) * BC + tl.arange(0, BC), tl.arange(0, PARTS)
    real = (part[:, None] < count_parts) & (c[None, :] < sets)
    row, rows = part[:, None].to(tl.int64) * sets + c[None, :], tl.cast(count_parts, tl.int64) * sets
    n = tl.load(parts + row, mask=real, other=0)
    hi = tl.load(parts + rows + row, mask=real, other=0)
    lo = tl.load(parts + 2 * rows + row, mask=real, other=0)
    m2 = tl.load(parts + 3 * rows + row, mask=real, other=0)
    count, hi, lo, m2 = merge_parts(n, hi, lo, m2)
    var = m2 / tl.maximum(count, 1.0)
    store_stats(stats, sets, c, c < sets, hi, lo, var, reciprocal_std(var, eps), count)


@triton.jit
def merge_slices(stats, whole, C, slices, BC: tl.constexpr):
    """The statistics of the whole batch, (5, C), from those of its slices, in their order; rstd is not written."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    n, hi = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    lo, m2 = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    row = tl.cast(slices, tl.int64) * C
    for number in range(0, slices):
        at = number * C + c
        hi2, lo2, _ = load_stats(stats, row, at, c < C)
        n2 = tl.load(stats + 4 * row + at, mask=c < C, other=0)
        m22 = tl.load(stats + row + at, mask=c < C, other=0) * n2
        n, hi, lo, m2 = merge_moments(n, hi, lo, m2, n2, hi2, lo2, m22)
    store_stats(whole, C, c, c < C, hi, lo, m2 / tl.maximum(n, 1.0), tl.zeros_like(hi), n)


@triton.jit
def apply(
    x, residual, mask, weight, bias, mean, var, stats, y, bits, running_mean, running_var, batches, N, CU, SU, longer,
    each, eps, param, momentum, VC: tl.constexpr, VS: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
    BS: tl.constexpr, LAST: tl.constexpr, SLICED: tl.constexpr, MASKED: tl.constexpr, CODE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, KEEPS_BITS: tl.constexpr,
    GIVEN: tl.constexpr, MOVES: tl.constexpr, COUNTS: tl.constexpr, CUMULATIVE: tl.constexpr,
):  # fmt: skip
    """y by statistics: given ones (mean, var; stats is written), or stats. The first program moves the running ones."""
    C, positions = CU * VC, SU * VS
    channel, before, sets, first, N, S = slice_of(N, C, positions, longer, BC, LAST, SLICED)
    if SLICED:
        start = first * C * positions
        x, residual, y = x + start, residual + start, y + start
        mask, bits = mask + first * positions, bits + first * bytes_of_bits(C, positions, LAST)
    part = tl.program_id(1)
    c = channel + tl.arange(0, BC)
    if GIVEN:
        hi = tl.load(mean + c, mask=c < C, other=0).to(tl.float32)
        variance = tl.load(var + c, mask=c < C, other=0).to(tl.float32)
        lo, rstd = tl.zeros([BC], tl.float32), reciprocal_std(variance, eps)
        store_stats(stats, sets, c, (c < C) & (part == 0), hi, lo, variance, rstd, 0.0)  # of no batch
    else:
        hi, lo, rstd = load_stats(stats, sets, before + c, c < C)
    w, b = load_parameters(weight, bias, c, c < C, HAS_WEIGHT, HAS_BIAS)
    for tile in range(part * each, tl.minimum(count_tiles(N, S, BN, BS), part * each + each)):
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
    x, residual, mask, weight, bias, stats, y, bits, N, CU, SU, longer, eps, param, VC: tl.constexpr, VS: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr, SLICED: tl.constexpr,
    MASKED: tl.constexpr, CODE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, KEEPS_BITS: tl.constexpr,
):  # fmt: skip
    """Statistics and y of channels whose values one tile holds."""
    C, positions = CU * VC, SU * VS
    channel, before, sets, first, N, S = slice_of(N, C, positions, longer, BC, LAST, SLICED)
    if SLICED:
        start = first * C * positions
        x, residual, y = x + start, residual + start, y + start
        mask, bits = mask + first * positions, bits + first * bytes_of_bits(C, positions, LAST)
    c = channel + tl.arange(0, BC)
    offset, inside, count = place(0, channel, N, C, S, BN, BC, BS, LAST)
    real, count = kept(mask, 0, inside, count, N, S, BN, BS, MASKED)
    values = load_real(x + offset, inside, real, MASKED)
    hi, lo, m2 = channel_moments(values, real, count)
    var = m2 / tl.maximum(count, 1.0)
    rstd = reciprocal_std(var, eps)
    store_stats(stats, sets, before + c, c < C, hi, lo, var, rstd, count)
    w, b = load_parameters(weight, bias, c, c < C, HAS_WEIGHT, HAS_BIAS)
    z = affine(values, hi, lo, rstd * w, b)
    finish(
        z, residual, y, bits, 0, channel, offset, inside, real, param, N, C, S, BN, BC, BS, LAST, MASKED, CODE,
        HAS_RESIDUAL, KEEPS_BITS,
    )  # fmt: skip
