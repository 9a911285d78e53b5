"""The stand-alone kernel test on 64-bit ARM, under qemu; and compiled, not run, for macOS and Windows.

`make test-arm` does the first. Minutes of compiling, hence nightly; skipped with what is missing.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2] / "native" / "test"
pytestmark = [pytest.mark.nightly, pytest.mark.skipif(shutil.which("make") is None, reason="missing: make")]


def made(target: str) -> subprocess.CompletedProcess[str]:
    """`make TARGET` of the stand-alone test."""
    command = ["make", "-C", str(HERE), target, f"PYTHON={sys.executable}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800)


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="missing: g++-aarch64-linux-gnu")
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="missing: qemu-user")
def test_the_kernels_are_right_on_arm() -> None:
    done = made("arm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "neon: passed" in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="missing: ziglang (requirements-release.txt)")
@pytest.mark.parametrize("target", ["aarch64-macos", "x86_64-windows-gnu"])
def test_the_kernels_compile_and_link_elsewhere(target: str) -> None:
    done = made(f"foreign-{target}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{target}: compiled and linked, not run" in done.stdout
