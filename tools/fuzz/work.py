"""What a child does before its first case. NORMKIT_FUZZ_CORE names a native core to use instead of the installed one,
such as one built under a sanitizer."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable

_NAME = "normkit._native"


def use_core(path: str) -> None:
    """Have `import normkit` find this file as its native core."""
    loader = importlib.machinery.ExtensionFileLoader(_NAME, path)
    spec = importlib.util.spec_from_file_location(_NAME, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[_NAME] = module


if "NORMKIT_FUZZ_CORE" in os.environ:
    use_core(os.environ["NORMKIT_FUZZ_CORE"])

# torch imports these when they are first used; here once for all children.
import torch  # noqa: E402
import torch._decomp.decompositions_for_jvp  # noqa: E402
import torch._dynamo  # noqa: E402
import torch._inductor  # noqa: E402
import torch.utils._device  # noqa: E402

from .run import run, run_torch  # noqa: E402  # imports normkit


def prepare() -> tuple[Callable[..., object], Callable[..., object]]:
    """What runs a case, and torch's half of it. One thread a child: there is a child for each processor."""
    torch.set_num_threads(1)
    return run, run_torch
