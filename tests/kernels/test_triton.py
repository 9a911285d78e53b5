"""Triton's kernels without a GPU: interpreted against float64, and really compiled for the GPUs that docs/gpu.md names.

Each in a process of its own: TRITON_INTERPRET counts when a kernel is defined.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normkit.kernels import triton

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = os.environ.get("NORMKIT_REQUIRE_NATIVE") == "1"  # CI: nothing that has to be there is skipped
needs_triton = pytest.mark.skipif(not (triton.INSTALLED or REQUIRED), reason=str(triton.why_not("cuda")))


def in_process(*command: str, interpreted: bool, **variables: str) -> str:
    """What another Python prints; AssertionError where it fails. variables: of its environment."""
    environment = {
        "TRITON_CACHE_DIR": str(ROOT / "build" / "triton"), **os.environ,
        "TRITON_INTERPRET": "1" if interpreted else "0", "OMP_NUM_THREADS": "1", **variables,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


FILES = sorted((ROOT / "tests/kernels/interpreted").glob("*_cases.py"))
CASES = [(path.relative_to(ROOT).as_posix(), "not nightly") for path in FILES]
AT_NIGHT = [
    pytest.param(path.relative_to(ROOT).as_posix(), "nightly", marks=pytest.mark.nightly)
    for path in FILES
    if "drawn(" in path.read_text(encoding="utf-8").replace("def drawn(", "")
]


@needs_triton
@pytest.mark.parametrize(("cases", "which"), [*CASES, *AT_NIGHT])
def test_every_kernel_is_right_under_the_interpreter(cases: str, which: str) -> None:
    shown = in_process("-m", "pytest", cases, "-q", "-x", "-p", "no:cacheprovider", "-m", which, interpreted=True)
    assert " passed" in shown.splitlines()[-1], shown
    assert "skipped" not in shown.splitlines()[-1], shown


@needs_triton
def test_the_check_for_a_gpu_verifies_by_interpretation() -> None:
    assert "verified on cpu" in in_process("-m", "tools.gpu_check", "--seconds", "800", interpreted=True)


@needs_triton
def test_the_check_for_a_gpu_times_on_tiny_tensors() -> None:
    """Every line of its timing runs, though no figure means anything: what times on a GPU has run before."""
    shown = in_process("-m", "tools.gpu_check", "--dry", "--seconds", "800", interpreted=True)
    assert "FAILED" not in shown, shown
    assert "left out" not in shown, shown
    assert "stopped by the clock" not in shown, shown
    for line in (
        "verified on cpu: 6 of 6 cases", "verified: 7 of 7 graphs", "SMALL = ",
        "plain, forward, torch eager / triton", "masked, backward, torch",
        "group norm + SiLU, backward, torch.compile / triton", "a bottleneck, bfloat16", "diffusion blocks, float32",
        "ms of a training step, channels last, by torch.compile",
    ):  # fmt: skip
        assert line in shown, line


@needs_triton
@pytest.mark.parametrize(
    ("arch", "which"),
    [
        ("80", []), ("90", ["--plain"]), ("100", ["--plain"]),  # what spilled while it was written spilled on sm_80
        pytest.param("90", [], marks=pytest.mark.nightly), pytest.param("100", [], marks=pytest.mark.nightly),
    ],
    ids=str,
)  # fmt: skip
def test_every_kernel_compiles_without_spills_scalar_loads_and_float64(arch: str, which: list[str]) -> None:
    """The exit status says so; what it would say is in the next test."""
    assert in_process("-m", "tools.gpu_compile", "--arch", arch, *which, interpreted=False).count(f"sm_{arch}") > 20


@needs_triton
def test_a_broken_promise_is_a_fault() -> None:
    """Without the hints of a launch loads are scalar; a float64 constant; a tile too large for the registers."""
    in_process("-c", _BROKEN, interpreted=False)


@needs_triton
def test_compilers_see_the_kernels_in_the_operators() -> None:
    """One node a launch, no host code between them, and what each kernel writes; a stand-in for a driver names a GPU.

    And a cache of graphs knows whose code it depends on.
    """
    in_process("-c", _GRAPH, interpreted=False)


@needs_triton
@pytest.mark.skipif(torch.__version__.split(".")[:2] != ["2", "13"], reason="what PyTorch 2.13 is told of a GPU by")
def test_inductor_makes_programs_of_the_operators_whose_kernels_compile() -> None:
    """It copies the kernels into its programs, and hands numbers over in float64, which no rounding of ours takes."""
    assert in_process("-m", "tests.kernels.inductor_for_cuda", interpreted=False).count(" kernels") == 14


_GRAPH = """
import types
import torch
import triton
from torch._higher_order_ops import triton_kernel_wrap
from torch._library.triton import get_triton_kernels_for_op
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from normkit.kernels.triton import batch_norm_operator as operators
from normkit.kernels.triton import group_norm_operator as groups

