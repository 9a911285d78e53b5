"""A wheel without the native core is one of Python alone, and says so in its name; and a build takes the first versions
of what it asks for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tools.release import contents

ROOT = Path(__file__).parents[1]
pytest.importorskip("scikit_build_core", reason="builds a wheel without isolation")
BUILD = (
    "import sys; from scikit_build_core.build import build_wheel; build_wheel(sys.argv[1], {'build-dir': sys.argv[2]})"
)


def build(folder: Path, **switches: str) -> subprocess.CompletedProcess[str]:
    """The build that pip starts, by default on a machine without a C++ compiler; its build folder is not the
    checkout's."""
    environment = {name: value for name, value in os.environ.items() if name != "NORMKIT_REQUIRE_NATIVE"}
    return subprocess.run(
        [sys.executable, "-c", BUILD, str(folder), str(folder / "build")], cwd=ROOT, text=True,
        env={**environment, "CXX": "/nowhere/c++", **switches}, capture_output=True, timeout=1500,
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
    assert contents.of_wheel(wheel) == []
    said = done.stdout + done.stderr
    assert "no native kernels: no C++ compiler was found" in " ".join(said.split())
    assert "built without its native core" in said


def test_where_the_core_is_asked_for_there_is_no_wheel_without_it(tmp_path: Path) -> None:
    done = build(tmp_path, NORMKIT_REQUIRE_NATIVE="1")
    assert done.returncode == 1
    assert "no C++ compiler was found" in done.stdout + done.stderr
    assert list(tmp_path.glob("*.whl")) == []


def test_the_source_holds_the_tests_and_the_docs(tmp_path: Path) -> None:
    program = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=True, timeout=100)
    (archive,) = tmp_path.glob("*.tar.gz")
    assert archive.name == "normkit-0.1.0.tar.gz"
    assert contents.of_source(archive) == []


def first_versions(folder: Path) -> dict[str, str]:
    """The first versions of what pyproject.toml and CMakeLists.txt ask of a build, installed into a folder."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    found = {}
    for needed in map(Requirement, asked):
        (found[needed.name],) = (bound.version for bound in needed.specifier if bound.operator == ">=")
    lists = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    (first,) = re.findall(r"^cmake_minimum_required\(VERSION (\S+)\)", lists, re.MULTILINE)
    found["cmake"] = f"{first}.*"  # not every patch of it is a package
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder),
         *(f"{name}=={version}" for name, version in found.items())],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no index of packages is reached: {done.stderr.strip().splitlines()[-1]}")
    return found


@pytest.mark.nightly  # fetches two packages, and compiles for some minutes
@pytest.mark.skipif(shutil.which("c++") is None, reason="compiles the core")
def test_a_build_by_the_first_versions_that_are_asked_for_has_a_core_that_computes(tmp_path: Path) -> None:
    versions = first_versions(tmp_path / "tools")
    done = build(
        tmp_path, PYTHONPATH=str(tmp_path / "tools"), CXX="c++", NORMKIT_REQUIRE_NATIVE="1",
        SKBUILD_CMAKE_DEFINE="NK_ISAS=baseline;NK_OPTIMIZE=-O1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (facts,) = (files.read(name).decode() for name in files.namelist() if name.endswith(".dist-info/WHEEL"))
        (core,) = (name for name in files.namelist() if "_native." in name and name.endswith(".so"))
        files.extract(core, tmp_path)
    assert contents.of_core((tmp_path / core).read_bytes()) == []
    assert f"Generator: scikit-build-core {versions['scikit-build-core']}." in facts
    made_by = (tmp_path / "build" / "CMakeCache.txt").read_text(encoding="utf-8")
    assert f"nanobind_DIR:PATH={tmp_path}/tools/nanobind/cmake\n" in made_by
    assert f"CMAKE_COMMAND:INTERNAL={tmp_path}/tools/cmake/" in made_by
    drawn = subprocess.run(
        [sys.executable, "-m", "tools.fuzz", "--cases", "100", "--seconds", "300", "--jobs", "1", "--seed", "27",
         "--out", str(tmp_path / "found")],
        cwd=ROOT, env={**os.environ, "NORMKIT_FUZZ_CORE": str(tmp_path / core)}, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stdout
    assert "100 cases" in drawn.stdout
