"""The kernels of batch norm's backward.

    sums -> merge -> gradients   the sums behind the averages by parts of the batch, merged, and one elementwise pass
    whole                        where a channel's values stay in registers: everything is read once
    gradients                    the statistics are constants, and no parameter wants a gradient

g is the gradient of what the activation was applied to: dx = rstd * weight * (g - mean(g) - xhat * mean(g * xhat)),
the means over the real values. g, xhat and dx are zero under the mask.
"""

import triton
import triton.language as tl

from ._activations import activation_gradient, through_gate
from ._batch_norm_forward import affine, load_count, load_parameters, load_stats
from ._tiles import (
    add_compensated,
    bytes_of_bits,
    channel_sum,
    count_tiles,
    kept,
    per_channel,
    place,
    place_bits,
    slice_of,
    store_real,
    unpack,
)


@triton.jit
def gradient(
    x, dy, residual, bits, tile, channel, offset, inside, real, hi, lo, rstd, w, b, param, N, C, S, BN: tl.constexpr,
    BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr, CODE: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_BITS: tl.constexpr,
):  # fmt: skip
    """g and xhat of one tile, zero where nothing is real."""
    values = tl.load(x + offset, mask=inside, other=0).to(tl.float32)
    g = tl.load(dy + offset, mask=inside, other=0).to(tl.float32)
    if HAS_BITS:
        at, there = place_bits(tile, channel, N, C, S, BN, BC, BS, LAST)
        opened = unpack(tl.load(bits + at, mask=there, other=0), BN, BC, BS, LAST)
        g = through_gate(g, opened, param, CODE)
    elif CODE != 0:
        z = affine(values, hi, lo, rstd * w, b)
        if HAS_RESIDUAL:
            z += tl.load(residual + offset, mask=inside, other=0).to(tl.float32)
        g = activation_gradient(g, z, param, CODE)
    xhat = ((values - per_channel(hi)) - per_channel(lo)) * per_channel(rstd)
    return tl.where(real, g, 0.0), tl.where(real, xhat, 0.0)


