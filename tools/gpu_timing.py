"""What `gpu_check` times: the kernels beside PyTorch's and a copy, the smallest tensors, and whole models.

Nothing is timed before it agrees with PyTorch's operations. A figure is the median of runs between which the cache is
overwritten. What fails is said and left out; what the clock leaves out is said too. `dry` walks through all of it on
tiny tensors: on the CPU, under Triton's interpreter, as a test.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk
from normkit.bench.resnet import Bottleneck, ResNet50
from normkit.kernels.triton import _tile_plan
from tools.gpu_cases import Case, Tensors, by_torch, by_triton, leaves, tensors, true

KEPT = 256 << 20  # bytes that overwrite the cache: more than any GPU has


@dataclass
class Check:
    """One run of the check. ends: of the clock; failed: what went wrong."""

    device: str
    ends: float
    dry: bool = False
    failed: list[str] = field(default_factory=list)

    def left(self) -> float:
        """Seconds until the clock's end."""
        return self.ends - time.monotonic()

    def until(self, share: float) -> float:
        """When a share of what is left will have gone."""
        return time.monotonic() + share * max(0.0, self.left())

    def attempt(self, what: object, run: Callable[[], Any]) -> Any:
        """What it returns; None where it fails, which is printed and kept, or needs more memory than there is."""
        try:
            return run()
        except torch.OutOfMemoryError:
            print(f"  left out, too large for this GPU's memory: {what}", flush=True)
            torch.cuda.empty_cache()
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            self.failed.append(f"{what}: {type(error).__name__}: {lines[0]}")
            print(f"  FAILED {self.failed[-1]}", flush=True)
        return None

    def milliseconds(self, run: Callable[[], object], runs: int = 15) -> float:
        """The median of one run, by the GPU's clock."""
        if self.dry:
            start = time.perf_counter()
            run()
            return (time.perf_counter() - start) * 1e3
        flush = torch.empty(KEPT, dtype=torch.uint8, device=self.device)
        for _ in range(3):
            run()
        found = []
        for _ in range(runs):
            flush.zero_()
            start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start_event.record()
            run()
            end_event.record()
            end_event.synchronize()
            found.append(start_event.elapsed_time(end_event))
        return statistics.median(found)

    def wall(self, run: Callable[[], object], runs: int = 40) -> float:
        """Milliseconds from a call to its end, launches included."""
        wait = torch.cuda.synchronize if self.device == "cuda" else (lambda: None)
        times = []
        for _ in range(2 if self.dry else runs + runs // 2):
            wait()
            start = time.perf_counter()
            run()
            wait()
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times[-runs:])

    def compile(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """By torch.compile, afresh."""
        torch.compiler.reset()
        return torch.compile(function, backend="aot_eager" if self.dry else "inductor", **options)


# --- the kernels

# What a ResNet-50 has at batch 64, and tensors far beyond any cache; padded images and sequences; what a diffusion
# model's U-Net has: group norm of 32 groups with SiLU.
SHAPES: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("plain", (64, 256, 56, 56), {}),
    ("with extras", (64, 256, 56, 56), {"residual": True, "activation": "relu"}),
    ("masked", (64, 256, 56, 56), {"masked": True}),
    ("group norm + SiLU", (8, 320, 64, 64), {"activation": "silu", "groups": 32}),
    ("plain", (256, 64, 112, 112), {}),
    ("with extras", (64, 64, 112, 112), {"activation": "relu"}),
    ("with extras", (64, 2048, 7, 7), {"residual": True, "activation": "relu"}),
    ("group norm + SiLU", (8, 1280, 8, 8), {"activation": "silu", "groups": 32}),
    ("plain", (65536, 512), {}),
    ("with extras", (64, 512, 28, 28), {"residual": True, "activation": "relu"}),
    ("with extras", (64, 1024, 14, 14), {"residual": True, "activation": "relu"}),
    ("masked", (64, 512, 28, 28), {"masked": True}),
    ("masked", (256, 256, 1000), {"masked": True}),
    ("group norm + SiLU", (8, 640, 32, 32), {"activation": "silu", "groups": 32}),
    ("group norm + SiLU", (8, 1280, 16, 16), {"activation": "silu", "groups": 32}),
]
TINY = [
    ("plain", (2, 8, 3, 5), {}), ("masked", (2, 8, 9), {"masked": True}), ("plain", (5, 8), {}),
    ("with extras", (2, 8, 3, 5), {"residual": True, "activation": "relu"}),
    ("group norm + SiLU", (2, 8, 3, 5), {"activation": "silu", "groups": 2}),
]  # fmt: skip


