"""What is installed and what will run: the facts behind `normkit info` and the first lines of a bug report."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

import torch

TRITON_NORMS = "batch norm and its kinds, group and instance norm, masked or not"
EXTRAS = {"studies": ("numpy", "scipy", "matplotlib", "sklearn", "mlxtend", "jinja2", "rich"), "triton": ("triton",)}


def version() -> str:
    try:
        return importlib.metadata.version("normkit")
    except importlib.metadata.PackageNotFoundError:  # imported from a source tree that was never installed
        return "0+source"


def collect() -> dict[str, str]:
    """Ordered facts, label to value: versions, instruction set in use, threads, and each path with why not."""
    return {
        "normkit": version(),
        "torch": torch.__version__,
        "tier": tier(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {cpu_name()}",
        "threads": _threads(),
        **_paths(),
        **{f"extra [{name}]": _extra(modules) for name, modules in EXTRAS.items()},
    }


def tier() -> str:
    """What normkit gives with the torch at hand; the names that README uses."""
    from .kernels import native

    return {
        "exchange table": "everything (torch 2.10 and newer)",
        "C shim": "C shim (torch 2.4 to 2.9): the same native kernels, under a microsecond more per call",
        "": "without the core: right on PyTorch's own operations, slower",
    }[native.edge()]


def _threads() -> str:
    from .kernels import native

    alone = native.available() and not native.has_threads()
    return f"{torch.get_num_threads()}{'; the native core has one: this torch shows no parallel loop' if alone else ''}"


def cpu_name() -> str:
    """The processor as the system calls it, or the architecture where it does not say."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def missing(extra: str) -> list[str]:
    """The modules of an extra that cannot be imported here."""
    return [module for module in EXTRAS[extra] if importlib.util.find_spec(module) is None]


def _extra(modules: tuple[str, ...]) -> str:
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"not installed: {', '.join(absent)}" if absent else "installed"


def _paths() -> dict[str, str]:
    """Each path and why not, then each kind of device and what serves it."""
    from .kernels import native, triton

    here = native.available()
    cuda = _cuda()
    if triton.why_not("cpu") is None:
        of_triton = "available on the CPU by interpretation (TRITON_INTERPRET=1): slow, for tests"
    elif triton.why_not("cuda") is None and cuda is None:
        of_triton = f"available for CUDA tensors: {TRITON_NORMS}"
    else:
        of_triton = f"not available: {triton.why_not('cuda') or cuda}"
    own = "native, " if here else ""
    of_cuda = "" if triton.why_not("cuda") else f"triton ({TRITON_NORMS}), "
    return {
        "native path": f"available, instruction set {native.isa()}" if here else f"not available: {native.why_not()}",
        "composed path": "available",
        "aten path": "available",
        "triton path": of_triton,
        "on cpu": f"{own}aten, composed",
        "on cuda": cuda or f"{of_cuda}aten, composed",
        "on mps": "composed" if torch.backends.mps.is_available() else "torch finds no MPS device",
    }


def _cuda() -> str | None:
    """Why no tensor can be on CUDA here, or on one that normkit has kernels for; None if it can."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return "aten, composed: on ROCm Triton's kernels have not been tried" if torch.version.hip else None
