"""Which RMS or layer norm over one axis fits what a module gives, found out with numbers.

Rules: a probe runs on a copy (`row_twin.Twin`) and touches nothing else. Float32 decides whether it is such a norm at
all: outputs and gradients, in training and evaluation, with inputs of tiny variance among them, which show eps. Each
pair of half-precision dtypes is then shown for itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from .row_norm import AFTER, BEFORE, GATES, ROUNDED, Dtypes, RowNorm
from .row_twin import ANY_WIDTH, Twin, arguments, gate_of, held, rows_of, same, same_gradient, same_rounded

_HALF = (torch.bfloat16, torch.float16)
_ELEMENTS = 2**13  # over which the share of equal elements is taken
_UNKNOWN = "its output is neither RMS nor layer norm over its last axis or its channels"
_AS_IT_IS = {"silu": 1.2784645427610738, "sigmoid": 40.0}  # gates that multiply by 1


def search(module: nn.Module) -> RowNorm | str:
    """What the module computes, or why that is not known."""
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of what does not become of it
            return _found(module)
    except Exception as error:
        return f"it fails on a probe ({type(error).__name__}: {error})"


def _found(module: nn.Module) -> RowNorm | str:
    for width in _widths(module):
        twin = Twin(module, torch.float32, width)
        row = next(_fitting(twin), None)
        if row is not None:
            break
    else:
        return _UNKNOWN
    if not held(module) and twin.width == ANY_WIDTH:
        row = replace(row, width=None)
    eps = _eps(twin, row)
    if eps is None:
        return f"{_UNKNOWN}, with an eps inside of the root"
    row = replace(row, eps=eps)
    axes = dict(_axes(twin, row))
    if not row.axes.items() <= axes.items():
        return f"{_UNKNOWN}, with its gradients, in both modes"
    if twin.changed():
        return f"its forward sets {twin.changed()[0]}"
    row = replace(row, axes=axes)
    return replace(row, casts={**row.casts, **dict(_half_casts(module, row))})


def _widths(module: nn.Module) -> list[int]:
    """Widths of rows to try: without parameters any, or what a setting says."""
    if held(module):
        return [0]  # the parameters say it
    settings = [value for value in module.__dict__.values() if isinstance(value, (int, tuple)) and value is not True]
    sizes = [value[-1] if isinstance(value, tuple) and value else value for value in settings]
    return [ANY_WIDTH, *(size for size in sizes if isinstance(size, int) and 2 <= size <= 2**16)]


def _fitting(twin: Twin) -> Iterator[RowNorm]:
    """The norms that fit its output where the variance is so large that eps does not matter."""
    names = list(twin.parameters)
    first, second = (*names, None, None)[:2]
    affine = [(first, second), *([(second, first)] if second else [])]
    gated = len(arguments(twin.module)) == 2
    casts: dict[Dtypes, str] = {(torch.float32, torch.float32 if names else None): BEFORE}
    for (rank, shape), axis in product(_shapes(twin.width).items(), (-1, 1)):
        x, gate = 1e3 * rows_of(*shape), gate_of(*shape) if gated else None
        try:
            theirs = twin.theirs(x, axis, gate)
        except Exception:  # not an input of this rank
            continue
        for kind, (weight, bias), offset in product(("rms", "layer"), affine, (False, True) if names else (False,)):
            for gating, groups in product(GATES if gated else (None,), _groups(twin) if axis == -1 else (1,)):
                row = RowNorm(kind, twin.width, 1e-30, weight, bias, offset, gating, {rank: axis}, casts, groups)
                if same(theirs, twin.ours(row, x, axis, gate)):
                    yield row


def _groups(twin: Twin) -> list[int]:
    """Into how many parts the last axis may be cut: a setting says how many, or how wide each is."""
    settings = {value for value in twin.module.__dict__.values() if type(value) is int and 1 < value < twin.width}
    counts = {count for value in settings if twin.width % value == 0 for count in (value, twin.width // value)}
    return [1, *sorted(counts)] if twin.parameters else [1]


def _shapes(width: int) -> dict[int, tuple[int, ...]]:
    """Rank -> the rows' shape (*, D)."""
    return {3: (4, 5, width), 2: (11, width), 4: (2, 3, 5, width)}


