"""What to say of a name that a module does not have: the public names that are meant, if any come near."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn


def raise_unknown(module: str, name: str, names: Iterable[str]) -> NoReturn:
    """AttributeError in Python's words; a layer without its rank (GhostBatchNorm) is told of those that have one."""
    import difflib  # only where something is wrong: the package's import stays light

    public = [] if name.startswith("_") else list(names)  # tools ask modules for names of their own
    ranked = [f"{name}{rank}d" for rank in (1, 2, 3) if f"{name}{rank}d" in public]
    near = ranked or difflib.get_close_matches(name, public, n=3, cutoff=0.75)
    lower = {known.lower(): known for known in public}
    if not ranked and name.lower() in lower:
        near = [lower[name.lower()]]
    hint = f"; it has {' and '.join(filter(None, (', '.join(near[:-1]), near[-1])))}" if near else ""
    raise AttributeError(f"module {module!r} has no attribute {name!r}{hint}", name=name)
