"""The figures as data: rows, networks and the machine; one JSON file that several runs may fill.

Rules: a file holds the figures of one machine and one pair of versions; a run replaces rows of the same case and adds
the rest, so float32, bfloat16, one thread and the slow peers can be measured one after the other.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .. import _files
from .._reading import parse, read_text, typed
from ..errors import UsageError
from .problem import Case
from .sync_figures import Collective, Synchronised

FORMAT = 1


@dataclass(frozen=True)
class Peer:
    """A peer's median milliseconds and the medians of its paired ratios to normkit: above 1, normkit is faster.

    mean: the ratio of the rounds' mean times. Beside busy processes it is the figure: what a call waits for others to
    give a core back is in the mean and hardly in the median.
    """

    ms: float
    forward: float
    backward: float | None
    total: float
    low: float  # quartiles of the total
    high: float
    limit: float | None = None  # the total, had normkit's kernels computed no statistics
    mean: float | None = None


@dataclass(frozen=True)
class Row:
    """One case. share: of the roof, by the fewest bytes; share_two_sweeps: by two reads of what statistics cover."""

    case: Case
    rounds: int
    error: float  # the largest error as a share of what the contract allows
    forward_ms: float
    backward_ms: float
    clone_ms: float
    copy_ms: float
    bytes: float  # the fewest that forward and backward can move
    share: float
    share_two_sweeps: float
    peers: dict[str, Peer]
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def ms(self) -> float:
        return self.forward_ms + self.backward_ms


@dataclass(frozen=True)
class Variant:
    """A changed model against the plain one: the paired ratios of the steps' times with quartiles, above 1 where it is
    faster, and its memory in bytes."""

    ratio: float
    low: float
    high: float
    held: int
    peak: int


@dataclass(frozen=True)
class Network:
    """A ResNet-50 training step, plain and changed.

    share: of the plain step's time, norm + add + activation; limit: the step's speedup if those ran at the roof;
    free: if they took no time. Memory: bytes held for the backward, and the peak of what a step allocates.
    contenders: "accelerated", and "recomputing" for nk.accelerate(recompute=True).
    """

    batch: int
    layout: str
    dtype: str
    threads: int
    rounds: int = 0
    step_ms: float = 0.0
    share: float = 0.0
    limit: float = 1.0
    free: float = 1.0
    held: int = 0
    peak: int = 0
    contenders: dict[str, Variant] = field(default_factory=dict)

    @property
    def key(self) -> tuple[int, str, str, int]:
        return self.batch, self.layout, self.dtype, self.threads


@dataclass(frozen=True)
class Versus:
    """Paired ratios of the plain model's times to another's, with quartiles: above 1 the other is faster."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Model:
    """A whole model in one mode ("training": a step; "inference").

    share: the norms' part of the plain model's time; limit: how much faster it could be by its norms' own ratios; peak,
    fast_peak: bytes live at most in a training step, plain and accelerated (0 in inference).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    threads: int
    mode: str
    rounds: int = 0
    ms: float = 0.0
    share: float = 0.0
    limit: float = 1.0
    peak: int = 0
    fast_peak: int = 0
    contenders: dict[str, Versus] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, tuple[int, ...], str, int, str]:
        return self.name, self.shape, self.dtype, self.threads, self.mode

    @property
    def reached(self) -> float | None:
        """Which part of the predicted gain acceleration gives; None where no more than 3 % is predicted."""
        fast = self.contenders.get("accelerated")
        return None if fast is None or self.limit < 1.03 else (fast.ratio - 1) / (self.limit - 1)


@dataclass(frozen=True)
class Document:
    """All figures of one machine."""

    machine: dict[str, str]
    rows: tuple[Row, ...] = ()
    networks: tuple[Network, ...] = ()
    models: tuple[Model, ...] = ()
    collectives: tuple[Collective, ...] = ()
    synchronised: tuple[Synchronised, ...] = ()

    def to_json(self) -> str:
        """JSON with a line per row and network: the file stays short, and a diff shows what was measured anew."""
        parts = {key: _rounded(value) for key, value in {"format": FORMAT, **asdict(self)}.items()}
        return "{\n" + ",\n".join(f'"{key}": {_lines(value)}' for key, value in parts.items()) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Document:
        """UsageError: this is no text that `to_json` wrote."""
        try:
            document = parse(text)
            found = document.pop("format", "none") if isinstance(document, dict) else "none"
            if found != FORMAT:
                raise ValueError(f"expected figures of format {FORMAT}, got {found!r:.40}")
            return typed(cls, document, "the file")
        except ValueError as error:
            raise UsageError(f"{error}: measure into a new file") from None

    def merged(self, newer: Document) -> Document:
        """These figures with the newer ones in the place of their namesakes."""
        if self.machine != newer.machine:
            raise UsageError(
                f"the file holds figures of {self.machine}, this run is {newer.machine}: choose another --json file"
            )
        rows = {row.case: row for row in (*self.rows, *newer.rows)}
        networks = {network.key: network for network in (*self.networks, *newer.networks)}
        models = {model.key: model for model in (*self.models, *newer.models)}
        collectives = {one.key: one for one in (*self.collectives, *newer.collectives)}
        synchronised = {one.key: one for one in (*self.synchronised, *newer.synchronised)}
        return replace(
            self, rows=tuple(rows.values()), networks=tuple(networks.values()), models=tuple(models.values()),
            collectives=tuple(collectives.values()), synchronised=tuple(synchronised.values()),
        )  # fmt: skip


def prepare(path: Path) -> Document | None:
    """The figures in `path`, or None where there are none yet. UsageError here where none could be written later."""
    try:
        _files.prepare(path)
    except OSError as error:
        raise UsageError(f"--json must be a file that can be written: {_files.reason(error)}") from None
    return load(path)


def load(path: Path) -> Document | None:
    """The figures in `path`; None where it is absent or empty. UsageError: it cannot be read, or holds something else.

    An empty file is what an interrupted run of earlier versions left.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read figures from {path}: {error}: measure into a new file") from None
    return Document.from_json(text) if text else None


def keep(path: Path, newer: Document) -> None:
    """Write `newer` to `path` beside what it holds by then: another process may have measured too."""

    def merged() -> str:
        before = load(path)
        return (newer if before is None else before.merged(newer)).to_json()

    _files.update(path, merged)


def machine() -> dict[str, str]:
    """The machine by what matters for speed, never by its name."""
    from ..info import cpu_name, version
    from ..kernels import native

    return {
        "cpu": cpu_name(),
        "cores": str(cores()),
        "isa": native.isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "normkit": version(),
    }


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lines(value: Any) -> str:
    """JSON of one part of the document; a list with one line per entry."""
    if not isinstance(value, list) or not value:
        return json.dumps(value, allow_nan=False)
    return "[\n" + ",\n".join(json.dumps(entry, allow_nan=False) for entry in value) + "\n]"


def _rounded(value: Any) -> Any:
    """Four significant digits of every float: more would be noise, and a diff of noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
