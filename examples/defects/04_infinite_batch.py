"""One Inf in one batch makes torch's running variance NaN for ever; normkit skips that batch and says so once."""

import torch

import normkit as nk

TITLE = "One Inf in the first of eleven batches"
MEASURES = "running_var of BatchNorm1d afterwards; float64 averages the ten finite batches"
THREADS = ("90342", "115500", "1206")
TOLERANCE = 1e-5  # ten float32 roundings of a running average near 1


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(32, 1, generator=generator) for _ in range(11)]
    made[0][3] = float("inf")
    return made


def truth() -> float:
    running = 1.0
    for batch in batches()[1:]:
        running = 0.9 * running + 0.1 * batch.double().var().item()
    return running


def with_torch() -> float:
    return _train(torch.nn.BatchNorm1d(1))


def with_normkit() -> float:
    return _train(nk.BatchNorm1d(1))


def _train(layer: torch.nn.BatchNorm1d) -> float:
    for batch in batches():
        layer(batch)
    assert layer.running_var is not None
    return layer.running_var.item()


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
