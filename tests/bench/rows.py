"""Rows and documents made by hand, for the tests of what is done with figures."""

from __future__ import annotations

from normkit.bench.problem import Case
from normkit.bench.results import Document, Network, Peer, Row, Variant

MACHINE = {"cpu": "A CPU", "cores": "2", "isa": "avx2", "system": "Linux", "torch": "2.13.0", "normkit": "0.1.0"}


def row(
    shape: tuple[int, ...] = (8, 64, 56, 56), ratio: float = 2.0, share: float = 0.5, layout: str = "NCHW",
    op: str = "batch_norm", peers: tuple[str, ...] = ("torch",), limit: float | None = None,
) -> Row:  # fmt: skip
    peer = Peer(ms=3.0, forward=3.0, backward=1.5, total=ratio, low=ratio - 0.1, high=ratio + 0.1, limit=limit)
    return Row(
        Case(op, shape, layout, "float32", 2), rounds=9, error=0.25, forward_ms=1.0, backward_ms=2.0, clone_ms=0.5,
        copy_ms=0.25, bytes=3e6, share=share, share_two_sweeps=1.6 * share, peers=dict.fromkeys(peers, peer),
        absent={"jax": "jax is not installed"},
    )  # fmt: skip


NETWORK = Network(
    8, "NHWC", "bfloat16", 2, rounds=5, step_ms=900.0, share=0.25, limit=1.2, free=1.33, held=10**9, peak=2 * 10**9,
    contenders={"accelerated": Variant(1.15, 1.1, 1.2, held=7 * 10**8, peak=15 * 10**8)},
)  # fmt: skip


def document(*rows: Row) -> Document:
    return Document(MACHINE, rows, (NETWORK,))
