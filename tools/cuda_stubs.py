"""Empty CUDA libraries, so that a CUDA build of torch can be imported and compute on a CPU without NVIDIA's packages.

torch's libraries name some twenty of NVIDIA's (4 GB); the loader wants each of them and every symbol, and a run on the
CPU calls none. `fill(lib)` writes one library of functions that return an error, and under the name of each missing one
an empty library that leads to it, next to torch's own, where their search path begins. torch then says what it says on
a machine without a GPU. Nothing of CUDA is tested by this. Needs gcc and binutils, on Linux.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

# Libraries of the system's C and C++ run time.
_SYSTEM = re.compile(r"lib(c|m|dl|rt|util|pthread|stdc\+\+|gcc_s)\.so|ld-linux")
_CUDA = re.compile(r"(__cuda|cu[A-Z]|cuda|cublas|cudnn|cufft|cufile|cupti|curand|cusolver|cusparse|nccl|pnccl"
                   r"|nv[A-Z]|nvml|nvrtc|nvshmem|nvtx)")  # fmt: skip
_ERROR = 100  # cudaErrorNoDevice
_STUB = "libnormkit_cuda_stub.so"


def fill(lib: Path) -> list[str]:
    """Write what torch's libraries in `lib` miss; returns the names of the libraries that were made."""
    libraries = [path for path in sorted(lib.iterdir()) if ".so" in path.name and path.name != _STUB]
    present = {path.name for path in libraries}
    missing = sorted(name for name in _needed(libraries) - present if not _SYSTEM.match(name))
    if not missing:
        return []
    undefined, defined = _symbols(libraries)
    names = sorted(name for name in undefined - defined if _CUDA.match(name))
    _compile(lib / _STUB, "\n".join(map(_function, names)))
    for name in missing:
        _compile(
            lib / name, "", f"-Wl,-soname,{name}", "-Wl,--no-as-needed", f"-L{lib}", f"-l:{_STUB}", "-Wl,-rpath,$ORIGIN"
        )
    return missing


def _function(name: str) -> str:
    if name == "__cudaRegisterFatBinary":  # called when the library is loaded; its handle is handed on
        return f"void* {name}(void* fat) {{ static void* handle[4]; return handle; }}"
    return f"int {name}(void) {{ return {_ERROR}; }}"


def _needed(libraries: Iterable[Path]) -> set[str]:
    return {name for path in libraries for name in re.findall(r"NEEDED.*\[(.*)\]", _output("readelf", "-d", path))}


def _symbols(libraries: Iterable[Path]) -> tuple[set[str], set[str]]:
    """(undefined, defined) dynamic symbols, without their versions."""
    undefined, defined = set(), set()
    for path in libraries:
        for line in _output("nm", "-D", path).splitlines():
            *_, kind, name = line.split()
            (undefined if kind in "Uwv" else defined).add(name.split("@")[0])
    return undefined, defined


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _compile(out: Path, source: str, *options: str) -> None:
    command = [
        "gcc",
        "-w",
        "-O0",
        "-fno-builtin",
        "-shared",
        "-fPIC",
        "-x",
        "c",
        "-",
        "-x",
        "none",
        "-o",
        str(out),
        *options,
    ]
    subprocess.run([*command, *options], input=source, text=True, check=True)
