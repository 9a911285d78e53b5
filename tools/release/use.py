"""Run in a bare environment with the wheel and torch: is it this wheel, does it have its core, are its numbers right?

python use.py native|pure
"""

import platform
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import normkit as nk

SETS = {  # what /proc/cpuinfo must name for each instruction set, the widest first
    "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl", "fma", "bmi2"},
    "avx2": {"avx2", "fma", "f16c"},
}


def expected(core: str) -> str:
    """What `normkit info` must say of the core: the widest instruction set that this machine has."""
    if core == "pure":
        return "not available"
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        return "available, instruction set"
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return f"available, instruction set {next((name for name, needs in SETS.items() if needs <= flags), 'baseline')}"


assert "site-packages" in nk.__file__, nk.__file__
torch.manual_seed(0)
for layout in (torch.contiguous_format, torch.channels_last):
    x = torch.randn(8, 16, 12, 12).to(memory_format=layout)
    ours, theirs = nk.BatchNorm2d(16), nn.BatchNorm2d(16)
    results = []
    for norm in (ours, theirs):
        given = x.clone().requires_grad_()
        y = norm(given)
        y.square().mean().backward()
        results.append((y, given.grad, norm.weight.grad, norm.running_mean, norm.running_var, norm.eval()(x)))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
rows = torch.randn(64, 32, dtype=torch.float64)
torch.testing.assert_close(nk.LayerNorm(32, dtype=torch.float64)(rows), nn.LayerNorm(32, dtype=torch.float64)(rows))
residual = nk.functional.batch_norm(x, None, None, training=True, residual=x, activation="relu")
torch.testing.assert_close(
    residual, (nn.functional.batch_norm(x, None, None, training=True) + x).relu(), rtol=1e-4, atol=1e-5
)

command = Path(sys.executable).with_name("normkit")
said = subprocess.run([command, "info"], capture_output=True, text=True, check=True).stdout
(path,) = (line for line in said.splitlines() if line.startswith("native path"))
assert expected(sys.argv[1]) in path, f"{path}: expected {expected(sys.argv[1])!r}"
print(path.split(maxsplit=2)[2])
