"""recalibrate: the running statistics of a model, exactly, from a data set.

Parallel (the default): one pass, every layer under the batch statistics of its inputs. Sequential (Wu & Johnson 2021,
section 3.2): layer by layer, each measured while its predecessors already use their final statistics, one pass a layer.
Rules: nothing is written before the last pass is over; every rank writes the same bits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from .. import distributed as ranks
from ..model.dataflow import refuse_meta
from ..model.kept_tensor import overwrite
from ..model.restore import Restored
from ..model.select import Selector
from ..model.transaction import Transaction
from . import batches as feeding
from .accumulator import NEVER, Accumulator
from .distance import distance
from .layers import Layer, find, running_statistics
from .passes import Job, layer_by_layer, one_pass
from .report import LayerReport, Recalibration

Estimator = Literal["population", "batch_average"]
ESTIMATORS = ("population", "batch_average")


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    estimator: Estimator = "population",
    steps: int | None = None,
    only: Selector | None = None,
    sequential: bool = False,
    distributed: bool | ranks.Group = None,
    progress: bool = True,
    forward: Callable[[nn.Module, Any], object] | None = None,
) -> Recalibration:
    r"""Set the running statistics of a model's batch norms to those of a data set, exactly.

    .. math:: \text{population:} \quad \mathrm{mean} = \frac{1}{m}\sum x, \quad
              \mathrm{var} = \frac{1}{m - 1} \sum (x - \mathrm{mean})^2 \quad \text{over all batches as one set}

    .. math:: \text{batch average:} \quad \mathrm{mean} = E[\mathrm{mean}_B], \quad
              \mathrm{var} = \frac{m}{m-1} E[\mathrm{var}_B]
              \quad \Big(\frac{\sum m_B \mathrm{mean}_B}{\sum m_B},
              \frac{\sum m_B \mathrm{var}_B}{\sum (m_B - 1)} \text{ for unequal batches}\Big)

    Both are unbiased on independent data; where batches differ in mean, only the population holds the variance between
    them. Moments are merged in float64, so the way the data are cut into batches does not change the first layer's
    result; later layers see what earlier ones make of each batch.

    Args:
        model: any module with torch.nn's or normkit's batch norms, or instance norms that track statistics (their
            statistics are the averages over single samples, for either estimator). Subclasses, AveragedModel, DDP and
            compiled models included. Changed in place.
        batches: an iterable of batches: a tensor is passed as ``model(x)``, of a list or tuple the first entry, a dict
            as keywords. Generators too, unless sequential.
        estimator: "population" or "batch_average".
        steps: the number of batches to use at most; None, all.
        only: name or pattern, type, function (name, module) -> bool, or a list: the layers to recalibrate. The others
            keep their statistics and use them.
        sequential: False: one pass, each layer's inputs come from layers under batch statistics, as in training. True:
            each layer's inputs come from predecessors under their final statistics, as in evaluation; as many passes
            as layers.
        distributed: None: merge over all ranks if torch.distributed is initialized. False: do not. True or a process
            group: merge, and raise where that cannot be. One collective a pass; ranks may have unequal numbers of
            batches.
        progress: show a bar on a terminal, if rich is installed.
        forward: ``forward(model, batch)`` runs the model on one batch of any form.

    Returns:
        A :class:`Recalibration`: for each layer what was done, from how many values, and how far the old statistics
        were from the new; printable, and JSON.

    Everything but the layers measured runs in evaluation mode (dropout off), whatever the model's mode, which is given
    back. Left alone: frozen layers, layers in eval mode while the model is in train mode (in a model that is in eval
    mode all layers are recalibrated; of a wrapper such as AveragedModel the mode of its `module` counts), layers that
    track nothing, layers that no batch reached. A call with one single value per channel counts, and is normalized by
    what was merged so far; one with NaN or Inf does not count (RuntimeWarning). Values under a mask do not count.
    `momentum` and `num_batches_tracked` stay. On any exception the model is as before.

    Differences from torch.optim.swa_utils.update_bn: exact where that averages batch variances; leaves eval-mode
    layers, momentum and counters alone; dropout is off; takes a last batch of one; merges ranks; reports.

    Raises:
        ValueError: no batch, an unknown estimator, steps below 1, `only` selects nothing, a generator with
            sequential=True.
        TypeError: batches or a batch of an unknown form.
        RuntimeError: distributed=True without torch.distributed; another rank failed.

    References: Ioffe & Szegedy (2015), algorithm 2, https://arxiv.org/abs/1502.03167; Wu & Johnson (2021), Rethinking
    "Batch" in BatchNorm, https://arxiv.org/abs/2105.07576
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be 'population' or 'batch_average', got {estimator!r}")
    feeding.verify(batches, steps, sequential)
    merged, group = _group(distributed)
    layers = find(model, only)
    job = Job(model, batches, steps, forward, progress, merged, group, estimator == "batch_average")
    measured = [layer for layer in layers if layer.left_alone is None]
    found: dict[nn.Module, Accumulator] = {}
    seen = 0
    if measured:
        refuse_meta(model)
        with Restored(model, evaluating=True) as restored, restored:
            found, seen = (layer_by_layer if sequential else one_pass)(job, measured)
    results = [_result(layer, found.get(layer.module)) for layer in layers]

    def write() -> None:
        for result in results:
            result.write()

    with Transaction() as change, change:
        for result in results:
            change.keep_values(*result.buffers)
        change.commit(write)
    entries = tuple(result.report for result in results)
    _warn_of_skipped(entries)
    return Recalibration(estimator, sequential, seen, entries)


