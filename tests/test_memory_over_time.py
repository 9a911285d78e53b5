"""Memory stays flat however long a program runs and whatever shapes come."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STEPS, EVERY = 30_000, 1000
PROGRAM = f"""
import gc, random, sys
import torch
import normkit as nk
from normkit.kernels import native

draw = random.Random(0)
torch.set_num_threads(1)
LAYERS = (
    lambda c: nk.BatchNorm2d(c, activation="relu"),
    lambda c: nk.InstanceNorm2d(c, affine=True),
    lambda c: nk.GroupNorm(1, c, activation="silu"),
    lambda c: nk.LayerNorm2d(c),
    lambda c: nk.GhostBatchNorm2d(c, virtual_batch_size=2),
)

def resident():
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * 4096

for step in range({STEPS}):
    large = step % 50 == 0  # outputs of 1 MB and more take memory that earlier ones left
    n, c, h, w = (draw.randint(2 + 30 * large, limit) for limit in ((40, 40, 40, 40) if large else (6, 32, 20, 20)))
    layout = draw.choice((torch.contiguous_format, torch.channels_last))
    x = torch.empty(n, c, h, w).contiguous(memory_format=layout).normal_().requires_grad_()
    y = draw.choice(LAYERS)(c)(x)
    y.backward(torch.ones_like(y))
    if (step + 1) % {EVERY} == 0:
        del x, y
        gc.collect()
        print(resident() - native.kept_memory(), native.kept_memory(), flush=True)
"""


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_is_flat_over_30000_steps_of_varying_shapes() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=1800, check=True)
    samples = [int(line.split()[0]) / 2**20 for line in done.stdout.splitlines()]
    assert len(samples) == STEPS // EVERY
    begin, end = max(samples[4:14]), max(samples[-10:])  # the first steps fill the allocators' pools
    assert end < begin + 16, f"MB over time: {[round(value) for value in samples]}"
