"""What inductor makes of Triton's operators for a CUDA device that is not here: a program for each, all of whose
kernels, ours as inductor copies them and its own, compile for sm_90. `python -m tests.kernels.inductor_for_cuda`;
nothing runs.

PyTorch is told of a GPU, and the tensors are fake. What it is told by is private, of the PyTorch that constraints.txt
pins. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._inductor.scheduler as scheduler
import triton
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import post_grad_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from triton.backends.compiler import GPUTarget

from normkit import _activation
from normkit.kernels.triton import batch_norm_operator as norms
from normkit.kernels.triton import group_norm_operator as groups

HOPPER = SimpleNamespace(
    name="H100", major=9, minor=0, multi_processor_count=132, max_threads_per_multi_processor=2048,
    max_threads_per_block=1024, regs_per_multiprocessor=65536, warp_size=32, total_memory=80 << 30,
    shared_memory_per_block_optin=227 << 10, shared_memory_per_multiprocessor=228 << 10, L2_cache_size=50 << 20,
    gcnArchName="",
)  # fmt: skip


def pretend() -> None:
    """Tell Triton and PyTorch of a GPU."""
    target = GPUTarget("cuda", 90, 32)
    triton.runtime.driver.set_active(
        SimpleNamespace(get_current_target=lambda: target, get_active_torch_device=lambda: torch.device("cuda", 0))
    )
    for place in (CudaInterface, CudaInterface.Worker):
        place.get_device_properties = staticmethod(lambda device=None: HOPPER)
    CudaInterface.current_device = staticmethod(lambda: 0)
    CudaInterface.get_compute_capability = staticmethod(lambda device=None: 90)
    CudaInterface.is_triton_capable = staticmethod(lambda device=None: True)
    CudaInterface.raise_if_triton_unavailable = staticmethod(lambda device=None: None)
    torch.cuda.get_device_properties = lambda device=None: HOPPER
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.current_device = lambda: 0
    scheduler.has_triton = lambda *arguments: True
    triton_helpers.set_driver_to_gpu = lambda: None


def program(function: Callable[..., Any], *tensors: Tensor) -> str:
    """The program that inductor would run for it."""
    with FakeTensorMode() as mode:
        fakes = [torch.empty(t.shape, dtype=t.dtype, device="cuda").as_strided(t.shape, t.stride()) for t in tensors]
        graph = make_fx(dispatch_functionalize(function), decomposition_table=select_decomp_table())(*fakes)
        with V.set_fake_mode(mode), DebugContext():
            post_grad_passes(graph, True)
            graph.recompile()
            lowering = GraphLowering(graph, example_inputs=fakes, shape_env=None, is_inference=True)
            with V.set_graph_handler(lowering), V.set_real_inputs(fakes):
                lowering.run(*fakes)
                return lowering.codegen()[0].value


def compile_kernels(text: str, folder: Path) -> list[str]:
    """Compile each kernel of a program; their names."""
    names = []
    for name, source in re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)'''", text, re.DOTALL):
        path = folder / f"{name}.py"
        path.write_text(source.replace("\\\\", "\\"))
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        getattr(module, name).precompile(warm_cache_only=True)
        names.append(name)
    return names


def cases() -> list[tuple[str, Callable[..., Any], tuple[Tensor, ...], set[str]]]:
    """(name, call, tensors, the kernels of ours in it)."""
    x, w, s = torch.randn(64, 16, 28, 28), torch.randn(16), torch.randn(5, 16)
    mask, bits = torch.ones(64, 1, 28, 28, dtype=torch.bool), torch.zeros(64 * 16 * 98, dtype=torch.uint8)
    after, all_four = (_activation.LEAKY_RELU, 0.01), [True] * 4
    found: list[tuple[str, Callable[..., Any], tuple[Tensor, ...], set[str]]] = [
        ("forward", lambda x, w, m: norms.forward(x, w, w, x, m, 0, 1e-5, *after), (x, w, mask),
         {"partial", "merge", "apply"}),
        ("backward", lambda x, w, s, b, m: norms.backward(x, x, w, w, None, m, s, b, 0, 1e-5, *after, all_four),
         (x, w, s, bits, mask), {"sums", "merge", "gradients"}),
        ("statistics", lambda x, m: norms.statistics(x, m, 1e-5), (x, mask), {"partial", "merge"}),
        ("by statistics", lambda x, w, s, m: norms.by_statistics(x, w, w, x, m, s, _activation.ELU, 1.0, ""),
         (x, w, s, mask), {"apply"}),
        ("sums", lambda x, w, s, b, m: norms.sums(x, x, w, w, None, m, s, b, *after), (x, w, s, bits, mask),
         {"sums", "merge"}),
        ("by shares", lambda x, w, s, b, g, m: norms.by_shares(x, x, w, w, None, m, s, b, g, *after, [True] * 2),
         (x, w, s, bits, s[:2].clone(), mask), {"gradients"}),
    ]  # fmt: skip
    for slices, forward, backward in (
        (2, {"partial", "merge", "apply"}, {"sums", "merge", "gradients", "parameters"}),
        (16, {"whole"}, {"whole", "parameters"}),
    ):
        facts = (slices, 1e-5, _activation.ELU, 1.0)
        found += [
            (f"{slices} slices", lambda x, w, f=facts: norms.forward(x, w, w, x, None, *f), (x, w), forward),
            (f"{slices} slices, backward", lambda x, w, s, f=facts: norms.backward(
                x, x, w, w, x, None, s, None, *f, all_four), (x, w, torch.randn(5, 16 * slices)), backward),
        ]  # fmt: skip
    for size, forward, backward in (
        (1, {"partial", "merge", "apply"}, {"sums", "merge", "gradients", "parameters"}),
        (8, {"whole"}, {"whole", "parameters"}),
    ):
        facts = (size, 1e-5, _activation.SILU, 0.0)
        found += [
            (f"{size} groups", lambda x, w, m, f=facts: groups.forward(x, w, w, x, m, *f), (x, w, mask), forward),
            (f"{size} groups, backward", lambda x, w, s, m, f=facts: groups.backward(
                x, x, w, w, x, m, s, None, *f, all_four), (x, w, torch.randn(5, 64 * size), mask), backward),
        ]  # fmt: skip
    return found


def main() -> int:
    pretend()
    for name, function, tensors, kernels in cases():
        with tempfile.TemporaryDirectory() as folder:
            made = compile_kernels(program(function, *tensors), Path(folder))
        ours = {kernel for kernel in made if not kernel.startswith("triton_")}
        assert ours == kernels, (name, ours)
        print(f"{name}: {len(made)} kernels", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
