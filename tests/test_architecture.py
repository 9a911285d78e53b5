"""The house keeps its shape: imports go down only, nothing goes round in circles, private files stay private.

Read from the source text, imports inside of functions included.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

import normkit as nk
from normkit import _torch

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
    ("padding",),
    ("model",),
    ("info",),
    ("nn", "parametrizations"),
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


# --- PyTorch's private names. By name alone, whatever the object: what the package does not define itself is somebody
# else's, and of PyTorch's names only those of every nn.Module may be used outside of _torch.py.
_OF_PYTHON = frozenset({"_replace", "_make", "_exit", "_processes", "_SubParsersAction"})  # tuples, os, pools, argparse


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.strip("_") != ""


def defined_names(tree: ast.AST) -> Iterator[str]:
    """Names that a module defines: functions, classes, variables, attributes that it sets on itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def is_from_torch(node: ast.expr, names: set[str]) -> bool:
    """Whether an expression is a dotted path that begins at something imported from torch."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in names


def private_torch_names(tree: ast.AST, own: frozenset[str]) -> Iterator[str]:
    """What a module uses of PyTorch's private names. own: the names that the package defines somewhere."""
    allowed = _torch.PROTOCOL | _OF_PYTHON
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [(alias.name, alias.asname or alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            targets = [(f"{node.module}.{alias.name}", alias.asname or alias.name) for alias in node.names]
        else:
            continue
        for path, name in targets:
            if path.split(".")[0] == "torch":
                imported.add(name)
                yield from filter(is_private, path.split("."))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in allowed:
            shared = node.attr in TORCH_ATTRIBUTES and ast.unparse(node.value) != "self"
            if node.attr not in own or shared or is_from_torch(node, imported):
                yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in TORCH_ATTRIBUTES:
            yield node.value


# what getattr and __dict__ could be asked for by a string
TORCH_ATTRIBUTES = frozenset(
    name
    for thing in (torch, torch._C, torch.Tensor, torch.nn.Module(), torch.autograd.graph, torch.autograd.forward_ad)
    for name in dir(thing)
    if is_private(name) and name not in _torch.PROTOCOL
) | {"_orig_mod"}


@cache
def package_names() -> frozenset[str]:
    trees = [ast.parse(path.read_text()) for name, path in MODULES.items() if name != "normkit._torch"]
    return frozenset(name for tree in trees for name in defined_names(tree))


def test_one_file_names_private_apis_of_torch() -> None:
    own = package_names()
    found = {name: set(private_torch_names(ast.parse(path.read_text()), own)) for name, path in MODULES.items()}
    inside = found.pop("normkit._torch")
    assert {"_C", "_len_torch_dispatch_stack", "_version", "_pytree", "_NormBase", "_forward_hooks"} <= inside
    assert {name: names for name, names in found.items() if names} == {}, "give them a name in _torch.py"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch\ntorch._C._get_tracing_state()", "_get_tracing_state"),
        ("import torch as t\nt._C.anything", "_C"),
        ("from torch import _C", "_C"),
        ("from torch.utils._pytree import tree_map", "_pytree"),
        ("from torch.utils.weak import _IterationGuard as guard", "_IterationGuard"),
        ("import torch._dynamo", "_dynamo"),
        ("from torch import nn\nnn.modules.batchnorm._NormBase", "_NormBase"),
        ("from torch import nn\nnn.modules.batchnorm._BatchNorm", "_BatchNorm"),  # the package has one of this name
        ("def f(tensor): return tensor._version", "_version"),
        ("def f(model): return getattr(model, '_forward_hooks')", "_forward_hooks"),
        ("def f(tensor): tensor._backward_hooks = None", "_backward_hooks"),
    ],
)
def test_a_private_api_of_torch_is_seen(source: str, name: str) -> None:
    assert name in set(private_torch_names(ast.parse(source), package_names()))


def test_what_subclasses_of_modules_override_is_torchs() -> None:
    for name in _torch.PROTOCOL:
        assert hasattr(torch.nn.InstanceNorm1d(2), name)


def test_the_hot_path_asks_torch_without_a_frame() -> None:
    for function in (
        *(_torch.peek_transform, _torch.count_dispatch_modes, _torch.tracing_state, _torch.forward_level),
        *(_torch.graph_task_id, _torch.is_legacy_batched),
    ):
        assert not hasattr(function, "__code__"), "a Python function; bind PyTorch's own"
