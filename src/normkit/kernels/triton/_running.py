"""Running statistics moved on the device, by one program: nothing waits, and no value is read by Python.

    running = (1 - factor) * running + factor * new        factor = momentum, or 1 / batches counted

A batch of fewer than two values, or one that is not finite in the buffers' dtype, moves nothing and is not counted.
"""

import triton
import triton.language as tl

LARGEST: tl.constexpr = tl.constexpr(3.4028234663852886e38)


@triton.jit
def move(stats, running_mean, running_var, batches, momentum, C, COUNTS: tl.constexpr, CUMULATIVE: tl.constexpr):
    """Move the running statistics, by one program."""
    move_running(stats, running_mean, running_var, batches, momentum, C, COUNTS, CUMULATIVE)


@triton.jit
def _new_statistics(stats, values, C, c, mean_type: tl.constexpr, var_type: tl.constexpr):
    """The batch's mean and unbiased variance, and how many of them are not finite as the buffers would hold them."""
    mean = tl.load(stats + c, mask=c < C, other=0) + tl.load(stats + 3 * C + c, mask=c < C, other=0)
    var = tl.load(stats + C + c, mask=c < C, other=0) * (values / (values - 1.0))
    finite = (tl.abs(mean.to(mean_type).to(tl.float32)) <= LARGEST) & (
        tl.abs(var.to(var_type).to(tl.float32)) <= LARGEST
    )
    return mean, var, tl.sum(tl.where(finite, 0, 1), axis=0)


@triton.jit
def move_running(
    stats, running_mean, running_var, batches, momentum, C, COUNTS: tl.constexpr, CUMULATIVE: tl.constexpr
):  # fmt: skip
    """running = (1 - factor) * running + factor * new, by the statistics (5, C) of a batch that is fit for it."""
    BLOCK: tl.constexpr = 1024
    mean_type: tl.constexpr = running_mean.dtype.element_ty
    var_type: tl.constexpr = running_var.dtype.element_ty
    values = tl.load(stats + 4 * C)  # all channels have as many
    bad = 0
    for start in range(0, C, BLOCK):
        _, _, found = _new_statistics(stats, values, C, start + tl.arange(0, BLOCK), mean_type, var_type)
        bad += found
    if (bad == 0) & (values >= 2.0):
        factor = tl.cast(momentum, tl.float32)
        if COUNTS:
            counted = tl.load(batches) + 1
            tl.store(batches, counted)
            if CUMULATIVE:
                factor = 1.0 / counted.to(tl.float32)
        for start in range(0, C, BLOCK):
            c = start + tl.arange(0, BLOCK)
            mean, var, _ = _new_statistics(stats, values, C, c, mean_type, var_type)
            old_mean = tl.load(running_mean + c, mask=c < C, other=0).to(tl.float32)
            old_var = tl.load(running_var + c, mask=c < C, other=0).to(tl.float32)
            tl.store(running_mean + c, (old_mean * (1.0 - factor) + mean * factor).to(mean_type), mask=c < C)
            tl.store(running_var + c, (old_var * (1.0 - factor) + var * factor).to(var_type), mask=c < C)
