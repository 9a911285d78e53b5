"""Each norm's figures as plain data, for the page: JSON that holds a number or None for every channel it draws."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .evidence import Evidence
from .gap_report import Gap
from .state import NormState

DRAWN = 512  # channels of a layer: more dots hide each other, and a page of a large network stays below 3 MB
FAR = 0.5  # standard deviations: a channel that is marked


def of_evidence(evidence: Evidence, gap: Gap | None) -> list[dict[str, Any]]:
    """Every norm, in the order in which the data reach them, and then those that no batch reached."""
    shares = {share.layer: share.share for share in gap.shares} if gap else {}
    known = {norm.where: _place(evidence, norm) for norm in evidence.norms}
    return [_of_norm(evidence, norm, shares) for norm in sorted(evidence.norms, key=lambda norm: known[norm.where])]


def _place(evidence: Evidence, norm: NormState) -> float:
    run = evidence.run(norm)
    return math.inf if run is None or run.traffic.order < 0 else run.traffic.order


def _of_norm(evidence: Evidence, norm: NormState, shares: dict[str, float]) -> dict[str, Any]:
    run = evidence.run(norm)
    return figures(
        norm.where,
        norm.kind,
        running=None if norm.mean is None or norm.var is None else (norm.mean, norm.var),
        data=None if run is None or run.mean is None or run.var is None else (run.mean, run.var),
        gamma=norm.weight,
        beta=norm.bias,
        distance=None if run is None else run.distance,
        eps=norm.eps,
        momentum=norm.momentum,
        counter=norm.counter,
        saturated=run.traffic.saturated if run is not None and run.traffic.outputs else None,
        share=shares.get(norm.where),
    )


def figures(
    name: str,
    kind: str,
    *,
    running: tuple[Tensor, Tensor] | None = None,
    data: tuple[Tensor, Tensor] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    distance: Tensor | None = None,
    eps: float | None = None,
    momentum: float | None = None,
    counter: float | None = None,
    saturated: float | None = None,
    share: float | None = None,
) -> dict[str, Any]:
    """running, data: (mean, variance), (C,) each. gamma, beta, distance: (C,); distance in standard deviations of the
    running statistics. saturated: part of the outputs."""
    vectors = [x for x in (*(running or ()), gamma, beta) if x is not None]
    channels = vectors[0].numel() if vectors else 0
    if any(vector.numel() != channels for vector in vectors):  # several axes, or one number for all: nothing to draw
        running = data = gamma = beta = None
    shown = _drawn(channels, distance)

    def drawn(values: Tensor | None) -> list[float | None] | None:
        return None if values is None else [_rounded(value) for value in values.flatten().double()[shown].tolist()]

    whole = None if distance is None else float(distance.double().square().mean().sqrt())
    return {
        "name": name,
        "kind": kind,
        "channels": channels,
        "distance": None if whole is None else _rounded(whole),
        "eps": eps,
        "eps_used": eps or 0.0,
        "momentum": momentum,
        "counter": counter,
        "saturated": None if saturated is None else _rounded(saturated),
        "share": None if share is None else _rounded(share),
        "indices": shown.tolist(),
        "running_mean": drawn(running and running[0]),
        "running_var": drawn(running and running[1]),
        "data_mean": drawn(data and data[0]),
        "data_var": drawn(data and data[1]),
        "gamma": drawn(gamma),
        "beta": drawn(beta),
        "far": None if distance is None else [not value <= FAR for value in distance[shown].tolist()],
    }


def _drawn(channels: int, distance: Tensor | None) -> Tensor:
    """Which channels: all, or the farthest quarter of DRAWN and others evenly spaced; in order."""
    if channels <= DRAWN:
        return torch.arange(channels)
    farthest = torch.tensor([], dtype=torch.long)
    if distance is not None:
        farthest = distance.nan_to_num(nan=math.inf).topk(DRAWN // 4).indices
    spaced = torch.linspace(0, channels - 1, DRAWN - len(farthest)).round().long()
    return torch.cat([farthest, spaced]).unique()


def _rounded(value: float) -> float | None:
    """Four digits; None for what is no number."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
