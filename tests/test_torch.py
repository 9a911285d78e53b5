"""What stands in for the APIs that an older torch lacks does the same as they do, on the torch at hand."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normkit import _torch


@pytest.mark.parametrize(
    ("version", "lacks"),
    [("2.3.1", "del torch.library.custom_op"), ("1.13.1", "del torch.utils._python_dispatch._disable_current_modes")],
)
def test_a_torch_that_is_too_old_is_one_line(version: str, lacks: str) -> None:
    """Whatever else that torch lacks."""
    program = (
        f"import torch; {lacks}; torch.__version__ = torch.torch_version.TorchVersion({version!r}); import normkit"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"ImportError: normkit needs torch 2.4 or newer, found {version}: pip install -U torch"
    )


def hooks_top_without_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"):
        monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks")


def test_hooks_on_saved_tensors_are_seen_without_the_api_and_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks_top_without_the_api(monkeypatch)
    assert _torch.saved_tensors_hooks_top() is None
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        assert _torch.saved_tensors_hooks_top() is not None
        assert _torch.saved_tensors_hooks_allowed()
        assert packed == []  # to ask saves nothing
        torch.ones(2, requires_grad=True).square()
    assert len(packed) == 1
    assert _torch.saved_tensors_hooks_top() is None
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        assert _torch.saved_tensors_hooks_top() is None
        assert not _torch.saved_tensors_hooks_allowed()


@pytest.mark.skipif(hasattr(torch.compiler, "set_stance"), reason="this torch has torch.compiler.set_stance")
def test_compiled_parts_run_as_written_without_set_stance(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = importlib.import_module("torch._dynamo.eval_frame")
    asked = []
    monkeypatch.setattr(evaluator, "set_eval_frame", lambda callback: asked.append(callback))
    before = evaluator.set_eval_frame
    context = _torch._WithoutDynamo()
    evaluator.set_eval_frame("a compiler")
    context.__exit__()
    evaluator.set_eval_frame("a compiler")
    assert asked == [None, "a compiler"]
    assert evaluator.set_eval_frame is before


def test_blocks_without_compiler_leave_it_as_it_was_in_whatever_order_they_end() -> None:
    """Those of several threads overlap."""
    graphs = []
    function = torch.compile(torch.sin, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    first, second, third = (_torch.run_compiled_eagerly() for _ in range(3))
    for block in (second, first, third):
        function(torch.ones(2))
        assert not graphs, "a block is still entered"
        for _ in range(2):  # as one does that gives back after an interrupt
            block.__exit__(None, None, None)
    function(torch.ones(2))
    assert len(graphs) == 1


class Asks(nn.Module):
    """Adds one where it is exported."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if _torch.is_exporting() else x + 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strict", [True, False])
def test_export_is_seen_and_compile_is_no_export(strict: bool) -> None:
    x = torch.zeros(2)
    assert torch.equal(Asks()(x), x + 2)
    assert torch.equal(torch.compile(Asks(), backend="eager", fullgraph=True)(x), x + 2)
    exported = torch.export.export(Asks(), (x,), strict=strict).module()
    assert torch.equal(exported(x), x + 1)


def test_versions_are_counted_for_each_tensor() -> None:
    tensors = torch.zeros(2), torch.zeros(3)
    for count in (_torch.increment_versions, _torch._increment_each):
        before = [t._version for t in tensors]
        count(tensors)
        assert [t._version for t in tensors] == [v + 1 for v in before]


def test_hooks_on_all_modules_are_seen_by_their_names() -> None:
    hooks = nn.modules.module
    for register in (
        hooks.register_module_forward_pre_hook,
        hooks.register_module_forward_hook,
        hooks.register_module_full_backward_pre_hook,
        hooks.register_module_full_backward_hook,
    ):
        for asked in (_torch.is_watched, _torch._has_global_hook):
            assert not asked()
            handle = register(lambda *_: None)
            assert asked()
            handle.remove()
            assert not asked()


class Plain(nn.Module):
    """A norm of an older torch, as far as `bias` goes."""

    def __init__(self, size: int, affine: bool = True) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.ones(size)) if affine else None for _ in range(2))


def test_a_norm_without_a_bias_is_made_where_its_class_takes_none() -> None:
    made = _torch.make_norm(Plain, 3, bias=False)
    assert made.bias is None
    assert dict(made.named_parameters()).keys() == {"weight"}
    assert _torch.make_norm(Plain, 3, bias=True).bias is not None
    assert _torch.make_norm(nn.LayerNorm, 3, bias=False).bias is None


def torch_names(tree: ast.AST) -> Iterator[str]:
    """What a module names of torch: by its imports, and by dotted paths that begin at them."""
    roots: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                whole = alias.name.partition(".")[0]
                roots |= {alias.asname: alias.name} if alias.asname else {whole: whole}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
                roots[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            if root in roots and rest.replace(".", "").isidentifier():
                yield f"{roots[root]}.{rest}"


def is_there(path: str) -> bool:
    """Whether the torch at hand has that name."""
    found: Any = torch
    done = "torch"
    for name in path.split(".")[1:]:
        done = f"{done}.{name}"
        try:
            found = getattr(found, name)
        except AttributeError:
            try:
                found = importlib.import_module(done)
            except ImportError:
                return False
    return True


def test_no_other_file_names_what_an_older_torch_lacks() -> None:
    """Held by the runs on older versions; a newer one has it all."""
    package = Path(_torch.__file__).parent
    files = [path for path in package.rglob("*.py") if path.name != "_torch.py"]
    named = {str(path.relative_to(package)): set(torch_names(ast.parse(path.read_text()))) for path in files}
    found = {file: {name for name in names if name.startswith("torch.")} for file, names in named.items()}
    everywhere = set().union(*found.values())
    assert {"torch.library.custom_op", "torch.nn.RMSNorm", "torch.nn.functional.rms_norm"} <= everywhere
    absent = {file: sorted(name for name in names if not is_there(name)) for file, names in found.items()}
    assert {file: names for file, names in absent.items() if names} == {}, "give them a name in _torch.py"
