"""Tables of what several ranks measured."""

from __future__ import annotations

from collections.abc import Sequence

from .sync_figures import Collective, Synchronised
from .tables import Table, number


def collectives_table(found: Sequence[Collective]) -> Table:
    """One line per kind and size, a column per number of ranks: microseconds with quartiles."""
    counts = sorted({one.ranks for one in found})
    by_key = {one.key: one for one in found}
    lines = []
    for kind, size in dict.fromkeys((one.kind, one.bytes) for one in found):
        cells = [by_key.get((ranks, kind, size)) for ranks in counts]
        lines.append((kind, str(size), *("-" if one is None else _spread(one) for one in cells)))
    return Table(("collective", "bytes", *(f"{ranks} ranks, us" for ranks in counts)), tuple(lines))


def synchronised_table(found: Sequence[Synchronised]) -> Table:
    """One line per number of ranks and way."""
    headings = (
        "ResNet-50's norms", "ranks", "batch", "image", "threads", "load", "fwd ms", "bwd ms", "collectives", "KB",
        "times normkit's",
    )  # fmt: skip
    lines = [
        (
            name, str(one.ranks), str(one.batch), str(one.image), str(one.threads), number(one.load),
            number(way.forward_ms), number(way.backward_ms), str(way.collectives), number(way.bytes / 1e3),
            "" if name == "normkit" else f"{way.ratio:.2f} ({way.low:.2f}-{way.high:.2f})",
        )
        for one in found
        for name, way in one.ways.items()
    ]  # fmt: skip
    return Table(headings, tuple(lines))


def _spread(one: Collective) -> str:
    return f"{number(one.us)} ({number(one.low)}-{number(one.high)})"
