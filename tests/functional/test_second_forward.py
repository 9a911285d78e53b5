"""An activation checkpoint's second forward on tensors of other strides, as hooks around it gave its inputs back: it
saves what the first one did, and the gradients are those of a plain run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import normkit as nk
from tests.kernels.native_isa import needs_native

pytestmark = needs_native
F = nk.functional
SHAPE = N, C, H, W = (4, 6, 2, 5)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def evaluated(layer: Callable[..., torch.nn.Module]) -> torch.nn.Module:
    made = layer(C, eps=3e-4, affine=False).eval()
    made.running_mean.copy_(normal(C, seed=7))
    made.running_var.copy_(normal(C, seed=8).square() + 0.5)
    return made


Norm = Callable[..., Tensor]
CHANNELS: dict[str, Norm] = {
    "batch": partial(F.batch_norm, running_mean=None, running_var=None, training=True, eps=3e-4),
    "evaluation": evaluated(nk.BatchNorm2d),
    "synchronised evaluation": evaluated(nk.SyncBatchNorm),
    "ghost": partial(F.ghost_batch_norm, running_mean=None, running_var=None, training=True, virtual_batch_size=2),
    "group": partial(F.group_norm, num_groups=2, eps=3e-4),
    "instance": partial(F.instance_norm, eps=3e-4),
    "instance, running": partial(F.instance_norm, running_mean=torch.zeros(C), running_var=torch.ones(C), eps=3e-4),
}
ROWS: dict[str, Norm] = {
    "layer": partial(F.layer_norm, normalized_shape=(W,), eps=3e-4),
    "rms": partial(F.rms_norm, normalized_shape=(W,), eps=3e-4),
    "layer of channels": nk.LayerNorm2d(C, eps=3e-4, elementwise_affine=False),
}


def mask() -> Tensor:
    return torch.rand(N, H, W, generator=torch.Generator().manual_seed(3)) < 0.7


def vectors(name: str) -> tuple[Tensor, Tensor]:
    """What a modulation has for each sample."""
    width = W if name in ("layer", "rms") else C
    return normal(N, width, seed=4), normal(N, width, seed=5)


# How a norm is called: with these beside x, given the name of the norm; and by these words.
CALLS: dict[str, tuple[Callable[[str], dict[str, Tensor]], dict[str, Any]]] = {
    "alone": (lambda name: {}, {}),
    "modulated": (lambda name: dict(zip(("scale", "shift"), vectors(name), strict=True)), {}),
    "shifted": (lambda name: {"shift": vectors(name)[1]}, {}),
    "scaled, activated": (lambda name: {"scale": vectors(name)[0]}, {"activation": "silu"}),
    "by element": (lambda name: {"scale": normal(*SHAPE, seed=4), "shift": normal(*SHAPE, seed=5)}, {}),
    "by element, activated": (
        lambda name: {"scale": normal(*SHAPE, seed=4), "shift": normal(*SHAPE, seed=5)}, {"activation": "silu"},
    ),
    "residual": (lambda name: {"residual": normal(*SHAPE, seed=6)}, {"activation": "silu"}),
    "bits": (lambda name: {"residual": normal(*SHAPE, seed=6)}, {"activation": "relu"}),
    "modulated bits": (
        lambda name: {"residual": normal(*SHAPE, seed=6), "scale": vectors(name)[0]}, {"activation": "relu"},
    ),
    "masked": (lambda name: {}, {"mask": mask(), "activation": "relu"}),
    "masked bits": (lambda name: {"residual": normal(*SHAPE, seed=6)}, {"mask": mask(), "activation": "relu"}),
    "masked, modulated": (lambda name: {"scale": vectors(name)[0]}, {"mask": mask()}),
}  # fmt: skip
CASES = [(name, call) for name in CHANNELS for call in CALLS] + [
    (name, call) for name in ROWS for call in CALLS if "bits" not in call and "residual" not in call
    if "masked" not in call or name == "layer of channels"
]  # fmt: skip
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "neither": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
}


@pytest.mark.parametrize(("first", "second"), list(permutations(LAYOUTS, 2)))
@pytest.mark.parametrize(("name", "call"), CASES, ids=["-".join(case) for case in CASES])
def test_no_strides_decide_what_is_saved(name: str, call: str, first: str, second: str) -> None:
    norm, (beside, words) = {**CHANNELS, **ROWS}[name], CALLS[call]
    tensors = {"x": normal(*SHAPE, seed=1), **beside(name)}
    leaves = [LAYOUTS[first](t).requires_grad_() for t in tensors.values()]
    dy = LAYOUTS[first](normal(*SHAPE, seed=2))

    def block(x: Tensor, *others: Tensor) -> Tensor:
        given: dict[str, Any] = dict(zip(beside(name), others, strict=True))
        if "scale" in given or "shift" in given:
            given["modulate"] = given.pop("scale", None), given.pop("shift", None)
        return norm(x, **given, **words)

    expected = torch.autograd.grad(block(*leaves), leaves, dy)
    with saved_tensors_hooks(Tensor.detach, LAYOUTS[second]):
        y = checkpoint(block, *leaves, use_reentrant=False)
    assert y.stride() == block(*leaves).stride()
    torch.testing.assert_close(torch.autograd.grad(y, leaves, dy), expected, rtol=1e-5, atol=1e-5)
