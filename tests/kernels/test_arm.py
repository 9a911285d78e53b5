"""The stand-alone kernel test on 64-bit ARM, under qemu.

`make test-arm` does the same. Minutes of compiling, hence nightly; skipped with what is missing.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2] / "native" / "test"
pytestmark = [pytest.mark.nightly, pytest.mark.skipif(shutil.which("make") is None, reason="missing: make")]


def made(target: str) -> subprocess.CompletedProcess[str]:
    """`make TARGET` of the stand-alone test."""
    command = ["make", "-C", str(HERE), target]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800)


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="missing: g++-aarch64-linux-gnu")
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="missing: qemu-user")
def test_the_kernels_are_right_on_arm() -> None:
    done = made("arm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "neon: passed" in done.stdout
