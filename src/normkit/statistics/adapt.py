"""adapt: test-time batch statistics, mixed with the source's as a prior of N samples (Schneider et al. 2020).

Rules: inside the block the model is in eval mode and its buffers hold what they held; each call of a layer borrows the
mixture. The statistics are constants to autograd; with `tent` they are the batch's alone, and differentiated.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import _shapes
from .._precision import wide_dtype
from ..functional.running import is_recomputation
from ..model.interrupts import UserBlock
from ..model.kept import MODES, Kept
from ..model.select import Selector
from .accumulator import Accumulator
from .axis import AxisCheck
from .layers import IN_EVAL_MODE, Layer, find, running_statistics
from .lent import Lent
from .sample import Sample, sample
from .stand_in import FORWARD, Forward, arguments, put_in
from .tent import Optimizer, Tent


def adapt(
    model: nn.Module,
    prior: float = 16,
    *,
    running: bool = False,
    only: Selector | None = None,
    tent: Optimizer | None = None,
) -> Adaptation:
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
        tent: None, or what makes an optimizer of the adapted layers' weights and biases, as
            ``lambda parameters: torch.optim.Adam(parameters, 1e-3)``; with prior=0. Each call of the Adaptation gives
            the logits (N, classes, *) under the batch's statistics and then takes one step down their mean entropy
            (Wang et al. 2021). The parameters move on from batch to batch, until :meth:`Adaptation.reset`; behind the
            block they are what they were.

    Returns:
        An :class:`Adaptation`, which can be called like the model.

    Frozen layers are left alone, and modules that share the names of the buffers but do not normalize axis 1. Samples
    that a mask hides wholly do not count in n, values under a mask do not count at all. A batch with NaN or Inf, or
    empty, is normalized by what is known without it. For instance norms t is the average over the samples.

    Raises:
        ValueError: prior is negative or NaN, `only` selects nothing; with prior=0 one single value per channel; tent
            with another prior, with running, or without a weight or bias to move.
        TypeError: prior is no number, tent no function, or what it makes no optimizer; with tent, an output that is no
            tensor of logits.
        RuntimeError: the model is already inside such a block; with tent, an output without gradient, or parameters
            made in inference mode.

    Reference: Schneider et al. (2020), Improving robustness against common corruptions by covariate shift adaptation.
    https://arxiv.org/abs/2006.16971. tent: Wang et al. (2021), Tent: Fully test-time adaptation by entropy
    minimization. https://arxiv.org/abs/2006.10726

    Example:
        >>> with normkit.adapt(model, prior=16):
        ...     logits = model(images)
    """
    if isinstance(prior, bool) or not hasattr(prior, "__float__"):
        raise TypeError(f"prior must be a number of samples, got a {type(prior).__name__}")
    if tent is not None and not callable(tent):
        raise TypeError(f"tent must be a function that makes an optimizer of parameters, got a {type(tent).__name__}")
    if not prior >= 0:
        raise ValueError(f"prior must be a number of samples, 0 or more (math.inf is plain evaluation), got {prior!r}")
    if tent is not None and (prior != 0 or running):
        raise ValueError(f"tent takes the batch's own statistics: expected prior=0 and running=False, got {prior!r}")
    return Adaptation(model, float(prior), running, only, tent)


