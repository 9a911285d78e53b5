"""Tensors whose values do not lie in strides: no kernel and no composed norm reads them.

torch refuses sparse tensors one operator further in, each norm with other words; its batch norm takes oneDNN's layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._operands import Operands, is_modulated
from .._torch import MKLDNN
from .spec import NormSpec

_BACKENDS = {torch.sparse_coo: "Sparse", MKLDNN: "Mkldnn"}
_REFUSED = (
    "Could not run '{norm}' with arguments from the '{backend}' backend: the {name} of sizes {sizes} has the layout "
    "{layout}, and a norm reads strided tensors; pass {name}.to_dense()"
)


def verify(norm: NormSpec, operands: Operands) -> None:
    """Raise NotImplementedError for the first tensor of a layout that the norm does not take."""
    for name, tensor in zip(Operands._fields, operands, strict=True):
        if tensor is None or tensor.layout is torch.strided or tensor.is_nested:
            continue
        if not (tensor.is_mkldnn and name == "input" and _is_torchs(norm, operands)):
            _refuse(norm.name, name, tensor)


def _is_torchs(norm: NormSpec, operands: Operands) -> bool:
    """Whether it is a batch norm as torch has it."""
    plain = operands.residual is None and operands.mask is None and not is_modulated(operands)
    return norm.name == "batch_norm" and plain and norm.why_not_exported() is None


def _refuse(norm: str, name: str, tensor: Tensor) -> None:
    backend = _BACKENDS.get(tensor.layout, "SparseCsr") + tensor.device.type.upper()
    given = {"norm": norm, "backend": backend, "name": name, "sizes": list(tensor.shape), "layout": tensor.layout}
    raise NotImplementedError(_REFUSED.format(**given))