target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
triton.runtime.driver.set_active(types.SimpleNamespace(get_current_target=lambda: target))
written, find_written = set(), triton_kernel_wrap.get_mutated_tensors

def keep_written(*arguments):
    names = find_written(*arguments)
    written.update(names)
    return names

triton_kernel_wrap.get_mutated_tensors = keep_written

def launches(function, *tensors):
    graph = make_fx(dispatch_functionalize(function), tracing_mode="fake")(*tensors).graph
    assert not any("view.dtype" in str(node.target) for node in graph.nodes), "inductor cannot read bools as bytes"
    return sum("triton_kernel_wrapper" in str(node.target) for node in graph.nodes)

x, w, bits = torch.randn(64, 16, 28, 28), torch.randn(16), torch.zeros(64 * 16 * 98, dtype=torch.uint8)
mask, s = torch.ones(64, 1, 28, 28, dtype=torch.bool), torch.randn(5, 16)
for under in (lambda m: None, lambda m: m):
    facts = (0, 1e-5, 1, 0.0)
    assert launches(lambda x, w, m: operators.forward(x, w, w, x, under(m), *facts), x, w, mask) == 3
    assert launches(
        lambda x, w, s, b, m: operators.backward(x, x, w, w, None, under(m), s, b, *facts, [True] * 4),
        x, w, s, bits, mask,
    ) == 3
    assert launches(lambda x, m: operators.statistics(x, under(m), 1e-5), x, mask) == 2
    assert launches(
        lambda x, w, s, m: operators.by_statistics(x, w, w, x, under(m), s, 1, 0.0, ""), x, w, s, mask
    ) == 1
    assert launches(
        lambda x, w, s, b, m: operators.sums(x, x, w, w, None, under(m), s, b, 1, 0.0), x, w, s, bits, mask
    ) == 2
    assert launches(
        lambda x, w, s, b, m: operators.by_shares(x, x, w, w, None, under(m), s, b, s[:2], 1, 0.0, [True] * 2),
        x, w, s, bits, mask,
    ) == 1
    for size, forward, backward in ((1, 3, 4), (8, 1, 2)):  # a group of 16 channels, and of 2: on chip
        facts, of_groups = (size, 1e-5, 4, 0.0), torch.randn(5, 64 * size)
        assert launches(lambda x, w, m: groups.forward(x, w, w, x, under(m), *facts), x, w, mask) == forward
        assert launches(
            lambda x, w, s, m: groups.backward(x, x, w, w, x, under(m), s, None, *facts, [True] * 4),
            x, w, of_groups, mask,
        ) == backward
facts = (0, 1e-5, 1, 0.0)
assert launches(lambda x, w: operators.forward(x, w, w, x, None, *facts), x[:4], w) == 1  # a channel fits on chip
for slices, forward, backward in ((2, 3, 4), (16, 1, 2)):  # the channels of a slice in tiles, and on chip
    facts, of_slices = (slices, 1e-5, 1, 0.0), torch.randn(5, 16 * slices)
    assert launches(lambda x, w: operators.forward(x, w, w, x, None, *facts), x, w) == forward
    assert launches(
        lambda x, w, s, b: operators.backward(x, x, w, w, None, None, s, b, *facts, [True] * 4), x, w, of_slices, bits
    ) == backward
results = {"y", "stats", "bits", "dx", "dresidual", "dweight", "dbias"}
assert written == results | {"parts", "totals", "found"}, written  # no operand is taken for one
for name, kernels in (
    ("triton_batch_norm", {"whole", "partial", "merge", "apply"}),
    ("triton_batch_norm_backward", {"whole", "sums", "merge", "gradients", "parameters"}),
    ("triton_batch_norm_statistics", {"partial", "merge"}), ("triton_batch_norm_by_statistics", {"apply"}),
    ("triton_batch_norm_sums", {"sums", "merge"}), ("triton_batch_norm_by_shares", {"gradients"}),
    ("triton_group_norm", {"whole", "partial", "merge", "apply"}),
    ("triton_group_norm_backward", {"whole", "sums", "merge", "gradients", "parameters"}),
):
    assert {kernel.fn.__name__ for kernel in get_triton_kernels_for_op(f"normkit::{name}")} == kernels
