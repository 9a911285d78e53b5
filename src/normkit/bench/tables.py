"""Figures as tables: pure functions from rows to cells, and from cells to text or markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .results import Document, Model, Network, Peer, Row
from .summary import LARGE, Summary, share, summaries


@dataclass(frozen=True)
class Table:
    """Cells with their headings; the first column is text, the others are numbers and go to the right."""

    headings: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Aligned columns for a terminal."""
        widths = [max(len(line[i]) for line in (self.headings, *self.cells)) for i in range(len(self.headings))]
        return "\n".join(_aligned(line, widths) for line in (self.headings, *self.cells))

    def markdown(self) -> str:
        """A pipe table."""
        ruler = ("---", *["--:"] * (len(self.headings) - 1))
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.headings, ruler, *self.cells))


def rows_table(rows: Sequence[Row]) -> Table:
    """One line per case of one operation, layout and dtype."""
    peers = list(dict.fromkeys(peer for row in rows for peer in row.peers))
    headings = ("shape", "fwd ms", "bwd ms", "MB", "GB/s", "roof", *(f"{peer}: x (fwd, bwd)" for peer in peers))
    return Table(headings, tuple(tuple(row_cells(row, peers)) for row in rows))


def row_cells(row: Row, peers: Sequence[str]) -> list[str]:
    """A case's cells, in the order of `rows_table`'s headings."""
    return [
        shape(row.case.shape),
        number(row.forward_ms),
        number(row.backward_ms) if row.backward_ms else "",
        number(row.bytes / 1e6),
        number(row.bytes / row.ms / 1e6),
        f"{share(row):.2f}",
        *(_peer(row.peers.get(peer), row.case.busy) for peer in peers),
    ]


def summary_table(rows: Sequence[Row]) -> Table:
    """Geometric means over shapes, the worst shape named, one line per group and peer."""
    headings = (
        "operation", "layout", "dtype", "threads", "machine", "shapes", "against", "x", "limit", "worst", "at", "roof",
        "least",
    )  # fmt: skip
    return Table(headings, tuple(map(_summary, summaries(rows))))


def network_table(networks: Sequence[Network]) -> Table:
    """One line per network: its step, the norms' share of it, the limits, what was reached, memory."""
    contenders = list(dict.fromkeys(name for network in networks for name in network.contenders))
    headings = (
        "ResNet-50, batch", "layout", "dtype", "threads", "step ms", "norm share", "limit at roof", "limit if free",
        *(f"{name} x" for name in contenders), "held MB", *contenders, "peak MB", *contenders,
    )  # fmt: skip
    return Table(headings, tuple(tuple(_network(network, contenders)) for network in networks))


def models_table(models: Sequence[Model]) -> Table:
    """One line per model and mode: its time, the norms' share, what they could give, what was reached, memory."""
    contenders = list(dict.fromkeys(name for model in models for name in (*model.contenders, *model.absent)))
    headings = (
        "model", "input", "dtype", "threads", "mode", "ms", "norm share", "limit", "of the gain",
        *(f"{name} x" for name in contenders), "peak MB", "accelerated",
    )  # fmt: skip
    return Table(headings, tuple(tuple(_model(model, contenders)) for model in models))


def _model(m: Model, contenders: Sequence[str]) -> list[str]:
    found = [m.contenders.get(name) for name in contenders]
    reached = m.reached
    return [
        m.name, shape(m.shape), m.dtype, str(m.threads), m.mode, number(m.ms), f"{m.share:.1%}", f"{m.limit:.3f}",
        "none" if reached is None else f"{reached:.0%}",
        *("-" if c is None else f"{c.ratio:.3f} ({c.low:.3f}-{c.high:.3f})" for c in found),
        number(m.peak / 1e6) if m.peak else "", f"{m.fast_peak / m.peak:.2f}" if m.peak else "",
    ]  # fmt: skip


def _summary(s: Summary) -> tuple[str, ...]:
    name = f"{s.op}, {LARGE}" if s.scope == LARGE else s.op
    ratios = (_ratio(s.ratio), _ratio(s.limit), _ratio(s.worst), shape(s.worst_shape))
    return (
        name,
        s.layout,
        s.dtype,
        str(s.threads),
        s.conditions,
        str(s.shapes),
        s.peer,
        *ratios,
        _ratio(s.share),
        _ratio(s.worst_share),
    )


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _network(n: Network, contenders: Sequence[str]) -> list[str]:
    found = [n.contenders.get(name) for name in contenders]
    return [
        str(n.batch), n.layout, n.dtype, str(n.threads), number(n.step_ms), f"{n.share:.1%}", f"{n.limit:.3f}",
        f"{n.free:.3f}", *("-" if c is None else f"{c.ratio:.3f} ({c.low:.3f}-{c.high:.3f})" for c in found),
        number(n.held / 1e6), *("-" if c is None else f"{number(c.held / 1e6)} ({c.held / n.held:.2f})" for c in found),
        number(n.peak / 1e6), *("-" if c is None else f"{number(c.peak / 1e6)} ({c.peak / n.peak:.2f})" for c in found),
    ]  # fmt: skip


def machine_line(document: Document) -> str:
    """The machine in one line."""
    m = document.machine
    return f"{m['cpu']}, {m['cores']} cores, {m['isa']}, {m['system']}, torch {m['torch']}, normkit {m['normkit']}"


def shape(sizes: Sequence[int]) -> str:
    """(8, 64, 56, 56) as 8x64x56x56."""
    return "x".join(str(size) for size in sizes)


def number(value: float) -> str:
    """Three significant digits without powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _peer(peer: Peer | None, busy: int) -> str:
    if peer is None:
        return "-"
    mean = "" if not busy or peer.mean is None else f", mean {peer.mean:.2f}"
    if peer.backward is None:
        return f"{peer.total:.2f}{mean}"
    limit = "" if peer.limit is None else f" of {peer.limit:.2f}"
    return f"{peer.total:.2f}{limit} ({peer.forward:.2f}, {peer.backward:.2f}){mean}"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
    return "  ".join((first.strip().ljust(widths[0]), *others)).rstrip()
