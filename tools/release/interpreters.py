"""The Pythons of this machine, and bare environments of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .. import cuda_stubs

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
ASKED = "NORMKIT_PYTHONS"  # interpreters beside those that are found, divided as $PATH is


def found() -> dict[str, Path]:
    """Version -> interpreter: the ones asked for, on the path, or of pyenv."""
    asked = [Path(name) for name in os.environ.get(ASKED, "").split(os.pathsep) if name]
    installed = sorted((Path.home() / ".pyenv" / "versions").glob("3.*/bin/python"))
    named = [Path(place) for version in VERSIONS if (place := shutil.which(f"python{version}"))]
    pythons: dict[str, Path] = {}
    for python in (Path(sys.executable), *asked, *named, *installed):
        version = _output(python, "import sys; print('%d.%d' % sys.version_info[:2])")
        if version in VERSIONS:
            pythons.setdefault(version, python)
    return dict(sorted(pythons.items(), key=lambda item: int(item[0].partition(".")[2])))


def environment(python: Path, place: Path, *requirements: str) -> Path:
    """The interpreter of an environment with these packages alone; made once."""
    inside = place / "bin" / "python"
    done = place / "installed.txt"
    wanted = "\n".join(requirements)
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([python, "-m", "venv", place], check=True)
        if requirements:
            pip(inside, "install", *requirements)
        done.write_text(wanted, encoding="utf-8")
    return inside


def pip(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def with_torch(python: Path, place: Path, torch: str, *needs: str) -> Path:
    """A bare environment with that torch, which may be a CUDA build without CUDA's libraries: they are made empty."""
    inside = environment(python, place, *needs)
    lib = Path(_output(inside, "import sysconfig; print(sysconfig.get_path('platlib'))")) / "torch" / "lib"
    if not lib.exists():
        pip(inside, "install", "--no-deps", "--no-compile", torch)
        cuda_stubs.fill(lib)
    return inside


def _output(python: Path, program: str) -> str:
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    return done.stdout.strip()
