"""momentum=None means the average over all batches; torch's InstanceNorm never moves its statistics then."""

import torch

import normkit as nk

TITLE = "InstanceNorm with momentum=None"
MEASURES = "running_mean of InstanceNorm1d after 10 batches of mean 5"
THREADS = ()
TOLERANCE = 1e-5  # ten float32 roundings of a value near 5


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 1, 50, generator=generator) + 5 for _ in range(10)]


def truth() -> float:
    return torch.stack(batches()).double().mean().item()


def with_torch() -> float:
    # its annotation forbids None, its documentation and BatchNorm do not
    return _train(torch.nn.InstanceNorm1d(1, momentum=None, track_running_stats=True))  # type: ignore[arg-type]


def with_normkit() -> float:
    return _train(nk.InstanceNorm1d(1, momentum=None, track_running_stats=True))


def _train(layer: torch.nn.InstanceNorm1d) -> float:
    for batch in batches():
        layer(batch)
    assert layer.running_mean is not None
    return layer.running_mean.item()


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