def _eps(twin: Twin, row: RowNorm) -> float | None:
    """What is added to the variance: rows t * u, with u of mean 0 and variance 1, become u * t / sqrt(t^2 + eps)."""
    ((rank, axis),) = row.axes.items()
    t = 10.0 ** -torch.arange(0, 8, 0.25, dtype=torch.float64, device="cpu")
    u = rows_of(row.groups, twin.width // row.groups).double()
    u = ((u - u.mean(-1, keepdim=True)) / u.std(-1, correction=0, keepdim=True)).flatten()
    rows = (t.view(-1, 1) * u).float().view(*[1] * (rank - 2), len(t), twin.width)
    gate = None if row.gate is None else torch.full_like(rows, _AS_IT_IS[row.gate[1]])
    one, tiny, zero = (
        twin.theirs(x, axis, gate).detach().double().flatten(0, -2)
        for x in (1e4 * u.float().expand_as(rows), rows, 0 * rows)
    )
    slope = ((tiny - zero) * (one - zero)).mean(-1) / (one - zero).square().mean(-1)
    best = int((slope - 0.7).abs().argmin())
    eps = float(t[best].square() * (slope[best] ** -2 - 1))
    fits = (slope - t / (t.square() + eps).sqrt()).abs() < 1e-4
    return _meant(eps, twin) if eps > 0 and bool(fits.all()) else None


def _meant(eps: float, twin: Twin) -> float:
    """A setting of the module that is this number but for rounding, else one of few digits."""
    settings = [value for value in twin.module.__dict__.values() if isinstance(value, float)]
    near = (*settings, torch.finfo(torch.float32).eps, *(float(f"{eps:.{digits}g}") for digits in (1, 2, 3)))
    return next((number for number in near if abs(number - eps) < 1e-3 * eps), eps)


def _axes(twin: Twin, row: RowNorm) -> Iterator[tuple[int, int]]:
    """Each rank that the module takes, with the axis over which it is this norm."""
    for rank, shape in _shapes(twin.width).items():
        for axis in (-1, 1) if rank > 2 and row.groups == 1 else (-1,):
            trial = replace(row, axes={rank: axis})
            try:
                if all(_is_norm(twin, trial, shape, axis, training) for training in (True, False)):
                    yield rank, axis
                    break
            except Exception:  # not an input of this rank
                continue


def _is_norm(twin: Twin, row: RowNorm, shape: tuple[int, ...], axis: int, training: bool) -> bool:
    """Whether outputs and gradients are the same; the first rows have a variance as small as eps."""
    x = rows_of(*shape)
    x[0] *= row.eps**0.5
    leaves = [x, *([gate_of(*shape)] if row.gate else [])]
    wanted = [*(leaf.requires_grad_() for leaf in leaves), *twin.parameters.values()]
    twin.module.train(training)
    theirs, ours = twin.theirs(x, axis, *leaves[1:]), twin.ours(row, x, axis, *leaves[1:])
    if not same(theirs, ours):
        return False
    slope = torch.linspace(-1, 1, x.numel(), device="cpu").view(shape)
    found = (torch.autograd.grad(y, wanted, slope, allow_unused=True) for y in (theirs, ours))
    return all(same_gradient(a, b) for a, b in zip(*found, strict=True))


def _half_casts(module: nn.Module, row: RowNorm) -> Iterator[tuple[Dtypes, str]]:
    """Pairs of dtypes of which is shown where the weight multiplies."""
    for dtype, wide in product(_HALF, (False, True) if row.weight else (False,)):
        weight = torch.float32 if wide else dtype
        twin = Twin(module, weight, row.width or ANY_WIDTH)
        pair: Dtypes = (dtype, weight if row.weight else None)
        for cast in (BEFORE, AFTER, *([ROUNDED] if row.unit_offset else [])):
            if _rounds_alike(twin, replace(row, casts={pair: cast}), dtype):
                yield pair, cast
                break


def _rounds_alike(twin: Twin, row: RowNorm, dtype: torch.dtype) -> bool:
    for axis, rank in {axis: rank for rank, axis in row.axes.items()}.items():
        shape = (*(2,) * (rank - 2), -(-_ELEMENTS // (twin.width * 2 ** (rank - 2))), twin.width)
        x = rows_of(*shape).to(dtype)
        gate = gate_of(*shape).to(dtype) if row.gate else None
        try:
            given: tuple[Tensor, Tensor] = twin.theirs(x, axis, gate), twin.ours(row, x, axis, gate)
        except Exception:  # not in this dtype
            return False
        if not same_rounded(*given, dtype):
            return False
    return True
