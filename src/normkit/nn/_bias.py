"""`bias=False` of the norms of channels, also where torch's own classes take no `bias=` (2.10 and older)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .._torch import takes_bias


class BiasOption(nn.Module):
    """Mixin before a norm of torch.nn; its repr and its errors stay those of the torch at hand."""

    def __init__(self, *arguments: Any, bias: bool, **options: Any) -> None:
        make: Any = super().__init__
        if takes_bias(make.__func__):
            make(*arguments, bias=bias, **options)
            return
        make(*arguments, **options)
        if not bias:
            self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """torch's; an older one takes for granted that a weight comes with a bias, so it is lent one."""
        parent: Any = super()
        weight, lacks = self._parameters.get("weight"), self._parameters.get("bias", self) is None
        if weight is None or not lacks:
            parent.reset_parameters()
            return
        self.register_parameter("bias", nn.Parameter(torch.empty_like(weight)))
        try:
            parent.reset_parameters()
        finally:
            self.register_parameter("bias", None)
