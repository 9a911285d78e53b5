"""States of Caffe: a .caffemodel, or the blobs of each layer by its name (`net.params`).

A BatchNorm layer has three blobs: the mean and the variance, each times a factor, and that factor. Gamma and beta are
the blobs of a Scale layer after it; NVIDIA's Caffe has them as the fourth and fifth.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .caffemodel import Layer, layers_of
from .foreign_norm import ForeignNorm, tensor_of, vector

EXPECTED = "the path of a .caffemodel, or a mapping from layers to their blobs, as net.params"
Scales = Mapping[str, str]  # BatchNorm -> its Scale


def read(state: Any, scales: Scales) -> list[ForeignNorm]:
    """The BatchNorm layers, each with the Scale after it. scales: where it is told which Scale belongs to which."""
    if isinstance(state, (str, os.PathLike)):
        return _of_file(Path(state), scales)
    if not isinstance(state, Mapping):
        raise TypeError(f"expected {EXPECTED}, got a {type(state).__name__}")
    blobs = {str(name): _blobs(name, given) for name, given in state.items()}
    _verify_scales(scales, blobs)
    layers = list(blobs)
    norms = []
    for place, name in enumerate(layers):
        if _is_norm(blobs[name]):
            after = scales.get(name) or (layers[place + 1] if place + 1 < len(layers) else None)
            told = name in scales
            scale = blobs.get(after, []) if after is not None else []
            norms.append(_norm(name, blobs[name], after, scale if told or _is_scale(after, scale, blobs[name]) else []))
    return norms


def _of_file(path: Path, scales: Scales) -> list[ForeignNorm]:
    try:
        layers = layers_of(path)
        by_name = {layer.name: layer for layer in layers}
        _verify_scales(scales, by_name)
        norms = []
        for place, layer in enumerate(layers):
            if layer.type == "BatchNorm" and layer.blobs:
                scale = by_name.get(scales[layer.name]) if layer.name in scales else _next_scale(layer, layers[place:])
                blobs = [] if scale is None else scale.arrays()
                after = None if scale is None else scale.name
                norms.append(_norm(layer.name, layer.arrays(), after, blobs, layer.eps, layer.fraction))
        return norms
    except ValueError as error:
        raise ValueError(f"{path} is no .caffemodel that can be read: {error}") from None


def _verify_scales(scales: Scales, layers: Mapping[str, Any]) -> None:
    for norm, scale in scales.items():
        if scale not in layers:
            raise ValueError(f"names: there is no layer {scale!r}, which is said to be the Scale of {norm!r}")


def _next_scale(norm: Layer, layers: Sequence[Layer]) -> Layer | None:
    """The Scale that is the first to read what the norm writes."""
    reader = next((layer for layer in layers[1:] if norm.top and norm.top[0] in layer.bottom), None)
    return reader if reader is not None and reader.type == "Scale" and len(reader.bottom) == 1 else None


def _norm(
    name: str,
    blobs: Sequence[Tensor],
    scale: str | None,
    affine: Sequence[Tensor],
    eps: float | None = None,
    fraction: float | None = None,
) -> ForeignNorm:
    if not _is_norm(blobs):
        raise ValueError(f"{name} has {len(blobs)} blobs, expected mean, variance and their factor")
    mean, var, factor = vector(blobs[0]), vector(blobs[1]), float(blobs[2].item())
    gamma_beta = list(blobs[3:5]) or list(affine)
    gamma, beta = (vector(gamma_beta[i]) if len(gamma_beta) > i else None for i in (0, 1))
    notes = [f"divided by the factor {factor:g}" if factor else "the factor is 0: no batch was seen, and Caffe takes 0"]
    if not blobs[3:5]:
        notes.append(f"gamma and beta from {scale}" if affine else "no Scale follows")
    inverse = 1 / factor if factor else 0.0
    return ForeignNorm(name, gamma, beta, mean * inverse, var * inverse, eps, keeps=fraction, notes=tuple(notes))


def _is_norm(blobs: Sequence[Tensor]) -> bool:
    return len(blobs) in (3, 5) and blobs[2].numel() == 1 and blobs[0].numel() == blobs[1].numel()


def _is_scale(name: str | None, blobs: Sequence[Tensor], norm: Sequence[Tensor]) -> bool:
    """A single vector may be the slopes of a PReLU: then the name decides."""
    vectors = all(blob.numel() == norm[0].numel() == max(blob.shape, default=0) for blob in blobs)
    return vectors and (len(blobs) == 2 or (len(blobs) == 1 and "scale" in (name or "").lower()))


def _blobs(name: Any, given: Any) -> list[Tensor]:
    """A layer's blobs: arrays, or Caffe's Blob, whose `data` is one."""
    arrays = [given] if hasattr(given, "shape") and not isinstance(given, Sequence) else list(given)
    held = [b if isinstance(b, Tensor) or hasattr(b, "dtype") else getattr(b, "data", b) for b in arrays]
    return [tensor_of(array, f"blob {place} of {name}") for place, array in enumerate(held)]
