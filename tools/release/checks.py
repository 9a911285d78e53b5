"""Checks of a release. Each returns what is to be shown, or raises ValueError with what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from . import interpreters
from .build import PROJECT, ROOT

USE = Path(__file__).with_name("use.py")
NEEDS = ("filelock", "typing-extensions", "sympy", "networkx", "jinja2", "fsspec", "setuptools")  # of torch
PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("macos", "arm64"), ("windows", "AMD64"))
OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS")  # what a make hands on to those that it starts


def expect(wrong: list[str], good: str) -> str:
    if wrong:
        raise ValueError("; ".join(wrong))
    return good


def version() -> str:
    """One version everywhere, and a changelog that says what is in it."""
    number = PROJECT["project"]["version"]
    lines = {"src/normkit/__init__.py": f'__version__ = "{number}"', "CITATION.cff": f"version: {number}"}
    wrong = [
        f"{name} lacks the line `{line}`: pyproject.toml has the version {number}"
        for name, line in lines.items()
        if line not in (ROOT / name).read_text(encoding="utf-8").splitlines()
    ]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if re.search("^## Unreleased$", changes, re.MULTILINE):
        wrong.append(
            f"CHANGELOG.md still says Unreleased: name that section `## {number} - YYYY-MM-DD`, the day it is out, and "
            "commit (another number goes into pyproject.toml first)"
        )
    elif not re.search(rf"^## {re.escape(number)}(?= |$)", changes, re.MULTILINE):
        wrong.append(
            f"CHANGELOG.md lacks a section `## {number} - YYYY-MM-DD`: pyproject.toml has the version {number}"
        )
    return expect(wrong, number)


def tree() -> str:
    """What is built is what is committed."""
    changed = output("git", "status", "--porcelain").splitlines()
    return expect([f"{len(changed)} files are not committed"] if changed else [], output("git", "rev-parse", "HEAD"))


def passes(log: Path, *command: str) -> str:
    """A command as a shell would start it: what a make around this was told is not for the makes inside."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as said:  # as it comes: some take most of an hour
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT, check=False)
    last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
    return expect([f"{' '.join(command)} failed: {last} (the whole of it: {log})"] if done.returncode else [], last)


def identifiers() -> str:
    """The wheels that the workflow makes, as cibuildwheel reads pyproject.toml."""
    found = [
        name
        for system, machine in PLATFORMS
        for name in output(
            sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", system, "--archs", machine
        ).split()
    ]
    return expect([] if found else ["cibuildwheel would build nothing"], ", ".join(found))


def use(wheel: Path, python: Path, place: Path, core: str) -> str:
    """Install it into a bare environment, and compute. core: "native", or "pure" where there must be none."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (torch,) = re.findall(r"^torch==\S+$", pins, re.M)
    inside = interpreters.with_torch(python, place, torch, *NEEDS)
    interpreters.pip(inside, "install", "--no-deps", "--force-reinstall", str(wheel))
    done = subprocess.run([inside, USE, core], cwd=place, capture_output=True, text=True, check=False)
    return expect(done.stderr.splitlines()[-1:] if done.returncode else [], f"{torch}, {done.stdout.strip()}")


def classifiers(used: set[str]) -> str:
    """The Pythons that are claimed are those that computed."""
    lines = "\n".join(PROJECT["project"]["classifiers"])
    claimed = set(re.findall(r"^Programming Language :: Python :: (3\.\d+)$", lines, re.M))
    wrong = [f"{name} is claimed and was not run here" for name in sorted(claimed - used)]
    wrong += [f"{name} was run and is not claimed" for name in sorted(used - claimed)]
    return expect(wrong, f"Python {', '.join(sorted(claimed))}")


def output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