def cases(dry: bool) -> Iterator[tuple[str, Case]]:
    """(kind, case): all shapes in one dtype and layout, then in the next: what the clock cuts off is of no one kind."""
    ways = ((torch.bfloat16, True), (torch.float32, False), (torch.bfloat16, False), (torch.float32, True))
    for dtype, last in ways[:2] if dry else ways:
        for kind, shape, extras in TINY if dry else SHAPES:
            if len(shape) > 2 or not last:
                given = {"residual": False, "activation": None, **extras}
                yield kind, Case(shape, dtype, last, **given)


def tensors_moved(case: Case, given: Tensors) -> tuple[int, int]:
    """How many tensors of the input's size the kernels read and write, forward and backward; what the tests count.

    Bits, masks, vectors of channels and partial moments apart.
    """
    if case.groups:
        from normkit.kernels.triton import _group_tile_plan

        sweeps, reads = (1 if _group_tile_plan.plan_group_tiles(given.x, case.groups).whole else 2), case.residual
    else:
        sweeps = 1 if _tile_plan.plan_tiles(given.x).whole else 2
        reads = case.residual and case.activation not in (None, "relu")  # behind ReLU it is a bit an element
    forward = sweeps + case.residual + 1
    return forward, sweeps * (2 + reads) + 1 + (case.residual and (case.activation is not None or case.masked))


def by_flag_gems(case: Case, given: Tensors) -> Tensor:
    """PyTorch's norm by FlagGems' Triton kernels, where that is installed."""
    with import_module("flag_gems").use_gems():
        return by_torch(case, given)


def contenders() -> dict[str, Callable[[Case, Tensors], Tensor]]:
    found: dict[str, Callable[[Case, Tensors], Tensor]] = {"triton": by_triton, "torch eager": by_torch}
    return {**found, "FlagGems": by_flag_gems} if find_spec("flag_gems") else found


Halves = tuple[float, float]  # forward and backward, milliseconds


def timed(check: Check, call: Callable[[Case, Tensors], Tensor], case: Case, given: Tensors) -> Halves:
    y = call(case, given)
    forward = check.milliseconds(partial(call, case, given))
    backward = partial(torch.autograd.grad, y, leaves(given), given.dy, retain_graph=True)
    return forward, check.milliseconds(backward)


class Ratios:
    """Of the rivals' times to ours, by kind, half and rival."""

    def __init__(self) -> None:
        self._of: dict[str, list[tuple[float, str]]] = {}

    def add(self, kind: str, case: object, ours: Halves, rival: str, theirs: Halves) -> None:
        for half, mine, other in zip(("forward", "backward"), ours, theirs, strict=True):
            self._of.setdefault(f"{kind}, {half}, {rival}", []).append((other / mine, str(case)))

    def show(self) -> None:
        for name, found in sorted(self._of.items()):
            mean, (least, where) = math.exp(statistics.fmean(math.log(r) for r, _ in found)), min(found)
            print(f"{name} / triton: {mean:.2f} in geometric mean of {len(found)}, {least:.2f} at {where}", flush=True)


