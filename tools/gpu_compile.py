"""Compile every Triton kernel for each GPU that normkit names: `python -m tools.gpu_compile [--write]`.

No GPU is needed: Triton's compiler and NVIDIA's assembler, which comes with it, make PTX and a cubin. What is compiled
is what would be launched: the host's functions run on tensors without memory, and each launch is recorded with its
arguments. The table goes to docs/gpu.md. A fault is a spill, a tensor that is read or written in less than the promised
16 bytes, or float64.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from normkit import _activation
from normkit._operands import Needs, Operands, Saved
from normkit.functional.ghost_batch_norm import slice_sizes
from normkit.kernels.triton import batch_norm, batch_norm_gradients, group_norm

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gpu.md"
ARCHITECTURES = (80, 90, 100)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "u8", torch.int64: "i64"}
ROW = "| {kernel} | {tensors} | sm_{arch} | {registers} | {spills} | {shared} | {loads} | {stores} |"
HEAD = (
    "| kernel | tensors | GPU | registers | spilled bytes | shared bytes | bytes per load | bytes per store |\n"
    "|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Launch:
    """One launch as it would happen. tensors: those of the input's size, in words; reads, writes: how many of them."""

    name: str
    tensors: str
    kernel: JITFunction
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    input: Tensor

    @property
    def constants(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name != "num_warps"}


@dataclass(frozen=True)
class Compiled:
    """What came out."""

    launch: Launch
    arch: int
    registers: int
    spills: int
    shared: int
    loads: dict[int, int]  # bytes of a load: how many instructions
    stores: dict[int, int]
    has_double: bool

    def faults(self) -> list[str]:
        """What breaks a promise."""
        where = f"{self.launch.name}, {self.launch.tensors}, sm_{self.arch}"
        found = []
        if self.spills:
            found.append(f"{where}: {self.spills} bytes are spilled")
        if self.has_double:
            found.append(f"{where}: float64 in the program")
        for what, have, want in zip(("loads", "stores"), (self.loads, self.stores), promised(self.launch), strict=True):
            if have.get(16, 0) < want:
                found.append(f"{where}: {have} {what} by bytes, of which {want} of 16 bytes were promised")
        return found

    def row(self) -> str:
        return ROW.format(
            kernel=self.launch.name, tensors=self.launch.tensors, arch=self.arch, registers=self.registers,
            spills=self.spills, shared=self.shared, loads=_counted(self.loads), stores=_counted(self.stores),
        )  # fmt: skip


def _counted(widths: dict[int, int]) -> str:
    return ", ".join(f"{width} ({count})" for width, count in sorted(widths.items(), reverse=True)) or "-"


class _Recorder:
    """Stands where a kernel is, and keeps what it is launched with."""

    def __init__(self, name: str, kernel: JITFunction, launches: list[tuple[Any, ...]]) -> None:
        self.name, self.kernel, self.launches = name, kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **options: self.launches.append((self.name, self.kernel, arguments, options))


@contextmanager
def recorded(*modules: Any) -> Iterator[list[tuple[Any, ...]]]:
    """Within the block the modules' kernels are not launched, and the list has what would have been."""
    launches: list[tuple[Any, ...]] = []
    kernels = [
        (module, name, kernel)
        for module in modules
        for name, kernel in vars(module).items()
        if isinstance(kernel, JITFunction)
    ]
    for module, name, kernel in kernels:
        setattr(module, name, _Recorder(kernel.fn.__qualname__, kernel, launches))
    try:
        yield launches
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)


# In words, shape, channels last. Two that are cut into tiles, and two whose channels just fit on chip: a batch of 0
# stands for as many samples as do.
CASES: tuple[tuple[str, tuple[int, ...], bool], ...] = (
    ("planar 56x56", (64, 64, 56, 56), False),
    ("channels last 56x56", (64, 64, 56, 56), True),
    ("planar 8x8, one pass", (128, 256, 8, 8), False),
    ("channels last 4x4, one pass", (0, 256, 4, 4), True),
)


# Cut into slices of 32 samples or one fewer: in tiles, and each just fits on chip.
SLICED_CASES: tuple[tuple[str, tuple[int, ...], bool], ...] = (
    ("planar 28x28, slices of 32", (95, 256, 28, 28), False),
    ("channels last 28x28, slices of 32", (95, 256, 28, 28), True),
    ("planar 16x16, slices of 32, one pass", (95, 256, 16, 16), False),
    ("channels last 4x4, slices of 32, one pass", (95, 256, 4, 4), True),
)


