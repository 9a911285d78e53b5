"""From a bare environment to one fixed foreign model in three commands: how long each takes.

    python -m tools.three_commands dist/normkit-*.whl        what a wheel takes
    python -m tools.three_commands . -- --no-deps --no-index  arguments for pip

The commands are those of a newcomer who has a model whose running statistics are wrong: make an environment, install,
`normkit recalibrate` with the weights in and the fixed weights out. What came out is checked: its statistics are those
of the data. Exit code 1 when it is not so, or when all three take longer than LIMIT.

PyTorch itself, some 200 MB that the network decides, is taken from the environment that runs this (--with-torch
installs it too).
"""

from __future__ import annotations

import argparse
import os
import site
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 60.0  # seconds
FOREIGN = '''
"""A network that somebody else wrote, and a loader of the data that it saw."""

import torch
from torch import nn


def net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )


def images():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(32, 3, 24, 24, generator=g) * 3 + 1 for _ in range(8)]
'''
PLANT = "import torch, foreign; torch.manual_seed(0); torch.save(foreign.net().state_dict(), 'wrong.pt')"
CHECK = """
import torch, foreign
model = foreign.net()
model.load_state_dict(torch.load('right.pt', weights_only=True))
x = torch.cat(foreign.images())
with torch.no_grad():
    y = model[0](x)
    mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3))
torch.testing.assert_close(model[1].running_mean, mean, rtol=1e-4, atol=1e-4)
torch.testing.assert_close(model[1].running_var, var, rtol=1e-4, atol=1e-4)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", help="a wheel, or a folder that pip installs")
    parser.add_argument("--with-torch", action="store_true", help="let pip fetch PyTorch too")
    parser.add_argument("pip", nargs="*", help="more arguments for pip, after --")
    options = parser.parse_args()
    package = str(Path(options.package).resolve()) if Path(options.package).exists() else options.package
    dependencies = [] if options.with_torch else ["--no-deps"]
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "foreign.py").write_text(FOREIGN, encoding="utf-8")
        ours = [path for path in site.getsitepackages() if (Path(path) / "torch").is_dir()]
        lent = {} if options.with_torch else {"PYTHONPATH": os.pathsep.join(_lent(here, ours))}
        python = here / "env" / ("Scripts" if os.name == "nt" else "bin")
        subprocess.run([sys.executable, "-c", PLANT], cwd=here, check=True)
        commands = (
            [sys.executable, "-m", "venv", "env"],
            [str(python / "python"), "-m", "pip", "install", "--quiet", *dependencies, *options.pip, package],
            [str(python / "normkit"), "recalibrate", "foreign:net", "--weights", "wrong.pt", "--data", "foreign:images",
             "--out", "right.pt"],
        )  # fmt: skip
        taken = []
        for command in commands:
            begin = time.monotonic()
            subprocess.run(command, cwd=here, env={**os.environ, **lent}, check=True)
            taken.append(time.monotonic() - begin)
        right = subprocess.run([sys.executable, "-c", CHECK], cwd=here, check=False).returncode == 0
    for command, seconds in zip(commands, taken, strict=True):
        print(f"{seconds:6.1f} s  {' '.join(Path(part).name if os.sep in part else part for part in command)}")
    print(f"{sum(taken):6.1f} s  in all (at most {LIMIT:.0f}); the fixed model is {'right' if right else 'WRONG'}")
    return 0 if right and sum(taken) <= LIMIT else 1


def _lent(here: Path, packages: list[str]) -> list[str]:
    """A folder with this environment's packages but for normkit, so that only the new one can be found."""
    lent = here / "lent"
    lent.mkdir()
    for folder in packages:
        for path in Path(folder).iterdir():
            if "normkit" not in path.name and path.suffix != ".pth" and path.name not in ("pip", "__pycache__"):
                (lent / path.name).symlink_to(path)
    return [str(lent)]


if __name__ == "__main__":
    sys.exit(main())