def time_kernels(check: Check, until: float, ratios: Ratios) -> dict[Case, tuple[str, Halves]]:
    """A line for each case, then the geometric means; what was timed, for `time_compiled`.

    Of a copy: how much of its bandwidth the kernels have by the tensors that they move.
    """
    print("ms forward / backward, and the share of a copy's bandwidth", flush=True)
    found: dict[Case, tuple[str, Halves]] = {}
    for kind, case in cases(check.dry):
        if time.monotonic() > until:
            print("  stopped by the clock: --seconds 900 for all", flush=True)
            break
        times = check.attempt(case, partial(_time_case, check, case))
        if times is not None:
            found[case] = kind, times["triton"]
            for rival in times.keys() - {"triton"}:
                ratios.add(kind, case, times["triton"], rival, times[rival])
    ratios.show()
    return found


def verify(case: Case, given: Tensors) -> None:
    """Raise unless y and dx are those of PyTorch's operations in float32, to 2 % of their sizes."""
    wide = Tensors(*(t if t is None or t.dtype == torch.bool else t.detach().float() for t in given))
    wide.x.requires_grad_()
    found = []
    for call, tensors_of in ((by_triton, given), (true, wide)):
        y = call(case, tensors_of)
        (dx,) = torch.autograd.grad(y, tensors_of.x, tensors_of.dy)
        found.append((y.detach().float(), dx.float()))
    for name, actual, expected in zip(("y", "dx"), *found, strict=True):
        off = ((actual - expected).norm() / expected.norm()).item()
        if not off < 0.02:
            raise RuntimeError(f"{name} is off by {off:.2g} of its size, and what is wrong has no speed")


def _time_case(check: Check, case: Case) -> dict[str, Halves] | None:
    given = tensors(case, check.device, quick=True)
    verify(case, given)
    found: dict[str, Halves] = {}
    for name, call in contenders().items():
        times = check.attempt(f"{name}, {case}", partial(timed, check, call, case, given))
        if times is not None:
            found[name] = times
        elif name == "triton":
            return None
    copy = check.milliseconds(given.dy.clone)
    moved = tensors_moved(case, given)
    share = [count / 2 * copy / ms for count, ms in zip(moved, found["triton"], strict=True)]
    shown = ", ".join(f"{name} {forward:.3f} / {backward:.3f}" for name, (forward, backward) in found.items())
    print(f"  {case}: {shown}, a copy {copy:.3f}: {share[0]:.0%} / {share[1]:.0%}", flush=True)
    return found


def time_compiled(check: Check, of: dict[Case, tuple[str, Halves]], ratios: Ratios) -> None:
    """The same beside what torch.compile makes of PyTorch's operations, which takes seconds a case."""
    print("torch.compile, ms forward / backward", flush=True)
    for case, (kind, ours) in of.items():
        if check.left() < 10:
            print("  stopped by the clock: --seconds 900 for all", flush=True)
            break

        def run(case: Case = case) -> Halves:
            return timed(check, check.compile(by_torch, dynamic=False), case, tensors(case, check.device, quick=True))

        theirs = check.attempt(f"torch.compile, {case}", run)
        if theirs is not None:
            print(f"  {case}: {theirs[0]:.3f} / {theirs[1]:.3f}, triton {ours[0]:.3f} / {ours[1]:.3f}", flush=True)
            ratios.add(kind, case, ours, "torch.compile", theirs)
    ratios.show()


# --- small tensors


