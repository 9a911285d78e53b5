"""Write the hashes of every pinned package: `python -m tools.lock [--check]`.

Pins are written by hand: constraints.txt, and for what is installed without its dependencies requirements-zoo.txt and
requirements-release.txt. From them this makes requirements-hashed.txt and the hashes in the two, with `uv` (pip install
uv), which asks the package index for every file of a release: wheels of all platforms, and the source. pip takes no
hashes in constraints beside an editable install, so they stand in a file of requirements that is installed first.
--check asks nobody: it fails when a pin has no hashes, or hashes have no pin.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS, HASHED, ZOO, RELEASE = (
    ROOT / f"{name}.txt" for name in ("constraints", "requirements-hashed", "requirements-zoo", "requirements-release")
)
HEADER = "# Made by `python -m tools.lock` from constraints.txt. Install with --no-deps --require-hashes.\n"
# Whether torch is a CPU or a CUDA build is decided by where it comes from: given the hashes of the index, pip takes the
# CUDA build from there even where a CPU build lies at hand.
WITHOUT = "torch"


def pins(text: str) -> list[str]:
    """The lines `name==version` of a file, without hashes and without torch."""
    found = re.findall(r"^[A-Za-z0-9][\w.-]*==[^\s\\]+", text, re.MULTILINE)
    return [pin for pin in found if pin.partition("==")[0] != WITHOUT]


def missing() -> list[str]:
    """What --check complains about."""
    hashed, *by_hand = (path.read_text(encoding="utf-8") for path in (HASHED, ZOO, RELEASE))
    wanted = pins(PINS.read_text(encoding="utf-8"))
    complaints = [
        f"{pin} stands in one of constraints.txt and requirements-hashed.txt only"
        for pin in sorted(set(wanted) ^ set(pins(hashed)))
    ]
    bare = [pin for text in (hashed, *by_hand) for pin in pins(text) if f"{pin} \\\n    --hash=sha256:" not in text]
    return complaints + [f"{pin} has no hashes" for pin in bare]


def lock(requirements: list[str]) -> dict[str, str]:
    """Each pin with the hashes of all its files, as pip reads it."""
    command = ["uv", "pip", "compile", "--quiet", "--no-deps", "--generate-hashes", "--no-annotate", "--no-header", "-"]
    shown = subprocess.run(command, input="\n".join(requirements), text=True, stdout=subprocess.PIPE, check=True).stdout
    found: dict[str, list[str]] = {}
    for line in shown.splitlines():
        if pin := re.match(r"\S+==\S+", line):
            hashes = found[_plain(pin[0])] = []
        hashes += re.findall(r"sha256:([0-9a-f]{64})", line)
    return {pin: " \\\n".join([pin, *(f"    --hash=sha256:{h}" for h in found[_plain(pin)])]) for pin in requirements}


def _plain(pin: str) -> str:
    return pin.lower().replace("_", "-")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when pins and hashes differ")
    if not parser.parse_args().check:
        locked = lock(pins(PINS.read_text(encoding="utf-8")))
        HASHED.write_text(HEADER + "\n".join(locked.values()) + "\n", encoding="utf-8")
        for file in (ZOO, RELEASE):
            text = re.sub(r" \\\n +--hash=\S+", "", file.read_text(encoding="utf-8"))
            for pin, lines in lock(pins(text)).items():
                text = text.replace(pin, lines)
            file.write_text(text, encoding="utf-8")
    complaints = missing()
    print("\n".join(complaints) if complaints else "every pin has its hashes")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
