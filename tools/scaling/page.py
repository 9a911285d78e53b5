"""The page, a pure function of two data files: `normkit bench --ranks` and `normkit study small_batch --ranks`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from normkit.bench.resnet import ResNet50
from normkit.bench.results import Document
from normkit.bench.sync_tables import synchronised_table
from normkit.bench.tables import Table, machine_line, number
from normkit.studies.verdict import interval

from .model import ALGORITHMS, NETWORKS, Fit, fit
from .text import BUCKETS, CURVE, HEAD, MODEL, NORMS

RANKS = [8, 64, 512, 4096]
KINDS = ("all_gather", "all_reduce")
FLOAT64 = 8


def channels() -> list[int]:
    """Of ResNet-50's batch norms."""
    with torch.device("meta"):
        return [norm.num_features for norm in ResNet50().modules() if isinstance(norm, nn.BatchNorm2d)]


def render(figures: str, curve: str) -> str:
    """docs/scaling.md. figures: the JSON of a bench; curve: that of `spans`."""
    document, study = Document.from_json(figures), json.loads(curve)
    fits = [fit(document.collectives, kind, algorithm) for kind in KINDS for algorithm in ALGORITHMS]
    sizes = channels()
    parts = [
        HEAD.format(machine=machine_line(document), norms=len(sizes), channels=sum(sizes)),
        synchronised_table(document.synchronised).markdown(),
        MODEL.format(fits=_fits(fits, document).markdown(), points=_points(fits, document).markdown()),
        NORMS.format(inputs=_inputs().markdown(), read=_read(sizes).markdown()),
        BUCKETS.format(table=_buckets(sizes).markdown()),
        CURVE.format(table=_curve(study).markdown(), **{k: study[k] for k in ("ranks", "each", "seeds", "steps")}),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _fits(fits: Sequence[Fit], document: Document) -> Table:
    lines = []
    for one in fits:
        off = sorted(abs(value) for value in one.residuals(document.collectives))
        speed = f"{1e-3 / one.per_byte:.2f}" if one.per_byte else "none seen"
        lines.append(
            (f"{one.kind}, {one.algorithm}", number(one.start), number(one.latency), speed,
             f"{statistics.median(off):.0%}", f"{off[-1]:.0%}")
        )  # fmt: skip
    headings = ("collective", "start us", "latency us a step", "GB/s", "median residual", "largest residual")
    return Table(headings, tuple(lines))


def _points(fits: Sequence[Fit], document: Document) -> Table:
    """Each measured point with what both models say of it."""
    lines = []
    for point in document.collectives:
        said = [number(one.time(point.ranks, point.bytes)) for one in fits if one.kind == point.kind]
        measured = f"{number(point.us)} ({number(point.low)}-{number(point.high)})"
        lines.append((point.kind, str(point.ranks), str(point.bytes), measured, *said))
    return Table(("collective", "ranks", "bytes", "measured us", *ALGORITHMS), tuple(lines))


def _inputs() -> Table:
    headings = (
        "network",
        "ranks per node",
        "start us",
        "step within us",
        "step between us",
        "GB/s within",
        "GB/s between",
    )
    lines = [
        (one.name, str(one.node), *(f"{ring} / {tree}" for ring, tree in (one.start, one.within, one.between)),
         number(one.bandwidth_within), number(one.bandwidth_between))
        for one in NETWORKS
    ]  # fmt: skip
    return Table(headings, tuple(lines))


def _read(sizes: Sequence[int]) -> Table:
    lines = []
    for network in NETWORKS:
        for ranks in RANKS:
            one = [network.best(kind, ranks, FLOAT64 * 2 * 256) for kind in KINDS]
            forward = sum(network.best("all_gather", ranks, FLOAT64 * (2 * c + 1)) for c in sizes)
            backward = sum(network.best("all_reduce", ranks, FLOAT64 * 2 * c) for c in sizes)
            other = sum(network.best("all_reduce", ranks, FLOAT64 * (2 * c + 1)) for c in sizes)
            lines.append(
                (network.name, str(ranks), *map(number, one), number(forward / 1e3), number(backward / 1e3),
                 number(other / 1e3))
            )  # fmt: skip
    headings = (
        "network", "ranks", "one all_gather us", "one all_reduce us", "forward ms", "backward ms",
        "forward by all_reduce ms",
    )  # fmt: skip
    return Table(headings, tuple(lines))


def _buckets(sizes: Sequence[int]) -> Table:
    """The backward's collectives one by one, with those that are ready together in one, and all in one."""
    lines = []
    for network in NETWORKS:
        for ranks in RANKS:
            apart = sum(network.best("all_reduce", ranks, FLOAT64 * 2 * c) for c in sizes)
            # the last norm of a stage's first block and its projection's get their gradients at the same moment
            pairs = (256, 512, 1024, 2048)
            saved = sum(
                2 * network.best("all_reduce", ranks, FLOAT64 * 2 * c)
                - network.best("all_reduce", ranks, FLOAT64 * 4 * c)
                for c in pairs
            )
            together = network.best("all_reduce", ranks, FLOAT64 * 2 * sum(sizes))
            lines.append((network.name, str(ranks), *(number(us / 1e3) for us in (apart, apart - saved, together))))
    return Table(("network", "ranks", "one by one ms", "pairs ms", "all in one ms"), tuple(lines))


def spans(document: dict[str, Any]) -> dict[str, Any]:
    """What the page needs of a folder's results.json: errors in % by the number of processes that share statistics."""
    from normkit.studies import small_batch_ranks as study
    from normkit.studies.study import Run, seeds_of

    found = [entry for entry in document["runs"] if entry["study"] == study.NAME]
    ranks = max(entry["params"]["ranks"] for entry in found)
    runs = [Run(e["params"], e["result"], e["seconds"]) for e in found if e["params"]["ranks"] == ranks]
    seeds = [[run for run in runs if run.params["seed"] == seed] for seed in seeds_of(runs)]

    def errors(norm: str, span: int, key: str = "error") -> list[float]:
        return [round(study.error(of, norm, span, key), 3) for of in seeds]

    shared = study.spans(ranks)
    return {
        "ranks": ranks, "each": study.EACH, "seeds": len(seeds), "steps": runs[0].params["steps"],
        "made_with": found[0]["made_with"], "group": errors("group", 0),
        "running": {str(span): errors("batch", span) for span in shared},
        "exact": {str(span): errors("batch", span, "exact") for span in shared},
    }  # fmt: skip


def _curve(study: dict[str, Any]) -> Table:
    lines = []
    for span, errors in study["running"].items():
        against = [error - group for error, group in zip(errors, study["group"], strict=True)]
        low, high = interval(against)
        lines.append(
            (f"batch norm, shared by {span}", str(int(span) * study["each"]), f"{statistics.median(errors):.2f}",
             f"{statistics.median(study['exact'][span]):.2f}",
             f"{statistics.fmean(against):+.2f} ({low:+.2f} to {high:+.2f})")
        )  # fmt: skip
    lines.append(("group norm", "1", f"{statistics.median(study['group']):.2f}", "", ""))
    headings = ("norm", "images", "error, %", "under exact statistics, %", "minus group norm, % points")
    return Table(headings, tuple(lines))