def time_small(check: Check, until: float) -> None:
    """From which size on the kernels are faster than PyTorch's, launches included: what `SMALL` should be."""

    def both(call: Callable[[Case, Tensors], Tensor], case: Case, given: Tensors) -> None:
        torch.autograd.grad(call(case, given), leaves(given), given.dy)

    least = 0
    for samples in (1, 2) if check.dry else (1, 2, 4, 8, 16, 32, 64, 128, 256):
        if time.monotonic() > until:
            print("  stopped by the clock, before the line of SMALL was known", flush=True)
            return
        case = Case((samples, 4 if check.dry else 64, 14, 14), torch.float32, True, False, None)
        given = tensors(case, check.device)

        def run(case: Case = case, given: Tensors = given) -> tuple[float, ...]:
            return tuple(check.wall(partial(both, call, case, given)) for call in (by_triton, by_torch))

        times = check.attempt(case, run)
        if times is None:
            return
        (ours, theirs), size = times, given.x.nbytes
        print(f"  {case}, {size} bytes: {ours * 1e3:.0f} us, torch eager {theirs * 1e3:.0f} us", flush=True)
        least = size + 1 if ours > theirs else least
    print(f"SMALL = {least}  # for src/normkit/kernels/triton/__init__.py", flush=True)


# --- models


class DiffusionBlock(nn.Module):
    """What a diffusion model's U-Net is made of: group norm, SiLU, convolution, twice, around them the identity."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, width), nn.GroupNorm(groups, width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, width, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


def diffusion_blocks(width: int, groups: int) -> nn.Module:
    """Three levels of such blocks, each of twice the width and half the size."""
    layers: list[nn.Module] = [DiffusionBlock(width, groups)]
    for level in range(2):
        layers += [nn.Conv2d(width << level, width << level + 1, 3, 2, 1), DiffusionBlock(width << level + 1, groups)]
    return nn.Sequential(*layers)


def models(dry: bool) -> list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    if dry:
        return [
            ("a bottleneck", lambda: Bottleneck(8, 2, 1), (2, 8, 4, 4)),
            ("diffusion blocks", lambda: diffusion_blocks(4, 2), (2, 4, 8, 8)),
        ]
    return [
        ("ResNet-50, batch 64", ResNet50, (64, 3, 224, 224)),
        ("diffusion blocks, batch 8", lambda: diffusion_blocks(320, 32), (8, 320, 64, 64)),
    ]


def time_models(check: Check, until: float, compiled: bool) -> None:
    """A training step: plain and accelerated, or what torch.compile makes of both, which takes minutes."""
    print(f"ms of a training step, channels last{', by torch.compile' * compiled}: plain, accelerated", flush=True)
    for name, make, shape in models(check.dry):
        for dtype in (torch.bfloat16, torch.float32):
            what = f"{name}, {str(dtype).removeprefix('torch.')}"
            if time.monotonic() > until or (compiled and not check.dry and check.left() < 90):
                print(f"  {what}: left out by the clock, --seconds 900 for all", flush=True)
                continue
            times = check.attempt(what, partial(_time_steps, check, make, shape, dtype, compiled))
            if times is not None:
                plain, accelerated = times
                ratio = plain / accelerated
                print(f"  {what}: {plain:.1f}, {accelerated:.1f}, plain / accelerated {ratio:.2f}", flush=True)


def _time_steps(
    check: Check, make: Callable[[], nn.Module], shape: tuple[int, ...], dtype: torch.dtype, compiled: bool
) -> tuple[float, float]:
    torch.manual_seed(0)
    plain = make().train().to(check.device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(shape, device=check.device).to(dtype).contiguous(memory_format=torch.channels_last)
    x.requires_grad_(shape[1] > 3)  # images want no gradient, what lies between the blocks of a network does
    pair, times, losses = (plain, nk.accelerate(plain, x.detach(), verify=False)), [], []
    with nk.backend("triton") if check.dry else nullcontext():
        for model in pair:
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
            run = check.compile(model) if compiled else model

            def step(run: Callable[[Tensor], Tensor] = run, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
                optimizer.zero_grad(set_to_none=True)
                x.grad = None
                loss = run(x).float().square().mean()
                loss.backward()
                optimizer.step()
                return loss.detach()

            losses.append(step().item())
            times.append(check.wall(step, 10))
    if not math.isclose(*losses, rel_tol=0.05):
        raise RuntimeError(f"the first losses differ: plain {losses[0]:.6g}, accelerated {losses[1]:.6g}")
    return times[0], times[1]
