"""`accelerate` on models of transformers: every norm runs on the kernels, and nothing else is different."""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.model.families import is_ours
from normkit.surgery import added_call
from normkit.surgery.rewritten import RewrittenForward
from normkit.surgery.row_norms import installed

from .foreign import library
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


# the norms behind an addition of the same forward: in each layer of the model
PAIRS = {
    "Llama": ("post_attention_layernorm",),
    "Qwen3": ("post_attention_layernorm",),
    "Mistral": ("post_attention_layernorm",),
    "Gemma2": ("pre_feedforward_layernorm",),
    "DeepseekV3": ("post_attention_layernorm",),
    "GPT2": ("ln_2",),
    "ViT": ("layernorm_after",),
    "DINOv2": ("norm2",),
    "Bert": ("attention.output.LayerNorm", "output.LayerNorm"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_an_addition_in_front_of_a_norm_is_made_with_it(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    fast = nk.accelerate(model, inputs)
    fused = [entry.name for entry in nk.changes(fast) if "fused with the addition in front of it" in entry.reason]
    assert len(fused) == 2 * len(PAIRS[name])  # of two layers
    assert all(any(entry.endswith(f".{i}.{norm}") for norm in PAIRS[name] for i in (0, 1)) for entry in fused)
    alone = copy.deepcopy(fast)
    for module in alone.modules():
        if isinstance(module.__dict__.get("forward"), RewrittenForward):
            del module.__dict__["forward"]
    for dtype in (torch.float32, torch.bfloat16):
        given = {key: t.to(dtype) if t.is_floating_point() else t for key, t in inputs.items()}
        y, theirs = gradients(alone.to(dtype), given)
        other, ours = gradients(fast.to(dtype), given)
        assert torch.equal(other, y)
        assert ours.keys() == theirs.keys()
        for key, gradient in theirs.items():  # what many readers add up is added in another order
            tolerance = 1e-5 if dtype == torch.float32 else 0.1
            torch.testing.assert_close(
                ours[key], gradient, rtol=tolerance, atol=tolerance * float(gradient.abs().max()), msg=key
            )


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


# Classes that cast their input once: what their gradients are rounded to is known. T5's casts twice, and rounds its
# input's gradient twice; torch's own layer norm rounds its gradients' sums in between: ours are nearer to the truth.
ONCE = ("Llama", "Qwen3", "Gemma3", "Olmo2", "Olmo", "Cohere", "Mamba2")
MORE_OFTEN = ("T5", "Whisper")


@pytest.mark.parametrize("name", [*ONCE, *MORE_OFTEN])
@pytest.mark.parametrize("dtype", HALF)
def test_each_norm_of_a_half_precision_model_has_the_gradients_it_had(name: str, dtype: torch.dtype) -> None:
    model, inputs = model_of(name).to(dtype), inputs_of(name)
    fast = nk.accelerate(model, {key: t.to(dtype) if t.is_floating_point() else t for key, t in inputs.items()})
    for kind, key in {type(module): key for key, module in norms(model).items()}.items():
        module = model.get_submodule(key)
        width = next((parameter.numel() for parameter in module.parameters()), 32)
        random = torch.Generator().manual_seed(3)
        gates = 2 if kind.__name__.endswith("Gated") else 1
        given = [(2 * torch.randn(64, 16, width, generator=random)).to(dtype) for _ in range(gates)]
        slope = torch.randn(given[0].shape, generator=random).to(dtype)
        theirs, ours = (_gradients(one, given, slope) for one in (module, fast.get_submodule(key)))
        truth = _gradients(copy.deepcopy(module).double(), [t.double() for t in given], slope.double())
        for a, b, exact in zip(ours, theirs, truth, strict=True):
            assert a.dtype == b.dtype
            if name in ONCE:
                assert float((a == b).double().mean()) >= 0.999, key
            else:
                assert float((a - exact).abs().mean()) <= float((b - exact).abs().mean()) * 1.001, key


def _gradients(norm: Any, given: list[Tensor], slope: Tensor) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in given]
    return list(torch.autograd.grad(norm(*leaves), [*leaves, *norm.parameters()], slope))


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma3", "T5"])
def test_generation(name: str) -> None:
    model, tokens = model_of(name, use_cache=True), inputs_of(name)["input_ids"]
    fast = nk.accelerate(model, inputs_of(name))
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    assert torch.equal(fast.generate(tokens, **options), model.generate(tokens, **options))


def test_generation_adds_and_normalizes_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cache, as in the example's run: each step of each layer."""
    model, tokens = model_of("Llama", use_cache=True), inputs_of("Llama")["input_ids"]
    fast, calls, in_one = nk.accelerate(model, {"input_ids": tokens}), [], added_call._in_one
    monkeypatch.setattr(added_call, "_in_one", lambda *given: (calls.append(given), in_one(*given))[1])
    fast.generate(tokens, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(tokens))
    assert len(calls) == 6 * 2


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
    norm.forward = partial(norm.forward)  # as kernels and Liger do
    entry = nk.changes(nk.accelerate(model, inputs))["model.norm"]
    assert (entry.action, entry.reason.rpartition(": ")[2]) == ("kept", "its forward was replaced on the instance")


def test_compiled() -> None:
    model, inputs = model_of("Llama"), inputs_of("Llama")
    if torch.__version__ < (2, 8):  # type: ignore[operator]
        try:
            torch.compile(model, backend="aot_eager")(**inputs)
        except NameError as error:
            pytest.skip(f"torch {torch.__version__} does not compile transformers' own model: {error}")
    fast = torch.compile(nk.accelerate(model, inputs), backend="aot_eager")
    torch.testing.assert_close(first(fast(**inputs)), first(model(**inputs)), rtol=1e-4, atol=1e-5)


class Linear8(nn.Linear):
    """A neighbour that is quantized: its weight is kept in whole numbers and scaled at each call."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.scale = float(linear.weight.detach().abs().max()) / 127
        whole = (linear.weight.detach() / self.scale).round().to(torch.int8)
        del self.weight
        self.register_buffer("weight", whole)
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight.to(input.dtype) * self.scale, self.bias)


def test_quantized_neighbours() -> None:
    model, inputs = model_of("Llama"), inputs_of("Llama")
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(layer.mlp, name, Linear8(getattr(layer.mlp, name)))
    fast = nk.accelerate(model, inputs)
    assert not nk.changes(fast).kept
    torch.testing.assert_close(first(fast(**inputs)), first(model(**inputs)), rtol=1e-4, atol=1e-5)


def test_weights_that_come_after_the_model_was_made_on_meta() -> None:
    """As loaders for large models do it: no memory at first, then each tensor assigned."""
    model, inputs = model_of("Llama"), inputs_of("Llama")
    empty = copy.deepcopy(model).to("meta")
    empty.load_state_dict(model.state_dict(), assign=True)
    for module, filled in zip(empty.modules(), model.modules(), strict=True):
        module._buffers.update({key: t.clone() for key, t in filled._buffers.items() if t is not None})
    fast = nk.accelerate(empty, inputs)
    torch.testing.assert_close(first(fast(**inputs)), first(model(**inputs)), rtol=1e-4, atol=1e-5)
    other = model_of("Llama")
    with torch.no_grad():
        other.model.norm.weight.mul_(2)
    fast.load_state_dict(other.state_dict(), assign=True)
    torch.testing.assert_close(first(fast(**inputs)), first(other(**inputs)), rtol=1e-4, atol=1e-5)


def test_the_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="Hugging Face's accelerate is not installed")
    transformers = library("transformers")
    model, tokens = model_of("Llama"), inputs_of("Llama")["input_ids"]
    fast = nk.accelerate(model, {"input_ids": tokens, "labels": tokens})
    examples = [{"input_ids": row, "labels": row} for row in tokens.repeat(4, 1)]
    losses = []
    for i, one in enumerate((model, fast)):
        options = transformers.TrainingArguments(
            output_dir=str(tmp_path / str(i)), max_steps=4, per_device_train_batch_size=2, report_to=[], use_cpu=True,
            logging_steps=1, save_strategy="no", seed=3, learning_rate=1e-2, disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model=one.train(), args=options, train_dataset=examples)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[1][-1] < losses[1][0]


def test_adapters(tmp_path: Path) -> None:
    model, inputs = model_of("Llama"), inputs_of("Llama")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=[], init_lora_weights=False)
    torch.manual_seed(5)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    fast = nk.accelerate(adapted, inputs)
    assert not nk.changes(fast).kept
    torch.testing.assert_close(first(fast(**inputs)), first(adapted(**inputs)), rtol=1e-4, atol=1e-5)
    torch.manual_seed(5)
    later = peft.get_peft_model(nk.accelerate(model, inputs), config)  # the other way round
    torch.testing.assert_close(first(later(**inputs)), first(adapted(**inputs)), rtol=1e-4, atol=1e-5)
    _, ours = gradients(fast, inputs)
    assert ours
    assert all("lora" in name for name in ours)
    fast.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    torch.testing.assert_close(first(again(**inputs)), first(fast(**inputs)), rtol=1e-4, atol=1e-5)
