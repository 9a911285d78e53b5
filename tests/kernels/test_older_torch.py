"""The edge that serves torch 2.4 to 2.9 gives the same bits as that of later versions, on whichever torch is at hand.

A process of its own takes torch's table of functions and its parallel loop away before normkit is imported.
"""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
import torch

import normkit as nk
from normkit import _torch
from normkit.kernels import core, native, older_torch
from tests.kernels.native_isa import needs_native

pytestmark = needs_native

HIDE = """
import torch
if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    del torch.Tensor.__dlpack_c_exchange_api__
from normkit.kernels import core, native, older_torch
assert native.edge() == "C shim", native.why_not() or native.edge()
assert older_torch.loop(core.core) != 0
core.core.set_parallel(older_torch.loop(core.core))
"""


def in_a_new_process(program: str) -> bytes:
    done = subprocess.run([sys.executable, "-c", HIDE + program], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return done.stdout


def results() -> dict[str, torch.Tensor]:
    """Outputs, gradients and statistics of every family, small and large, in both memory orders, and half precision."""
    torch.set_num_threads(2)
    found = {}
    for name, layer, shape in (
        ("batch", nk.BatchNorm2d(6, activation="relu"), (4, 6, 5, 5)),
        ("batch_large", nk.BatchNorm2d(64), (8, 64, 56, 56)),
        ("group", nk.GroupNorm(3, 6), (4, 6, 9)),
        ("instance", nk.InstanceNorm2d(6, affine=True, track_running_stats=True), (4, 6, 5, 5)),
        ("layer", nk.LayerNorm(48), (7, 48)),
        ("rms_large", nk.RMSNorm(512), (1024, 512)),
    ):
        for order in (torch.contiguous_format, *((torch.channels_last,) if len(shape) == 4 else ())):
            for dtype in (torch.float32, torch.bfloat16):
                x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
                x = x.contiguous(memory_format=order).requires_grad_()
                y = layer(x)
                y.float().square().sum().backward()
                key = f"{name} {order} {dtype}"
                tensors = {"y": y, "dx": x.grad, **{n: p.grad for n, p in layer.named_parameters()}}
                tensors |= dict(layer.named_buffers())
                found |= {f"{key} {n}": t.detach().clone() for n, t in tensors.items() if t is not None}
    return found


def test_it_gives_the_same_bits() -> None:
    program = (
        "import io, sys; from tests.kernels.test_older_torch import results; file = io.BytesIO();"
        "torch.save(results(), file); sys.stdout.buffer.write(file.getvalue())"
    )
    other = torch.load(io.BytesIO(in_a_new_process(program)), weights_only=True)
    here = results()
    assert here.keys() == other.keys()
    for name, tensor in here.items():
        assert torch.equal(tensor, other[name]), name
        assert tensor.stride() == other[name].stride(), name


def test_it_refuses_what_has_no_memory() -> None:
    in_a_new_process("""
import pytest, normkit as nk
x = torch.ones(4, 3)
for other in (x.to_sparse(), x.to(device="meta"), x.to_mkldnn()):
    assert not native.plain_gradient(other)
    with pytest.raises((RuntimeError, NotImplementedError)):
        core.core.channel_statistics(other)
x.untyped_storage().resize_(0)
with pytest.raises(RuntimeError, match="not allocated"):
    core.core.channel_statistics(x)
""")


def test_threads_obey_torch() -> None:
    """As many as set_num_threads says, in the thread that says it and in a new one."""
    in_a_new_process("""
import ctypes, threading
loop_type = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int64] * 3, ctypes.c_void_p, ctypes.c_void_p)
loop = loop_type(older_torch.loop(core.core))
body_type = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
def parts():
    found = []
    body = body_type(lambda begin, end, context: found.append((begin, end)))
    assert loop(0, 100, 1, ctypes.cast(body, ctypes.c_void_p), None) == 0
    return sorted(found)
for threads, expected in ((1, [(0, 100)]), (2, [(0, 50), (50, 100)]), (3, [(0, 34), (34, 68), (68, 100)])):
    torch.set_num_threads(threads)
    assert parts() == expected, parts()
    other = []
    thread = threading.Thread(target=lambda: other.extend(parts()))
    thread.start(); thread.join()
    assert other == expected, other
""")


def test_a_shim_that_tells_otherwise_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(older_torch._SCALARS, torch.float32, 5)
    lib: Any = older_torch.library()
    with pytest.raises(RuntimeError, match="tells"):
        older_torch.prove(lib, older_torch.offset_of_tensor())


def test_a_tensor_whose_place_is_not_found_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch, "implementation_of", lambda tensor: 1)
    with pytest.raises(RuntimeError, match="is not found"):
        older_torch.offset_of_tensor()


def test_the_edge_has_a_name() -> None:
    assert native.edge() == ("C shim" if _torch.exchange_table is None else "exchange table")
    assert core.problem is None
