"""In a bfloat16 module torch's running average stops moving once a step is smaller than half a bfloat16 ulp."""

import torch

import normkit as nk

TITLE = "Running mean of a .bfloat16() module"
MEASURES = "running_mean of BatchNorm1d after 400 batches of mean 5, momentum 0.01"
THREADS = ()
TOLERANCE = 0.02  # half a bfloat16 ulp at 5, the rounding of the data itself


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(64, 1, generator=generator) + 5).bfloat16() for _ in range(400)]


def truth() -> float:
    running = 0.0
    for batch in batches():
        running = 0.99 * running + 0.01 * batch.double().mean().item()
    return running


def with_torch() -> float:
    return _train(torch.nn.BatchNorm1d(1, momentum=0.01))


def with_normkit() -> float:
    return _train(nk.BatchNorm1d(1, momentum=0.01))


def _train(layer: torch.nn.BatchNorm1d) -> float:
    layer.bfloat16()
    for batch in batches():
        layer(batch)
    assert layer.running_mean is not None
    return layer.running_mean.item()


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
