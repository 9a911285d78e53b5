"""Verify Triton's kernels on a GPU, then time them: `python -m tools.gpu_check [--seconds 220] [--verify]`.

It prints as it goes and ends by itself. Without a GPU the verification alone runs, under Triton's interpreter:
`TRITON_INTERPRET=1 python -m tools.gpu_check`. The times stand beside PyTorch's own kernels, what torch.compile makes
of them, and a copy of the same tensor; a figure is the median of runs between which the cache is overwritten.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from normkit.contract import FLOAT32_STATISTICS, unit_roundoff
from normkit.kernels import triton
from tools.gpu_cases import GHOST, RENORM, SYNC, Case, Tensors, by_torch, by_triton, tensors, true

# Of the float64 truth: 8 roundings of the result, and what statistics in float32 lose, in units of the largest value.
ROUNDINGS = 16


def verified(case: Case, device: str, mean: float) -> str:
    """ "" or what is wrong: y and gradients against float64, and two runs bit by bit."""
    given = tensors(case, device, mean)
    wide = Tensors(*(t if t is None or t.dtype == torch.bool else t.detach().double() for t in given))
    wanted, truths = ("x", "weight", "bias"), []
    for leaf in (wide.x, wide.weight, wide.bias):
        leaf.requires_grad_()
    truth = true(case, wide)
    truths = [truth, *torch.autograd.grad(truth, [wide.x, wide.weight, wide.bias], wide.dy)]
    runs = []
    for _ in range(2):
        y = by_triton(case, given)
        runs.append([y, *torch.autograd.grad(y, [given.x, given.weight, given.bias], given.dy)])
    wrong = []
    for name, actual, again, expected in zip(("y", *(f"d{name}" for name in wanted)), *runs, truths, strict=True):
        u = unit_roundoff(actual.dtype)
        scale = expected.abs().max().item() if name in ("y", "dx") else wide.dy.abs().nansum().item() / case.shape[1]
        error = (actual.double() - expected).abs().max().item()
        allowed = (ROUNDINGS * u + 4 * FLOAT32_STATISTICS) * max(scale, 1.0)
        if not error <= allowed:
            wrong.append(f"{name} is off by {error:.3g}, allowed {allowed:.3g}")
        if not torch.equal(actual, again):
            wrong.append(f"{name} differs between two runs")
    return "; ".join(wrong)


def cases_to_verify(small: bool) -> Iterator[tuple[Case, float]]:
    """(case, mean): layouts, dtypes, extras; one pass and tiles."""
    shapes: list[tuple[int, ...]] = [(4, 16, 5, 7), (33, 9)]
    if not small:
        shapes += [(3, 24, 40), (64, 64, 56, 56), (32, 512, 7, 7), (8, 3, 300, 301), (4096, 257), (256, 2048, 7, 7)]
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for last in (False, True) if len(shape) > 2 else (False,):
                for residual, activation in ((False, None), (True, "relu"), (True, "silu")):
                    yield Case(shape, dtype, last, residual, activation), 1.0
        yield Case(shape, torch.float32, False, True, "gelu", training=False), 1.0
        yield Case(shape, torch.float32, False, False, None), 1e4
        for last in (False, True) if len(shape) > 2 else (False,):
            yield Case(shape, torch.float32, last, True, "relu", masked=True), 1e3
        yield Case(shape, torch.bfloat16, False, False, "silu", training=False, masked=True), 1.0
        for norm in (GHOST, RENORM, SYNC):
            yield Case(shape, torch.float32, False, True, "relu", norm=norm), 1e2
            yield Case(shape, torch.bfloat16, len(shape) > 2, True, "silu", norm=norm, masked=True), 1.0
    grouped = [((2, 6, 5, 7), 3)] + (
        [] if small else [((2, 320, 64, 64), 32), ((2, 1280, 8, 8), 32), ((8, 30, 301), 5)]
    )
    for shape, groups in grouped:
        for dtype in (torch.float32, torch.bfloat16):
            for last in (False, True):
                yield Case(shape, dtype, last, True, "silu", groups=groups), 1.0
        yield Case(shape, torch.float32, False, False, None, groups=groups), 1e4
        for last in (False, True):
            yield Case(shape, torch.float32, last, True, "silu", groups=groups, masked=True), 1e3


def verify(device: str, deadline: float) -> tuple[int, int]:
    """How many cases are wrong, and how many were not reached; prints each that is wrong.

    In a drawn order, so that what the clock leaves out is of no one kind.
    """
    cases = list(cases_to_verify(small=device == "cpu"))
    random.Random(0).shuffle(cases)
    wrong = done = 0
    for case, mean in cases:
        if time.monotonic() > deadline:
            break
        problem = verified(case, device, mean)
        done += 1
        if problem:
            wrong += 1
            print(f"  WRONG {case}, mean {mean:g}: {problem}", flush=True)
    print(f"verified on {device}: {done - wrong} of {done} cases", flush=True)
    if done < len(cases):
        print(f"  stopped by the clock: {len(cases) - done} cases are left; --verify --seconds 900 for all", flush=True)
    return wrong, len(cases) - done


# What a ResNet-50 has at batch 64, and a tensor far beyond any cache.
TO_TIME = [
    ((64, 64, 112, 112), "relu", False), ((64, 256, 56, 56), "relu", True), ((64, 512, 28, 28), "relu", True),
    ((64, 1024, 14, 14), "relu", True), ((64, 2048, 7, 7), "relu", True), ((64, 256, 56, 56), None, False),
    ((256, 64, 112, 112), None, False), ((65536, 512), None, False),
]  # fmt: skip
# Padded images and sequences.
MASKED_TO_TIME = [(64, 256, 56, 56), (64, 512, 28, 28), (256, 256, 1000)]
# What a U-Net of a diffusion model has: group norm of 32 groups with SiLU.
GROUPED_TO_TIME = [(8, 320, 64, 64), (8, 640, 32, 32), (8, 1280, 16, 16), (8, 1280, 8, 8)]


def median(run: Callable[[], object], flush: Tensor, runs: int = 15) -> float:
    """Milliseconds of one run, by the GPU's clock; the cache is overwritten before each."""
    for _ in range(3):
        run()
    found = []
    for _ in range(runs):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end))
    return statistics.median(found)


