"""The command behind `normkit bench`: refuse early, measure case by case, show rows as they come, keep them in JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from ..errors import UsageError
from . import busy, models, network, over_ranks
from .measure import measure
from .nets import NETS
from .page import heading
from .peers import PEERS
from .problem import DTYPES
from .results import Document, keep, machine, prepare
from .suite import FAMILIES, SUITES, cases
from .sync_tables import collectives_table, synchronised_table
from .tables import machine_line, models_table, network_table, row_cells, rows_table, summary_table

NETWORK = "network"
WIDTH, NARROW = 16, 9  # of the growing table's first column, and the least of the others
MOST_THREADS = 1024  # far beyond, the system refuses them and libgomp ends the process
SECONDS = {"quick": 0.4, "full": 0.5}


@dataclass(frozen=True)
class Request:
    """What was asked for, checked.

    families: empty = all but the network; seconds: time per case, None = the preset's, four times that beside busy
    processes; a network takes ten times that. cold: inputs that no cache holds; busy: processes that compute beside it.
    models: whole models, and no family. ranks: so many processes that synchronise ResNet-50's norms, and no family.
    """

    families: Sequence[str] = ()
    peers: Sequence[str] = ("torch",)
    preset: str = "quick"
    dtypes: Sequence[str] = ("float32",)
    threads: int | None = None
    seconds: float | None = None
    cold: bool = False
    busy: int = 0
    json: Path | None = None
    models: bool = False
    ranks: Sequence[int] = ()

    def __post_init__(self) -> None:
        _known("family", self.families, (*FAMILIES, NETWORK))
        _known("peer", self.peers, tuple(PEERS))
        _known("preset", [self.preset], tuple(SUITES))
        _known("dtype", self.dtypes, tuple(DTYPES))
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads must be at least 1, got {self.threads}")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise UsageError(f"--threads must be at most {MOST_THREADS}, got {self.threads}")
        if not 0 <= self.busy <= busy.MOST:
            raise UsageError(f"--busy must be 0 to {busy.MOST} processes, got {self.busy}")
        if NETWORK in self.families and (self.cold or self.busy):
            raise UsageError("--cold and --busy are for single layers, not for the network: leave it out")
        if self.models and (self.families or self.cold or self.busy):
            raise UsageError("--models takes no families, and neither --cold nor --busy")
        if self.ranks and (self.families or self.cold or self.busy or self.models):
            raise UsageError("--ranks takes no families, and none of --cold, --busy and --models")
        for ranks in self.ranks:
            if not 2 <= ranks <= over_ranks.MOST:
                raise UsageError(f"--ranks must be 2 to {over_ranks.MOST} processes, got {ranks}")
        if self.seconds is not None and self.seconds < 0:
            raise UsageError(f"--seconds must not be negative, got {self.seconds}")
        if self.seconds is not None and not math.isfinite(self.seconds):
            raise UsageError(f"--seconds must be finite, got {self.seconds}")


def bench(request: Request, show: Callable[[str], None]) -> Document:
    """Measure what was asked for; `show` gets the table line by line.

    Raises:
        UsageError: the JSON file holds figures of another machine or format.
        check.Mismatch: normkit disagrees with float64 on a case.
    """
    document = Document(machine())
    file = prepare(request.json) if request.json else None
    if file is not None:
        file.merged(document)  # refuses now what would be refused after the measuring
    show(machine_line(document))
    for part in _measured(request, show):
        document = document.merged(part)
        if request.json is not None:
            keep(request.json, part)
    if document.rows:
        show("\n" + summary_table(document.rows).text())
    return document


def _measured(request: Request, show: Callable[[str], None]) -> Iterator[Document]:
    threads = request.threads or torch.get_num_threads()
    preset = SECONDS[request.preset] * (4 if request.busy else 1)
    seconds = preset if request.seconds is None else request.seconds
    if request.ranks:
        for ranks in request.ranks:
            found = over_ranks.measure(ranks, request.preset, request.threads, 10 * seconds)
            show(f"\n{collectives_table(found.collectives).text()}\n\n{synchronised_table(found.synchronised).text()}")
            yield found
        return
    if request.models:
        yield from _models(request, show, threads, 10 * seconds)
        return
    families = request.families or FAMILIES
    planned = cases(families, request.preset, request.dtypes, threads, request.cold, request.busy)
    for _, group in groupby(planned, key=lambda case: (case.op, case.layout, case.dtype)):
        for index, case in enumerate(group):
            row = measure(case, request.peers, seconds)
            table = rows_table([row])
            widths = [WIDTH, *(max(NARROW, len(name) + 2) for name in table.headings[1:])]
            if index == 0:
                show(f"\n{heading(row)}\n" + _line(table.headings, widths))
            show(_line(row_cells(row, list(row.peers)), widths))
            yield Document(machine(), rows=(row,))
    if NETWORK in families:
        for batch, layout, dtype in network.CONFIGURATIONS:
            figures = network.measure(batch, layout, dtype, threads, 10 * seconds)
            show("\n" + network_table([figures]).text())
            yield Document(machine(), networks=(figures,))


def _models(request: Request, show: Callable[[str], None], threads: int, seconds: float) -> Iterator[Document]:
    for dtype in request.dtypes:
        for net in NETS[request.preset]:
            found = models.measure(net, dtype, threads, seconds)
            show("\n" + models_table(found).text())
            for name, reason in found[0].absent.items():
                show(f"{name}: {reason}")
            yield Document(machine(), models=tuple(found))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return first[0].ljust(WIDTH) + "".join(f" {cell}".rjust(width) for cell, width in others)


def _known(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"expected a {what} out of {', '.join(known)}, got {name!r}")
