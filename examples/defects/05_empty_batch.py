"""An empty batch has no statistics, but torch counts it: with momentum=None later batches then weigh less."""

import torch

import normkit as nk

TITLE = "An empty batch"
MEASURES = "num_batches_tracked of BatchNorm1d after a batch of shape (0, 3)"
THREADS = ()
TOLERANCE = 0.0  # a count


def truth() -> float:
    return 0.0


def with_torch() -> float:
    return _count(torch.nn.BatchNorm1d(3))


def with_normkit() -> float:
    return _count(nk.BatchNorm1d(3))


def _count(layer: torch.nn.BatchNorm1d) -> float:
    layer(torch.zeros(0, 3))
    assert layer.num_batches_tracked is not None
    return layer.num_batches_tracked.item()


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
