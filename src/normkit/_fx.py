"""torch.fx: where a norm's input is a proxy, the norm becomes one node of the graph, as torch's own layers do.

torch's tracers do not enter modules of torch.nn and enter every other one; what a norm asks its input about (its rank,
its values) a proxy cannot answer. So feature extractors, quantizers and passes that know nothing of normkit see a
`call_module` node of the layer, or a `call_function` node of the function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.fx import Proxy

Function = TypeVar("Function", bound=Callable[..., Any])


def is_proxy(input: Any) -> bool:
    """Whether torch.fx traces this call."""
    return type(input) is not Tensor and isinstance(input, Proxy)


def module_node(layer: nn.Module, input: Any, **optional: Any) -> Any:
    """The proxy of the layer's output. optional: further arguments of its forward; those that are None are left out."""
    given = {name: value for name, value in optional.items() if value is not None}
    return input.tracer.create_proxy("call_module", input.tracer.path_of_module(layer), (input,), given)


def traceable(function: Function) -> Function:
    """A public function whose first argument is the input: called with a proxy it becomes one node."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        input = args[0] if args else kwargs.get("input")
        if is_proxy(input):
            return input.tracer.create_proxy("call_function", call, args, kwargs)  # type: ignore[union-attr]  # a proxy
        return function(*args, **kwargs)

    call.__module__ = "normkit.functional"  # where generated code finds it
    return call  # type: ignore[return-value]  # of the same signature
