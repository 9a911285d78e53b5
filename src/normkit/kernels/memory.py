"""How much memory this process may use, and how much of it freed outputs may keep.

The machine's, or less where a control group (a container) limits it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from .. import _environment

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_KEEP_SHARE = 8  # freed large outputs keep at most one part in so many of all memory
_MOST_MB = (1 << 43) - 1  # megabytes whose bytes an int64 counts


def to_keep() -> int:
    """How many bytes of freed large outputs wait for the next ones: NORMKIT_KEEP_MB, or a share of all memory."""
    asked = _environment.asked("NORMKIT_KEEP_MB")
    if asked is not None:
        try:
            megabytes = int(asked)
        except ValueError:
            megabytes = _MOST_MB + 1
        if megabytes <= _MOST_MB:
            return max(0, megabytes) << 20
        _environment.tell(f"NORMKIT_KEEP_MB must be a whole number of megabytes, got {asked[:40]!a}; using the default")
    return available() // _KEEP_SHARE


def available(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Bytes; 0 where the system does not tell.

    Args:
        groups: where control groups are mounted.
        own: the file that names this process's.
    """
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
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