class Adaptation(UserBlock):
    """The block of :func:`adapt`. `names`: the adapted layers. Calling it calls the model."""

    def __init__(
        self, model: nn.Module, prior: float, running: bool, only: Selector | None, tent: Optimizer | None = None
    ) -> None:
        super().__init__()
        self.model, self.prior, self.running = model, prior, running
        self._layers = [layer for layer in find(model, only) if layer.left_alone in (None, IN_EVAL_MODE)]
        self._streams: dict[nn.Module, _Stream] = {}
        self._kept: tuple[Kept, ...] = ()
        self._tent = None if tent is None else Tent([layer.module for layer in self._layers], tent)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self._layers)

    def __enter__(self) -> Adaptation:
        if self._kept:
            raise RuntimeError("this adaptation is already entered: make another with normkit.adapt")
        return super().__enter__()

    def begin(self) -> None:
        """Put the stand-ins in, and the model into evaluation mode."""
        self._streams.clear()
        self._kept = Kept(self.model, only=MODES), Kept(*(layer.module for layer in self._layers), only=FORWARD)
        put_in({layer.module: self._forward(layer) for layer in self._layers})
        for module in self.model.modules():
            module.training = False
        if self._tent is not None:
            self._tent.begin()

    def leave(self) -> None:
        """Give modes and forwards back, and with tent the parameters."""
        try:
            for kept in self._kept:
                kept.give_back()
            self._kept = ()
        finally:
            if self._tent is not None:
                self._tent.leave()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs) if self._tent is None else self._tent.call(self.model, args, kwargs)

    def reset(self) -> None:
        """Forget the samples that an adaptation has seen, and what they did to parameters: a new domain begins."""
        self._streams.clear()
        if self._tent is not None and self._kept:
            self._tent.reset()

    def _forward(self, layer: Layer) -> Forward:
        """The stand-in of one layer: its own forward under the mixture."""
        module, own, check = layer.module, layer.module.forward, AxisCheck(layer.module)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if math.isinf(self.prior):
                return own(*args, **kwargs)
            x, mask = arguments(module, args, kwargs)
            if check.refuses(own, x, args, kwargs):
                return own(*args, **kwargs)
            if self._tent is not None:  # as training has it, gradients through the statistics too
                with Lent(module, None, None) as lent, lent:
                    return own(*args, **kwargs)
            mean, var = self._mixture(layer, x, mask)
            with Lent(module, mean, var) as lent, lent:
                return own(*args, **kwargs)

        return forward

    @torch.no_grad()
    def _mixture(self, layer: Layer, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        own = running_statistics(layer.module)
        source_mean, source_var = (buffer.to(wide_dtype(buffer.device)) for buffer in own)
        stream = self._stream(layer)
        if not (self.running and is_recomputation()):  # a checkpoint's recomputation was counted by its forward
            stream.add(sample(x, mask, layer.per_instance), _samples(x, mask))
        if self.prior == 0 and stream.seen.values == 1 and not layer.per_instance:
            raise ValueError(_shapes.ONE_VALUE.format(x.size()) + " (normkit.adapt with prior=0)")
        found = stream.read(layer.per_instance)
        if found is None:
            return source_mean, source_var
        share = self.prior / (self.prior + stream.samples)
        return share * source_mean + (1 - share) * found[0], share * source_var + (1 - share) * found[1]

    def _stream(self, layer: Layer) -> _Stream:
        """What counts for this call: everything so far, or nothing yet."""
        module = layer.module
        if not self.running or module not in self._streams:
            mean, _ = running_statistics(module)
            self._streams[module] = _Stream(Accumulator.empty(mean.numel(), mean.device, layer.per_instance))
        return self._streams[module]


class _Stream:
    """The test data that one layer has seen: their moments and the number of samples."""

    def __init__(self, seen: Accumulator) -> None:
        self.seen, self.samples = seen, 0

    def add(self, sample: Sample, samples: int) -> None:
        skipped = int(self.seen.skipped)
        self.seen.add(sample)
        self.seen.flush()
        if int(self.seen.skipped) == skipped and int(sample.values):
            self.samples += samples

    def read(self, per_instance: bool) -> tuple[Tensor, Tensor] | None:
        """(mean, biased variance) of all values; for instance norm the averages over samples."""
        if self.seen.values == 0:
            return None
        if per_instance:
            return self.seen.moments.mean, self.seen.within / self.seen.freedom
        return self.seen.moments.mean, self.seen.moments.var(correction=0)


def _samples(x: Tensor, mask: Tensor | None) -> int:
    """How many samples of x: (N, C, *) have a real value."""
    if mask is None:
        return x.shape[0]
    kept = _shapes.channel_mask(mask, x)
    return int(kept.reshape(kept.shape[0], -1).any(1).expand(x.shape[0]).sum())
