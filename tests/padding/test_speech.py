"""Real speech models on padded batches: torchaudio's Conformer, and wav2vec 2.0 and its Conformer of transformers."""

from __future__ import annotations

import importlib
import importlib.util
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.padding.models import apart, batch, randomized, together, twins
from tests.surgery.foreign import library
from tests.surgery.transformers_models import _SPEECH, model_of
from tests.tolerances import assert_equal64

FRAMES = [24, 13, 19]
SOUND = [600, 431, 517]


def conformer_file() -> types.ModuleType:
    """torchaudio's conformer.py alone: the package does not import beside the CPU build of torch."""
    found = importlib.util.find_spec("torchaudio")
    if found is None or found.origin is None:
        pytest.skip("torchaudio is not installed (the extra `zoo`)")
    path = Path(found.origin).parent / "models" / "conformer.py"
    spec = importlib.util.spec_from_file_location("torchaudio_conformer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def conformer(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return randomized(conformer_file().Conformer(16, 4, 24, 2, 7, **options))


def by_frames(model: nn.Module, x: Tensor, lengths: list[int]) -> Tensor:
    return model(x, torch.tensor(lengths))[0]


def alone_by_frames(model: nn.Module, one: Tensor) -> Tensor:
    return by_frames(model, one, [one.shape[1]])


OPTIONS: dict[str, dict[str, bool]] = {
    "batch norm": {}, "group norm": {"use_group_norm": True}, "convolution first": {"convolution_first": True},
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_torchaudios_conformer(options: dict[str, bool], training: bool) -> None:
    """pytorch/audio#4205: without the block a sample's output depends on how much its neighbours were padded."""
    x = batch((3, 24, 16), FRAMES, 1, junk=2.0)
    compare(
        conformer(**options).train(training), x, apart(x, FRAMES, 1), FRAMES, 1,
        lambda model, x: by_frames(model, x, FRAMES), alone_by_frames,
    )  # fmt: skip


def by_sound(model: nn.Module, x: Tensor) -> Tensor:
    keep = nk.mask_from_lengths(SOUND, x.shape[-1]).long()
    return model(input_values=x, attention_mask=keep).last_hidden_state


def alone_by_sound(model: nn.Module, one: Tensor) -> Tensor:
    return model(input_values=one, attention_mask=torch.ones(one.shape, dtype=torch.int64)).last_hidden_state


@pytest.mark.parametrize("extractor", ["group", "layer"])
@pytest.mark.parametrize("name", ["Wav2Vec2", "Conformer"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_wav2vec(name: str, extractor: str, training: bool) -> None:
    model = model_of(name, feat_extract_norm=extractor).double().train(training)
    x = batch((3, 600), SOUND, -1, junk=0.5)
    compare(model, x, apart(x, SOUND, 1), SOUND, -1, by_sound, alone_by_sound)


def compare(  # what two kinds of models are asked alike
    model: nn.Module, x: Tensor, samples: list[Tensor], lengths: list[int], dim: int,
    padded: Callable[[nn.Module, Tensor], Tensor], alone: Callable[[nn.Module, Tensor], Tensor],
) -> None:  # fmt: skip
    """Outputs, and in training gradients and running statistics, are those of the samples without padding."""
    ours, truth = twins(model)
    expected = together(truth, samples, alone) if model.training else [alone(truth, one) for one in samples]
    with nk.lengths(lengths, dim):
        y = padded(ours, x)
    for n, one in enumerate(expected):
        assert_equal64(y[n : n + 1, : one.shape[1]], one, f"sample {n}")
    if any(isinstance(layer, nn.BatchNorm1d | nn.GroupNorm) for layer in model.modules()):  # else it is right without
        plain = padded(twins(model)[1], x)
        assert any(not torch.allclose(plain[n : n + 1, : one.shape[1]], one) for n, one in enumerate(expected))
    if not model.training:
        return
    sum(one.pow(3).sum() for one in expected).backward()
    sum(y[n, : one.shape[1]].pow(3).sum() for n, one in enumerate(expected)).backward()
    for (key, mine), other in zip(ours.named_parameters(), truth.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None), key
        if mine.grad is not None and other.grad is not None:
            assert_equal64(mine.grad, other.grad, key, factor=1e6)  # a few thousand operations deep
    for (key, buffer), other in zip(ours.named_buffers(), truth.buffers(), strict=True):
        if "num_batches" not in key:
            assert_equal64(buffer, other, key)


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {  # class -> (folder, changes to the configuration's defaults)
    "HubertModel": ("hubert", _SPEECH),
    "WavLMModel": ("wavlm", _SPEECH | {"num_buckets": 32, "max_bucket_distance": 80}),
    "SEWModel": ("sew", _SPEECH | {"squeeze_factor": 2}),
    "UniSpeechModel": ("unispeech", _SPEECH),
    "Speech2TextEncoder": (
        "speech_to_text",
        {
            "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48,
            "conv_channels": 32, "input_feat_per_channel": 16, "max_source_positions": 100,
        },
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM about itself
@pytest.mark.parametrize("kind", OTHERS)
def test_other_speech_models_in_evaluation(kind: str) -> None:
    library("transformers")
    folder, changes = OTHERS[kind]
    modeling = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    torch.manual_seed(0)
    model = randomized(getattr(modeling, kind)(getattr(modeling, kind).config_class(**changes))).eval()
    sound = kind != "Speech2TextEncoder"
    lengths, name = (SOUND, "input_values") if sound else (FRAMES, "input_features")
    x = batch((3, 600) if sound else (3, 24, 16), lengths, 1, junk=0.5)

    def padded(model: nn.Module, x: Tensor) -> Tensor:
        keep = nk.mask_from_lengths(lengths, x.shape[1]).long()
        return model(**{name: x}, attention_mask=keep).last_hidden_state

    def alone(model: nn.Module, one: Tensor) -> Tensor:
        return model(**{name: one}, attention_mask=torch.ones(one.shape[:2], dtype=torch.int64)).last_hidden_state

    compare(model, x, apart(x, lengths, 1), lengths, 1, padded, alone)
