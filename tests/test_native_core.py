"""Where the native core has to be there, its absence is a red run; where it may be missing, a line that says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HIDDEN = str(ROOT / "tests" / "hidden_core")  # on PYTHONPATH: a process without the core, as if it were never built
SWITCHES = ("CI", "NORMKIT_REQUIRE_NATIVE", "NORMKIT_NO_NATIVE")


def run(*arguments: str, **switches: str) -> subprocess.CompletedProcess[str]:
    """A Python process at the root of the repository, without the core and with these environment variables."""
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**environment, "PYTHONPATH": HIDDEN, **switches},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def suite(**switches: str) -> subprocess.CompletedProcess[str]:
    """One file of tests, some of which need the core."""
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/test_native_choice.py")
    return run(*arguments, **switches)


@pytest.mark.parametrize("switch", ["CI", "NORMKIT_REQUIRE_NATIVE"])
def test_tests_that_need_the_core_are_not_skipped_where_it_has_to_be_there(switch: str) -> None:
    done = suite(**{switch: "1"})
    assert done.returncode == 1
    assert "Exit: CI or NORMKIT_REQUIRE_NATIVE asks for the native core: the native core is not built" in done.stdout


def test_without_a_compiler_a_user_may_run_the_rest() -> None:
    done = suite()
    assert done.returncode == 0
    assert "skipped" in done.stdout


def test_a_run_without_the_core_loads_none() -> None:
    done = suite(NORMKIT_NO_NATIVE="1", CI="1", PYTHONPATH="")
    assert done.returncode == 0
    assert "NORMKIT_NO_NATIVE asks for none" in done.stdout


USER = "import normkit as nk, torch; print(nk.BatchNorm1d(3)(torch.ones(4, 3)).sum().item())"


@pytest.mark.parametrize("filters", [(), ("-W", "error")], ids=["told", "warnings are errors"])
def test_a_user_without_a_core_is_told_in_one_line(filters: tuple[str, ...]) -> None:
    done = run(*filters, "-c", USER)
    assert done.stdout == "0.0\n"
    assert done.stderr.count("\n") == 1
    assert "slower, on PyTorch's operations: the native core is not built" in done.stderr
    assert (
        "reinstall normkit where a C++ compiler is found; NORMKIT_NO_NATIVE=1 says that this is wanted" in done.stderr
    )


@pytest.mark.parametrize("filters", [(), ("-W", "ignore::RuntimeWarning")], ids=["wanted", "filtered"])
def test_who_wants_none_is_told_nothing(filters: tuple[str, ...]) -> None:
    done = run(*filters, "-c", USER, **({} if filters else {"NORMKIT_NO_NATIVE": "1"}))
    assert (done.stdout, done.stderr) == ("0.0\n", "")


def test_processes_that_a_program_starts_do_not_say_it_again() -> None:
    done = run("-m", "tests.hidden_core.spawns")
    assert done.returncode == 0
    assert done.stderr.count("the native core is not built") == 1


@pytest.mark.parametrize(("arguments", "code"), [((), 0), (("--require",), 1)], ids=["told", "required"])
def test_the_line_after_the_setup(arguments: tuple[str, ...], code: int) -> None:
    done = run("-m", "tools.native_core", *arguments)
    assert done.returncode == code
    assert done.stderr.startswith("native core: missing: the native core is not built")
    assert done.stderr.count("\n") == 1
