"""What a wheel or a source archive holds, and what it must not."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from collections.abc import Iterable
from email.parser import BytesParser
from pathlib import Path

from packaging.metadata import parse_email
from packaging.tags import Tag
from packaging.utils import parse_wheel_filename

MOST = 5_000_000  # bytes
GLIBC = (2, 28)  # torch's own wheels ask for it
ALLOWED = re.compile(r"normkit(/[\w.-]+)*|normkit-[\w.]+\.dist-info(/[\w.]+)*")
NEEDED = {
    "normkit/__init__.py",
    "normkit/py.typed",
    "normkit/_native.pyi",
    "normkit/defects/01_channels_last_variance.py",
}
IN_SOURCE = (
    "src/normkit/__init__.py", "native/bind.cpp", "examples/README.md", "tests/test_wheel.py", "docs/README.md",
    "docs/README.zh.md", "tools/release/contents.py", "tools/site/mkdocs.yml", ".github/workflows/wheels.yml",
    "CMakeLists.txt", "Makefile", "LICENSE", "CHANGELOG.md", "constraints.txt", "requirements-hashed.txt",
)  # fmt: skip
NAMES = {"PyInit__native"}  # that the core shows to other libraries


def of_wheel(wheel: Path) -> list[str]:
    """What is wrong with it."""
    wrong = [] if wheel.stat().st_size <= MOST else [f"{wheel.stat().st_size:,} bytes, at most {MOST:,}"]
    _, version, _, tags = parse_wheel_filename(wheel.name)
    wrong += _glibc(tags)
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        info = f"normkit-{version}.dist-info"
        wrong += [f"lacks {name}" for name in sorted({*NEEDED, f"{info}/licenses/LICENSE"} - set(names))]
        wrong += [f"holds {name}" for name in names if not ALLOWED.fullmatch(name.rstrip("/")) or "__pycache__" in name]
        facts = BytesParser().parsebytes(files.read(f"{info}/WHEEL"))
        if set(facts.get_all("Tag", [])) != {str(tag) for tag in tags}:
            wrong.append(f"its name says {sorted(map(str, tags))}, its WHEEL {facts.get_all('Tag')}")
        _, unparsed = parse_email(files.read(f"{info}/METADATA"))
        wrong += [f"METADATA: {name} is not understood" for name in unparsed]
        cores = [name for name in names if name.endswith((".so", ".pyd", ".dylib"))]
        if len(cores) != (0 if any(tag.abi == "none" for tag in tags) else 1):
            wrong.append(f"binaries: {cores}")
        for core in cores:
            wrong += of_core(files.read(core))
    return wrong


def _glibc(tags: Iterable[Tag]) -> list[str]:
    """What is wrong with a tag for Linux: it asks for a newer glibc than torch, or nobody has looked what for."""
    linux = [tag.platform for tag in tags if "linux" in tag.platform]
    asked = [tuple(map(int, re.findall(r"\d+", name)[:2])) for name in linux if name.startswith("manylinux_")]
    return (
        []
        if not linux or any(version <= GLIBC for version in asked)
        else [f"is for {', '.join(linux)}, not glibc 2.28"]
    )


def of_core(binary: bytes) -> list[str]:
    """What is wrong with an ELF module; nothing is said of other formats."""
    if not binary.startswith(b"\x7fELF"):
        return []
    from elftools.elf.elffile import ELFFile

    elf = ELFFile(io.BytesIO(binary))
    wrong = ["is not stripped"] if elf.get_section_by_name(".symtab") else []
    shown = {
        symbol.name
        for symbol in elf.get_section_by_name(".dynsym").iter_symbols()
        if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL"
    }
    return wrong + ([f"shows {sorted(shown)}, not {sorted(NAMES)} alone"] if shown != NAMES else [])


def of_source(archive: Path) -> list[str]:
    """What is wrong with the source: tests and docs belong to it, what was built does not."""
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    wrong = [f"lacks {name}" for name in IN_SOURCE if name not in names]
    built = re.compile(r"(.*/)?(build|__pycache__|\.venv[^/]*|\.git)(/.*)?|.*\.(so|pyc|o)")
    return wrong + [f"holds {name}" for name in sorted(names) if built.fullmatch(name)]
