"""The norms of other libraries are taken for what docs/recognition.md says; a sample is made and asked."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.model.families import family
from normkit.model.row_probe import row_norm_of
from tests.surgery.foreign import library

DATA = json.loads((Path(__file__).parents[2] / "docs/data/recognition.json").read_text(encoding="utf-8"))
ROWS: dict[str, dict[str, Any]] = {row["class"]: row for row in DATA["rows"]}
DETECTORS = ("detr", "rt_detr", "grounding_dino", "table_transformer")


def named(name: str) -> type[nn.Module]:
    """The class by its qualified name; skips where its package is not there."""
    package, (module, _, kind) = name.split(".")[0], name.rpartition(".")
    library(package)
    return getattr(importlib.import_module(module), kind)


def frozen_of(detector: str) -> str:
    (name,) = [name for name in ROWS if f".models.{detector}." in name and ROWS[name]["family"] == "frozen"]
    return name


@pytest.mark.filterwarnings("ignore")  # importing the libraries is not what is tested
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_detectors_frozen_norms_are_frozen(detector: str) -> None:
    norm = named(frozen_of(detector))(8)
    nn.init.uniform_(norm.running_mean, -1, 1)
    before = norm.running_mean.clone()
    assert family(norm) == "frozen"
    report = nk.recalibrate(nn.Sequential(nn.Conv2d(3, 8, 1), norm), [torch.randn(4, 3, 5, 5)])
    assert report["1"].reason == "frozen"
    assert torch.equal(norm.running_mean, before)
    ours = nk.freeze(nn.Sequential(nn.Conv2d(3, 8, 1), norm))
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(ours[1](x), norm(x))
    norm.load_state_dict(ours[1].state_dict(), strict=True)


SAMPLE = {
    "torchvision.ops.misc.FrozenBatchNorm2d": "frozen",
    "timm.layers.norm_act.FrozenBatchNormAct2d": "frozen",
    "timm.layers.norm_act.BatchNormAct2d": "batch",
    "timm.layers.norm_act.SyncBatchNormAct": "sync",
    "timm.layers.norm.LayerNorm2d": "layer2d",
    "timm.layers.norm.LayerNormExp2d": "layer2d",
    "timm.layers.norm.LayerNorm2dFp32": "layer2d",
    "timm.layers.norm_act.LayerNormAct2d": "layer2d",
    "transformers.models.eomt.modeling_eomt.EomtLayerNorm2d": "layer2d",
    "timm.layers.split_batchnorm.SplitBatchNorm2d": "batch",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_is_what_the_table_says(name: str) -> None:
    options = {"num_splits": 2} if "Split" in name else {}
    assert family(named(name)(8, **options)) == SAMPLE[name] == ROWS[name]["family"]


NUMBERS = {  # class -> the words of the table; transformers' families, by who wrote them first
    "llama.modeling_llama.LlamaRMSNorm": "weight; in half precision the weight multiplies after the cast back",
    "t5.modeling_t5.T5LayerNorm": "weight; in half precision the weight multiplies after the cast back",
    "gemma.modeling_gemma.GemmaRMSNorm": "1 + weight; in half precision the weight multiplies before the cast back",
    "olmo2.modeling_olmo2.Olmo2RMSNorm": "weight; in half precision the weight multiplies before the cast back",
    "llama4.modeling_llama4.Llama4TextL2Norm": "no weight",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NUMBERS)
def test_an_rms_norm_is_told_by_its_numbers(name: str) -> None:
    row = ROWS[f"transformers.models.{name}"]
    assert (row["by"], row["action"]) == ("its numbers", "replaced")
    assert row["reason"] == f"RMS norm over its last axis: {NUMBERS[name]}"
    found = row_norm_of(named(f"transformers.models.{name}")(*(() if "L2" in name else (8,))))
    assert str(found).replace(f"eps {found.eps:.4g}, ", "") == row["reason"]


def test_most_norms_of_transformers_are_replaced() -> None:
    rows = [row for row in ROWS.values() if row["package"] == "transformers"]
    assert sum(row["action"] == "replaced" for row in rows) >= 250
    assert sum(row["action"] == "kept" for row in rows) <= 25


def test_the_table_knows_all_four_libraries_and_every_class_named_frozen_is() -> None:
    assert set(Counter(row["package"] for row in ROWS.values())) == {"torchvision", "timm", "monai", "transformers"}
    named_so = [name for name in ROWS if "FrozenBatchNorm" in name]
    assert len(named_so) >= 16
    assert {ROWS[name]["family"] for name in named_so} == {"frozen"}
    assert {row["action"] for row in ROWS.values()} <= {"replaced", "kept", "not made"}
    assert all(row["reason"] for row in ROWS.values())