def _group(distributed: bool | ranks.Group) -> tuple[bool, ranks.Group]:
    """(whether to merge over ranks, the process group)."""
    if distributed is False:
        return False, None
    group = None if distributed is None or distributed is True else distributed
    if distributed is not None and not ranks.is_initialized():
        raise RuntimeError(
            "distributed was asked for and torch.distributed is not initialized: call "
            "torch.distributed.init_process_group first, or leave distributed=None"
        )
    return ranks.is_distributed(group), group


@dataclass(frozen=True)
class _Result:
    """What is said of a layer, and what is written: the new statistics, into these buffers."""

    report: LayerReport
    new: tuple[Tensor, ...] = ()
    buffers: tuple[Tensor, ...] = ()

    def write(self) -> None:
        for buffer, new in zip(self.buffers, self.new, strict=True):
            overwrite(buffer, new)


def _result(layer: Layer, accumulator: Accumulator | None) -> _Result:
    kind = type(layer.module).__name__
    if layer.left_alone is not None:
        return _Result(LayerReport(layer.name, kind, "left alone", layer.left_alone))
    assert accumulator is not None
    counts = {"values": accumulator.values, "calls": accumulator.calls, "skipped": int(accumulator.skipped)}
    found = accumulator.read()
    if accumulator.refusal is not None:
        return _Result(LayerReport(layer.name, kind, "left alone", accumulator.refusal, **counts))
    if accumulator.first == NEVER:
        return _Result(LayerReport(layer.name, kind, "left alone", "not reached by any batch", **counts))
    if found is None:
        return _Result(LayerReport(layer.name, kind, "left alone", "fewer than 2 finite values per channel", **counts))
    old = old_mean, old_var = running_statistics(layer.module)
    mean, var = found
    if not (mean.to(old_mean).isfinite().all() and var.to(old_var).isfinite().all()):
        return _Result(LayerReport(layer.name, kind, "left alone", f"overflow {old_mean.dtype}", **counts))
    apart = distance(old_mean.to(mean), old_var.to(var), mean, var, getattr(layer.module, "eps", 0.0))
    worst = int(apart.nan_to_num(nan=math.inf).argmax())
    report = LayerReport(
        layer.name, kind, "recalibrated", "", **counts, distance=_finite(apart.square().mean().sqrt()),
        largest=_finite(apart[worst]), channel=worst,
    )  # fmt: skip
    return _Result(report, found, old)


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _warn_of_skipped(entries: tuple[LayerReport, ...]) -> None:
    skipped = [entry for entry in entries if entry.skipped]
    if skipped:
        warnings.warn(
            f"recalibrate skipped {skipped[0].skipped} calls with NaN or Inf at {skipped[0].name or 'the model itself'}"
            f"{f' and calls at {len(skipped) - 1} other layers' if len(skipped) > 1 else ''}: the statistics are those "
            "of the finite batches; the report has the counts",
            RuntimeWarning,
            stacklevel=3,
        )
