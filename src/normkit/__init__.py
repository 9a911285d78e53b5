"""normkit: normalization for PyTorch, whole.

Layers and functions are imported with the package. Surgery, statistics and the doctor, which change, measure or judge
whole models, are imported when they are first used, so that `import normkit` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _torch as _torch  # first: it says what a torch that is too old lacks
from . import functional, nn
from ._names import raise_unknown
from .functional import backend, mask_from_lengths, recompute_outputs
from .moments import Moments
from .nn import *  # noqa: F403  # nn.__all__ is the list of layers
from .nn import __all__ as _layers
from .nn.domain_call import domain

if TYPE_CHECKING:
    from . import parametrizations, testing
    from .doctor.compare import compare
    from .doctor.diagnose import diagnose
    from .model.norm_keys import norm_keys
    from .padding.context import lengths, mask
    from .statistics.adapt import adapt
    from .statistics.deferred import deferred_statistics
    from .statistics.merge import merge_statistics
    from .statistics.recalibrate import recalibrate
    from .statistics.sync_buffers import sync_buffers
    from .surgery.accelerate import accelerate
    from .surgery.changes import changes
    from .surgery.convert import convert
    from .surgery.fold import fold
    from .surgery.freeze import freeze, unfreeze
    from .surgery.hub_kernels import hub_mapping
    from .surgery.parameter_groups import parameter_groups

__version__ = "0.1.0"

_ON_DEMAND = {
    **dict.fromkeys(("adapt", "deferred_statistics", "merge_statistics", "recalibrate", "sync_buffers"), "statistics"),
    **dict.fromkeys(
        ("accelerate", "changes", "convert", "fold", "freeze", "hub_mapping", "parameter_groups", "unfreeze"), "surgery"
    ),
    "compare": "doctor.compare",
    "diagnose": "doctor.diagnose",
    "lengths": "padding.context",
    "mask": "padding.context",
    "norm_keys": "model.norm_keys",
}
_MODULES = ("parametrizations", "testing")  # that are imported when they are first named

__all__ = [
    "Moments",
    "accelerate",
    "adapt",
    "backend",
    "changes",
    "compare",
    "convert",
    "deferred_statistics",
    "diagnose",
    "domain",
    "fold",
    "freeze",
    "functional",
    "hub_mapping",
    "lengths",
    "mask",
    "mask_from_lengths",
    "merge_statistics",
    "nn",
    "norm_keys",
    "parameter_groups",
    "parametrizations",
    "recalibrate",
    "recompute_outputs",
    "sync_buffers",
    "testing",
    "unfreeze",
    *_layers,
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _ON_DEMAND:
        raise_unknown(__name__, name, __all__)
    value = getattr(import_module(f".{_ON_DEMAND[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND, *_MODULES})
