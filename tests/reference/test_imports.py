"""The floor imports torch, the standard library and itself: nothing above it can leak into the truth."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from normkit import reference

FILES = sorted(Path(reference.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_reference_imports_only_torch(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "reference imports are absolute"
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            root = name.split(".")[0]
            assert root == "torch" or root in sys.stdlib_module_names or name.startswith("normkit.reference"), name