"""


_BROKEN = """
from dataclasses import replace
import triton, triton.language as tl
from tools import gpu_compile

launch = gpu_compile.launches()[0]
assert launch.name == "batch_norm_forward.partial"
assert gpu_compile.compile_for(launch, 90).faults() == []
(fault,) = gpu_compile.compile_for(launch, 90, hints=False).faults()
assert "of 16 bytes were promised" in fault, fault

large = replace(launch, options={**launch.options, "BS": 1 << 10, "num_warps": 1})
assert any("spilled" in fault for fault in gpu_compile.compile_for(large, 90).faults())

assert gpu_compile.is_double("%1 = arith.extf %0 : f32 to f64") and gpu_compile.is_double("add.f64 %fd1, %fd2, %fd3;")
assert not gpu_compile.is_double("add.f32 %f1, %f2, %f3;")
"""


@needs_triton
def test_a_cache_folder_that_cannot_be_written_is_a_reason_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    in_process("-c", _UNWRITABLE, str(tmp_path), interpreted=False, TRITON_CACHE_DIR=str(tmp_path / "file" / "cache"))


_UNWRITABLE = """
import os, sys
import normkit as nk
from normkit.info import collect
from normkit.kernels import triton
from tools import gpu_compile

problem = triton.why_not("cuda")
assert problem.endswith("which cannot be written (Not a directory): set TRITON_CACHE_DIR to a folder that can"), problem
assert collect()["triton path"] == f"not available: {problem}"
launch = gpu_compile.launches()[0]
try:
    gpu_compile.compile_for(launch, 90)
except OSError:
    os.environ["TRITON_CACHE_DIR"] = os.path.join(sys.argv[1], "cache")
    assert triton.why_not("cuda") is None
    assert not os.path.lexists(os.environ["TRITON_CACHE_DIR"]), "asking makes no folder"
    assert gpu_compile.compile_for(launch, 90).faults() == []
else:
    sys.exit("Triton compiles without a folder: then there is no reason to refuse")
"""


@needs_triton
def test_a_second_process_compiles_nothing_again(tmp_path: Path) -> None:
    """Triton's own cache: the first call of a fresh process compiles, that of the next finds it."""
    counts = [in_process("-c", _CACHED, interpreted=False, TRITON_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    assert counts == ["3\n", "0\n"]


_CACHED = """
from triton.compiler import ASTSource
from tools import gpu_compile

made, make_ir = [], ASTSource.make_ir
ASTSource.make_ir = lambda *arguments, **options: made.append(0) or make_ir(*arguments, **options)
for launch in gpu_compile.launches()[:3]:
    gpu_compile.compile_for(launch, 90)
print(len(made))
"""


@needs_triton
@pytest.mark.nightly
def test_a_second_process_reuses_what_torch_compile_made(tmp_path: Path) -> None:
    """Interpreted, where a norm is an opaque operator of the graph; what the operators of a GPU add to the key of a
    graph is in `test_compilers_see_the_kernels_in_the_operators`. The first call of each process is a cold start."""
    found = [
        in_process(
            "-c", _COMPILED, interpreted=True, TORCHINDUCTOR_CACHE_DIR=str(tmp_path), TRITON_CACHE_DIR="/dev/null/x"
        )
        for _ in range(2)
    ]
    assert [line.split()[0] for line in found] == ["0", "1"]  # graphs that came from the cache
    assert found[0].split()[1] == found[1].split()[1]  # and the same bits


_COMPILED = """
import torch
import normkit as nk
from torch._dynamo.utils import counters

torch.manual_seed(0)
x = torch.randn(4, 3, 5)
layer = nk.BatchNorm1d(3, track_running_stats=False, affine=False, activation="silu")
with nk.backend("triton"), torch.no_grad():
    y = torch.compile(layer, fullgraph=True)(x)
print(counters["inductor"]["fxgraph_cache_hit"], y.double().sum().item().hex())
"""


def test_importing_normkit_imports_no_triton() -> None:
    program = "import sys, normkit; sys.exit(sys.modules.get('triton') is not None)"
    in_process("-c", program, interpreted=False)
