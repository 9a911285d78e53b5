"""Running statistics at their edges, each as torch has it: buffers that hold NaN, no channels, no momentum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.cases import EPS, MOMENTUM
from tests.functional.norms import EXACT_BACKENDS
from tests.functional.test_running import batches, statistics


@pytest.mark.parametrize("backend", EXACT_BACKENDS)
@pytest.mark.parametrize("momentum", [MOMENTUM, None, 1.0], ids=str)
@pytest.mark.parametrize("held", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["BatchNorm1d", "InstanceNorm1d"])
def test_what_a_buffer_held_before_does_not_stop_the_others_as_in_torch(
    name: str, held: float, momentum: float | None, backend: str
) -> None:
    x = batches(1)[0]
    ours, theirs = (getattr(m, name)(3, EPS, momentum, track_running_stats=True) for m in (nk, nn))
    for layer in (ours, theirs):
        layer.running_mean[1] = layer.running_var[2] = held
    if name == "InstanceNorm1d" and momentum is None:
        theirs.momentum = 1.0  # torch's leaves the statistics alone; ours counts the batch, its first
    with nk.backend(backend):
        ours(x)
    theirs(x)
    for a, b in zip(statistics(ours)[:2], statistics(theirs)[:2], strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
    assert statistics(ours)[2] == 1


@pytest.mark.parametrize("backend", EXACT_BACKENDS)
@pytest.mark.parametrize("name", ["BatchNorm1d", "GhostBatchNorm1d", "BatchRenorm1d"])
def test_a_batch_without_channels_is_counted_as_in_torch(name: str, backend: str) -> None:
    ours, theirs = getattr(nk, name)(0, EPS), nn.BatchNorm1d(0, EPS, affine=False)  # torch asks for weight[0]
    x = torch.randn(6, 0, 5)
    theirs(x)
    with nk.backend("composed" if name == "BatchRenorm1d" else backend):  # the native one has no empty batches
        ours(x)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 1


@pytest.mark.parametrize("momentum", [None, "0.1"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_a_momentum_that_is_no_number_is_refused_with_torchs_text(name: str, training: bool, momentum: object) -> None:
    """The cumulative average is the layers', which have a counter."""
    x, mean, var = batches(1)[0], torch.zeros(3), torch.ones(3)
    for library in (nk.functional, nn.functional):
        with pytest.raises(TypeError, match=rf"{name}\(\): argument 'momentum' \(position 7\) must be float, not"):
            getattr(library, name)(x, mean, var, None, None, training, momentum)


@pytest.mark.parametrize("which", ["running_mean", "running_var"])
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm", "ghost_batch_norm", "batch_renorm"])
def test_a_freed_buffer_gets_words_in_training(name: str, which: str) -> None:
    buffers = {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    buffers[which].untyped_storage().resize_(0)
    training = {"use_input_stats" if name == "instance_norm" else "training": True}
    with pytest.raises(RuntimeError, match="its data is not allocated yet"):
        getattr(nk.functional, name)(batches(1)[0], **buffers, eps=EPS, **training)


def test_an_empty_masked_batch_under_vmap_moves_nothing() -> None:
    x, mask, (mean, var) = torch.randn(3, 0, 2), torch.zeros(0, dtype=torch.bool), (torch.zeros(2), torch.ones(2))

    def loss(x: Tensor) -> Tensor:
        return nk.functional.batch_norm(x, mean, var, None, None, True, mask=mask).sum()

    assert torch.vmap(torch.func.grad(loss))(x).shape == x.shape
    assert torch.equal(mean, torch.zeros(2))
    assert torch.equal(var, torch.ones(2))
