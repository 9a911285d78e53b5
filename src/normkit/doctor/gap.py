"""attribute_gap: how much of what a model loses in evaluation is due to which layer's running statistics.

v(S) is the model's answer with the layers in S under exact statistics and the others under their running ones, always
in evaluation mode. Batch statistics are never switched to: a later norm would repair an earlier fault and be blamed.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from ..model.dataflow import refuse_lazy
from ..statistics import batches as feeding
from ..statistics.layers import Layer, running_statistics
from .cause import cause
from .exact import REFINEMENTS, apart
from .gap_report import Gap, LayerShare, Test
from .scale import Answer, Metric, Scale, answer
from .shares import Coalition, Order, coalitions, orders, shares
from .switch import Switch

SCREEN = 0.1  # standard deviations: momentum 0.1 over batches of 32 values leaves a running mean and variance 0.05 away
PLAYERS = 16


def attribute_gap(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    metric: Metric | None = None,
    max_batches: int = 16,
    orders: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> Gap:
    r"""Attribute the gap between running and exact statistics to the layers of a model.

    .. math:: s_l = \frac{1}{|O|} \sum_{o \in O} \frac{v(S_{o,l}) - v(S_{o,l} \cup \{l\})}{v(\emptyset) - v(\text{all})}

    v(S): the answer in evaluation mode with the layers in S under exact statistics and the others under their running
    ones; S_{o,l}: the layers before l in the order o; O: the order of the dataflow, its reverse, and random pairs of an
    order and its reverse. The shares of each order sum to 1.

    Exact statistics are those of all the batches, with every layer before normalizing by its exact ones; they are
    measured once. A layer is a player if its running statistics are farther than 0.1 from them (in its own standard
    deviations, root mean square over the channels), the 16 farthest at most; all others are one player together.

    Args:
        model: any module with torch.nn's or normkit's batch norms, or instance norms that track statistics. Given back
            as it was, also after an exception.
        batches: an iterable of batches: a tensor is passed as ``model(x)``, of a list or tuple the first entry, a dict
            as keywords. The first `max_batches` are held and gone over again and again; two at least.
        forward: ``forward(model, batch)`` runs the model on one batch of any form. If it returns one number, that is
            the loss.
        metric: ``metric(output, batch)`` -> a number, of one batch. Without: the loss, if the model returns one, else
            the distance of the outputs to those under exact statistics, in standard deviations of the latter.
        max_batches: how many to use at most.
        orders: how many orders at most, an even number of at least 2.
        seed: of the random orders, and of torch at the beginning of each pass.
        progress: say on stderr how many passes there will be, with a bar on a terminal if rich is installed.

    Returns:
        A :class:`Gap`, printable, and JSON. It has shares only where the gap is more than batches differ among
        themselves (see :class:`Test`), and apart from them what depends on the batch (batch instead of exact
        statistics) and what training mode changes beside (dropout, stochastic depth).

    Passes over the data: at most 7, and where a gap is found at most orders x players more.

    Raises:
        ValueError: no batch; max_batches below 1; orders odd or below 2; outputs whose shapes depend on the statistics.
        TypeError: batches or a batch of an unknown form; a metric that returns no number; an output without numbers.
        RuntimeError: lazy layers without a shape.

    References: Shapley (1953), A value for n-person games; Castro, Gomez & Tejada (2009), Polynomial calculation of the
    Shapley value based on sampling, https://doi.org/10.1016/j.cor.2008.04.004
    """
    if isinstance(max_batches, bool) or not isinstance(max_batches, int) or max_batches < 1:
        raise ValueError(f"max_batches must be an int of at least 1, got {max_batches!r}")
    if isinstance(orders, bool) or not isinstance(orders, int) or orders < 2 or orders % 2:
        raise ValueError(f"orders must be an even int of at least 2, got {orders!r}")
    refuse_lazy(model)
    held = feeding.taken(batches, max_batches)
    return _Attribution(model, held, forward, metric, progress, seed).gap(orders)


class _Attribution:
    """One call of attribute_gap."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        forward: Callable[[nn.Module, Any], Any] | None,
        metric: Metric | None,
        progress: bool,
        seed: int,
    ) -> None:
        self.metric, self.progress, self.seed = metric, progress, seed
        self.switch = Switch(model, batches, forward, seed, self._advance)
        self.passes = 0
        self._tick: Callable[[], object] = lambda: None

    def gap(self, count: int) -> Gap:
        held = len(self.switch.batches)
        first = REFINEMENTS + 4
        self._say(f"train/eval gap: at most {first} passes over {held} batches")
        began = time.monotonic()
        with feeding.bar("train/eval gap" if self.progress else None, None) as self._tick:
            under_batch = self.switch.measure(self._raw)
            layers = self.switch.layers
            exact = self.switch.run([layer.module for layer in layers], self._raw)
            self.scale = Scale(exact)
            values = {"exact": self._numbers(exact), "batch": self._numbers(under_batch)}
            values["running"] = self.switch.run((), self._number)
            dropout, why = self._training(layers)
        test = Test.of(values["running"], values["exact"], values["batch"])
        distances = {layer: self._distance(layer) for layer in layers}
        far = sorted((x for x in layers if distances[x] > SCREEN), key=lambda x: -distances[x])[:PLAYERS]
        players = [layer for layer in layers if layer in far]
        rest = [layer for layer in layers if layer not in far and distances[layer] > 0]
        reason = test.refusal() or ("" if far else f"no layer is farther than {SCREEN} from the data's statistics")
        table: list[list[float]] = []
        if not reason:
            seconds = (time.monotonic() - began) / self.passes
            table = self._shares(players, rest, count, seconds, values)
            if not all(math.isfinite(share) for row in table for share in row):
                table, reason = [], "the answers are not finite with some of the layers under exact statistics"
        entries = tuple(self._entry(layer, distances, table, i) for i, layer in enumerate(players) if table)
        mean = {name: _finite(_mean(found)) for name, found in values.items()}
        return Gap(
            unit=self._unit(exact[0]),
            running=mean["running"],
            exact=mean["exact"],
            batch=mean["batch"],
            training=None if dropout is None else _finite(_mean(dropout)),
            training_refused=why,
            test=test,
            reason=reason,
            shares=tuple(sorted(entries, key=lambda entry: -entry.share)),
            others=len(rest),
            others_share=_mean([row[-1] for row in table]) if rest and table else 0.0,
            layers=len(layers),
            orders=len(table),
            batches=held,
            passes=self.passes,
        )

    def _shares(
        self, players: list[Layer], rest: list[Layer], count: int, seconds: float, values: dict[str, list[float]]
    ) -> list[list[float]]:
        """(orders, players), the rest together as the last one, if there is any."""
        sides = [[layer] for layer in players] + ([rest] if rest else [])
        drawn: list[Order] = orders(len(sides), count, self.seed)
        known: dict[Coalition, float] = {
            frozenset(): _mean(values["running"]),
            frozenset(range(len(sides))): _mean(values["exact"]),
        }
        needed = [one for one in coalitions(drawn) if one not in known]
        others = f" and {len(rest)} together" if rest else ""
        self._say(
            f"train/eval gap: {len(players)} layers one by one{others}, in {len(drawn)} orders: "
            f"{len(needed)} more passes, about {seconds * len(needed):.0f} s"
        )
        with feeding.bar("train/eval gap, by layer" if self.progress else None, len(needed)) as self._tick:
            for one in needed:
                switched = [layer.module for side in one for layer in sides[side]]
                known[one] = _mean(self.switch.run(switched, self._number))
        return shares(drawn, known.__getitem__)

    def _training(self, layers: list[Layer]) -> tuple[list[float] | None, str]:
        """The answers under exact statistics with all else in training mode; why there are none."""
        try:
            return self.switch.run([layer.module for layer in layers], self._number, training=True), ""
        except Exception as error:  # a model may take or return something else when it trains
            return None, f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]

    def _entry(self, layer: Layer, distances: dict[Layer, float], table: list[list[float]], player: int) -> LayerShare:
        found = [row[player] for row in table]
        words = cause(layer.module, self.switch.exact[layer.module])
        return LayerShare(layer.name, _mean(found), min(found), max(found), _finite(distances[layer]), words)

    def _distance(self, layer: Layer) -> float:
        return apart(layer.module, *running_statistics(layer.module), self.switch.exact[layer.module])

    def _raw(self, index: int, output: Any, batch: Any) -> Answer:
        return answer(output, batch, self.metric)

    def _number(self, index: int, output: Any, batch: Any) -> float:
        return self.scale.value(index, answer(output, batch, self.metric))

    def _numbers(self, answers: Sequence[Answer]) -> list[float]:
        return [self.scale.value(i, one) for i, one in enumerate(answers)]

    def _unit(self, first: Answer) -> str:
        if self.metric is not None:
            return getattr(self.metric, "__name__", "metric").replace("<lambda>", "metric")
        return "loss" if isinstance(first, float) else "standard deviations of the output"

    def _advance(self) -> None:
        self.passes += 1
        self._tick()

    def _say(self, line: str) -> None:
        if self.progress:
            print(line, file=sys.stderr, flush=True)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
