"""Hides the native core from a Python process: `normkit._native` cannot be imported, as where it was never built.

Python runs this file at its start if the folder is on PYTHONPATH, where tests of a missing core put it.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec


class Hidden:
    """An import hook that comes before all others and refuses one module."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "normkit._native":
            raise ModuleNotFoundError("No module named 'normkit._native' (hidden by tests/hidden_core)", name=name)
        return None


if Hidden not in sys.meta_path:
    sys.meta_path.insert(0, Hidden)
