"""What a release's checks say of wheels and claims that are wrong; what its workflow and its tools agree on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tools import lock
from tools.release import contents

pytest.importorskip("tomllib")  # Python 3.11
from tools.release import build, checks

ROOT = Path(__file__).parents[1]
INFO = "normkit-0.1.0.dist-info"
RIGHT = {
    **dict.fromkeys(contents.NEEDED, b""),
    f"{INFO}/licenses/LICENSE": b"MIT",
    f"{INFO}/METADATA": b"Metadata-Version: 2.4\nName: normkit\nVersion: 0.1.0\n",
    f"{INFO}/RECORD": b"",
    f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
}


def packed(folder: Path, files: dict[str, bytes], tag: str = "py3-none-any") -> Path:
    wheel = folder / f"normkit-0.1.0-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        for name, body in files.items():
            made.writestr(name, body)
    return wheel


def test_a_right_wheel_is_said_to_be_right(tmp_path: Path) -> None:
    assert contents.of_wheel(packed(tmp_path, RIGHT)) == []


def without(name: str) -> dict[str, bytes]:
    return {key: body for key, body in RIGHT.items() if key != name}


@pytest.mark.parametrize(
    ("files", "tag", "complaint"),
    [
        (without("normkit/py.typed"), "py3-none-any", "lacks normkit/py.typed"),
        (without(f"{INFO}/licenses/LICENSE"), "py3-none-any", f"lacks {INFO}/licenses/LICENSE"),
        (RIGHT | {"tests/test_x.py": b""}, "py3-none-any", "holds tests/test_x.py"),
        (RIGHT | {"normkit/__pycache__/a.pyc": b""}, "py3-none-any", "holds normkit/__pycache__/a.pyc"),
        (RIGHT | {"normkit/big": bytes(contents.MOST)}, "py3-none-any", "at most 5,000,000"),
        (RIGHT | {"normkit/_native.so": b""}, "py3-none-any", "binaries: ['normkit/_native.so']"),
        (RIGHT, "cp312-abi3-manylinux_2_28_x86_64", "binaries: []"),
        (RIGHT, "cp312-abi3-manylinux_2_34_x86_64", "is for manylinux_2_34_x86_64, not glibc 2.28"),
        (RIGHT, "cp312-abi3-linux_x86_64", "is for linux_x86_64, not glibc 2.28"),
        (RIGHT, "py2-none-any", "its name says ['py2-none-any'], its WHEEL ['py3-none-any']"),
        (RIGHT | {f"{INFO}/METADATA": b"Name: normkit\nColour: blue\n"}, "py3-none-any", "METADATA: colour"),
    ],
)
def test_what_is_wrong_with_a_wheel_is_said(files: dict[str, bytes], tag: str, complaint: str, tmp_path: Path) -> None:
    assert any(complaint in line for line in contents.of_wheel(packed(tmp_path, files, tag)))


@pytest.mark.skipif(shutil.which("cc") is None, reason="compiles two libraries of one line")
def test_a_core_that_is_not_stripped_or_shows_more_than_its_door_is_said(tmp_path: Path) -> None:
    source = tmp_path / "core.c"
    source.write_text("int PyInit__native(void) { return 0; } int other(void) { return 1; }\n", encoding="utf-8")

    def core(*flags: str) -> bytes:
        subprocess.run(["cc", "-shared", "-fPIC", *flags, str(source), "-o", str(tmp_path / "core.so")], check=True)
        return (tmp_path / "core.so").read_bytes()

    door = f"-Wl,--version-script={ROOT / 'native' / 'exports.map'}"
    assert contents.of_core(core("-s", door)) == []
    assert contents.of_core(core(door)) == ["is not stripped"]
    assert contents.of_core(core("-s")) == ["shows ['PyInit__native', 'other'], not ['PyInit__native'] alone"]


def test_claims_are_held_against_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.PROJECT["project"], "classifiers", ["Programming Language :: Python :: 3.11"])
    assert checks.classifiers({"3.11"}) == "Python 3.11"
    for used, complaint in (
        (set(), "3.11 is claimed and was not run here"),
        ({"3.11", "3.12"}, "3.12 was run and is not"),
    ):
        with pytest.raises(ValueError, match=complaint):
            checks.classifiers(used)


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("CHANGELOG.md", lambda text: text, "CHANGELOG.md still says Unreleased: name that section `## 0.1.0 - YYYY"),
        (
            "CHANGELOG.md", lambda text: text.replace("## Unreleased", "## 0.1.01"),
            "CHANGELOG.md lacks a section `## 0.1.0 - YYYY-MM-DD`: pyproject.toml has the version 0.1.0",
        ),
        (
            "CITATION.cff", lambda text: text.replace("version: 0.1.0", "version: 0.0.9"),
            "CITATION.cff lacks the line `version: 0.1.0`: pyproject.toml has the version 0.1.0",
        ),
        (
            "src/normkit/__init__.py", lambda text: text.replace("0.1.0", "0.2.0"),
            '__init__.py lacks the line `__version__ = "0.1.0"`',
        ),
    ],
)  # fmt: skip
def test_a_version_that_differs_is_said(
    file: str, change: Callable[[str], str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    for name in ("CHANGELOG.md", "CITATION.cff", "src/normkit/__init__.py"):
        text = (ROOT / name).read_text(encoding="utf-8")
        text = text if name == file else text.replace("## Unreleased", "## 0.1.0 - 2026-11-29")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(change(text) if name == file else text, encoding="utf-8")
    with pytest.raises(ValueError) as said:
        checks.version()
    assert complaint in str(said.value)
    assert "; " not in str(said.value)  # one complaint


def test_what_a_check_starts_hears_nothing_of_the_make_around_it(tmp_path: Path) -> None:
    """`make release-check ARGS=--without-tests` is no argument of the tests that `.ci/run` starts."""
    program = (
        "import pathlib, sys; from tools.release import checks; "
        "print(checks.passes(pathlib.Path(sys.argv[1]), 'make', '-f', sys.argv[2], 'inner'))"
    )
    makefile, log = tmp_path / "Makefile", tmp_path / "deep" / "inner.log"
    makefile.write_text(
        f"outer:\n\t@'{sys.executable}' -c \"{program}\" '{log}' '{makefile}'\n"
        "inner:\n\t@echo one; echo 'told: [$(ARGS)]'\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        ["make", "-f", str(makefile), "outer", "ARGS=--without-tests"], cwd=ROOT, capture_output=True, text=True,
        timeout=100, check=False, env={k: v for k, v in os.environ.items() if k not in checks.OF_MAKE},
    )  # fmt: skip
    assert done.stdout == "told: []\n", done.stdout + done.stderr
    assert log.read_text(encoding="utf-8") == "one\ntold: []\n"


def test_a_check_that_fails_says_how_and_where_all_of_it_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ValueError, match=r"failed: the reason \(the whole of it: "):
        checks.passes(log, "sh", "-c", "echo before; echo the reason; exit 3")
    assert log.read_text(encoding="utf-8") == "before\nthe reason\n"


def test_the_workflow_builds_with_the_version_that_is_pinned() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text(encoding="utf-8"))["jobs"]
    (used,) = (step["uses"] for step in jobs["wheels"]["steps"] if "cibuildwheel" in step.get("uses", ""))
    (pinned,) = re.findall(r"^cibuildwheel==(\S+)", lock.RELEASE.read_text(encoding="utf-8"), re.MULTILINE)
    assert used == f"pypa/cibuildwheel@v{pinned}"


def test_every_platform_gets_a_stable_wheel_and_one_for_each_python_before() -> None:
    asked = build.PROJECT["tool"]["cibuildwheel"]["build"]
    stable = build.PROJECT["tool"]["scikit-build"]["wheel"]["py-api"]
    assert {"cp310-*", "cp311-*", f"{stable}-*"} <= set(asked)
    runners = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text(encoding="utf-8"))["jobs"]["wheels"]
    assert len(runners["strategy"]["matrix"]["runner"]) == len(checks.PLATFORMS)
