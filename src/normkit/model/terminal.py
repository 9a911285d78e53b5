"""Reports on a terminal, and where there is none.

Rules: into a file or a pipe, plain text at full width, without control characters; on a terminal by rich, where it is
installed, which heeds NO_COLOR and dumb terminals. A table that a narrow terminal would tear apart is shown as a list.
"""

from __future__ import annotations

import shutil
import sys
from typing import Any

from .table import Tabular

NARROW = 72  # columns: below, cells of a table of six columns hold a word each


def show(what: Any) -> None:
    """Print a report."""
    if not sys.stdout.isatty():
        print(what)
        return
    width = shutil.get_terminal_size().columns
    if isinstance(what, Tabular) and width < NARROW:
        print(what.table().text(width))
        return
    try:
        from rich.console import Console
    except ImportError:
        print(what.table().text(width) if isinstance(what, Tabular) else what)
    else:
        Console().print(what)
