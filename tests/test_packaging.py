"""What an installation takes is pinned, bounded by what was tried, and checked against hashes."""

import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from tools import compatibility, lock

tomllib = pytest.importorskip("tomllib")  # Python 3.11
ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
PINNED = {
    canonicalize_name(name): Version(version)
    for name, version in re.findall(r"^(\S+)==(\S+)$", lock.PINS.read_text(encoding="utf-8"), re.MULTILINE)
}
NOT_LOCKED = {"normkit", "jax"}  # itself; a peer of the benchmarks that nothing else needs


@pytest.mark.parametrize("text", PROJECT["build-system"]["requires"])
def test_a_build_takes_the_version_that_was_tried_and_no_later_minor(text: str) -> None:
    needed = Requirement(text)
    tried = PINNED[canonicalize_name(needed.name)]
    assert tried in needed.specifier
    assert Version(f"{tried.major}.{tried.minor}.999") in needed.specifier
    assert Version(f"{tried.major}.{tried.minor + 1}") not in needed.specifier
    assert text in EXTRAS["dev"]  # who builds without isolation gets the same


def test_pip_asks_for_the_oldest_torch_that_the_whole_suite_passed_on() -> None:
    (torch,) = map(Requirement, PROJECT["project"]["dependencies"])
    oldest = min(map(Version, (*compatibility.claimed(), str(PINNED["torch"]))))
    assert str(torch) == f"torch>={oldest.major}.{oldest.minor}"


def test_every_package_that_an_extra_names_is_pinned() -> None:
    named = {canonicalize_name(Requirement(text).name) for texts in EXTRAS.values() for text in texts}
    assert named - set(PINNED) == NOT_LOCKED
    assert not named & NOT_LOCKED & set(PINNED)


def test_every_pin_has_its_hashes_and_every_hash_its_pin() -> None:
    assert lock.missing() == []


def test_the_environment_is_installed_by_its_hashes_and_before_anything_else() -> None:
    installs = re.findall(r"pip install (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert "--require-hashes --requirement requirements-hashed.txt" in installs[0]
    assert installs[-1].endswith("--requirement requirements-zoo.txt")  # a file with hashes needs no option


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("HASHED", "iniconfig==", "iniconfig2==", "iniconfig2==2.3.1 stands in one of"),
        ("HASHED", " \\\n    --hash=sha256:", " ", "has no hashes"),
        ("PINS", "rich==15.0.0", "rich==15.0.1", "rich==15.0.1 stands in one of"),
        ("ZOO", " \\\n    --hash=sha256:", " ", "timm==1.0.31 has no hashes"),
    ],
)
def test_a_drift_of_pins_and_hashes_is_seen(
    file: str, old: str, new: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "changed.txt"
    text = getattr(lock, file).read_text(encoding="utf-8")
    assert old in text
    changed.write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(lock, file, changed)
    assert any(complaint in line for line in lock.missing())
