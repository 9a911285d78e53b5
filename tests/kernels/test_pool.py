"""native/pool.cpp: torch's threads are left out while they come late, and asked again after a rest."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from normkit.kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the native core was not built")

# A pool of two threads, of which the second is held up.
LATE_POOL = """
import ctypes, json, threading, time
import torch
from normkit.kernels import core
import normkit as nk

RANGE = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
LOOP = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int64] * 3, RANGE, ctypes.c_void_p)
asked, LATE = 0, 0.02  # seconds

@LOOP
def loop(begin, end, grain, body, context):
    global asked
    asked += 1
    middle = begin + (end - begin) // 2
    body(begin, middle, context)
    other = threading.Thread(target=body, args=(middle, end, context))
    other.start()
    other.join()
    time.sleep(LATE)
    return 0

x = torch.randn(8, 64, 56, 56)
layer = nk.BatchNorm2d(64).eval()
with torch.no_grad():
    expected = layer(x)
    core.core.set_parallel(ctypes.cast(loop, ctypes.c_void_p).value)
    outputs = [layer(x) for _ in range(20)]  # with no work between them: a pool that had to wake is not counted
    early = asked
    same = all(torch.equal(y, expected) for y in outputs)
    time.sleep(0.3)
    same &= torch.equal(layer(x), expected)
print(json.dumps({"same": same, "early": early, "after": asked}))
"""


def test_a_pool_that_comes_late_is_left_out_for_a_while() -> None:
    done = subprocess.run([sys.executable, "-c", LATE_POOL], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    assert found["same"]
    assert 1 <= found["early"] < 10, "twenty calls in a row would each wait for 20 ms"
    assert found["after"] == found["early"] + 1, "after a rest the pool is asked again"
