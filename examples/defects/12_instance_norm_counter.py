"""torch's InstanceNorm has a counter of batches, saves it, loads it, and never counts."""

import torch

import normkit as nk

TITLE = "InstanceNorm's counter"
MEASURES = "num_batches_tracked of InstanceNorm1d after 10 batches"
THREADS = ()
TOLERANCE = 0.0  # a count


def truth() -> float:
    return 10.0


def with_torch() -> float:
    return _count(torch.nn.InstanceNorm1d(1, track_running_stats=True))


def with_normkit() -> float:
    return _count(nk.InstanceNorm1d(1, track_running_stats=True))


def _count(layer: torch.nn.InstanceNorm1d) -> float:
    for _ in range(10):
        layer(torch.randn(4, 1, 50))
    assert layer.num_batches_tracked is not None
    return float(layer.num_batches_tracked.item())


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
