"""The new forward of one module, which `Block` writes: kept as source, and left where the module is not what it was."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from .._fx import is_proxy
from .._torch import is_watched
from ..model.recorder import kind_of
from .fused_call import is_idle
from .instance_forward import InstanceForward
from .settings import Settings
from .trace import positional


class RewrittenForward(InstanceForward):
    """The new forward of one module: kept as source, so the module can be copied, saved and compiled.

    kinds: argument -> what was seen there when it was traced (`recorder.kind_of`). settings: what the module was then.
    idle: the modules that it leaves out, for they do nothing. Where a call, a setting or such a module differs, the
    class's own forward runs, on the same modules.
    """

    def __init__(
        self,
        owner: nn.Module,
        source: str,
        names: dict[str, Any],
        kinds: dict[str, Any],
        settings: Settings,
        idle: tuple[str, ...] = (),
    ) -> None:
        self.source, self.names, self.kinds, self.settings, self.idle = source, names, kinds, settings, idle
        super().__init__(owner)
        self._compile()

    def of(self, owner: nn.Module) -> RewrittenForward:
        return RewrittenForward(owner, self.source, self.names, self.kinds, self.settings, self.idle)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # of equal length: Dynamo of torch 2.4 takes any strict= for True
        by_position = dict(zip(self._by_position[: len(args)], args[: len(self._by_position)], strict=True))
        given = {**by_position, **kwargs}
        if len(given) != len(args) + len(kwargs) or is_watched() or not self._fits(given):
            return self.original(*args, **kwargs)
        return self._function(self.owner, **given)

    def _fits(self, given: dict[str, Any]) -> bool:
        same = len(given) == len(self.kinds) and all(
            name in self.kinds and not is_proxy(value) and kind_of(value) == self.kinds[name]
            for name, value in given.items()
        )
        return same and self.holds(self.owner)

    def holds(self, owner: nn.Module) -> bool:
        """Whether the module is still what was traced."""
        return self.settings.hold(owner) and all(is_idle(owner.get_submodule(name)) for name in self.idle)

    def __getstate__(self) -> dict[str, Any]:
        # a module (torch) is stored by its name; everything else in a trace's names can be pickled
        names = {name: _ModuleName(v.__name__) if inspect.ismodule(v) else v for name, v in self.names.items()}
        own = {"source": self.source, "names": names, "kinds": self.kinds, "settings": self.settings, "idle": self.idle}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import importlib

        names = state["names"].items()
        self.source, self.kinds, self.settings, self.idle = (state[n] for n in ("source", "kinds", "settings", "idle"))
        self.names = {n: importlib.import_module(v.name) if isinstance(v, _ModuleName) else v for n, v in names}
        super().__setstate__(state)
        self._compile()

    def _compile(self) -> None:
        self._function = compiled(self.source, self.names)
        self._by_position = positional(self.owner)


def compiled(source: str, names: dict[str, Any]) -> Any:
    """The function `forward` of this source."""
    names = dict(names)
    exec(compile(source, "<normkit: rewritten forward>", "exec"), names)
    return names["forward"]


@dataclass(frozen=True)
class _ModuleName:
    name: str
