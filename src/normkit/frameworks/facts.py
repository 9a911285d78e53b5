"""What each framework does otherwise than PyTorch: docs/frameworks.md has the source of each fact.

Rules: numbers are the frameworks' defaults; what a state says itself comes before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

# How the running variance was made. "fused": from four-dimensional inputs unbiased, else biased. "unknown": by whoever
# trained it; the format only carries it.
Variance = Literal["biased", "unbiased", "fused", "unknown"]
FAMILIES = ("batch", "layer", "group", "instance", "rms")


@dataclass(frozen=True)
class Facts:
    """One framework.

    eps: by family. keeps: how much of the old running statistic one step keeps (PyTorch's momentum is 1 minus that);
    None: its constructor has no default. channels_last: gamma over several axes ends in the channels.
    """

    title: str
    eps: Mapping[str, float]
    keeps: float | None
    variance: Variance
    channels_last: bool


def _eps(default: float, **others: float) -> Mapping[str, float]:
    return MappingProxyType(dict.fromkeys(FAMILIES, default) | others)


FACTS: Mapping[str, Facts] = MappingProxyType(
    {
        "keras": Facts("Keras", _eps(1e-3, rms=1e-6), 0.99, "biased", True),
        "tensorflow": Facts("TensorFlow", _eps(1e-3), 0.99, "fused", True),
        "flax": Facts("Flax", _eps(1e-6, batch=1e-5), 0.99, "biased", True),
        "haiku": Facts("Haiku", _eps(1e-5), None, "biased", True),
        "caffe": Facts("Caffe", _eps(1e-5), 0.999, "unbiased", False),
        "paddle": Facts("Paddle", _eps(1e-5), 0.9, "biased", False),
        "onnx": Facts("ONNX", _eps(1e-5), 0.9, "unknown", False),
        "mxnet": Facts("MXNet", _eps(1e-5), 0.9, "biased", False),
    }
)
