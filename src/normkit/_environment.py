"""What the environment asks of the package: variables that begin with NORMKIT_, and what is said in one line.

    NORMKIT_NO_NATIVE    1: compute without the native core, and say nothing of it
    NORMKIT_ISA          the instruction set of the native core (`kernels/core.py`)
    NORMKIT_CHECK_RANKS  1: synchronised layers compare the ranks at every call (`functional/agreement.py`)
    NORMKIT_KEEP_MB      how much memory freed outputs may keep (`kernels/memory.py`)

Rule: whatever stands there, `import normkit` goes on; nonsense is a RuntimeWarning of one line, once, and the default
holds. An empty value is none.
"""

from __future__ import annotations

import os
import sys
import warnings

_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_SHOWN = 40  # characters of a value
_told: set[str] = set()  # a variable may be asked at every call


def asked(name: str) -> str | None:
    """The value of a variable, None where it is not set or empty."""
    return os.environ.get(name) or None


def switched_on(name: str) -> bool:
    """Whether a variable says yes; nonsense is told once and says no."""
    value = asked(name) or ""
    if value.lower() in _YES:
        return True
    line = f"{name} must be 1 or 0, got {value[:_SHOWN]!a}; using 0"
    if value.lower() not in _NO and line not in _told:
        _told.add(line)
        tell(line)
    return False


def tell(line: str) -> None:
    """A RuntimeWarning that is printed as one line, and that a filter "error" does not turn into a failed import."""
    try:
        warnings.warn_explicit(line, RuntimeWarning, "normkit", 0)  # no line of source, which would follow the text
    except RuntimeWarning:
        print(f"normkit: {line}", file=sys.stderr)