def timed(case: Case, flush: Tensor) -> dict[str, tuple[float, float]]:
    """(forward, backward) in milliseconds, by who computes it; for the copy twice the same."""
    given, found = tensors(case, "cuda"), {}
    compiled = torch.compile(by_torch, dynamic=False)
    for name, call in (("triton", by_triton), ("eager", by_torch), ("compile", compiled)):
        leaves = [given.x, given.weight, given.bias]
        y = call(case, given)
        forward = median(partial(call, case, given), flush)
        backward = median(partial(torch.autograd.grad, y, leaves, given.dy, retain_graph=True), flush)
        found[name] = forward, backward
    copy = median(lambda: given.dy.clone(), flush)
    return {**found, "copy": (copy, copy)}


def time_all(deadline: float) -> None:
    """A line for each case, then the geometric means."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    ratios: dict[str, list[float]] = {}
    print("ms forward / backward: triton, torch eager, torch.compile, a copy", flush=True)
    grouped = [(shape, "silu", False, 32, False) for shape in GROUPED_TO_TIME]
    masked_ones = [(shape, None, False, 0, True) for shape in MASKED_TO_TIME]
    plain = [(*case, 0, False) for case in TO_TIME]
    for shape, activation, residual, groups, masked in [*plain, *grouped, *masked_ones]:
        for dtype in (torch.float32, torch.bfloat16):
            for last in (False, True) if len(shape) > 2 else (False,):
                if time.monotonic() > deadline:
                    print("  stopped by the clock", flush=True)
                    break
                case = Case(shape, dtype, last, residual, activation, groups=groups, masked=masked)
                found = timed(case, flush)
                print(f"  {case}: " + ", ".join(f"{a:.3f} / {b:.3f}" for a, b in found.values()), flush=True)
                kind = "with extras" if residual or activation else "plain"
                kind = "group norm" if groups else "masked, beside torch's norm and masking" if masked else kind
                for rival in ("eager", "compile"):
                    for i, half in enumerate(("forward", "backward")):
                        ratios.setdefault(f"{kind}, {half}, over torch {rival}", []).append(
                            found[rival][i] / found["triton"][i]
                        )
    for name, values in sorted(ratios.items()):
        mean = math.exp(statistics.fmean(map(math.log, values)))
        print(f"{name}: {mean:.2f} in geometric mean, {min(values):.2f} at worst, of {len(values)}", flush=True)


@contextmanager
def one_rank(device: str) -> Iterator[None]:
    """A process group of this rank alone, in which synchronised norms gather and add up."""
    backend = "nccl" if device == "cuda" and dist.is_nccl_available() else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def time_small(deadline: float) -> None:
    """From which size on the kernels are faster than PyTorch's, launches included: what `SMALL` should be."""

    def wall(call: Callable[[Case, Tensors], Tensor], case: Case) -> float:
        given, times = tensors(case, "cuda"), []
        for _ in range(60):
            torch.cuda.synchronize()
            start = time.perf_counter()
            y = call(case, given)
            torch.autograd.grad(y, [given.x, given.weight, given.bias], given.dy)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times[20:])

    least = 0
    for samples in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        if time.monotonic() > deadline:
            print("  stopped by the clock", flush=True)
            return
        case = Case((samples, 64, 14, 14), torch.float32, True, False, None)
        size, ours, theirs = samples * 64 * 14 * 14 * 4, wall(by_triton, case), wall(by_torch, case)
        print(f"  {case}, {size} bytes: {ours * 1e6:.0f} us, torch eager {theirs * 1e6:.0f} us", flush=True)
        least = size + 1 if ours > theirs else least
    print(f"SMALL = {least}  # for src/normkit/kernels/triton/__init__.py", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=220, help="when to end, whatever is left")
    parser.add_argument("--verify", action="store_true", help="verify alone")
    given = parser.parse_args()
    start = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    problem = triton.why_not(device)
    if problem is not None:
        print(f"nothing to check: {problem}", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if device == "cuda" else "Triton's interpreter"
    print(f"{name}, torch {torch.__version__}", flush=True)
    with one_rank(device):
        only = given.verify or device == "cpu"
        wrong, left = verify(device, start + given.seconds * (1 if only else 0.4))
    if not only and not wrong:
        time_small(start + given.seconds * 0.5)
        time_all(start + given.seconds)
    return bool(wrong or (only and left))


if __name__ == "__main__":
    sys.exit(main())
