"""Importing normkit never fails for the native core: whatever is wrong with it is a reason, told in one line."""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from normkit import _environment, _torch
from normkit.kernels import core as loading
from normkit.kernels import memory, older_torch
from tests.kernels.native_isa import needs_native

PROGRAM = "import normkit as nk, torch; print(nk.BatchNorm1d(3)(torch.ones(4, 3)).sum().item())"


def expect_reason(text: str) -> None:
    """That there is no core, and why: one line that says so."""
    core, reason = loading.load()
    assert core is None
    assert reason is not None
    assert text in reason
    assert "\n" not in reason


def raising(error: BaseException) -> Any:
    def function(*arguments: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ImportError("_native.so: file too short"), "is not built (_native.so: file too short)"),
        (OSError("cannot map\nthe file"), "does not load (OSError: cannot map the file)"),
        (SystemError("initialization failed"), "does not load (SystemError: initialization failed)"),
    ],
)
def test_a_core_that_does_not_load_is_a_reason(error: Exception, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", raising(error))
    expect_reason(text)


CALLED = ("older_table", "older_loop", "set_torch", "set_parallel")


@pytest.mark.parametrize("function", ["set_torch", "set_parallel"])
def test_a_core_that_does_not_like_this_torch_is_a_reason(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"INTERFACE": loading._INTERFACE, "isa": lambda: "avx2", **dict.fromkeys(CALLED, lambda *_: None)}
    stand_in = SimpleNamespace(**{**names, function: raising(AttributeError("no\nsuch thing"))})
    monkeypatch.setattr(importlib, "import_module", lambda name: stand_in)
    expect_reason(f"does not know this torch, {torch.__version__} (AttributeError: no such thing)")


def test_a_cpu_that_no_kernel_was_built_for_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are never called then; test_native_choice.py holds the core's own choice."""
    stand_in = SimpleNamespace(INTERFACE=loading._INTERFACE, isa=lambda: "", isa_problem=lambda: "this CPU has none")
    monkeypatch.setattr(importlib, "import_module", lambda name: stand_in)
    expect_reason("the native core does not run here: this CPU has none; reinstall")


def table(major: int, functions: int) -> Any:
    """A capsule as torch's, of an exchange table of another version or with gaps."""
    memory = (ctypes.c_uint64 * 8)(major, 0, *[1] * functions)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    capsule = new(ctypes.addressof(memory), b"dlpack_exchange_api", None)
    KEPT.append(memory)
    return capsule


KEPT: list[Any] = []  # the memory that capsules point to


@needs_native
@pytest.mark.parametrize(
    ("exchange", "text"),
    [
        (3, "PyCapsule"),
        (table(2, 5), "torch speaks version 2 of DLPack's exchange table"),
        (table(1, 0), "table of DLPack functions has gaps"),
    ],
    ids=["another object", "another version", "gaps"],
)
def test_a_torch_that_the_core_does_not_know_is_a_reason(
    exchange: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_torch, "exchange_table", exchange)
    expect_reason(text)


@needs_native
@pytest.mark.parametrize("what", ["library", "offset_of_tensor", "prove"])
def test_a_torch_without_either_way_to_its_tensors_is_a_reason(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch, "exchange_table", None)
    if what == "library":
        monkeypatch.setattr(older_torch, "library", lambda: None)
        expect_reason("libtorch has neither a table of DLPack functions nor the C shim of its tensors")
    else:
        monkeypatch.setattr(older_torch, what, raising(RuntimeError("is not found")))
        expect_reason("(RuntimeError: is not found)")


@needs_native
def test_the_core_says_what_it_misses_until_it_is_given_torch() -> None:
    program = (  # normkit would give it torch: the module is loaded from its file
        "import importlib.util as u, sys; spec = u.spec_from_file_location('normkit._native', sys.argv[1]);"
        "core = u.module_from_spec(spec); spec.loader.exec_module(core); core.channel_statistics(3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(loading.core.__file__)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "RuntimeError: the native core was not given torch: import normkit.kernels.core first"
    )


@needs_native
@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("NORMKIT_KEEP_MB", "8796093022208", "got '8796093022208'; using the default"),
        ("NORMKIT_KEEP_MB", "9" * 5000, "got '9999"),
        ("NORMKIT_KEEP_MB", "x\ny", r"got 'x\ny'; using the default"),
        ("NORMKIT_ISA", "sse9", "NORMKIT_ISA=sse9: expected baseline, avx2 or avx512"),
        ("NORMKIT_ISA", "a\nb", r"NORMKIT_ISA='a\nb': expected baseline"),
        ("NORMKIT_ISA", "\udcff", r"NORMKIT_ISA='\udcff': expected baseline"),
        ("NORMKIT_NO_NATIVE", "perhaps", "NORMKIT_NO_NATIVE must be 1 or 0, got 'perhaps'; using 0"),
        ("NORMKIT_NO_NATIVE", "a\nb", r"NORMKIT_NO_NATIVE must be 1 or 0, got 'a\nb'; using 0"),
        ("NORMKIT_NO_NATIVE", "x" * 5000, "NORMKIT_NO_NATIVE must be 1 or 0, got 'xxxx"),
    ],
)
def test_nonsense_in_the_environment_is_a_warning_of_one_line(name: str, value: str, text: str) -> None:
    environment = {**os.environ, name: value}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.strip() == "0.0"
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert text in lines[0]
    assert len(lines[0]) < 400


def test_nonsense_that_is_asked_for_at_every_call_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMKIT_CHECK_RANKS", "perhaps")
    monkeypatch.setattr(_environment, "_told", set())
    with pytest.warns(RuntimeWarning) as told:
        assert not any(_environment.switched_on("NORMKIT_CHECK_RANKS") for _ in range(3))
    assert [str(one.message) for one in told] == ["NORMKIT_CHECK_RANKS must be 1 or 0, got 'perhaps'; using 0"]


@needs_native
@pytest.mark.parametrize("name", ["NORMKIT_KEEP_MB", "NORMKIT_ISA", "NORMKIT_NO_NATIVE", "NORMKIT_CHECK_RANKS"])
def test_an_empty_variable_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = memory.to_keep()
    monkeypatch.setenv(name, "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert memory.to_keep() == expected
        assert loading.load()[1] is None
        assert not _environment.switched_on(name)


def test_the_largest_number_of_megabytes_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMKIT_KEEP_MB", str(2**43 - 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert memory.to_keep() == (2**43 - 1) << 20
