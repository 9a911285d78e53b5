"""The norms: how each is called in normkit and in torch, which tensors it takes, and over which axes it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from normkit._torch import takes_bias

from .case import Case


@dataclass(frozen=True)
class Norm:
    """One norm. A layer's `part` is its number of spatial axes, where it counts nothing else.

    function, torch: texts of the call in normkit and in torch ("" where there is none); {part}, {training}, {eps},
    {momentum} are filled in. layer: the same for the constructor; {d} is the number of spatial axes. channels: whether
    weight and bias belong to axis 1 (else to the last axes). takes: which of bias, running, residual, mask it takes.
    """

    function: str
    torch: str
    layer: str = ""
    torch_layer: str = ""
    channels: bool = True
    takes: frozenset[str] = frozenset({"bias", "residual", "mask"})
    part: bool = False


_FUNCTION = "nk.functional.{name}(x, running_mean, running_var, weight, bias, {{training}}, {{momentum}}, {{eps}}"
_TRACKED = "(C, eps={eps}, momentum={momentum}, affine={affine}, track_running_stats={tracked}, bias={biased}"
# torch 2.10 and older have layers of batch and group norm without bias=: theirs is then 0
_BIASED = ", bias={biased}" if takes_bias(nn.GroupNorm.__init__) else ""
_TORCH_TRACKED = _TRACKED.removesuffix(", bias={biased}") + _BIASED
_BATCH = frozenset({"bias", "running", "residual", "mask"})
_ROWS = "(x, x.shape[{first}:], weight, "

NORMS: dict[str, Norm] = {
    "batch_norm": Norm(
        _FUNCTION.format(name="batch_norm"),
        "F.batch_norm(x, running_mean, running_var, weight, bias, {training}, {momentum}, {eps})",
        "nk.BatchNorm{d}d" + _TRACKED, "nn.BatchNorm{d}d" + _TORCH_TRACKED, takes=_BATCH),
    "group_norm": Norm(
        "nk.functional.group_norm(x, {part}, weight, bias, {eps}", "F.group_norm(x, {part}, weight, bias, {eps})",
        "nk.GroupNorm({part}, C, eps={eps}, affine={affine}, bias={biased}",
        "nn.GroupNorm({part}, C, eps={eps}, affine={affine}" + _BIASED, part=True),
    "layer_norm": Norm(
        "nk.functional.layer_norm" + _ROWS + "bias, {eps}", "F.layer_norm" + _ROWS + "bias, {eps})",
        "nk.LayerNorm(x.shape[{first}:], eps={eps}, elementwise_affine={affine}, bias={biased}",
        "nn.LayerNorm(x.shape[{first}:], eps={eps}, elementwise_affine={affine}, bias={biased}",
        channels=False, takes=frozenset({"bias", "mask"}), part=True),
    "rms_norm": Norm(
        "nk.functional.rms_norm" + _ROWS + "{eps}", "F.rms_norm" + _ROWS + "{eps})",
        "nk.RMSNorm(x.shape[{first}:], eps={eps}, elementwise_affine={affine}",
        "nn.RMSNorm(x.shape[{first}:], eps={eps}, elementwise_affine={affine}",
        channels=False, takes=frozenset({"mask"}), part=True),
    "instance_norm": Norm(
        _FUNCTION.format(name="instance_norm"),
        "F.instance_norm(x, running_mean, running_var, weight, bias, {training}, {momentum}, {eps})",
        "nk.InstanceNorm{d}d" + _TRACKED, "nn.InstanceNorm{d}d" + _TORCH_TRACKED, takes=_BATCH),
    "layer_norm_2d": Norm(
        "", "F.layer_norm(x.movedim(1, -1), (C,), weight, bias, {eps}).movedim(-1, 1)",
        "nk.LayerNorm2d(C, eps={eps}, elementwise_affine={affine}, bias={biased}",
        takes=frozenset({"bias", "mask"})),
    "ghost_batch_norm": Norm(
        _FUNCTION.format(name="ghost_batch_norm") + ", virtual_batch_size={part}", "",
        "nk.GhostBatchNorm{d}d" + _TRACKED + ", virtual_batch_size={part}", "", takes=_BATCH, part=True),
    "batch_renorm": Norm(
        _FUNCTION.format(name="batch_renorm") + ", r_max=1.5, d_max=0.5", "",
        "nk.BatchRenorm{d}d" + _TRACKED + ", r_max=1.5, d_max=0.5, warm_up=(0, 0, 0)", "", takes=_BATCH),
    "frozen_batch_norm": Norm(
        "", "F.batch_norm(x, running_mean, running_var, weight, bias, False, 0.0, {eps})",
        "nk.FrozenBatchNorm{d}d(C, eps={eps}", takes=_BATCH),
    "sync_batch_norm": Norm(  # torch's own is for GPUs
        "", "", "nk.SyncBatchNorm" + _TRACKED, "nn.BatchNorm{d}d" + _TORCH_TRACKED, takes=_BATCH),
    "add_layer_norm": Norm(
        "nk.functional.add_layer_norm(x, residual, x.shape[{first}:], weight, bias, {eps}",
        "F.layer_norm(x + residual, x.shape[{first}:], weight, bias, {eps})",
        channels=False, takes=frozenset({"bias", "mask", "residual"}), part=True),
    "add_rms_norm": Norm(
        "nk.functional.add_rms_norm(x, residual, x.shape[{first}:], weight, {eps}",
        "F.rms_norm(x + residual, x.shape[{first}:], weight, {eps})",
        channels=False, takes=frozenset({"mask", "residual"}), part=True),
    "normalize": Norm(
        "nk.functional.normalize(x, nk.Moments.of(x, (0, *range(2, x.dim()))), weight, bias, {eps}", "",
        takes=frozenset({"bias"})),
}  # fmt: skip

RANKED = frozenset({"batch_norm", "instance_norm", "ghost_batch_norm", "batch_renorm", "frozen_batch_norm"})


def parameter_shape(case: Case) -> tuple[int, ...]:
    """The shape of weight and bias."""
    if NORMS[case.norm].channels:
        return (channels(case),)
    return case.shape[len(case.shape) - case.part :]


def channels(case: Case) -> int:
    """C."""
    if is_unbatched(case):
        return case.shape[0]
    return case.shape[1] if len(case.shape) > 1 else 1


def is_unbatched(case: Case) -> bool:
    """Whether an instance norm layer sees one sample without a batch axis; `part` is its number of spatial axes."""
    return case.norm == "instance_norm" and case.layer and len(case.shape) == case.part + 1


def leading(case: Case) -> tuple[int, ...]:
    """The shape of a mask: one value a position."""
    if not NORMS[case.norm].channels:
        return case.shape[: len(case.shape) - case.part]
    return case.shape[1:] if is_unbatched(case) else (case.shape[:1] + case.shape[2:])


_CALL: Callable[[Case], dict[str, object]] = lambda case: {  # noqa: E731
    "part": case.part,
    "first": -case.part,
    "training": case.training,
    "eps": case.eps,
    "momentum": case.momentum,
    "d": max(1, case.part) if case.norm in RANKED - {"ghost_batch_norm"} else max(1, len(case.shape) - 2),
    "affine": "weight" in case.tensors or "bias" in case.tensors,
    "biased": "bias" in case.tensors,
    "tracked": "running_mean" in case.tensors,
}


def filled(text: str, case: Case) -> str:
    """A call's text with the case's numbers in it."""
    return text.format(**_CALL(case))
