"""`accelerate` on models of transformers: every norm runs on the kernels, and nothing else is different."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.model.families import is_ours
from normkit.surgery.row_norms import installed

from .transformers_models import MODELS, inputs_of, model_of

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of itself
models = pytest.mark.parametrize("name", MODELS)
HALF = (torch.bfloat16, torch.float16)
# how the norms are written: cast then weight, gated; 1 + weight; weight then cast; no weight; torch's own classes
KINDS = ("Llama", "Mamba2", "Gemma3", "Olmo2", "Olmo", "T5", "Cohere", "Whisper")


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """Those that the library's names tell; a block with "Norm" in its name holds other modules, and torch's
    parametrization `_WeightNorm` is none."""
    return {
        name: module
        for name, module in model.named_modules()
        if "Norm" in (kind := type(module).__name__)
        and not kind.startswith("_")
        and not any(True for _ in module.children())
    }


def first(result: Any) -> Tensor:
    """The main output."""
    return next(iter(result.values()))


def gradients(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradient of each parameter that has one."""
    y = first(model(**inputs))
    slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    found = torch.autograd.grad(y, parameters, slope, allow_unused=True)
    return y.detach(), {n: g for n, g in zip(names, found, strict=True) if g is not None}


@models
def test_every_norm_is_replaced_and_the_model_stays_the_same(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    fast = nk.accelerate(model, inputs)
    named = norms(model)
    assert Counter(entry.action for entry in nk.changes(fast)) == {"replaced": len(named)}
    assert all(is_ours(module) or installed(module) for module in norms(fast).values())
    assert list(fast.state_dict()) == list(model.state_dict())
    y, theirs = gradients(model, inputs)
    other, ours = gradients(fast, inputs)
    torch.testing.assert_close(other, y, rtol=1e-4, atol=1e-5 * float(y.abs().max()))
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, rtol=1e-3, atol=2e-5 * largest, msg=key)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", HALF)
def test_each_norm_of_a_half_precision_model_gives_what_it_gave(name: str, dtype: torch.dtype) -> None:
    """Fed with what the model feeds it; a whole model turns one rounding into many."""
    model, inputs = model_of(name).to(dtype), inputs_of(name)
    inputs = {key: t.to(dtype) if t.is_floating_point() else t for key, t in inputs.items()}
    fast = nk.accelerate(model, inputs)
    calls: dict[str, tuple[Any, Tensor]] = {}
    for key, module in norms(model).items():
        module.register_forward_hook(lambda _, given, y, key=key: calls.update({key: (given, y)}))
    with torch.no_grad():
        model(**inputs)
        assert calls
        assert not nk.changes(fast).kept
        for key, (given, theirs) in calls.items():
            ours = fast.get_submodule(key)(*given)
            assert ours.dtype == theirs.dtype
            gap = (ours.float() - theirs.float()).abs()
            assert bool((gap <= 2 * torch.finfo(dtype).eps * theirs.float().abs() + 1e-7).all()), key
            assert int((gap > 0).sum()) <= max(1, 0.001 * gap.numel()), key


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma3", "T5"])
def test_generation(name: str) -> None:
    model, tokens = model_of(name, use_cache=True), inputs_of(name)["input_ids"]
    fast = nk.accelerate(model, inputs_of(name))
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    assert torch.equal(fast.generate(tokens, **options), model.generate(tokens, **options))


@pytest.mark.parametrize("name", ["Llama", "Gemma", "T5"])
def test_a_saved_model_is_loaded_by_the_class(name: str, tmp_path: Path) -> None:
    model, inputs = model_of(name), inputs_of(name)
    fast = nk.accelerate(model, inputs)
    fast.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert not any(map(installed, again.modules()))
    assert all(torch.equal(t, again.state_dict()[key]) for key, t in model.state_dict().items())
    torch.testing.assert_close(first(again(**inputs)), first(fast(**inputs)), rtol=1e-4, atol=1e-5)


def test_training_with_checkpoints_under_autocast() -> None:
    model, inputs = model_of("Llama"), inputs_of("Llama")
    fast = nk.accelerate(model, inputs)
    losses = []
    for one in (model, fast):
        one.train().gradient_checkpointing_enable()
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                loss = one(**inputs, labels=inputs["input_ids"]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    assert losses[1] < 4.5


def test_tied_embeddings_and_a_copy() -> None:
    model, inputs = model_of("Llama", tie_word_embeddings=True), inputs_of("Llama")
    fast = copy.deepcopy(nk.accelerate(model, inputs))
    assert fast.lm_head.weight is fast.model.embed_tokens.weight
    torch.testing.assert_close(first(fast(**inputs)), first(model(**inputs)), rtol=1e-4, atol=1e-5)


def test_a_class_whose_forward_another_library_replaced_is_kept() -> None:
    model, inputs = model_of("Llama"), inputs_of("Llama")
    norm = model.model.norm
    norm.forward = norm.forward
    entry = nk.changes(nk.accelerate(model, inputs))["model.norm"]
    assert (entry.action, entry.reason.rpartition(": ")[2]) == ("kept", "its forward was replaced on the instance")


def test_compiled() -> None:
    model, inputs = model_of("Llama"), inputs_of("Llama")
    fast = torch.compile(nk.accelerate(model, inputs), backend="aot_eager")
    torch.testing.assert_close(first(fast(**inputs)), first(model(**inputs)), rtol=1e-4, atol=1e-5)
