"""One call of a function of torch whose first operand is a padded tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .track import Lengths, Track


@dataclass(frozen=True, eq=False)
class PaddedCall:
    """function, args, kwargs: the call. x, track: its first operand, and what is known of that. exact: whether what
    lies after a sample's end is kept from windows that reach over it. known: the lengths at other padded sizes."""

    name: str
    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    x: Tensor
    track: Track
    exact: bool
    known: Lengths

    def run(self, x: Tensor | None = None) -> Any:
        """The function's result, on another operand if one is given."""
        return self.function(*self.args, **self.kwargs) if x is None else self.on(x, self.args, self.kwargs)

    def on(self, x: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The function's result on this operand with other arguments."""
        if args:
            return self.function(x, *args[1:], **kwargs)
        return self.function(**{**kwargs, "input": x})

    def bound(self, names: Sequence[str]) -> dict[str, Any]:
        """The arguments by name; functions of torch that are written in C++ have no signature to ask."""
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """One argument, by place or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)
