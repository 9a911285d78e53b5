"""The norms' statistics in float64, by `normkit.reference`: xhat, its scale, and what moves the running statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normkit import contract, reference

from .case import Case
from .norms import NORMS, leading

Pair = tuple[Tensor, Tensor]
R_MAX, D_MAX = 1.5, 0.5  # of batch renormalization, as norms.py calls it


@dataclass
class Standard:
    """xhat of a norm, laid beside x.

    scale: what a change of x does to xhat (rstd). size: |xhat| without cancellation. core: (x - mean) * rstd where that
    is not xhat. axes: of the statistics in the parts that `split` makes; () where they are constants. mean, var, count:
    of the batch, or (N, C) of samples, to move running statistics by.
    """

    xhat: Tensor
    scale: Tensor
    axes: tuple[int, ...]
    size: Tensor = field(default_factory=lambda: torch.empty(0))
    core: Tensor = field(default_factory=lambda: torch.empty(0))
    split: Callable[[Tensor], list[Tensor]] = lambda x: [x]
    join: Callable[[list[Tensor]], Tensor] = lambda parts: parts[0]
    mean: Tensor | None = None
    var: Tensor | None = None
    count: Tensor | None = None

    def __post_init__(self) -> None:
        self.core = self.core if self.core.numel() else self.xhat.detach()
        self.size = self.size if self.size.numel() else self.xhat.detach().abs()
        self.scale = self.scale.detach().expand(self.xhat.shape)

    def gradient_bound(self, dxhat: Tensor, unsure: Tensor, lost: Tensor, u: float, keep: Tensor | None) -> Tensor:
        """The contract's bound of dx, and what an error `unsure` of each dxhat and `lost` of each xhat adds to it."""
        if not self.axes:
            return contract.GRADIENT_ROUNDINGS * u * self.scale * dxhat.abs() + self.scale * unsure
        mean = self._mean_over_real(keep)
        core = self.core.abs()
        seen = core + lost  # of one value alone the core is 0, and `lost` all that there is
        spread = unsure + mean(unsure) + seen * mean(unsure * seen)
        spread = spread + lost * mean(dxhat.abs() * seen) + core * mean(dxhat.abs() * lost)
        return contract.input_gradient_bound(dxhat, self.core, self.scale, mean, u) + self.scale * spread

    def of_small_slope(self, dxhat: Tensor, keep: Tensor | None, computed: torch.dtype) -> Tensor:
        """How far dx may be off because the number that kernels multiply x - mean by is subnormal: a step of it.

        dx = scale * (dxhat - mean(dxhat) - core * mean(dxhat * core)), in which x - mean is core / scale.
        """
        if not self.axes:
            return torch.zeros((), dtype=torch.float64)
        number = self.scale**2 * self._mean_over_real(keep)(dxhat.detach() * self.core).abs()
        apart = (self.core / self.scale).abs()
        is_small = (number > 0) & (number < torch.finfo(computed).smallest_normal) & apart.isfinite()
        return torch.where(is_small, contract.underflow(computed) * apart, 0.0)

    def _mean_over_real(self, keep: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The average over the real values that one statistic covers, for each element."""
        real = torch.ones_like(self.core) if keep is None else keep.expand(self.core.shape).double()

        def mean(v: Tensor) -> Tensor:
            parts = zip(self.split(v.expand(self.core.shape)), self.split(real), strict=True)
            total = lambda p: p.sum(self.axes, keepdim=True)  # noqa: E731
            return self.join([(total(p * k) / total(k).clamp(min=1)).expand(p.shape) for p, k in parts])

        return mean


def is_by_running(case: Case) -> bool:
    """Whether given statistics normalize: constants."""
    tracked = "running_mean" in case.tensors and "running_var" in case.tensors
    return case.norm == "frozen_batch_norm" or ("running" in NORMS[case.norm].takes and not case.training and tracked)


def of_small_factor(case: Case, s: Standard, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A step of the grid of subnormal numbers where weight * rstd is one of them, else 0.

    Kernels of channels multiply by the two as one number, which is rounded to the type that they compute in.
    """
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    factor = (weight * s.scale).abs()
    is_small = (factor > 0) & (factor < torch.finfo(computed).smallest_normal) & NORMS[case.norm].channels
    return torch.where(is_small, contract.underflow(computed), 0.0).double()


def of_rounded_mean(case: Case, s: Standard, x: Tensor, keep: Tensor | None, dtype: torch.dtype) -> Tensor:
    """How far xhat may be off because the mean is rounded to float64; of float64 all bounds know that."""
    if not s.axes or "rms" in case.norm or dtype == torch.float64:
        return torch.zeros((), dtype=torch.float64)
    seen = x.detach() if keep is None else torch.where(keep, x.detach(), 0)  # what a mask hides may be NaN
    return contract.centering_bound(seen, s.scale, 1.0)


def standardize(case: Case, x: Tensor, t: dict[str, Tensor], keep: Tensor | None, dtype: torch.dtype) -> Standard:
    """xhat: differentiable by x. dtype: of what is normalized, whose machine epsilon is the default eps of RMS norm."""
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    eps = eps if eval(case.eps) is None else float(eval(case.eps))
    lay = lambda p: p.reshape(1, -1, *[1] * (x.dim() - 2))  # noqa: E731
    if not NORMS[case.norm].channels:
        return _rows(case, x, eps, keep)
    if case.norm == "layer_norm_2d":
        xhat, _, var = reference.layer_norm_2d(x, None, None, eps, None if keep is None else keep.squeeze(1))
        return Standard(xhat, (var + eps).rsqrt().unsqueeze(1), (1,))
    if is_by_running(case):
        xhat = reference.batch_norm_inference(x, t["running_mean"], t["running_var"], None, None, eps, keep)
        return Standard(xhat, lay((t["running_var"] + eps).rsqrt()), ())
    if case.norm in ("group_norm", "instance_norm"):
        return _groups(x, case.part if case.norm == "group_norm" else x.shape[1], eps, keep)
    xhat, mean, var = reference.batch_norm(x, None, None, eps, keep)
    axes = (0, *range(2, x.dim()))
    values = math.prod((*x.shape[:1], *x.shape[2:]))  # of a channel, if there is any
    count = torch.tensor(values) if keep is None else keep.sum() * (x.shape[1] > 0)
    moving = {"mean": mean.detach(), "var": var.detach(), "count": count}
    if case.norm == "ghost_batch_norm":
        return _ghost(x, case.part, eps, keep, moving)
    if case.norm != "batch_renorm":
        return Standard(xhat, lay((var + eps).rsqrt()), axes, **moving)
    running = t["running_mean"], t["running_var"]
    r, d = reference.correction(mean, var, *running, eps, R_MAX, D_MAX)
    new = reference.batch_renorm(x, *running, None, None, eps, R_MAX, D_MAX, keep)[0]
    size = (xhat.detach() * lay(r)).abs() + lay(d).abs()
    return Standard(new, lay((var + eps).rsqrt() * r), axes, size, xhat.detach(), **moving)


def _rows(case: Case, x: Tensor, eps: float, keep: Tensor | None) -> Standard:
    ones, axes = [1] * case.part, tuple(range(x.dim() - case.part, x.dim()))
    lead = None if keep is None else keep.reshape(leading(case))
    shape = x.shape[x.dim() - case.part :]
    if "rms" in case.norm:
        xhat, spread = reference.rms_norm(x, shape, None, eps, lead)
    else:
        xhat, _, spread = reference.layer_norm(x, shape, None, None, eps, lead)
    return Standard(xhat, (spread + eps).rsqrt().reshape(*spread.shape, *ones), axes)


def _groups(x: Tensor, groups: int, eps: float, keep: Tensor | None) -> Standard:
    n, c = x.shape[:2]
    if not x.numel():
        nothing = torch.zeros(n, groups, dtype=x.dtype)
        return Standard(x * 1, torch.ones_like(x), (1,), mean=nothing, var=nothing, count=nothing)
    xhat, mean, var = reference.group_norm(x, groups, None, None, eps, keep)
    scale = (var + eps).rsqrt().repeat_interleave(c // max(1, groups), 1).reshape(n, c, *[1] * (x.dim() - 2))
    full = torch.ones(x[:, :1].shape) if keep is None else keep.double()
    count = full.flatten(1).sum(1, keepdim=True).expand(n, groups)
    return Standard(
        xhat, scale, (2,), split=lambda v: [v.reshape(n, groups, -1)], join=lambda parts: parts[0].reshape(x.shape),
        mean=mean.detach(), var=var.detach(), count=count,
    )  # fmt: skip


def _ghost(x: Tensor, longest: int, eps: float, keep: Tensor | None, moving: dict[str, Tensor]) -> Standard:
    sizes = reference.slice_sizes(len(x), longest)
    masks = [None] * len(sizes) if keep is None else list(keep.split(sizes))
    parts = [(p, *reference.batch_norm(p, None, None, eps, m)) for p, m in zip(x.split(sizes), masks, strict=True)]
    lay = lambda p, like: p.reshape(1, -1, *[1] * (x.dim() - 2)).expand(like.shape)  # noqa: E731
    scale = torch.cat([lay((var + eps).rsqrt(), p) for p, _, _, var in parts])
    return Standard(
        torch.cat([y for _, y, _, _ in parts]), scale, (0, *range(2, x.dim())), split=lambda v: list(v.split(sizes)),
        join=torch.cat, **moving,
    )  # fmt: skip


def moved(case: Case, tensors: dict[str, Tensor], s: Standard) -> dict[str, Pair]:
    """running_mean, running_var and batches after the call, with bounds."""
    old = {name: tensors[name].detach().double() for name in ("running_mean", "running_var")}
    still = {name: (value, torch.zeros(())) for name, value in old.items()}
    still["batches"] = (torch.zeros(()), torch.zeros(()))
    if is_by_running(case) or not case.training or s.mean is None or s.var is None or s.count is None:
        return still
    if s.mean.dim() == 2 and not s.xhat.numel():  # no sample has a value
        return still
    if case.momentum == "None" and not case.layer:
        return still
    mean, var, count = s.mean, s.var, s.count.double()
    if case.transform in ("vmap", "vmap_last", "vmap_grad") and s.mean.dim() == 1:
        count = count * 2  # the two samples of vmap, alike, merge
    unbiased = var * count / (count - 1)
    if s.mean.dim() == 2:
        enough = (count >= 2).double()
        samples = enough.sum(0).clamp(min=1)
        mean = torch.where(enough > 0, mean, 0).sum(0) / samples
        unbiased = torch.where(enough > 0, unbiased, 0).sum(0) / samples
        moves = bool(enough.any())
        spread = s.mean.abs().amax(0)
    else:
        moves, spread = bool(count >= 2), mean.abs()
    new = {"running_mean": mean, "running_var": unbiased}
    new = {name: value.reshape(old[name].shape) for name, value in new.items()}  # as many values, in any shape
    narrow = (torch.float16, torch.bfloat16) if case.layer else ()  # which a layer puts wider ones in the place of
    dtypes = {n: torch.float32 if tensors[n].dtype in narrow else tensors[n].dtype for n in new}
    if not moves or not all(bool(v.to(dtypes[n]).isfinite().all()) for n, v in new.items()):
        return still
    factor = 1.0 if case.momentum == "None" else float(eval(case.momentum))
    # the bounds hold up to this kappa = mean / std
    steep = (spread / unbiased.sqrt().clamp(min=1e-300) / contract.KAPPA_STATISTICS).clamp(min=1) ** 2
    error = {
        "running_mean": contract.mean_bound(spread, unbiased),
        "running_var": contract.variance_bound(unbiased) * steep,
    }
    found = {"batches": (torch.ones(()), torch.zeros(()))}
    for name, value in new.items():
        expected = (1 - factor) * old[name] + factor * value
        u = contract.unit_roundoff(dtypes[name])
        parts = abs(1 - factor) * old[name].abs() + abs(factor) * value.abs()
        rest = 4 * contract.unit_roundoff(torch.float64) * old[name].abs()  # old + factor * (new - old), in float64
        found[name] = expected, abs(factor) * error[name].reshape(value.shape) + 4 * u * parts + rest
    return found
