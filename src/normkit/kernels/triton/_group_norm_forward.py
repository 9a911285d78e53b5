"""The kernels of group norm's forward; instance norm has C groups.

    partial -> merge -> apply    moments of each sample's channels by parts, merged to groups; one elementwise pass
    whole                        where a group's values stay in registers: the input is read once

stats: float32 (5, N * G): mean, biased variance, 1 / sqrt(variance + eps), the rest of the mean, and how many values.
mask: (N, S) bytes; what it hides enters nothing, and y is zero there. `per` is how many channels a group has.

A sample is a tensor (1, C, S) of its own to `place`; in `whole` a tile is [channels of a group, groups, positions], so
that what sums over all but the channels of a batch sums over all but the groups here.
"""

import triton
import triton.language as tl

from ._activations import activate
from ._batch_norm_forward import affine, load_parameters, load_stats, store_stats
from ._tiles import (
    channel_moments,
    channel_sum,
    kept,
    load_real,
    merge_moments,
    merge_parts,
    per_channel,
    place,
    reciprocal_std,
    store_real,
)


@triton.jit
def sample_and_channel(blocks, C, S, BC: tl.constexpr):
    """Of a program: its sample, where the sample begins, and its first channel."""
    sample, channel = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * BC
    return sample, sample.to(tl.int64) * C * S, channel


@triton.jit
def part_row(part, sample, N, C):
    """Where what one part found of a sample's channels lies in (parts, N, C)."""
    return (tl.cast(part, tl.int64) * N + sample) * C


@triton.jit
def place_groups(block, G, C, S, per, BI: tl.constexpr, BG: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr):
    """Of a tile of whole groups: channel and offset of each element in its sample, whether it is there, the groups."""
    i, s = tl.arange(0, BI)[:, None, None], tl.arange(0, BS)[None, None, :]
    group = block * BG + tl.arange(0, BG)
    c = group[None, :, None] * per + i
    there = (i < per) & (group[None, :, None] < G)
    offset = s.to(tl.int64) * C + c
    if not LAST:
        offset = c.to(tl.int64) * S + s
    return c, there, offset, there & (s < S), group


@triton.jit
def kept_of_sample(mask, sample, inside, S, per, BS: tl.constexpr, MASKED: tl.constexpr):
    """Of a tile of whole groups: which elements are real, and how many each group has."""
    if MASKED:
        s = tl.arange(0, BS)[None, None, :]
        real = tl.load(mask + sample.to(tl.int64) * S + s, mask=s < S, other=0) != 0
        return inside & real, (tl.sum(channel_sum(real.to(tl.int32)), axis=0) * per).to(tl.float32)
    else:
        return inside, tl.cast(per * S, tl.float32)


