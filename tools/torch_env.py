"""An environment with another torch: `python -m tools.torch_env 2.6.0` makes .venv-torch-2.6.0.

It is a thin layer over .venv: everything but torch, the built native core included, comes from there, so nothing is
compiled or installed twice. torch itself (a CUDA build of some GB where the index has no other) lies in a cache of the
user, ~/.cache/normkit or $NORMKIT_TORCHES, with what its metadata pins (sympy) and empty CUDA libraries (cuda_stubs).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from . import cuda_stubs

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / ".venv"


def cache() -> Path:
    """Where torches lie, one folder each."""
    return Path(os.environ.get("NORMKIT_TORCHES") or Path.home() / ".cache" / "normkit")


def ends() -> list[str]:
    """The oldest and the newest torch that are in the cache."""
    found = [place.name.removeprefix("torch-") for place in cache().glob("torch-*") if place.suffix != ".partial"]
    ordered = sorted(found, key=lambda version: [int(part) for part in version.split(".")])
    return list(dict.fromkeys((*ordered[:1], *ordered[-1:])))


def environment(version: str) -> Path:
    """The environment's folder, whether or not it is there."""
    return ROOT / f".venv-torch-{version}"


def python(version: str) -> Path | None:
    """The interpreter with that torch: .venv's own, or an environment over what is cached; None where it is not."""
    (own,) = importlib.metadata.distributions(name="torch", path=[_packages(BASE)])
    if own.version.split("+")[0] == version:
        return BASE / "bin" / "python"
    there = cache() / f"torch-{version}"
    return layer(version, there) / "bin" / "python" if there.exists() else None


def fetch(version: str) -> Path:
    """That torch, from the cache or into it. Complete or not there: it is made beside its place and moved."""
    place = cache() / f"torch-{version}"
    if place.exists():
        return place
    partial = place.with_name(f"{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _install(partial, f"torch=={version}")
    (metadata,) = importlib.metadata.distributions(name="torch", path=[str(partial)])
    pinned = [pin for need in metadata.requires or () if (pin := _pinned(need))]
    if pinned:
        _install(partial, *pinned)
    made = cuda_stubs.fill(partial / "torch" / "lib")
    if made:
        print(f"empty libraries in place of {', '.join(made)}")
    partial.rename(place)
    return place


def _pinned(requirement: str) -> str | None:
    """`sympy==1.13.1` of a requirement that pins a pure package for this Python; None for any other."""
    found = re.match(r"(sympy)\s*\(?(==[\d.]+)\)?", requirement)
    before = re.search(r'python_version\s*<\s*"3\.(\d+)"', requirement)
    if found is None or (before and sys.version_info >= (3, int(before[1]))):
        return None
    return "".join(found.groups())


def _install(target: Path, *requirements: str) -> None:
    # pip compiles it to bytecode: the tests start many processes, and each would take a minute to import torch
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-cache-dir", "--target", str(target)]
    subprocess.run([*pip, *requirements], check=True)


def layer(version: str, torch: Path) -> Path:
    """The environment over .venv in which `import torch` finds that one."""
    place = environment(version)
    venv.create(place, symlinks=True, clear=True)
    # addsitedir reads the .pth files of .venv too: the package is installed there for editing
    paths = f"{torch}\nimport site; site.addsitedir({_packages(BASE)!r})\n"
    paths += (
        "import sys; sys.modules['triton'] = None\n"  # each torch knows one version, and .venv's is of its own torch
    )
    (Path(_packages(place)) / "torch.pth").write_text(paths)
    for name in ("normkit", "pytest"):
        script = (BASE / "bin" / name).read_text().split("\n", 1)[1]
        (place / "bin" / name).write_text(f"#!{place}/bin/python\n{script}")
        (place / "bin" / name).chmod(0o755)
    return place


def _packages(place: Path) -> str:
    return sysconfig.get_path("purelib", "venv", vars={"base": str(place), "platbase": str(place)})


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version")
    given = parser.parse_args(arguments)
    place = layer(given.version, fetch(given.version))
    program = "import torch; print(f'torch {torch.__version__} in', end=' ')"
    subprocess.run([place / "bin" / "python", "-c", program], check=True)
    print(place.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
