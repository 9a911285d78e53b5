"""What a set of rows says: geometric means over shapes, with the worst shape named.

Shares of the roof are averaged over tensors of a megabyte and more: below that a call costs more than its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .floor import clone
from .results import Row
from .suite import OPS
from .timing import geometric_mean

SUITE, LARGE = "suite", "beyond 32 MB"
_LARGE_BYTES, _SHARE_BYTES = 32 << 20, 1 << 20


@dataclass(frozen=True)
class Summary:
    """One operation, layout, dtype, thread count and what is around it, against one peer.

    Ratios: forward + backward, peer / normkit; beside busy processes those of the mean times.

    limit: what the ratio would be if normkit's kernels computed no statistics, where all rows have it.
    """

    op: str
    layout: str
    dtype: str
    threads: int
    conditions: str
    scope: str
    peer: str
    shapes: int
    ratio: float
    worst: float
    worst_shape: tuple[int, ...]
    limit: float | None
    share: float | None
    worst_share: float | None
    worst_share_shape: tuple[int, ...] | None


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """One summary a group and peer, in the order of the rows; large outputs once more on their own."""
    groups: dict[tuple[str, str, str, int, str, str, str], list[Row]] = {}
    for row in rows:
        case = row.case
        around = (case.op, case.layout, case.dtype, case.threads, case.conditions)
        for peer in row.peers:
            groups.setdefault((*around, SUITE, peer), []).append(row)
            if clone(case) / 2 > _LARGE_BYTES:
                groups.setdefault((*around, LARGE, peer), []).append(row)
    return [_summary(*key, members) for key, members in groups.items()]


def figure(row: Row, peer: str) -> float:
    """The ratio to quote: of the means where others compute beside it, else the median of the rounds' ratios."""
    found = row.peers[peer]
    return found.mean if row.case.busy and found.mean is not None else found.total


def share(row: Row) -> float:
    """The share to quote: NHWC statistics over the batch take two sweeps, all others the fewest bytes."""
    across_batch = OPS[row.case.op].family == "batch_norm"
    return row.share_two_sweeps if across_batch and row.case.layout == "NHWC" else row.share


def _summary(
    op: str, layout: str, dtype: str, threads: int, conditions: str, scope: str, peer: str, rows: list[Row]
) -> Summary:
    slowest = min(rows, key=lambda row: figure(row, peer))
    limits = [limit for row in rows if (limit := row.peers[peer].limit) is not None]
    sizeable = [row for row in rows if clone(row.case) / 2 >= _SHARE_BYTES]
    lowest = min(sizeable, key=share, default=None)
    return Summary(
        op, layout, dtype, threads, conditions, scope, peer,
        shapes=len(rows),
        ratio=_mean(figure(row, peer) for row in rows),
        worst=figure(slowest, peer),
        worst_shape=slowest.case.shape,
        limit=_mean(limits) if len(limits) == len(rows) else None,
        share=_mean(share(row) for row in sizeable) if sizeable else None,
        worst_share=None if lowest is None else share(lowest),
        worst_share_shape=None if lowest is None else lowest.case.shape,
    )  # fmt: skip


def _mean(ratios: Iterable[float]) -> float:
    return geometric_mean(list(ratios))
