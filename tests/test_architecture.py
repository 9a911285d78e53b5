"""The house keeps its shape: imports go down only, nothing goes round in circles, private files stay private.

Read from the source text, imports inside of functions included.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import normkit as nk

ROOT = Path(__file__).resolve().parents[1] / "src"
FLOORS = (  # from the top; a floor imports from floors below it and from itself
    ("cli",),
    ("learn",),
    ("studies",),
    ("bench",),
    ("testing",),
    ("doctor",),
    ("surgery", "statistics"),
    ("paths",),
    ("model",),
    ("info",),
    ("nn",),
    ("functional",),
    ("kernels", "distributed"),
    ("moments", "contract"),
    ("reference", "errors", "defects"),
)


def modules() -> dict[str, Path]:
    """Each module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / "normkit").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """The package's own modules that a module imports; for `from package import module` the module."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            targets = [(source, alias.name) for alias in node.names]
        else:
            continue
        for source, member in targets:
            if member is not None and f"{source}.{member}" in MODULES:
                yield f"{source}.{member}"
            elif source.split(".")[0] == "normkit":
                yield source


def floor(name: str) -> int | None:
    """How far down a module lies; None for the package's own leaves and its `__init__`."""
    part = name.split(".")[1] if "." in name else ""
    return next((i for i, names in enumerate(FLOORS) if part in names), None)


def test_every_package_and_public_module_has_a_floor() -> None:
    tops = {name.split(".")[1] for name in MODULES if "." in name}
    homeless = {top for top in tops if not top.startswith("_") and all(top not in names for names in FLOORS)}
    assert homeless == set(), "say on which floor of FLOORS they live"


def test_imports_go_down_only() -> None:
    wrong = []
    for name in MODULES:
        for target in imports(name):
            own, other = floor(name), floor(target)
            if other is None or target == "normkit":
                continue
            same_package = name.split(".")[1:2] == target.split(".")[1:2]
            if own is None and name != "normkit" and other < len(FLOORS) - 1:
                wrong.append(f"{name}, a leaf, imports {target}")
            elif own is not None and (own > other or (own == other and not same_package)):
                wrong.append(f"{name} imports {target}, which is not below it")
    assert wrong == []


def test_no_imports_go_in_a_circle() -> None:
    graph = {name: [t for t in imports(name) if t in MODULES and t != name] for name in MODULES}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "a circle: " + " -> ".join([*trail[trail.index(name) :], name])
        if name in finished:
            return
        for target in graph[name]:
            # a package's __init__ gathers its modules; that a module names its package's sibling is no circle
            if MODULES[target].name != "__init__.py":
                visit(target, (*trail, name))
        finished.add(name)

    for name in graph:
        visit(name, ())


def test_a_private_file_is_imported_from_its_own_folder_only() -> None:
    wrong = []
    for name in MODULES:
        for target in imports(name):
            parts = target.split(".")
            private = next((i for i, part in enumerate(parts) if part.startswith("_") and part != "_native"), None)
            if private is not None and not name.startswith(".".join(parts[:private])):
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def functions(package: str) -> Iterator[tuple[Path, ast.FunctionDef]]:
    """Every function of a package, with its file."""
    for path in sorted((ROOT / "normkit" / package).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield path, node


@pytest.mark.parametrize("package", ["functional", "kernels"])
def test_a_function_of_many_parameters_says_why(package: str) -> None:
    """A norm is a spec and its tensors; what takes more than eight parameters has a reason beside its name."""
    wrong = []
    for path, node in functions(package):
        arguments = node.args
        count = len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])
        is_public = not node.name.startswith("_") and node.name in nk.functional.__all__
        if count > 8 and not is_public and "#" not in path.read_text().splitlines()[node.lineno - 1]:
            wrong.append(f"{path.name}: {node.name} takes {count}")
    assert wrong == []


@pytest.mark.parametrize(("package", "share"), [("functional", 0.12), ("kernels", 0.22)])
def test_signatures_are_a_small_part_of_the_lines(package: str, share: float) -> None:
    """Facts that travel loose show here first: each hop writes them out again."""
    lines = sum(len(path.read_text().splitlines()) for path in (ROOT / "normkit" / package).glob("*.py"))
    signatures = sum(node.body[0].lineno - node.lineno for _, node in functions(package))
    assert signatures / lines <= share


def test_one_file_imports_the_native_core() -> None:
    found = sorted(name for name, path in MODULES.items() if "normkit._native" in path.read_text())
    assert found == ["normkit.kernels.core"]


def test_the_page_names_files_that_are_there() -> None:
    page = (ROOT.parent / "docs" / "architecture.md").read_text()
    for word in page.replace("`", " ").split():
        if word.endswith((".py", ".h", ".cpp")) and "/" in word:
            places = [ROOT.parent / word, ROOT / "normkit" / word]
            assert any(place.exists() for place in places), f"docs/architecture.md names {word}"
