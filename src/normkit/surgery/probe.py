"""What a layer that is not exactly torch's or ours computes, found out with numbers instead of by its name.

Rules: a probe runs on a copy with parameters and inputs of its own, so nothing hangs on the values that the layer
holds, and its random state is its own. It compares outputs, the gradients of input and parameters, and every buffer
afterwards, for two batch sizes. What a probe cannot show is refused with a reason.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._torch import METHODS, has_own_forward, why_own_forward
from ..model.families import BATCH_FAMILIES, SWITCHES, author_of_forward, channels, eps, family, own_method, rank
from .across_ranks import reads_ranks

# Both sides compute the same formula in float32 with values of order one; the error is some tens of roundings (6e-8),
# in gradients of weights summed over up to 7 * 27 positions.
_TOLERANCE = 1e-4
_BATCHES = (4, 7)
_OVER_CHANNELS = (
    "a subclass with a forward of its own: a layer norm over the channels of (N, C, L), which is no layer here"
)
_OTHER_STATISTICS = "a subclass whose outputs are the norm's and whose running statistics are not"


@dataclass(frozen=True)
class Structure:
    """A layer is activation(norm(x)); `activation` is None, a name of torch.nn.functional, or a module. family: which
    norm, where the class does not say so."""

    activation: str | nn.Module | None
    family: str | None = None


def structure(norm: nn.Module, modes: tuple[bool, ...] = (False, True)) -> Structure | str:
    """How the layer is made of its family's norm and an activation, or the reason why that is not known.

    modes: the values of `training` for which it must hold.
    """
    if has_own_forward(norm):
        return why_own_forward(norm)
    frozen = family(norm) == "frozen"  # by a switch of its own, it may be
    method = own_method(norm, [name for name in METHODS if not (frozen and name in SWITCHES)])
    if method is not None:
        return f"a subclass with a {method}() of its own, which no other layer has"
    if author_of_forward(norm) == "normkit":
        return Structure(norm.activation)  # type: ignore[arg-type]  # every layer of normkit.nn has it
    if author_of_forward(norm) == "torch":
        return Structure(None)
    more = list(inspect.signature(type(norm).forward).parameters)[2:]
    if more:
        return f"a subclass whose forward takes more than its input ({', '.join(more)})"
    found: Structure | str = ""
    for kind in _kinds(norm):
        try:
            with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
                found = _probed(norm, kind, modes)
        except Exception as error:
            found = found or f"a subclass with a forward of its own, which fails on a probe ({_shown(error)})"
        if isinstance(found, Structure):
            return found
    return _OVER_CHANNELS if _centres_sequences(norm) else found


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _kinds(norm: nn.Module) -> tuple[str, ...]:
    """The families that it may be; a layer norm of one axis may have it in front of two others."""
    kind = str(family(norm))
    one = kind == "layer" and len(norm.normalized_shape) == 1  # type: ignore[arg-type]  # every layer norm has it
    return ("layer", "layer2d") if one else (kind,)


def _probed(norm: nn.Module, kind: str, modes: tuple[bool, ...]) -> Structure | str:
    if kind in BATCH_FAMILIES and True in modes and reads_ranks(norm):
        return "a subclass with a forward of its own that asks about other processes, which a probe in one cannot show"
    if kind != family(norm) and _takes_last_axis(norm):
        return "a subclass with a forward of its own that normalizes other axes for other ranks"
    for training in modes:
        for shape in _shapes(norm, kind):
            refusal = _differs(_prepared(norm, training), kind, shape)
            if refusal is not None:
                return refusal
    steps = [child for child in norm.children() if not isinstance(child, nn.Identity)]
    activation = nn.Sequential(*steps) if len(steps) > 1 else steps[0] if steps else None
    return Structure(activation, None if kind == family(norm) else kind)


def _takes_last_axis(norm: Any) -> bool:
    """Whether it is the layer norm of its class on tokens, whatever it is on images."""
    try:
        return _differs(_prepared(norm, False), "layer", (4, 3, *norm.normalized_shape)) is None
    except Exception:
        return False


def _centres_sequences(norm: Any) -> bool:
    """Whether it is a layer norm over axis 1 of (N, C, L), as SqueezeBERT's."""
    if "layer" not in _kinds(norm):
        return False
    (channels,) = norm.normalized_shape if len(norm.normalized_shape) == 1 else (0,)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            return channels > 0 and _differs(_prepared(norm, False), "layer2d", (4, channels, channels + 2)) is None
    except Exception:
        return False


