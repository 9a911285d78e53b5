"""The kernels of group norm's backward.

    sums -> merge -> gradients   the sums of each sample's channels by parts, merged to groups; one elementwise pass
    whole                        where a group's values stay in registers: everything is read once
    parameters                   the gradients of weight and bias, from the sums of all samples

g is the gradient of what the activation was applied to: dx = rstd * (w * g - mean(w * g) - xhat * mean(w * g * xhat)),
the means over the real values of a group of one sample; g, xhat and dx are zero under the mask.
sums: (4, parts, N, C): of g, what its roundings lost, of g * xhat, and the same.
"""

import triton
import triton.language as tl

from ._activations import activation_gradient
from ._batch_norm_backward import gradient
from ._batch_norm_forward import load_count, load_parameters, load_stats
from ._group_norm_forward import kept_of_sample, part_row, place_groups, sample_and_channel
from ._tiles import add_compensated, channel_sum, kept, per_channel, place, store_real


@triton.jit
def sums(
    x, dy, residual, mask, weight, bias, stats, found, N, CU, SU, blocks, tiles, each, G, per, param, VC: tl.constexpr,
    VS: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr, MASKED: tl.constexpr,
    CODE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """The sums of one part of each channel of one sample."""
    C, S = CU * VC, SU * VS
    sample, start, channel = sample_and_channel(blocks, C, S, BC)
    part = tl.program_id(1)
    c = channel + tl.arange(0, BC)
    hi, lo, rstd = load_stats(stats, N * G, sample * G + c // per, c < C)
    w, b = load_parameters(weight, bias, c, c < C, HAS_WEIGHT, HAS_BIAS)
    sum_g, lost_g = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    sum_gx, lost_gx = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    for tile in range(part * each, tl.minimum(tiles, part * each + each)):
        offset, inside, count = place(tile, channel, 1, C, S, 1, BC, BS, LAST)
        real, _ = kept(mask + sample.to(tl.int64) * S, tile, inside, count, 1, S, 1, BS, MASKED)
        g, xhat = gradient(
            x, dy, residual, x, tile, channel, start + offset, inside, real, hi, lo, rstd, w, b, param, 1, C, S, 1, BC,
            BS, LAST, CODE, HAS_RESIDUAL, False,
        )  # fmt: skip
        sum_g, lost_g = add_compensated(sum_g, lost_g, channel_sum(g))
        sum_gx, lost_gx = add_compensated(sum_gx, lost_gx, channel_sum(g * xhat))
    row, rows = part_row(part, sample, N, C) + c, part_row(tl.num_programs(1), 0, N, C)
    tl.store(found + row, sum_g, mask=c < C)
    tl.store(found + rows + row, lost_g, mask=c < C)
    tl.store(found + 2 * rows + row, sum_gx, mask=c < C)
    tl.store(found + 3 * rows + row, lost_gx, mask=c < C)


@triton.jit
def merge(found, weight, totals, N, C, G, per, count_parts, BK: tl.constexpr, HAS_WEIGHT: tl.constexpr):
    """The sums of w * g and w * g * xhat over one group of one sample. totals: (2, N * G)."""
    sample, group = tl.program_id(0) // G, tl.program_id(0) % G
    sum_g, sum_gx = tl.zeros([BK], tl.float32), tl.zeros([BK], tl.float32)
    lost_g, lost_gx = tl.zeros([BK], tl.float32), tl.zeros([BK], tl.float32)
    rows = part_row(count_parts, 0, N, C)
    for first in range(0, count_parts * per, BK):
        k = first + tl.arange(0, BK)
        real = k < count_parts * per
        c = group * per + k % per
        row = part_row(k // per, sample, N, C) + c
        w, _ = load_parameters(weight, weight, c, real, HAS_WEIGHT, False)
        g, gx = tl.load(found + row, mask=real, other=0), tl.load(found + 2 * rows + row, mask=real, other=0)
        sum_g, lost_g = add_compensated(sum_g, lost_g + w * tl.load(found + rows + row, mask=real, other=0), w * g)
        sum_gx, lost_gx = add_compensated(
            sum_gx, lost_gx + w * tl.load(found + 3 * rows + row, mask=real, other=0), w * gx
        )
    tl.store(totals + tl.program_id(0), tl.sum(sum_g, axis=0) + tl.sum(lost_g, axis=0))
    tl.store(totals + N * G + tl.program_id(0), tl.sum(sum_gx, axis=0) + tl.sum(lost_gx, axis=0))


@triton.jit
def gradients(
    x, dy, residual, mask, weight, bias, stats, totals, dx, dresidual, N, CU, SU, blocks, tiles, each, G, per, param,
    VC: tl.constexpr, VS: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr, MASKED: tl.constexpr,
    CODE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    WANTS_INPUT: tl.constexpr, WANTS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """dx and the residual's gradient by the sums over groups."""
    C, S = CU * VC, SU * VS
    sample, start, channel = sample_and_channel(blocks, C, S, BC)
    part = tl.program_id(1)
    c = channel + tl.arange(0, BC)
    set_ = sample * G + c // per
    hi, lo, rstd = load_stats(stats, N * G, set_, c < C)
    w, b = load_parameters(weight, bias, c, c < C, HAS_WEIGHT, HAS_BIAS)
    mean_g, mean_gx = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    if WANTS_INPUT:
        values = load_count(stats, N * G, set_, c < C)
        mean_g = tl.load(totals + set_, mask=c < C, other=0) / values
        mean_gx = tl.load(totals + N * G + set_, mask=c < C, other=0) / values
    for tile in range(part * each, tl.minimum(tiles, part * each + each)):
        offset, inside, count = place(tile, channel, 1, C, S, 1, BC, BS, LAST)
        real, _ = kept(mask + sample.to(tl.int64) * S, tile, inside, count, 1, S, 1, BS, MASKED)
        g, xhat = gradient(
            x, dy, residual, x, tile, channel, start + offset, inside, real, hi, lo, rstd, w, b, param, 1, C, S, 1, BC,
            BS, LAST, CODE, HAS_RESIDUAL, False,
        )  # fmt: skip
        if WANTS_INPUT:
            d = (g * per_channel(w) - per_channel(mean_g)) - xhat * per_channel(mean_gx)
            store_real(dx + start + offset, d * per_channel(rstd), inside, real, MASKED)
        if WANTS_RESIDUAL:
            tl.store(dresidual + start + offset, g.to(dresidual.dtype.element_ty), mask=inside)


@triton.jit
def whole(
    x, dy, residual, mask, weight, bias, stats, found, dx, dresidual, N, CU, SU, blocks, G, PU, param,
    VC: tl.constexpr, VS: tl.constexpr, VP: tl.constexpr, BI: tl.constexpr, BG: tl.constexpr, BS: tl.constexpr,
    LAST: tl.constexpr, MASKED: tl.constexpr, CODE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, WANTS_INPUT: tl.constexpr, WANTS_RESIDUAL: tl.constexpr,
    WANTS_PARAMETERS: tl.constexpr,
):  # fmt: skip
    """dx and the residual's gradient of groups whose values one tile holds, and the sums of their channels."""
    C, S, per = CU * VC, SU * VS, PU * VP
    sample, start, block = sample_and_channel(blocks, C, S, 1)
    c, there, offset, inside, group = place_groups(block, G, C, S, per, BI, BG, BS, LAST)
    real, count = kept_of_sample(mask, sample, inside, S, per, BS, MASKED)
    hi, lo, rstd = load_stats(stats, N * G, sample * G + group, group < G)
    w, b = load_parameters(weight, bias, c, there, HAS_WEIGHT, HAS_BIAS)
    values = tl.load(x + start + offset, mask=inside, other=0).to(tl.float32)
    g = tl.load(dy + start + offset, mask=inside, other=0).to(tl.float32)
    centred = (values - per_channel(hi)) - per_channel(lo)
    if CODE != 0:
        z = tl.fma(centred, per_channel(rstd) * w, b)
        if HAS_RESIDUAL:
            z += tl.load(residual + start + offset, mask=inside, other=0).to(tl.float32)
        g = activation_gradient(g, z, param, CODE)
    g = tl.where(real, g, 0.0)
    xhat = tl.where(real, centred * per_channel(rstd), 0.0)
    if WANTS_PARAMETERS:
        row = part_row(0, sample, N, C) + c
        tl.store(found + row, tl.sum(g, axis=2, keep_dims=True), mask=there)
        tl.store(found + part_row(1, 0, N, C) + row, tl.sum(g * xhat, axis=2, keep_dims=True), mask=there)
    if WANTS_INPUT:
        share = 1.0 / tl.maximum(count, 1.0)
        weighted = g * w
        mean_g, mean_gx = channel_sum(weighted) * share, channel_sum(weighted * xhat) * share
        d = (weighted - per_channel(mean_g)) - xhat * per_channel(mean_gx)
        store_real(dx + start + offset, d * per_channel(rstd), inside, real, MASKED)
    if WANTS_RESIDUAL:
        tl.store(dresidual + start + offset, g.to(dresidual.dtype.element_ty), mask=inside)


@triton.jit
def parameters(
    found, dweight, dbias, rows, C, BR: tl.constexpr, BC: tl.constexpr, HAS_LOST: tl.constexpr,
    WANTS_WEIGHT: tl.constexpr, WANTS_BIAS: tl.constexpr,
):  # fmt: skip
    """The gradients of weight and bias from the sums of all parts of all samples, (2 or 4, rows, C)."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    kinds: tl.constexpr = 2 if HAS_LOST else 1
    sum_g, lost_g = tl.zeros([BR, BC], tl.float32), tl.zeros([BR, BC], tl.float32)
    sum_gx, lost_gx = tl.zeros([BR, BC], tl.float32), tl.zeros([BR, BC], tl.float32)
    size = tl.cast(rows, tl.int64) * C
    for first in range(0, rows, BR):
        r = first + tl.arange(0, BR)
        real = (r[:, None] < rows) & (c[None, :] < C)
        row = r[:, None].to(tl.int64) * C + c[None, :]
        if HAS_LOST:
            lost_g += tl.load(found + size + row, mask=real, other=0)
            lost_gx += tl.load(found + 3 * size + row, mask=real, other=0)
        sum_g, lost_g = add_compensated(sum_g, lost_g, tl.load(found + row, mask=real, other=0))
        sum_gx, lost_gx = add_compensated(sum_gx, lost_gx, tl.load(found + kinds * size + row, mask=real, other=0))
    if WANTS_WEIGHT:
        total = tl.sum(sum_gx, axis=0) + tl.sum(lost_gx, axis=0)
        tl.store(dweight + c, total.to(dweight.dtype.element_ty), mask=c < C)
    if WANTS_BIAS:
        total = tl.sum(sum_g, axis=0) + tl.sum(lost_g, axis=0)
        tl.store(dbias + c, total.to(dbias.dtype.element_ty), mask=c < C)
