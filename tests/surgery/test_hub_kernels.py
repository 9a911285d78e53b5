"""The forward that `kernels.kernelize` puts into classes of one name: each gives what it gave."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.model.row_norm import AFTER, BEFORE
from normkit.model.row_probe import row_norm_of
from normkit.surgery import hub_kernels

from . import foreign_norms as foreign
from .transformers_models import inputs_of, model_of

pytestmark = pytest.mark.filterwarnings("ignore")  # what the libraries say of themselves
HALF = (torch.bfloat16, torch.float16)
CLASSES: dict[str, tuple[Any, str]] = {
    "cast, then weight": (lambda: foreign.CastThenWeight(48), AFTER),
    "weight, then cast": (lambda: foreign.WeightThenCast(48, 1e-5), BEFORE),
    "1 + weight": (lambda: foreign.OnePlus(48), BEFORE),
}


def exchanged(module: nn.Module) -> nn.Module:
    """As `kernelize` does it."""
    layer = nk.hub_mapping()["RMSNorm"]["cpu"].load()
    other = copy.deepcopy(module)
    other.forward = MethodType(layer.forward, other)  # type: ignore[method-assign]  # that is how
    return other


def stirred(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return module


def rows(dtype: torch.dtype) -> Tensor:
    return torch.randn(64, 16, 48, generator=torch.Generator().manual_seed(3)).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_the_order_of_weight_and_cast_is_the_classes(name: str, dtype: torch.dtype) -> None:
    make, cast = CLASSES[name]
    module = stirred(make()).to(dtype)
    fast, x = exchanged(module), rows(dtype)
    slope = torch.randn(x.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    ours, theirs = fast(x), module(x)
    assert fast.__dict__[hub_kernels._KNOWN].row.casts[dtype, dtype] in (cast, BEFORE)
    tolerance = 3e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * 1e-2)
    if dtype != torch.float32:
        assert float((ours == theirs).float().mean()) >= 0.999
    for a, b, of in zip(
        torch.autograd.grad(ours, [x, *fast.parameters()], slope),
        torch.autograd.grad(theirs, [x, *module.parameters()], slope),
        ("x", "weight"),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=max(tolerance, 1e-5), atol=1e-2 * float(b.abs().max()), msg=of)


def test_a_class_that_computes_something_else_runs_its_own_forward() -> None:
    class Scaled(foreign.CastThenWeight):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x).tanh()

    module = Scaled(48)
    fast, x = exchanged(module), rows(torch.float32)
    assert torch.equal(fast(x), module(x))
    assert "neither RMS nor layer norm" in fast.__dict__[hub_kernels._KNOWN]


def test_what_is_not_known_of_a_call_goes_to_the_class() -> None:
    module = stirred(foreign.CastThenWeight(48))
    fast, x = exchanged(module), rows(torch.float64)
    assert torch.equal(fast(x), module(x))


def test_a_copy_computes_with_its_own_weight() -> None:
    fast, x = exchanged(foreign.CastThenWeight(48)), rows(torch.float32)
    before = fast(x)
    other = copy.deepcopy(fast)
    with torch.no_grad():
        other.weight.mul_(2)
    torch.testing.assert_close(other(x), 2 * before)
    assert torch.equal(fast(x), before)


def test_repositories_are_one_to_who_remembers_them() -> None:
    one, other = (nk.hub_mapping()["RMSNorm"]["cpu"] for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != "RMSNorm"


def test_surgery_knows_that_the_kernels_are_in_use() -> None:
    assert row_norm_of(exchanged(foreign.CastThenWeight(48))) == "it calls normkit's kernels already"


@pytest.mark.parametrize("name", ["Llama", "Olmo2", "Qwen3"])
def test_kernelize(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("kernels", reason="Hugging Face's kernels is not installed")
    model, inputs = model_of(name), inputs_of(name)
    for kind in {type(module) for module in model.modules() if "RMSNorm" in type(module).__name__}:
        # what transformers' decorator does, where it takes the version of kernels that is installed
        monkeypatch.setattr(kind, "kernel_layer_name", "RMSNorm", raising=False)
        monkeypatch.setattr(kind, "kernel_condition", staticmethod(lambda module: True), raising=False)
    with kernels.use_kernel_mapping(nk.hub_mapping()):
        fast = kernels.kernelize(copy.deepcopy(model), mode=kernels.Mode.TRAINING, device="cpu")
    used = [module for module in fast.modules() if "RMSNorm" in type(module).__name__]
    theirs, ours = model(**inputs).logits, fast(**inputs).logits
    assert used
    assert all(hub_kernels._KNOWN in module.__dict__ for module in used)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
