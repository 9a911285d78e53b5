"""adapt: test-time batch statistics, mixed with the source's as a prior of N samples (Schneider et al. 2020).

Rules: inside the block the model is in eval mode and its buffers hold what they held; each call of a layer borrows the
mixture. The statistics are constants to autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .. import _shapes
from ..functional._running import is_recomputation
from ..model.select import Selector
from ..moments import accumulator_dtype
from .measure import Sample, measure
from .observe import arguments, replaced, under
from .tally import Tally
from .targets import IN_EVAL_MODE, Target, find, statistics


def adapt(model: nn.Module, prior: float = 16, *, running: bool = False, only: Selector | None = None) -> Adaptation:
    r"""Adapt a model's batch norms to the test data: batch statistics, mixed with the training ones.

    .. math:: \mathrm{mean} = \frac{N}{N + n} \mathrm{mean}_s + \frac{n}{N + n} \mathrm{mean}_t, \quad
              \mathrm{var} = \frac{N}{N + n} \mathrm{var}_s + \frac{n}{N + n} \mathrm{var}_t

    s: the running statistics of the model, t: the test batch (biased variance), N: `prior`, n: samples in the batch.

    Use it as a context manager. Inside, the model is in eval mode and every forward adapts; afterwards, also after an
    exception, modes, forwards and buffers are what they were.

    Args:
        model: any module with batch norms or tracking instance norms, torch.nn's, normkit's and subclasses.
        prior: N, in samples: the number of test samples that the training statistics are worth. 0: the test batch's
            statistics alone, as in train mode. inf: plain evaluation. 16: a batch of 16 counts half. The unit is the
            sample (the size of the layer input's axis 0), not the value: the positions of one image tell the same
            story, so an image of 224x224 counts as much as one of 32x32.
        running: False, episodic: each batch by itself. True: n counts all samples since the block began (or
            :meth:`Adaptation.reset`), t is their moments merged; for a stream from one domain, whose batches may then
            be small. Two forwards of the same batch count twice.
        only: the layers to adapt: name or pattern, type, function (name, module) -> bool, or a list.

    Returns:
        An :class:`Adaptation`, which can be called like the model.

    Frozen layers are left alone. Samples that a mask hides wholly do not count in n, values under a mask do not count
    at all. A batch with NaN or Inf, or empty, is normalized by what is known without it. For instance norms t is the
    average over the samples.

    Raises:
        ValueError: prior is negative or NaN, `only` selects nothing; with prior=0 one single value per channel.
        RuntimeError: the model is already inside such a block.

    Reference: Schneider et al. (2020), Improving robustness against common corruptions by covariate shift adaptation.
    https://arxiv.org/abs/2006.16971

    Example:
        >>> with normkit.adapt(model, prior=16):
        ...     logits = model(images)
    """
    if not prior >= 0:
        raise ValueError(f"prior must be a number of samples, 0 or more (math.inf is plain evaluation), got {prior!r}")
    return Adaptation(model, float(prior), running, only)


class Adaptation:
    """The block of :func:`adapt`. `names`: the adapted layers. Calling it calls the model."""

    def __init__(self, model: nn.Module, prior: float, running: bool, only: Selector | None) -> None:
        self.model, self.prior, self.running = model, prior, running
        self._targets = [target for target in find(model, only) if target.left_alone in (None, IN_EVAL_MODE)]
        self._streams: dict[nn.Module, _Stream] = {}
        self._modes: list[tuple[nn.Module, bool]] = []
        self._stand_ins: AbstractContextManager[None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(target.name for target in self._targets)

    def __enter__(self) -> Adaptation:
        if self._stand_ins is not None:
            raise RuntimeError("this adaptation is already entered: make another with normkit.adapt")
        self.reset()
        stand_ins = replaced({target.layer: self._forward(target) for target in self._targets})
        stand_ins.__enter__()
        self._stand_ins = stand_ins
        self._modes = [(module, module.training) for module in self.model.modules()]
        for module, _ in self._modes:
            module.training = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stand_ins is not None
        for module, training in self._modes:
            module.training = training
        stand_ins, self._stand_ins = self._stand_ins, None
        stand_ins.__exit__(None, None, None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def reset(self) -> None:
        """Forget the samples that a running adaptation has seen: a new domain begins."""
        self._streams.clear()

    def _forward(self, target: Target) -> Callable[..., Any]:
        """The stand-in of one layer: its own forward under the mixture."""
        layer, own = target.layer, target.layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if math.isinf(self.prior):
                return own(*args, **kwargs)
            x, mask = arguments(layer, args, kwargs)
            with torch.no_grad():
                mean, var = self._mixture(target, x, mask)
            with under(layer, mean, var):
                return own(*args, **kwargs)

        return forward

    def _mixture(self, target: Target, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        source_mean, source_var = (buffer.to(accumulator_dtype(buffer)) for buffer in statistics(target.layer))
        stream = self._stream(target)
        if not (self.running and is_recomputation()):  # a checkpoint's recomputation was counted by its forward
            sample = measure(x, mask, target.per_instance)
            stream.add(sample, _samples(x, mask))
        if self.prior == 0 and stream.tally.values == 1 and not target.per_instance:
            raise ValueError(_shapes.ONE_VALUE.format(x.size()) + " (normkit.adapt with prior=0)")
        found = stream.read(target.per_instance)
        if found is None:
            return source_mean, source_var
        share = self.prior / (self.prior + stream.samples)
        return share * source_mean + (1 - share) * found[0], share * source_var + (1 - share) * found[1]

    def _stream(self, target: Target) -> _Stream:
        """What counts for this call: everything so far, or nothing yet."""
        layer = target.layer
        if not self.running or layer not in self._streams:
            mean, _ = statistics(layer)
            self._streams[layer] = _Stream(Tally.empty(mean.numel(), mean.device, target.per_instance))
        return self._streams[layer]


class _Stream:
    """The test data that one layer has seen: their moments and the number of samples."""

    def __init__(self, tally: Tally) -> None:
        self.tally, self.samples = tally, 0

    def add(self, sample: Sample, samples: int) -> None:
        skipped = int(self.tally.skipped)
        self.tally.add(sample)
        self.tally.flush()
        if int(self.tally.skipped) == skipped and int(sample.values):
            self.samples += samples

    def read(self, per_instance: bool) -> tuple[Tensor, Tensor] | None:
        """(mean, biased variance) of all values; for instance norm the averages over samples."""
        if self.tally.values == 0:
            return None
        if per_instance:
            return self.tally.moments.mean, self.tally.within / self.tally.freedom
        return self.tally.moments.mean, self.tally.moments.var(correction=0)


def _samples(x: Tensor, mask: Tensor | None) -> int:
    """How many samples of x: (N, C, *) have a real value."""
    if mask is None:
        return x.shape[0]
    kept = _shapes.channel_mask(mask, x)
    return int(kept.reshape(kept.shape[0], -1).any(1).expand(x.shape[0]).sum())
