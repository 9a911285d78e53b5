"""What attribute_gap found: data first, with a JSON round trip; rendering last and pure."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..model.table import Table, Tabular
from .finding import rounded

_COLUMNS = ("layer", "share of the gap", "over the orders", "distance", "what")

ERRORS = 3.0
SETTLED_BATCHES = 19  # what momentum 0.1 averages: (2 - 0.1) / 0.1 batches


@dataclass(frozen=True)
class Test:
    r"""Whether the gap is more than batches differ among themselves.

    .. math:: |\overline{d}| > 3 \max\left(\frac{\mathrm{std}(d)}{\sqrt{B}},\;
              \mathrm{rms}(c) \sqrt{\tfrac{1}{19} + \tfrac{1}{B}}\right)

    d: of each of the B batches, the answer under running statistics less that under exact ones (`gap`, the mean;
    `error`, its standard error). c: the answer under the batch's own statistics less that under exact ones (`spread`):
    the network was trained under this much noise. Running statistics in good order average about 19 batches (momentum
    0.1), exact ones B, so what both leave of one batch's noise is the root; three times that are beyond chance.
    """

    __test__ = False  # for pytest: no test

    batches: int
    gap: float | None
    error: float | None
    spread: float | None
    limit: float | None

    @staticmethod
    def of(running: Sequence[float], exact: Sequence[float], batch: Sequence[float]) -> Test:
        """From the answers to each batch."""
        count = len(running)
        gaps = [a - b for a, b in zip(running, exact, strict=True)]
        gap = _finite(statistics.fmean(gaps))
        if count < 2 or gap is None:
            return Test(count, gap, None, None, None)
        error = statistics.stdev(gaps) / math.sqrt(count)
        spread = math.sqrt(statistics.fmean((a - b) ** 2 for a, b in zip(batch, exact, strict=True)))
        limit = ERRORS * max(error, spread * math.sqrt(1 / SETTLED_BATCHES + 1 / count))
        return Test(count, gap, error, _finite(spread), _finite(limit))

    def refusal(self) -> str:
        """Why nothing is attributed; "" where something is."""
        if self.gap is None:
            return "the answers are not finite"
        if self.batches < 2:
            return "one batch cannot tell how much batches differ: give two or more"
        if self.limit is None:
            return "the answers under batch statistics are not finite"
        if abs(self.gap) <= self.limit:
            return f"the gap of {self.gap:.3g} is not more than batches differ among themselves ({self.limit:.3g})"
        return ""


@dataclass(frozen=True)
class LayerShare:
    """One layer's part of the gap: the mean over the orders, the least and the largest of them. `distance`: of its
    running statistics from the exact ones, in its own standard deviations, root mean square over the channels; None
    where that is not finite. `cause`: how they differ, in words."""

    layer: str
    share: float
    low: float
    high: float
    distance: float | None
    cause: str

    def sentence(self) -> str:
        return f"{self.share:.2f} of the gap is {self.layer or 'the model itself'}: {self.cause}"


@dataclass(frozen=True)
class Gap(Tabular):
    """The result of :func:`attribute_gap`.

    `running`, `exact`, `batch`, `training`: the mean answer in evaluation mode under running, exact and batch
    statistics, and under exact ones with all but these layers in training mode; in `unit`; None where not finite.
    `test`: whether running and exact differ by more than batches do; `reason`: why there are no `shares`, or "".
    `others`: how many layers differ by less than the screening distance, or are not among the farthest;
    `others_share`: theirs together. `layers`: whose statistics were switched. `orders`, `batches`, `passes`: how many
    there were.
    """

    unit: str
    running: float | None
    exact: float | None
    batch: float | None
    training: float | None
    training_refused: str
    test: Test
    reason: str
    shares: tuple[LayerShare, ...]
    others: int
    others_share: float
    layers: int
    orders: int
    batches: int
    passes: int

    @property
    def found(self) -> bool:
        """Whether there is a gap that layers are to blame for."""
        return not self.reason

    @property
    def gap(self) -> float | None:
        """running - exact: what the running statistics change."""
        return _difference(self.running, self.exact)

    @property
    def depends_on_the_batch(self) -> float | None:
        """batch - exact: what no running statistics can give."""
        return _difference(self.batch, self.exact)

    @property
    def dropout(self) -> float | None:
        """training - exact: what dropout, stochastic depth and the like change."""
        return _difference(self.training, self.exact)

    def others_sentence(self) -> str:
        others = "another layer" if self.others == 1 else f"{self.others} other layers together"
        return f"{self.others_share:.2f} of the gap is {others}"

    def sentences(self) -> tuple[str, ...]:
        """The whole finding, a line each."""
        lines = [
            f"running statistics give {_number(self.running)}, exact ones {_number(self.exact)} ({self.unit}): a gap "
            f"of {_number(self.gap)}, where batches differ by {_number(self.test.limit)}"
        ]
        lines += [share.sentence() for share in self.shares]
        if self.shares and self.others:
            lines.append(self.others_sentence())
        if self.reason:
            lines.append(f"no shares: {self.reason}")
        dropout = f"not measured ({self.training_refused})" if self.training_refused else _number(self.dropout)
        lines.append(f"depends on the batch: {_number(self.depends_on_the_batch)}")
        lines.append(f"dropout and stochastic depth: {dropout}")
        return tuple(lines)

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)

    def to_document(self) -> dict[str, Any]:
        """The fields by name, numbers to four digits, in the form of schema.json."""
        return _rounded(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Gap:
        """The inverse of `to_json`."""
        data: dict[str, Any] = json.loads(text)
        shares = tuple(LayerShare(**share) for share in data["shares"])
        return cls(**{**data, "test": Test(**data["test"]), "shares": shares})

    def table(self) -> Table:
        """One row a layer that has a share."""
        rows = tuple(
            (
                share.layer or "(the model itself)",
                f"{share.share:.2f}",
                f"{share.low:.2f} to {share.high:.2f}",
                _number(share.distance),
                share.cause,
            )
            for share in self.shares
        )
        notes = tuple(line for line in self.sentences() if line not in {share.sentence() for share in self.shares})
        return Table(_COLUMNS, rows, (False,) * len(rows), notes)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return rounded(value) if isinstance(value, float) else value


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
