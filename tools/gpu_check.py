"""Verify Triton's kernels on a GPU, then time them: `python -m tools.gpu_check [--seconds 215] [--verify]`.

It prints as it goes and ends by itself: by the clock between two cases, and where one hangs, with a traceback, 15
seconds later. A case that fails is printed, and the others go on. Without a GPU the verification alone runs, under
Triton's interpreter: `TRITON_INTERPRET=1 python -m tools.gpu_check`; with `--dry` the timing too, on tiny tensors.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist

from normkit.contract import FLOAT32_STATISTICS, unit_roundoff
from normkit.kernels import triton
from tools.gpu_cases import GHOST, RENORM, SYNC, Case, Tensors, by_triton, leaves, tensors, true
from tools.gpu_graphs import verify_graphs
from tools.gpu_timing import Check, Ratios, time_compiled, time_kernels, time_models, time_small

# Of the float64 truth: 8 roundings of the result, and what statistics in float32 lose, in units of the largest value.
ROUNDINGS = 16
KINK = 1e-3  # beyond what any rounding moves the activation's input by


def verified(case: Case, device: str, mean: float) -> str:
    """ "" or what is wrong: y and gradients against float64, and two runs bit by bit."""
    given = tensors(case, device, mean)
    wide = Tensors(*(t if t is None or t.dtype == torch.bool else t.detach().double() for t in given))
    if case.activation == "relu":  # at its kink a rounding decides the slope: no gradient comes in there
        near = true(case._replace(activation=None), wide).abs() < KINK
        near = near if given.mask is None else near & given.mask
        for dy in (given.dy, wide.dy):
            dy.masked_fill_(near, 0)
    for leaf in leaves(wide):
        leaf.requires_grad_()
    truth = true(case, wide)
    truths = [truth, *torch.autograd.grad(truth, leaves(wide), wide.dy)]
    runs = []
    for _ in range(2):
        y = by_triton(case, given)
        runs.append([y, *torch.autograd.grad(y, leaves(given), given.dy)])
    wrong = []
    names = ("y", "dx", "dweight", "dbias", "dresidual")[: len(truths)]
    for name, actual, again, expected in zip(names, *runs, truths, strict=True):
        u, of_parameter = unit_roundoff(actual.dtype), name in ("dweight", "dbias")
        scale = wide.dy.abs().nansum().item() / case.shape[1] if of_parameter else expected.abs().max().item()
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


def verify(check: Check, until: float) -> int:
    """How many cases were not reached; prints each that is wrong, and keeps it in `check.failed`.

    In a drawn order, so that what the clock leaves out is of no one kind.
    """
    drawn = list(cases_to_verify(small=check.device == "cpu"))
    random.Random(0).shuffle(drawn)
    drawn, right, done = drawn[:6] if check.dry else drawn, 0, 0
    for case, mean in drawn:
        if time.monotonic() > until:
            break
        problem = check.attempt(f"{case}, mean {mean:g}", partial(verified, case, check.device, mean))
        done += 1
        right += problem == ""
        if problem:
            check.failed.append(f"{case}, mean {mean:g}: {problem}")
            print(f"  WRONG {check.failed[-1]}", flush=True)
    print(f"verified on {check.device}: {right} of {done} cases", flush=True)
    if done < len(drawn):
        print(f"  stopped by the clock: {len(drawn) - done} cases are left; --verify --seconds 900 for all", flush=True)
    return len(drawn) - done


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


def time_all(check: Check) -> None:
    """What is cheap to time first; a phase that ends early leaves its seconds to the next ones."""
    ratios = Ratios()
    time_small(check, check.until(0.15))
    found = time_kernels(check, check.until(0.5), ratios)
    time_models(check, check.until(0.5), compiled=False)
    time_compiled(check, found, ratios)
    time_models(check, check.ends, compiled=True)


@contextmanager
def ended(seconds: float) -> Iterator[None]:
    """What hangs - a kernel, a compiler, a collective - is ended after so many seconds, and shows where it was."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=215, help="when to end, whatever is left")
    parser.add_argument("--verify", action="store_true", help="verify alone")
    parser.add_argument("--dry", action="store_true", help="walk through all of it on tiny tensors, for a test")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    problem = triton.why_not(device)
    if problem is not None:
        print(f"nothing to check: {problem}", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if device == "cuda" else "Triton's interpreter"
    print(f"{name}, torch {torch.__version__}", flush=True)
    if torch.version.hip:
        print("ROCm: nobody has tried the kernels there, and normkit does not choose them", flush=True)
    check = Check(device, time.monotonic() + given.seconds, given.dry)
    only = given.verify or (device == "cpu" and not given.dry)
    with ended(given.seconds + 15):
        with one_rank(device):
            left = verify(check, check.until(0.7 if only else 0.3))
            if device == "cuda" or given.dry:
                left += verify_graphs(check, check.ends if only else check.until(0.2))
        if not only:
            time_all(check)
    if check.failed:
        print(f"{len(check.failed)} failed:", *check.failed, sep="\n  ", flush=True)
    return bool(check.failed or (only and left))


if __name__ == "__main__":
    sys.exit(main())
