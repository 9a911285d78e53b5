"""With or without the native core: what a run of the tests asks for in its environment.

    NORMKIT_REQUIRE_NATIVE=1  the core must be there, or nothing runs; CI=true asks for the same
    NORMKIT_NO_NATIVE=1       no core is loaded, here and in every process that a test starts (`make test-nocore`)

With neither, tests of the native kernels are skipped where the core is not built: a user without a compiler may run the
rest.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from types import FunctionType

import pytest


def _set(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0", "false")


def pytest_configure() -> None:
    """Let processes that tests start be interrupted, which a run in the background of a shell would forbid them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    """End the run where it could not test what was asked for."""
    import torch
    from torch.utils import _device

    from normkit.kernels import native

    # torch notes its constructors when `torch.device` is first entered, and for ever: not while a library that makes
    # models without memory (transformers, accelerate) has others in their place
    _device._device_constructors()
    if not torch.cuda.is_available():  # a CUDA build beside empty CUDA libraries (tools/cuda_stubs.py) crashes there
        torch.cuda.is_current_stream_capturing = lambda: False  # transformers asks
    if _set("NORMKIT_NO_NATIVE"):
        if native.available():
            pytest.exit("NORMKIT_NO_NATIVE asks for a run without the native core, and it was imported", returncode=1)
    elif (_set("NORMKIT_REQUIRE_NATIVE") or _set("CI")) and not native.available():
        pytest.exit(f"CI or NORMKIT_REQUIRE_NATIVE asks for the native core: {native.why_not()}", returncode=1)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Each test begins with an empty cache: a function that was compiled or exported too often, as nn.Sequential's is,
    runs as it is, without a word."""
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and hasattr(dynamo, "reset"):  # else a test put something in its place
        dynamo.reset()


@pytest.fixture(autouse=True, scope="module")
def nothing_is_given_up() -> None:
    """Each file begins without forwards that Dynamo once gave up on: torch 2.6 and older remember them for ever, and
    run them as they are."""
    import torch
    from torch import nn

    if "torch._dynamo" in sys.modules and torch.__version__ < (2, 8):  # type: ignore[operator]
        kinds = [nn.Module]
        for kind in kinds:  # it grows: all subclasses
            kinds += kind.__subclasses__()
            forward = vars(kind).get("forward")
            if isinstance(forward, FunctionType):
                torch._dynamo.eval_frame.reset_code(forward.__code__)


def pytest_runtest_teardown() -> None:
    """torch 2.8 and older keep a device of None after set_default_device(None), which get_default_device then reads."""
    import torch

    kept = getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None)
    if kept is not None and getattr(kept, "device_context", "") is None:
        del kept.device_context
