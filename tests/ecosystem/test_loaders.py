"""Norms in the workers of a DataLoader, forked and spawned, after the parent's threads have computed."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import normkit as nk

LIMIT = 120  # seconds for a batch: a spawned worker imports torch anew


class Prepared(Dataset[Tensor]):
    """Sequences of several lengths, normalized by a layer that travels to the worker."""

    def __init__(self) -> None:
        self.norm = nk.LayerNorm(16, activation="relu").eval()

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        x = torch.randn(40 + index, 16, generator=torch.Generator().manual_seed(index))
        with torch.no_grad():
            return self.norm(x)


class Padding:
    """Collates, and normalizes the padded batch by its real values."""

    def __init__(self) -> None:
        self.norm = nk.BatchNorm1d(16, momentum=None)

    def __call__(self, samples: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        batch = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True).transpose(1, 2)
        mask = nk.mask_from_lengths(torch.tensor([len(sample) for sample in samples]), batch.shape[2])
        with torch.no_grad():
            return self.norm(batch, mask=mask), mask, self.norm.running_mean.clone()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_compute_what_the_parent_computes(method: str) -> None:
    nk.BatchNorm2d(64)(torch.randn(8, 64, 56, 56))  # the parent's threads are there when it forks
    expected = list(DataLoader(Prepared(), batch_size=3, collate_fn=Padding()))
    context = multiprocessing.get_context(method)
    loader = DataLoader(
        Prepared(), 3, num_workers=1, collate_fn=Padding(), multiprocessing_context=context, timeout=LIMIT
    )
    found = list(loader)
    assert len(found) == 2
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # a worker has one thread
