"""Which native core is there: the instruction set by NORMKIT_ISA, and life without the core."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from normkit.kernels import core, native
from tests.kernels.native_isa import needs_native

PROGRAM = "import normkit.kernels.native as native; print(native.isa())"


def isa_in_a_new_process(name: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NORMKIT_ISA": name}
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120)


@needs_native
def test_the_environment_names_the_instruction_set() -> None:
    assert isa_in_a_new_process("baseline").stdout.strip() == "baseline"


@needs_native
def test_an_unknown_instruction_set_is_reported_and_another_used() -> None:
    done = isa_in_a_new_process("sse9")
    assert done.returncode == 0
    assert "NORMKIT_ISA=sse9: expected baseline, avx2 or avx512" in done.stderr
    assert done.stdout.strip() in ("baseline", "avx2", "avx512")


@needs_native
def test_threads_are_torchs_own() -> None:
    assert core.parallel_loop(core.core) != 0


def test_without_the_core_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "normkit._native", None)  # what Python does for a module that cannot be imported
    found, reason = core.load()
    assert found is None
    assert reason is not None
    assert "not built" in reason
    monkeypatch.setattr(native, "_core", found)
    monkeypatch.setattr(native, "_problem", reason)
    assert not native.available()
    assert native.why_not() == reason
    assert native.isa() == "none"
    assert not native.supports_dtype(torch.float32)


@needs_native
def test_a_core_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.core, "INTERFACE", 1)
    found, reason = core.load()
    assert found is None
    assert reason is not None
    assert "of another version of normkit" in reason
