"""clang-tidy on native/, each file for itself: `python -m tools.native_tidy [--jobs 2] [--fix] [FILE ...]`.

A header is compiled alone, so one that does not include what it uses fails. Kernels are read as the baseline set, the
one that is read fastest: what a set has of its own are the parts of simd/simd.h, which no other file may include.
.clang-tidy has the checks. Where Python's headers or nanobind are missing, the binding layer is left out and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.native_includes import NATIVE, reached

ROOT = NATIVE.parent
PARTS = re.compile(r"simd/(avx2|avx512|half|half_\w+|halves)\.h|test/.*")
KERNELS = ("-xc++", "-std=c++17", f"-I{NATIVE}", "-DNK_ISA=baseline", "-DNK_LEVEL=0", "-DNK_BASELINE", "-Wno-psabi")


def files() -> list[Path]:
    """What is looked at: all sources and headers but parts of others and the stand-alone test."""
    found = sorted(path for path in NATIVE.rglob("*") if path.suffix in (".h", ".cpp"))
    return [path for path in found if not PARTS.fullmatch(path.relative_to(NATIVE).as_posix())]


def is_binding(path: Path) -> bool:
    """Whether a file includes nanobind, or a header that does."""
    return any("#include <nanobind" in file.read_text(encoding="utf-8") for file in (path, *reached(path)))


def of_python() -> list[str]:
    """The flags that the binding layer needs; none where something is missing."""
    nanobind = importlib.util.find_spec("nanobind")
    places = [Path(sysconfig.get_path("include"))]
    if nanobind is None or nanobind.origin is None or not (places[0] / "Python.h").exists():
        return []
    places.append(Path(nanobind.origin).parent / "include")
    return [word for place in places for word in ("-isystem", str(place))]


def complaints(path: Path, flags: list[str], fix: bool) -> str:
    tidy = shutil.which("clang-tidy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if tidy is None:
        raise SystemExit("clang-tidy is missing: `make setup` installs it")
    command = [tidy, "--quiet", *(["--fix"] if fix else []), str(path), "--", *KERNELS, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="clang-tidy on native/.")
    parser.add_argument("files", nargs="*", type=Path, help="all by default")
    parser.add_argument("--fix", action="store_true", help="write what can be mended: includes; `make format` then")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="at a time (%(default)s)")
    options = parser.parse_args()
    every = [path.resolve() for path in options.files] or files()
    python = of_python()
    left = [path for path in every if is_binding(path) and not python]
    for path in left:
        print(f"{path.relative_to(ROOT)}: left out, Python's headers or nanobind are missing")
    looked = [path for path in every if path not in left]

    def read(path: Path) -> str:
        return complaints(path, python if is_binding(path) else [], options.fix)

    with ThreadPoolExecutor(options.jobs) as pool:
        found = [text for text in pool.map(read, looked) if text]
    print("\n".join(found) or f"clang-tidy: {len(looked)} files are right")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
