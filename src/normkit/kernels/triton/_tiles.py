"""Tiles of a tensor and their moments, for every kernel: what is read where, and statistics that merge.

A tensor is (N, C, S) to the kernels. Planar: as it lies in memory. LAST (channels last, (N, C)): N = 1, S all positions
of all samples, the channels innermost. A tile is [BN, BC, BS] of it. Sizes come as a count of units and the unit (a
power of two), which tells the compiler how far loads may be joined.

The slices of a batch are tensors of their own, one after the other, with statistics of their own: sets are slices times
channels. Programs of all slices are in one launch (`slice_of`).

A mask says of each position whether its values are real: (N, S) bytes in row-major order, whatever the layout. What it
hides is loaded with the rest, so that loads stay wide, and selected away before anything is computed.

Statistics are float32: a mean is hi + lo, two floats, so that x - hi is exact where x is near the mean and nothing of
the mean is lost at mean >> std. A tile's moments are of its deviations from its own mean (two passes over registers);
moments merge by Chan, Golub & LeVeque (1983) in a fixed order: the same bits at every run.
"""

import triton
import triton.language as tl


@triton.jit
def place(tile, channel, N, C, S, BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr):
    """Of one tile: the offset of each element, whether it is inside, and how many elements each channel has there."""
    across = tl.cdiv(S, BS)
    n0, s0 = (tile // across) * BN, (tile % across) * BS
    c = channel + tl.arange(0, BC)[None, :, None]
    s = s0 + tl.arange(0, BS)[None, None, :]
    inside = (c < C) & (s < S)
    if LAST:  # without n, which is 0: an index of unknown divisibility would part the loads
        offset = s.to(tl.int64) * C + c
    else:
        n = n0 + tl.arange(0, BN)[:, None, None]
        offset = (n.to(tl.int64) * C + c) * S + s
        inside = inside & (n < N)
    count = tl.minimum(N - n0, BN) * tl.minimum(S - s0, BS)
    return offset, inside, count.to(tl.float32)


@triton.jit
def slice_of(N, C, S, longer, BC: tl.constexpr, LAST: tl.constexpr, SLICED: tl.constexpr):
    """Of a program: its first channel, the sets before its slice and in all, the samples before, N and S of the slice.

    SLICED: N is how many samples a slice has, one more in the first `longer`; S the positions of one sample.
    """
    program = tl.program_id(0)
    if SLICED:
        blocks = tl.cdiv(C, BC)
        number = program // blocks
        samples = tl.where(number < longer, N + 1, N)
        first = tl.cast(number, tl.int64) * N + tl.minimum(number, longer)
        sets = (tl.num_programs(0) // blocks) * C
        if LAST:
            return (program % blocks) * BC, number * C, sets, first, 1, S * samples
        else:
            return (program % blocks) * BC, number * C, sets, first, samples, S
    else:
        return program * BC, 0, C, 0, N, S


@triton.jit
def count_tiles(N, S, BN: tl.constexpr, BS: tl.constexpr):
    """How many tiles a block of channels has."""
    return tl.cdiv(N, BN) * tl.cdiv(S, BS)


@triton.jit
def bytes_of_bits(C, S, LAST: tl.constexpr):
    """How many bytes of bits a sample has."""
    if LAST:
        return S * tl.cdiv(C, 8)
    else:
        return C * tl.cdiv(S, 8)


@triton.jit
def kept(mask, tile, inside, count, N, S, BN: tl.constexpr, BS: tl.constexpr, MASKED: tl.constexpr):
    """Of one tile: which elements are real, and how many each channel has there."""
    if MASKED:
        across = tl.cdiv(S, BS)
        n = (tile // across) * BN + tl.arange(0, BN)[:, None, None]
        s = (tile % across) * BS + tl.arange(0, BS)[None, None, :]
        real = tl.load(mask + n.to(tl.int64) * S + s, mask=(n < N) & (s < S), other=0) != 0
        return inside & real, tl.sum(channel_sum(real.to(tl.int32)), axis=0).to(tl.float32)
    else:
        return inside, count


@triton.jit
def load_real(pointer, inside, real, MASKED: tl.constexpr):
    """The values as float32, zero where there is none."""
    values = tl.load(pointer, mask=inside, other=0).to(tl.float32)
    if MASKED:
        values = tl.where(real, values, 0.0)
    return values


@triton.jit
def store_real(pointer, values, inside, real, MASKED: tl.constexpr):
    """Store in the tensor's dtype, zeros under the mask."""
    if MASKED:
        values = tl.where(real, values, 0.0)
    tl.store(pointer, values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def place_bits(tile, channel, N, C, S, BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr):
    """The bytes of a tile's bits: each row of memory starts a new byte."""
    across = tl.cdiv(S, BS)
    if LAST:
        c = channel // 8 + tl.arange(0, BC // 8)[None, :, None]
        s = (tile % across) * BS + tl.arange(0, BS)[None, None, :]
        width = tl.cdiv(C, 8)
        offset = s.to(tl.int64) * width + c
        inside = (c < width) & (s < S)
    else:
        n = (tile // across) * BN + tl.arange(0, BN)[:, None, None]
        c = channel + tl.arange(0, BC)[None, :, None]
        s = (tile % across) * (BS // 8) + tl.arange(0, BS // 8)[None, None, :]
        width = tl.cdiv(S, 8)
        offset = (n.to(tl.int64) * C + c) * width + s
        inside = (n < N) & (c < C) & (s < width)
    return offset, inside


@triton.jit
def pack(bits, BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr):
    """One byte of eight neighbours in memory."""
    bits = bits.to(tl.int32)
    if LAST:
        packed = tl.sum(tl.reshape(bits, (BN, BC // 8, 8, BS)) << tl.arange(0, 8)[None, None, :, None], axis=2)
    else:
        packed = tl.sum(tl.reshape(bits, (BN, BC, BS // 8, 8)) << tl.arange(0, 8)[None, None, None, :], axis=3)
    return packed.to(tl.uint8)


@triton.jit
def unpack(packed, BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr):
    """The bits of the bytes, as a condition."""
    packed = packed.to(tl.int32)
    if LAST:
        each = packed[:, :, None, :] >> tl.arange(0, 8)[None, None, :, None]
    else:
        each = packed[:, :, :, None] >> tl.arange(0, 8)[None, None, None, :]
    return tl.reshape(each & 1, (BN, BC, BS)) != 0


@triton.jit
def per_channel(vector):
    """(BC,) beside a tile."""
    return vector[None, :, None]


@triton.jit
def channel_sum(x):
    """The sum of a tile over all but its channels."""
    return tl.sum(tl.sum(x, axis=2), axis=0)


@triton.jit
def channel_moments(x, inside, count):
    """Mean (two floats) and summed squared deviations of a tile's channels; x is zero outside. No sum overflows."""
    share = 1.0 / tl.maximum(count, 1.0)
    hi = channel_sum(x * share)
    d = tl.where(inside, x - per_channel(hi), 0.0)
    lo = channel_sum(d) * share
    return hi, lo, channel_sum(d * d) - lo * lo * count


@triton.jit
def two_sum(a, b):
    """a + b rounded, and what the rounding lost (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@triton.jit
def merge_moments(n, hi, lo, m2, n2, hi2, lo2, m22):
    """Of two sets of values, of which either may be empty, the moments of both."""
    whole = n + n2
    some = tl.maximum(whole, 1.0)
    hi = tl.where(n == 0, hi2, hi)  # all of the second's mean, both floats of it
    lo = tl.where(n == 0, lo2, lo)
    delta = (hi2 - hi) + (lo2 - lo)
    step = delta * (n2 / some)
    mean, lost = two_sum(hi, step)
    return whole, mean, lo + lost, m2 + m22 + delta * (n / some) * n2 * delta


@triton.jit
def add_compensated(sum_, lost, term):
    """A running sum and what its roundings lost so far."""
    total, error = two_sum(sum_, term)
    return total, lost + error


@triton.jit
def merge_parts(n, hi, lo, m2):
    """The moments of all parts, [parts, BC]; n is zero where there is none."""
    count = tl.sum(n, axis=0)
    share = n / tl.maximum(count, 1.0)[None, :]
    mean = tl.sum(hi * share, axis=0)
    d = tl.where(n > 0, (hi - mean[None, :]) + lo, 0.0)
    rest = tl.sum(d * share, axis=0)
    spread = tl.sum(tl.where(n > 0, m2, 0.0) + d * d * n, axis=0) - rest * rest * count
    hi, lo = two_sum(mean, rest)
    return count, hi, lo, spread


@triton.jit
def reciprocal_std(var, eps):
    """1 / sqrt(var + eps), each step rounded to nearest. eps: float32, or float64 as inductor hands numbers over."""
    return tl.div_rn(1.0, tl.sqrt_rn(var + tl.cast(eps, tl.float32)))
