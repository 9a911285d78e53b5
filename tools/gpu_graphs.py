"""What else `gpu_check` verifies: the kernels in graphs of torch.compile and of CUDA, and beyond 2^31 elements."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import normkit as nk
from tools.gpu_cases import GHOST, RENORM, SYNC, Case, Tensors, by_norm, by_triton, leaves, tensors
from tools.gpu_timing import Check


def cases(dry: bool) -> Iterator[Case]:
    """Every norm that has operators of a compiled graph."""
    shape = (20, 8, 3, 5) if dry else (64, 64, 14, 14)
    extras = {"residual": True, "activation": "relu"}
    for norm in ("batch norm", GHOST, RENORM, SYNC):
        yield Case(shape, torch.float32, True, **extras, masked=True, norm=norm)
    yield Case(shape, torch.float32, False, **extras)
    yield Case(shape, torch.float32, True, True, "silu", groups=4, masked=True)


def results(run: Callable[[Case, Tensors], Tensor], case: Case, given: Tensors) -> list[Tensor]:
    """y and the gradients."""
    y = run(case, given)
    return [y.detach(), *torch.autograd.grad(y, leaves(given), given.dy)]


def compare(found: list[Tensor], expected: list[Tensor]) -> None:
    """Raise unless they agree to 2^-16 of the largest value: the same kernels, maybe built with other hints."""
    for number, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
        off, size = (actual - wanted).abs().max().item(), wanted.abs().max().item()
        if not off <= 2.0**-16 * max(size, 1.0):
            raise RuntimeError(f"result {number} is off by {off:.3g} of {size:.3g}")


def compiled(check: Check, case: Case) -> None:
    """One graph of torch.compile, whose numbers are eager's."""
    given = tensors(case, check.device)
    expected = results(by_triton, case, given)
    run = check.compile(by_norm, fullgraph=True, dynamic=False)
    with nk.backend("triton"):
        compare(results(run, case, given), expected)


def captured(case: Case) -> None:
    """A graph of CUDA, replayed on other values."""
    given, other = tensors(case, "cuda"), tensors(case, "cuda", 3.0)
    expected = results(by_triton, case, other)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # the first call compiles, which no graph can hold
        results(by_triton, case, given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = results(by_triton, case, given)
    with torch.no_grad():
        given.x.copy_(other.x)
    graph.replay()
    torch.cuda.synchronize()
    compare(found, expected)


def beyond_32_bits(check: Check) -> None:
    """Samples that are all the same have the same results, also where offsets pass 2^31."""
    samples, shape = (3, (8, 5, 7)) if check.dry else (35, (64, 1024, 1024))
    base, dy = (torch.randn(1, *shape, device=check.device).bfloat16() for _ in range(2))
    for last in (False, True):
        layout = torch.channels_last if last else torch.contiguous_format
        x, g = (t.expand(samples, *shape).contiguous(memory_format=layout) for t in (base, dy))
        x.requires_grad_()
        with nk.backend("triton"):
            y = nk.functional.batch_norm(x, None, None, training=True, activation="silu")
            (dx,) = torch.autograd.grad(y, x, g)
        alone = base.float().requires_grad_()
        expected = torch.nn.functional.silu(torch.nn.functional.batch_norm(alone, None, None, training=True))
        expected = [expected.detach(), *torch.autograd.grad(expected, alone, dy.float())]
        for name, found, wanted in zip(("y", "dx"), (y.detach(), dx), expected, strict=True):
            if not all(torch.equal(found[number], found[0]) for number in range(samples)):
                raise RuntimeError(f"{name} of equal samples differs, channels last: {last}")
            off = (found[0].float() - wanted[0]).norm() / wanted.norm()
            if not off < 0.02:
                raise RuntimeError(f"{name} is off by {off:.2g} of its size, channels last: {last}")
        del x, g, y, dx


def checks(check: Check) -> Iterator[tuple[str, Callable[[], None]]]:
    """What is checked, in words, and how; graphs of CUDA first, which take no compiler."""
    drawn = list(cases(check.dry))
    if check.device == "cuda":
        for case in drawn:
            if case.norm != SYNC:  # whose collectives are another's to capture
                yield f"a CUDA graph of {case}", partial(captured, case)
    if check.dry or torch.cuda.mem_get_info()[0] > 60 << 30:
        yield "more than 2^31 elements", partial(beyond_32_bits, check)
    else:
        print("  left out, too large for the memory that is free: more than 2^31 elements", flush=True)
    for case in drawn:
        yield f"torch.compile of {case}", partial(compiled, check, case)


def verify_graphs(check: Check, until: float) -> int:
    """How many were not reached."""
    drawn, before = list(checks(check)), len(check.failed)
    for number, (what, run) in enumerate(drawn):
        if time.monotonic() > until:
            print(f"  stopped by the clock: {len(drawn) - number} graphs are left; --seconds 900 for all", flush=True)
            return len(drawn) - number
        check.attempt(what, run)
    right = len(drawn) - (len(check.failed) - before)
    print(f"verified: {right} of {len(drawn)} graphs and large tensors", flush=True)
    return 0
