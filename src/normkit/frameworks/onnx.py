"""States of ONNX: the normalization nodes of a model, whose eps is an attribute.

A norm is called as its scale is, without the last part ("layer1.bn" of "layer1.bn.weight"): exporters keep the names
of the parameters, and number the nodes.
"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from .foreign_norm import ForeignNorm, tensor_of

EXPECTED = "an onnx.ModelProto, or the path of a .onnx file"
_INPUTS = {  # of a node, after the one that it normalizes
    "BatchNormalization": ("weight", "bias", "mean", "var"),
    "InstanceNormalization": ("weight", "bias"),
    "GroupNormalization": ("weight", "bias"),
    "LayerNormalization": ("weight", "bias"),
    "RMSNormalization": ("weight",),
    "SimplifiedLayerNormalization": ("weight",),
}
_FAMILIES = {"Batch": "batch", "Instance": "instance", "Group": "group", "Layer": "layer", "RMS": "rms"}


def read(state: Any) -> list[ForeignNorm]:
    """The nodes whose parameters the file holds."""
    if isinstance(state, (str, os.PathLike)):
        state = _loaded(state)
    if not hasattr(getattr(state, "graph", None), "initializer"):
        raise TypeError(f"expected {EXPECTED}, got a {type(state).__name__}")
    held = _constants(state.graph)
    found = [_norm(node, held) for node in state.graph.node if node.op_type in _INPUTS]
    return list({norm.name: norm for norm in found if norm is not None}.values())  # a shared one has several nodes


def _norm(node: Any, held: dict[str, Any]) -> ForeignNorm | None:
    inputs = list(node.input)[1:]
    names = dict(zip(_INPUTS[node.op_type], inputs, strict=False))
    if not inputs or any(name and name not in held for name in names.values()):
        return None  # computed from others
    name = inputs[0].rpartition(".")[0] or node.name or inputs[0]
    arrays: dict[str, Any] = {mine: _array(held[theirs], theirs) for mine, theirs in names.items() if theirs}
    settings = {attribute.name: attribute for attribute in node.attribute}
    eps = settings["epsilon"].f if "epsilon" in settings else None
    keeps = settings["momentum"].f if "momentum" in settings else None
    kind = node.op_type.removesuffix("Normalization")
    return ForeignNorm(
        name, **arrays, eps=None if eps is None else _short(eps), keeps=None if keeps is None else _short(keeps),
        family=_FAMILIES.get(kind, "rms"), groups=settings["num_groups"].i if "num_groups" in settings else None,
    )  # fmt: skip


def _short(value: float) -> float:
    """1e-05 of the float32 nearest to it, which an attribute is."""
    return float(f"{value:.7g}")


def _constants(graph: Any) -> dict[str, Any]:
    """Initializers and the values of Constant nodes by name, seen through Identity."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            held.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
        elif node.op_type == "Identity" and node.input[0] in held:
            held[node.output[0]] = held[node.input[0]]
    return held


def _array(tensor: Any, name: str) -> Tensor:
    from onnx import numpy_helper

    return tensor_of(numpy_helper.to_array(tensor), name)


def _loaded(path: Any) -> Any:
    try:
        import onnx
    except ImportError:
        raise ImportError("reading a .onnx file needs the onnx package: pip install onnx") from None
    return onnx.load(os.fspath(path))