def launches() -> list[Launch]:
    """Every kernel on every layout, in float32 and bfloat16, behind a residual, with ReLU and with SiLU; under a mask
    and in slices, in float32 with ReLU."""
    found = []
    for words, shape, last in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            longest = dtype == torch.float32 and not last  # the most registers
            for code in (_activation.RELU, *[_activation.SILU] * longest):
                name = "relu" if code == _activation.RELU else "silu"
                tensors = f"{words}, {str(dtype).removeprefix('torch.')}, residual, {name}"
                found += _of_batch_norm(tensors, _empty(shape, dtype, last), code)
        x = _empty(shape, torch.float32, last)
        found += _of_batch_norm(f"{words}, float32, residual, relu, mask", x, _activation.RELU, _mask(x))
    for words, shape, last in SLICED_CASES:
        x = _empty(shape, torch.float32, last)
        found += _of_slices(f"{words}, float32, residual, relu", x, slice_sizes(len(x), 32))
    found += _group_launches()
    unique = {}
    for launch in found:  # what has neither residual nor activation is the same for both
        unique.setdefault((launch.kernel, _key(launch)), launch)
    return list(unique.values())


def _empty(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    batch = shape[0] or 8 * dtype.itemsize
    return torch.empty((batch, *shape[1:]), dtype=dtype, device="meta", memory_format=layout)


def _mask(x: Tensor) -> Tensor:
    return torch.empty((x.shape[0], 1, *x.shape[2:]), dtype=torch.bool, device="meta")


def _key(launch: Launch) -> tuple[Any, ...]:
    kinds = tuple(a.dtype if isinstance(a, Tensor) else a for a in launch.arguments)
    return (*kinds, *sorted(launch.options.items()))


def _of_batch_norm(tensors: str, x: Tensor, code: int, mask: Tensor | None = None) -> list[Launch]:
    def vector(dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(x.shape[1], dtype=dtype, device="meta")

    operands = Operands(x, vector(), vector(), x, mask)
    batches = torch.empty((), dtype=torch.int64, device="meta")
    activation = _activation.by_code(code, 0.0)
    with recorded(batch_norm, batch_norm_gradients) as seen:
        running = (vector(), vector(), batches, 0.1)
        _, stats, bits = batch_norm.run_forward(operands, 1e-5, code, 0.0, True, running)
        batch_norm.inference(operands, vector(), vector(), activation, 1e-5, True)
        kept = operands if bits is None else operands._replace(residual=None)
        needs = Needs(True, True, True, True)
        batch_norm_gradients.run_backward(x, kept, Saved(stats, bits), code, 0.0, needs)
        if mask is not None:  # where a synchronised norm has the most registers
            batch_norm_gradients.run_by_shares(x, kept, Saved(stats, bits), stats[:2], code, 0.0, needs)
    return [
        Launch(_name(kernel, options), tensors, kernel, arguments, options, x) for _, kernel, arguments, options in seen
    ]


def _of_slices(tensors: str, x: Tensor, sizes: Sequence[int]) -> list[Launch]:
    vector, code = torch.empty(x.shape[1], device="meta"), _activation.RELU
    batches = torch.empty((), dtype=torch.int64, device="meta")
    with recorded(batch_norm, batch_norm_gradients) as seen:
        running = (vector, vector, batches, 0.1)
        operands = Operands(x, vector, vector, x)
        _, stats, bits = batch_norm.run_forward(operands, 1e-5, code, 0.0, True, running, sizes)
        kept, needs = operands._replace(residual=None), Needs(True, True, True, True)
        batch_norm_gradients.run_backward(x, kept, Saved(stats, bits), code, 0.0, needs, True, sizes)
    return [
        Launch(_name(kernel, options), tensors, kernel, arguments, options, x) for _, kernel, arguments, options in seen
    ]


# Of group norm: a group in tiles, and on chip.
GROUP_CASES: tuple[tuple[str, tuple[int, ...], bool], ...] = (
    ("planar 64x64, 32 groups", (2, 320, 64, 64), False),
    ("channels last 64x64, 32 groups", (2, 320, 64, 64), True),
    ("planar 8x8, 32 groups, one pass", (2, 1280, 8, 8), False),
    ("channels last 8x8, 32 groups, one pass", (2, 1280, 8, 8), True),
    ("channels last 16x16, 32 groups, one pass", (2, 1024, 16, 16), True),
)


def _group_launches() -> list[Launch]:
    """Group norm's kernels, behind a residual, with SiLU; under a mask in float32."""
    found = []
    for words, shape, last in GROUP_CASES:
        for dtype, masked in ((torch.float32, False), (torch.bfloat16, False), (torch.float32, True)):
            x = _empty(shape, dtype, last)
            weight = torch.empty(x.shape[1], device="meta")
            operands = Operands(x, weight, weight, x, _mask(x) if masked else None)
            code = _activation.SILU
            with recorded(group_norm) as seen:
                _, stats = group_norm.run_forward(operands, 32, 1e-5, code, 0.0)
                group_norm.run_backward(x, operands, stats, 32, code, 0.0, Needs(True, True, True, True))
            tensors = f"{words}, {str(dtype).removeprefix('torch.')}, residual, silu{', mask' if masked else ''}"
            found += [
                Launch(_name(kernel, options), tensors, kernel, arguments, options, x)
                for _, kernel, arguments, options in seen
            ]
    return found


def _name(kernel: JITFunction, options: dict[str, Any]) -> str:
    module = kernel.fn.__module__.rpartition("._")[2]
    given = " by given statistics" if options.get("GIVEN") else " by given shares" if options.get("SHARED") else ""
    return f"{module}.{kernel.fn.__name__}{given}"


def promised(launch: Launch) -> tuple[int, int]:
    """How many loads and stores of 16 bytes a thread makes for the tensors of the input's size."""
    constants, x = launch.constants, launch.input
    if "VC" not in constants:
        return 0, 0
    of_channels = min(constants["VC"], constants.get("VP", constants["VC"]))
    if (of_channels if constants["LAST"] else constants["VS"]) * x.element_size() < 16:
        return 0, 0
    tile = [constants.get(axis, 1) for axis in ("BN", "BI", "BG", "BC", "BS")]
    a_tensor = math.prod(tile) * x.element_size() // 16 // 32
    a_tensor //= launch.options["num_warps"]
    reads = 1 + ("dy" in launch.kernel.arg_names) + bool(constants.get("HAS_RESIDUAL"))
    writes = ("y" in launch.kernel.arg_names) + bool(constants.get("WANTS_INPUT"))
    writes += bool(constants.get("WANTS_RESIDUAL"))
    return reads * a_tensor, writes * a_tensor


def is_double(text: str) -> bool:
    """Whether Triton's code or PTX has float64."""
    return re.search(r"\bf64\b|\.f64\b", text) is not None


def compile_for(launch: Launch, arch: int, hints: bool = True) -> Compiled:
    """As the launch would, for a GPU that need not be here. hints: what a launch tells of addresses and sizes."""
    signature, constants, attributes = {}, dict(launch.constants), {}
    for index, name in enumerate(launch.kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        value = launch.arguments[index]
        if isinstance(value, Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes if hints else {})
    made = triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options={"num_warps": launch.options["num_warps"]}
    )
    usage = _resources(made.asm["cubin"])
    text = "\n".join(made.asm[stage] for stage in ("ttir", "ttgir", "ptx"))
    return Compiled(
        launch, arch, usage["REG"], max(usage["STACK"], usage["LOCAL"]), made.metadata.shared,
        _widths(made.asm["ptx"], "ld"), _widths(made.asm["ptx"], "st"),
        is_double(text),
    )  # fmt: skip


def _resources(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", shown)}


def _widths(ptx: str, instruction: str) -> dict[int, int]:
    """How many global loads or stores there are of each width in bytes."""
    found: dict[int, int] = {}
    for vector, bits in re.findall(rf"\b{instruction}\.global(?:\.[a-zA-Z_:0-9]+?)*?(?:\.v(\d))?\.[bufs](\d+)\b", ptx):
        width = int(vector or 1) * int(bits) // 8
        found[width] = found.get(width, 0) + 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the table into docs/gpu.md")
    parser.add_argument("--arch", type=int, action="append", help="80, 90 or 100; all of them if not given")
    parser.add_argument("--plain", action="store_true", help="leave out masks and slices")
    given = parser.parse_args()
    rows, faults = [HEAD], []
    for launch in launches():
        if given.plain and ("mask" in launch.tensors or "slices" in launch.tensors):
            continue
        for arch in given.arch or ARCHITECTURES:
            compiled = compile_for(launch, arch)
            rows.append(compiled.row())
            faults += compiled.faults()
            print(rows[-1], flush=True)
    if given.write:
        text = PAGE.read_text(encoding="utf-8")
        begin, end = "<!-- compiled: begin -->", "<!-- compiled: end -->"
        before, after = text.partition(begin)[0], text.partition(end)[2]
        PAGE.write_text(f"{before}{begin}\n" + "\n".join(rows) + f"\n{end}{after}", encoding="utf-8")
    print("\n".join(faults), file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
