"""Statistics lent to a layer for one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..model.interrupts import Guard
from ..nn.base import TrackedNorm


class Lent(Guard):
    """Inside, the layer is in eval mode and its statistics are these, in the buffers' dtype. Entered twice.

    The entries of its buffers are exchanged, so any forward that reads `self.running_mean` and `self.running_var` in
    evaluation works, whoever wrote it. None, None: it has no statistics, so it normalizes by its input's own and moves
    nothing.
    """

    holds_signals = False  # once a call, and what comes back are four assignments

    def __init__(self, module: nn.Module, mean: Tensor | None, var: Tensor | None) -> None:
        self.module, self.mean, self.var = module, mean, var
        self.own = module._buffers["running_mean"], module._buffers["running_var"]
        self.training, self.tracks = module.training, getattr(module, "track_running_stats", None)

    def begin(self) -> None:
        buffers = self.module._buffers
        buffers["running_mean"] = self._like(self.mean, self.own[0])
        buffers["running_var"] = self._like(self.var, self.own[1])
        self._switch(False, False if self.mean is None else self.tracks)

    def give_back(self) -> None:
        buffers = self.module._buffers
        buffers["running_mean"], buffers["running_var"] = self.own
        self._switch(self.training, self.tracks)

    def _switch(self, training: bool, tracks: Any) -> None:
        if self.module.training != training:
            self.module.training = training
        if self.tracks is not None and self.module.track_running_stats != tracks:
            self.module.track_running_stats = tracks

    def _like(self, new: Tensor | None, own: Tensor | None) -> Tensor | None:
        """normkit's kernels take statistics in float64; other forwards get the dtype that they know."""
        if new is None or own is None:
            return None
        return new if isinstance(self.module, TrackedNorm) and new.dtype == torch.float64 else new.to(own)