@triton.jit
def store_gradients(
    g, xhat, of_g, of_gx, scale, dx, dresidual, offset, inside, real, MASKED: tl.constexpr,
    WANTS_INPUT: tl.constexpr, WANTS_RESIDUAL: tl.constexpr, TRAINING: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """of_g, of_gx: the means of g and of g * xhat. SHARED: what is taken off instead, scaled already."""
    if WANTS_INPUT:
        if SHARED:
            d = (g * per_channel(scale) - per_channel(of_g)) - xhat * per_channel(of_gx)
        elif TRAINING:
            d = ((g - per_channel(of_g)) - xhat * per_channel(of_gx)) * per_channel(scale)
        else:
            d = g * per_channel(scale)
        store_real(dx + offset, d, inside, real, MASKED)
    if WANTS_RESIDUAL:
        tl.store(dresidual + offset, g.to(dresidual.dtype.element_ty), mask=inside)


@triton.jit
def store_parameters(sum_g, sum_gx, dweight, dbias, c, real, WANTS_WEIGHT: tl.constexpr, WANTS_BIAS: tl.constexpr):
    if WANTS_WEIGHT:
        tl.store(dweight + c, sum_gx.to(dweight.dtype.element_ty), mask=real)
    if WANTS_BIAS:
        tl.store(dbias + c, sum_g.to(dbias.dtype.element_ty), mask=real)


@triton.jit
def sums(
    x, dy, residual, mask, bits, weight, bias, stats, parts, N, CU, SU, longer, each, param, VC: tl.constexpr,
    VS: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr,
    SLICED: tl.constexpr, MASKED: tl.constexpr, CODE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_BITS: tl.constexpr,
):  # fmt: skip
    """The sums of g and g * xhat over one part of the batch, or of a slice, as two floats each.

    parts: (4, parts, sets).
    """
    C, positions = CU * VC, SU * VS
    channel, before, sets, first, N, S = slice_of(N, C, positions, longer, BC, LAST, SLICED)
    if SLICED:
        start = first * C * positions
        x, dy, residual = x + start, dy + start, residual + start
        mask, bits = mask + first * positions, bits + first * bytes_of_bits(C, positions, LAST)
    part = tl.program_id(1)
    c = channel + tl.arange(0, BC)
    hi, lo, rstd = load_stats(stats, sets, before + c, c < C)
    w, b = load_parameters(weight, bias, c, c < C, HAS_WEIGHT, HAS_BIAS)
    sum_g, lost_g = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    sum_gx, lost_gx = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    for tile in range(part * each, tl.minimum(count_tiles(N, S, BN, BS), part * each + each)):
        offset, inside, count = place(tile, channel, N, C, S, BN, BC, BS, LAST)
        real, _ = kept(mask, tile, inside, count, N, S, BN, BS, MASKED)
        g, xhat = gradient(
            x, dy, residual, bits, tile, channel, offset, inside, real, hi, lo, rstd, w, b, param, N, C, S, BN, BC, BS,
            LAST, CODE, HAS_RESIDUAL, HAS_BITS,
        )  # fmt: skip
        sum_g, lost_g = add_compensated(sum_g, lost_g, channel_sum(g))
        sum_gx, lost_gx = add_compensated(sum_gx, lost_gx, channel_sum(g * xhat))
    row, rows = tl.cast(part, tl.int64) * sets + before + c, tl.cast(tl.num_programs(1), tl.int64) * sets
    tl.store(parts + row, sum_g, mask=c < C)
    tl.store(parts + rows + row, lost_g, mask=c < C)
    tl.store(parts + 2 * rows + row, sum_gx, mask=c < C)
    tl.store(parts + 3 * rows + row, lost_gx, mask=c < C)


@triton.jit
def merge(
    parts, totals, dweight, dbias, sets, count_parts, PARTS: tl.constexpr, BC: tl.constexpr, WANTS_WEIGHT: tl.constexpr,
    WANTS_BIAS: tl.constexpr,
):  # fmt: skip
    """The sums over the whole batch, or each slice, (2, sets), and the parameters' gradients, which they are."""
    c, part = tl.program_id(0) * BC + tl.arange(0, BC), tl.arange(0, PARTS)
    real = (part[:, None] < count_parts) & (c[None, :] < sets)
    row, rows = part[:, None].to(tl.int64) * sets + c[None, :], tl.cast(count_parts, tl.int64) * sets
    sum_g = tl.sum(tl.load(parts + row, mask=real, other=0), axis=0)
    sum_g += tl.sum(tl.load(parts + rows + row, mask=real, other=0), axis=0)
    sum_gx = tl.sum(tl.load(parts + 2 * rows + row, mask=real, other=0), axis=0)
    sum_gx += tl.sum(tl.load(parts + 3 * rows + row, mask=real, other=0), axis=0)
    tl.store(totals + c, sum_g, mask=c < sets)
    tl.store(totals + sets + c, sum_gx, mask=c < sets)
    store_parameters(sum_g, sum_gx, dweight, dbias, c, c < sets, WANTS_WEIGHT, WANTS_BIAS)


@triton.jit
def gradients(
    x, dy, residual, mask, bits, weight, bias, stats, totals, dx, dresidual, N, CU, SU, longer, each, param,
    VC: tl.constexpr, VS: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr,
    SLICED: tl.constexpr, MASKED: tl.constexpr, CODE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_BITS: tl.constexpr, WANTS_INPUT: tl.constexpr, WANTS_RESIDUAL: tl.constexpr,
    TRAINING: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """dx and the residual's gradient by the sums over the whole batch, or each slice; SHARED: by what they come to."""
    C, positions = CU * VC, SU * VS
    channel, before, sets, first, N, S = slice_of(N, C, positions, longer, BC, LAST, SLICED)
    if SLICED:
        start = first * C * positions
        x, dy, residual = x + start, dy + start, residual + start
        mask, bits = mask + first * positions, bits + first * bytes_of_bits(C, positions, LAST)
        dx, dresidual = dx + start, dresidual + start
    part = tl.program_id(1)
    c = channel + tl.arange(0, BC)
    hi, lo, rstd = load_stats(stats, sets, before + c, c < C)
    w, b = load_parameters(weight, bias, c, c < C, HAS_WEIGHT, HAS_BIAS)
    of_g, of_gx = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    if TRAINING:
        of_g = tl.load(totals + before + c, mask=c < C, other=0)
        of_gx = tl.load(totals + sets + before + c, mask=c < C, other=0)
        if not SHARED:
            values = load_count(stats, sets, before + c, c < C)
            of_g, of_gx = of_g / values, of_gx / values
    for tile in range(part * each, tl.minimum(count_tiles(N, S, BN, BS), part * each + each)):
        offset, inside, count = place(tile, channel, N, C, S, BN, BC, BS, LAST)
        real, _ = kept(mask, tile, inside, count, N, S, BN, BS, MASKED)
        g, xhat = gradient(
            x, dy, residual, bits, tile, channel, offset, inside, real, hi, lo, rstd, w, b, param, N, C, S, BN, BC, BS,
            LAST, CODE, HAS_RESIDUAL, HAS_BITS,
        )  # fmt: skip
        store_gradients(
            g, xhat, of_g, of_gx, rstd * w, dx, dresidual, offset, inside, real, MASKED, WANTS_INPUT, WANTS_RESIDUAL,
            TRAINING, SHARED,
        )  # fmt: skip


@triton.jit
def whole(
    x, dy, residual, mask, bits, weight, bias, stats, dx, dresidual, dweight, dbias, N, CU, SU, longer, param,
    VC: tl.constexpr, VS: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr,
    SLICED: tl.constexpr, MASKED: tl.constexpr, CODE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_BITS: tl.constexpr, WANTS_INPUT: tl.constexpr, WANTS_RESIDUAL: tl.constexpr,
    TRAINING: tl.constexpr, WANTS_WEIGHT: tl.constexpr, WANTS_BIAS: tl.constexpr,
):  # fmt: skip
    """All gradients of channels whose values one tile holds. SLICED: the parameters' are those of each slice by itself,
    and dweight is (2, sets), of bias and weight."""
    C, positions = CU * VC, SU * VS
    channel, before, sets, first, N, S = slice_of(N, C, positions, longer, BC, LAST, SLICED)
    if SLICED:
        start = first * C * positions
        x, dy, residual = x + start, dy + start, residual + start
        mask, bits = mask + first * positions, bits + first * bytes_of_bits(C, positions, LAST)
        dx, dresidual = dx + start, dresidual + start
        dbias = dweight  # one tensor: compilers lose their way among views that a kernel writes
        dweight = dweight + sets
    c = channel + tl.arange(0, BC)
    hi, lo, rstd = load_stats(stats, sets, before + c, c < C)
    w, b = load_parameters(weight, bias, c, c < C, HAS_WEIGHT, HAS_BIAS)
    offset, inside, count = place(0, channel, N, C, S, BN, BC, BS, LAST)
    real, _ = kept(mask, 0, inside, count, N, S, BN, BS, MASKED)
    g, xhat = gradient(
        x, dy, residual, bits, 0, channel, offset, inside, real, hi, lo, rstd, w, b, param, N, C, S, BN, BC, BS, LAST,
        CODE, HAS_RESIDUAL, HAS_BITS,
    )  # fmt: skip
    sum_g, sum_gx = channel_sum(g), channel_sum(g * xhat)
    store_parameters(sum_g, sum_gx, dweight, dbias, before + c, c < C, WANTS_WEIGHT, WANTS_BIAS)
    values = load_count(stats, sets, before + c, c < C)
    store_gradients(
        g, xhat, sum_g / values, sum_gx / values, rstd * w, dx, dresidual, offset, inside, real, MASKED, WANTS_INPUT,
        WANTS_RESIDUAL, TRAINING, False,
    )  # fmt: skip
