"""Deferred statistics: the micro-batches of a step move the running statistics once, as the undivided batch would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit as nk
from tests.cases import gaussian, generator, random_mask
from tests.tolerances import assert_equal64, assert_same

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "batch": nk.BatchNorm1d,
    "ghost": lambda n, **k: nk.GhostBatchNorm1d(n, virtual_batch_size=2, **k),
    "renorm": nk.BatchRenorm1d,
    "sync": nk.SyncBatchNorm,
    "instance": lambda n, **k: nk.InstanceNorm1d(n, track_running_stats=True, **k),
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
STATE = ("running_mean", "running_var", "num_batches_tracked")


def data(step: int = 0) -> Tensor:
    return gaussian((11, 3, 5), generator(step), mean=1.0 + step)


def assert_state(got: nn.Module, expected: nn.Module) -> None:
    for name in STATE:
        assert_equal64(got._buffers[name].double(), expected._buffers[name].double(), name)  # type: ignore[union-attr]  # set


@pytest.mark.parametrize("momentum", [0.1, None], ids=str)
@layers
def test_micro_batches_of_uneven_size_are_the_undivided_batch(
    make: Callable[..., nn.Module], momentum: float | None
) -> None:
    deferred, whole = (make(3, momentum=momentum, dtype=torch.float64) for _ in range(2))
    for step in range(3):
        x = data(step)
        whole(x)
        with nk.deferred_statistics(deferred):
            for part in x.split([4, 5, 2]):
                deferred(part)
            if step == 0:  # nothing has moved yet
                assert (deferred._buffers["running_mean"] == 0).all()  # type: ignore[union-attr]  # set
    assert_state(deferred, whole)


@pytest.mark.parametrize("make", [LAYERS["batch"], LAYERS["instance"]], ids=["batch", "instance"])
def test_masked_micro_batches_weigh_by_their_real_values(make: Callable[..., nn.Module]) -> None:
    deferred, whole = (make(3, momentum=1.0, dtype=torch.float64) for _ in range(2))
    x, mask = data(), random_mask((11, 3, 5), generator(9))
    whole(x, mask=mask)
    with nk.deferred_statistics(deferred):
        for part, kept in zip(x.split(4), mask.split(4), strict=True):
            deferred(part, mask=kept)
    assert_state(deferred, whole)


def test_an_exception_drops_them_and_leaves_the_layer_as_it_was() -> None:
    layer = nk.BatchNorm1d(3)

    def interrupted() -> None:
        with nk.deferred_statistics(layer):
            layer(data().float())
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert_state(layer, nk.BatchNorm1d(3))
    layer(data().float())
    assert layer.num_batches_tracked is not None
    assert layer.num_batches_tracked.item() == 1  # undeferred again


def test_a_micro_batch_that_is_not_finite_is_left_out_with_a_warning() -> None:
    deferred, whole = (nk.BatchNorm1d(3, dtype=torch.float64) for _ in range(2))
    good, bad = data().split([7, 4])
    whole(good)

    def accumulate() -> None:
        with nk.deferred_statistics(deferred):
            deferred(good)
            deferred(bad / 0)

    with pytest.warns(RuntimeWarning, match="NaN or Inf"):
        accumulate()
    assert_state(deferred, whole)


def test_accumulated_gradients_with_checkpoints_count_each_micro_batch_once() -> None:
    deferred, whole = (nk.BatchNorm1d(3, dtype=torch.float64) for _ in range(2))
    x = data()
    whole(x)
    with nk.deferred_statistics(deferred):
        for part in x.split(4):
            checkpoint(deferred, part.requires_grad_(), use_reentrant=False).sum().backward()
    assert_state(deferred, whole)


def test_only_layers_in_training_that_see_a_batch_move() -> None:
    model = nn.ModuleDict({"seen": nk.BatchNorm1d(3), "unseen": nk.BatchNorm1d(3), "evaluating": nk.BatchNorm1d(3)})
    model["evaluating"].eval()
    with nk.deferred_statistics(model):
        model["evaluating"](model["seen"](data().float()))
    counted = {name: int(layer.num_batches_tracked) for name, layer in model.items()}  # type: ignore[arg-type]  # a buffer
    assert counted == {"seen": 1, "unseen": 0, "evaluating": 0}


def test_within_another_block_the_outer_one_moves() -> None:
    layer, whole, x = nk.BatchNorm1d(3).double(), nk.BatchNorm1d(3).double(), data()
    whole(x)
    with nk.deferred_statistics(layer):
        layer(x[:4])
        with nk.deferred_statistics(layer):
            layer(x[4:])
        assert (layer.running_mean == 0).all()  # type: ignore[union-attr]  # tracked
    assert_state(layer, whole)


def test_each_micro_batch_is_normalized_by_its_own_statistics() -> None:
    layer, x = nk.BatchNorm1d(3), data().float()
    expected = [layer(part).detach() for part in x.split(4)]
    with nk.deferred_statistics(layer):
        for part, y in zip(x.split(4), expected, strict=True):
            assert_same(layer(part).detach(), y)


def test_a_model_it_cannot_serve_is_refused() -> None:
    mixed = nn.Sequential(nk.BatchNorm1d(3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"torch's own .* held back: 1; replace"), nk.deferred_statistics(mixed):
        pass
    for model in (nn.Linear(2, 2), nk.GroupNorm(1, 2), nk.BatchNorm1d(3, track_running_stats=False)):
        with pytest.raises(ValueError, match="holds no normkit layer that tracks"), nk.deferred_statistics(model):
            pass
    frozen = nn.Sequential(nk.FrozenBatchNorm1d(3), nk.BatchNorm1d(3))
    with nk.deferred_statistics(frozen):
        frozen(data().float())
    assert int(frozen[1].num_batches_tracked) == 1  # type: ignore[arg-type]  # a buffer
