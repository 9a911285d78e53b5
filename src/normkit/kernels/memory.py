"""How much memory this process may use, and how much of it freed outputs may keep.

The machine's, or less where a control group (a container) limits it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_KEEP_SHARE = 8  # freed large outputs keep at most one part in so many of all memory


def to_keep() -> int:
    """How many bytes of freed large outputs wait for the next ones: NORMKIT_KEEP_MB, or a share of all memory."""
    asked = os.environ.get("NORMKIT_KEEP_MB")
    if asked is not None:
        try:
            return max(0, int(asked)) << 20
        except ValueError:
            warnings.warn(
                f"NORMKIT_KEEP_MB must be a whole number of megabytes, got {asked!r}; using the default",
                RuntimeWarning,
                stacklevel=2,
            )
    return available() // _KEEP_SHARE


def available(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Bytes; 0 where the system does not tell.

    Args:
        groups: where control groups are mounted.
        own: the file that names this process's.
    """
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_limits(groups, own)])


def _limits(groups: Path, own: Path) -> Iterator[int]:
    """The limits of the process's control groups, versions 1 and 2, and of all groups around them."""
    for line in _read(own).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            root, name = groups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for around in (group, *group.parents):
            limit = _read(root / around / name).strip()
            if limit.isdigit():  # "max": none
                yield int(limit)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
