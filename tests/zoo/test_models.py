"""Models of torchvision and timm built with our norms: the same outputs, gradients and state_dicts as with torch's.

float64, so that the depth of a network leaves the tolerance far above rounding and far below any real difference.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.surgery.foreign import timm_model, torchvision_model
from tests.zoo.replace import count_ours, replaced_norms

# name -> (how to make it, shape of the input, norms of ours in it)
MODELS: dict[str, tuple[Callable[[str], nn.Module], tuple[int, ...], int]] = {
    "resnet18": (torchvision_model, (2, 3, 33, 33), 20),
    "mobilenet_v3_small": (torchvision_model, (2, 3, 32, 32), 34),
    "convnext_tiny": (torchvision_model, (2, 3, 32, 32), 18),  # LayerNorm; its LayerNorm2d is a class of its own
    "resnet50": (torchvision_model, (2, 3, 64, 64), 53),
    "densenet121": (torchvision_model, (2, 3, 64, 64), 121),
    "shufflenet_v2_x0_5": (torchvision_model, (2, 3, 64, 64), 56),
    "regnet_y_400mf": (torchvision_model, (2, 3, 64, 64), 53),
    "vit_b_16": (torchvision_model, (1, 3, 224, 224), 25),
    "swin_t": (torchvision_model, (1, 3, 64, 64), 29),
    "video.r3d_18": (torchvision_model, (2, 3, 4, 24, 24), 20),
    "segmentation.fcn_resnet50": (torchvision_model, (2, 3, 64, 64), 54),
    "resnet26": (timm_model, (2, 3, 64, 64), 29),
    "levit_128s": (timm_model, (2, 3, 224, 224), 52),
    "mixer_s32_224": (timm_model, (1, 3, 224, 224), 17),
}
# batch norm with residuals and with SE blocks, layer norm in a convnet: the others repeat these at length
QUICK = ("resnet18", "mobilenet_v3_small", "convnext_tiny")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.nightly) for name in MODELS]
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own deprecations are not what is tested


def built(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """(with torch's norms, with ours, an input); each built from the same seed."""
    make, shape, _ = MODELS[name]
    torch.manual_seed(0)
    theirs = make(name).double()
    torch.manual_seed(0)
    with replaced_norms():
        ours = make(name).double()
    return theirs, ours, torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output, the gradients of all parameters and the buffers after one step in training mode."""
    torch.manual_seed(2)  # dropout and stochastic depth
    y = model.train()(x)
    y = y["out"] if isinstance(y, dict) else y
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    gradients = {f"grad of {k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
    return {"output": y.detach(), **gradients, **{k: b.clone() for k, b in model.named_buffers()}}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_with_our_norms_is_the_same_model(name: str) -> None:
    theirs, ours, x = built(name)
    assert count_ours(ours) == MODELS[name][2]
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    assert all(torch.equal(mine[key], other[key]) for key in other)

    found, expected = step(ours, x), step(theirs, x)
    assert list(found) == list(expected)
    for key, value in expected.items():
        # 1e-9 of the largest value: a hundred layers, each amplifying a float64 rounding by a small factor
        scale = float(value.abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(
            found[key], value, rtol=1e-7, atol=1e-9 * max(scale, 1.0), msg=lambda m, k=key: f"{k}: {m}"
        )
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        y, z = ours.eval()(x), theirs.eval()(x)
    y, z = (t["out"] if isinstance(t, dict) else t for t in (y, z))
    torch.testing.assert_close(y, z, rtol=1e-7, atol=1e-9 * max(float(z.abs().max()), 1.0))