@triton.jit
def partial(
    x, mask, parts, N, CU, SU, blocks, tiles, each, VC: tl.constexpr, VS: tl.constexpr, BC: tl.constexpr,
    BS: tl.constexpr, LAST: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The moments of one part of each channel of one sample. parts: (4, parts, N, C): count, mean, its rest, m2."""
    C, S = CU * VC, SU * VS
    sample, start, channel = sample_and_channel(blocks, C, S, BC)
    part = tl.program_id(1)
    n, hi = 0.0, tl.zeros([BC], tl.float32)
    lo, m2 = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    for tile in range(part * each, tl.minimum(tiles, part * each + each)):
        offset, inside, count = place(tile, channel, 1, C, S, 1, BC, BS, LAST)
        real, count = kept(mask + sample.to(tl.int64) * S, tile, inside, count, 1, S, 1, BS, MASKED)
        values = load_real(x + start + offset, inside, real, MASKED)
        hi2, lo2, m22 = channel_moments(values, real, count)
        n, hi, lo, m2 = merge_moments(n, hi, lo, m2, count, hi2, lo2, m22)
    c = channel + tl.arange(0, BC)
    row, rows = part_row(part, sample, N, C) + c, part_row(tl.num_programs(1), 0, N, C)
    tl.store(parts + row, n + tl.zeros([BC], tl.float32), mask=c < C)
    tl.store(parts + rows + row, hi, mask=c < C)
    tl.store(parts + 2 * rows + row, lo, mask=c < C)
    tl.store(parts + 3 * rows + row, m2, mask=c < C)


@triton.jit
def merge(parts, stats, N, C, G, per, count_parts, eps, BK: tl.constexpr):
    """The statistics of one group of one sample from those of its channels' parts."""
    sample, group = tl.program_id(0) // G, tl.program_id(0) % G
    n, hi = tl.zeros([1], tl.float32), tl.zeros([1], tl.float32)
    lo, m2 = tl.zeros([1], tl.float32), tl.zeros([1], tl.float32)
    rows = part_row(count_parts, 0, N, C)
    for first in range(0, count_parts * per, BK):
        k = first + tl.arange(0, BK)[:, None]
        real = k < count_parts * per
        row = part_row(k // per, sample, N, C) + group * per + k % per
        n2 = tl.load(parts + row, mask=real, other=0)
        hi2 = tl.load(parts + rows + row, mask=real, other=0)
        lo2 = tl.load(parts + 2 * rows + row, mask=real, other=0)
        m22 = tl.load(parts + 3 * rows + row, mask=real, other=0)
        n2, hi2, lo2, m22 = merge_parts(n2, hi2, lo2, m22)
        n, hi, lo, m2 = merge_moments(n, hi, lo, m2, n2, hi2, lo2, m22)
    at = tl.program_id(0) + tl.arange(0, 1)
    var = m2 / tl.maximum(n, 1.0)
    store_stats(stats, N * G, at, at >= 0, hi, lo, var, reciprocal_std(var, eps), n)


@triton.jit
def apply(
    x, residual, mask, weight, bias, stats, y, N, CU, SU, blocks, tiles, each, G, per, param, VC: tl.constexpr,
    VS: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr, MASKED: tl.constexpr,
    CODE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """y by the statistics of the groups."""
    C, S = CU * VC, SU * VS
    sample, start, channel = sample_and_channel(blocks, C, S, BC)
    part = tl.program_id(1)
    c = channel + tl.arange(0, BC)
    hi, lo, rstd = load_stats(stats, N * G, sample * G + c // per, c < C)
    w, b = load_parameters(weight, bias, c, c < C, HAS_WEIGHT, HAS_BIAS)
    for tile in range(part * each, tl.minimum(tiles, part * each + each)):
        offset, inside, count = place(tile, channel, 1, C, S, 1, BC, BS, LAST)
        real, _ = kept(mask + sample.to(tl.int64) * S, tile, inside, count, 1, S, 1, BS, MASKED)
        z = affine(tl.load(x + start + offset, mask=inside, other=0).to(tl.float32), hi, lo, rstd * w, b)
        if HAS_RESIDUAL:
            z += tl.load(residual + start + offset, mask=inside, other=0).to(tl.float32)
        store_real(y + start + offset, activate(z, param, CODE), inside, real, MASKED)


@triton.jit
def whole(
    x, residual, mask, weight, bias, stats, y, N, CU, SU, blocks, G, PU, eps, param, VC: tl.constexpr,
    VS: tl.constexpr, VP: tl.constexpr, BI: tl.constexpr, BG: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr,
    MASKED: tl.constexpr, CODE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Statistics and y of groups whose values one tile holds."""
    C, S, per = CU * VC, SU * VS, PU * VP
    sample, start, block = sample_and_channel(blocks, C, S, 1)
    c, there, offset, inside, group = place_groups(block, G, C, S, per, BI, BG, BS, LAST)
    real, count = kept_of_sample(mask, sample, inside, S, per, BS, MASKED)
    values = load_real(x + start + offset, inside, real, MASKED)
    hi, lo, m2 = channel_moments(values, real, count)
    var = m2 / tl.maximum(count, 1.0)
    rstd = reciprocal_std(var, eps)
    store_stats(stats, N * G, sample * G + group, group < G, hi, lo, var, rstd, count)
    w, b = load_parameters(weight, bias, c, there, HAS_WEIGHT, HAS_BIAS)
    z = tl.fma((values - per_channel(hi)) - per_channel(lo), per_channel(rstd) * w, b)
    if HAS_RESIDUAL:
        z += tl.load(residual + start + offset, mask=inside, other=0).to(tl.float32)
    real, _ = kept_of_sample(mask, sample, inside, S, per, BS, MASKED)  # again: to keep it took a spill on sm_80
    store_real(y + start + offset, activate(z, param, CODE), inside, real, MASKED)
