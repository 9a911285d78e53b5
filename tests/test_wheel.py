"""A wheel without the native core is one of Python alone, and says so in its name."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("scikit_build_core", reason="builds a wheel without isolation")
BUILD = (
    "import sys; from scikit_build_core.build import build_wheel; build_wheel(sys.argv[1], {'build-dir': sys.argv[2]})"
)


def build(folder: Path, **switches: str) -> subprocess.CompletedProcess[str]:
    """The build that pip starts, on a machine without a C++ compiler; its build folder is not the checkout's."""
    environment = {name: value for name, value in os.environ.items() if name != "NORMKIT_REQUIRE_NATIVE"}
    return subprocess.run(
        [sys.executable, "-c", BUILD, str(folder), str(folder / "build")], cwd=ROOT, text=True,
        env={**environment, "CXX": "/nowhere/c++", **switches}, capture_output=True, timeout=300,
    )  # fmt: skip


def test_without_a_compiler_the_wheel_is_pure_and_the_build_says_why(tmp_path: Path) -> None:
    done = build(tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == "normkit-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        (facts,) = (files.read(name).decode() for name in names if name.endswith(".dist-info/WHEEL"))
    assert "Root-Is-Purelib: true" in facts
    assert "Tag: py3-none-any" in facts
    assert {"normkit/__init__.py", "normkit/py.typed", "normkit/defects/01_channels_last_variance.py"} <= set(names)
    assert not [name for name in names if "_native." in name and not name.endswith(".pyi")]
    said = done.stdout + done.stderr
    assert "no native kernels: no C++ compiler was found" in " ".join(said.split())
    assert "built without its native core" in said


def test_where_the_core_is_asked_for_there_is_no_wheel_without_it(tmp_path: Path) -> None:
    done = build(tmp_path, NORMKIT_REQUIRE_NATIVE="1")
    assert done.returncode == 1
    assert "no C++ compiler was found" in done.stdout + done.stderr
    assert list(tmp_path.glob("*.whl")) == []