def _shapes(norm: Any, kind: str) -> Iterator[tuple[int, ...]]:
    """(N, C, 3, ...), or what ends with the normalized axes, after one axis or two."""
    for count, batch in enumerate(_BATCHES):
        if kind in ("layer", "rms"):
            yield (batch, *[3] * (count + 1), *norm.normalized_shape)
        else:
            spatial = 2 if rank(norm) is None else rank(norm)
            yield (batch, channels(norm), *[3] * (spatial or 0))


def _prepared(norm: nn.Module, training: bool) -> Any:
    """A float32 copy with parameters and statistics of order one, whose momentum is not zero for a while."""
    probe: Any = copy.deepcopy(norm).float().cpu().train(training)
    random = torch.Generator().manual_seed(0)
    for tensor in (*probe.parameters(recurse=False), *probe.buffers(recurse=False)):
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
    for parameter in probe.parameters():
        parameter.requires_grad_()
    if isinstance(getattr(probe, "momentum", None), float):
        probe.momentum = 0.3
    return probe


def _differs(probe: Any, kind: str, shape: tuple[int, ...]) -> str | None:
    """Why the layer is not its family's norm and an activation on an input of this shape, or None."""
    reference = _Reference(probe, kind)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected = reference(x)
    for step in [child for child in probe.children() if not isinstance(child, nn.Identity)]:
        expected = step(expected)
    given = probe.forward(x.clone())  # which it may change in place
    if given.shape != expected.shape or not _same([given], [expected]):
        return "a subclass with a forward of its own that is not an activation of the norm"
    own = [
        parameter for parameter in (probe._parameters.get(name) for name in ("weight", "bias")) if parameter is not None
    ]
    slope = torch.linspace(-1, 1, x.numel()).view(shape)
    ours = torch.autograd.grad(expected, [x, *reference.parameters], slope, allow_unused=True)
    theirs = torch.autograd.grad(given, [x, *own], slope, allow_unused=True)
    if not _same(theirs, ours):
        return "a subclass with a forward of its own whose gradients are not the norm's"
    return (
        None
        if _same([probe._buffers.get(name) for name in reference.buffers], reference.buffers.values())
        else _OTHER_STATISTICS
    )


def _same(these: Any, those: Any) -> bool:
    return all(
        (a is None and b is None)
        or (a is not None and b is not None and torch.allclose(a.float(), b.float(), rtol=_TOLERANCE, atol=_TOLERANCE))
        for a, b in zip(these, those, strict=True)
    )


class _Reference:
    """torch's norm of this family on copies of a layer's tensors. buffers: what they are after its calls."""

    def __init__(self, norm: Any, kind: str) -> None:
        self.norm, self.kind = norm, kind
        self.weight, self.bias = (self._copy(name) for name in ("weight", "bias"))
        self.parameters = [t for t in (self.weight, self.bias) if t is not None and t.requires_grad]
        self.buffers = {name: t.clone() for name, t in norm._buffers.items() if t is not None}

    def _copy(self, name: str) -> Tensor | None:
        tensor = getattr(self.norm, name, None)
        if tensor is None:
            return None
        return tensor.detach().clone().requires_grad_(name in self.norm._parameters)

    def __call__(self, x: Tensor) -> Tensor:
        kind, norm, weight, bias = self.kind, self.norm, self.weight, self.bias
        if kind in BATCH_FAMILIES or kind == "instance":
            return self._by_statistics(x)
        if kind == "group":
            return F.group_norm(x, norm.num_groups, weight, bias, norm.eps)
        if kind == "layer2d":
            return F.layer_norm(x.movedim(1, -1), norm.normalized_shape, weight, bias, norm.eps).movedim(-1, 1)
        if kind == "layer":
            return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
        return F.rms_norm(x, norm.normalized_shape, weight, norm.eps)

    def _by_statistics(self, x: Tensor) -> Tensor:
        mean, var, batches = (self.buffers.get(n) for n in ("running_mean", "running_var", "num_batches_tracked"))
        moves = self.norm.training and self.kind != "frozen"
        momentum = getattr(self.norm, "momentum", 0.0)
        if moves and batches is not None:
            batches += 1
            momentum = 1 / float(batches) if momentum is None else momentum
        own = moves or mean is None  # the statistics of what it is given
        if self.kind == "instance":
            return F.instance_norm(x, mean, var, self.weight, self.bias, own, momentum, self.norm.eps)
        return F.batch_norm(x, mean, var, self.weight, self.bias, own, momentum or 0.0, eps(self.norm))
