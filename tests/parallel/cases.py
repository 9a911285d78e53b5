"""Every way to train in parallel that a synchronised norm has to bear: case(world) -> the trained state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit as nk
from tests.cases import EPS, MOMENTUM
from tests.parallel.world import RANKS, SAMPLES, STEPS, State, World, batches, net, optimizer, state, train

OPTIONS = {
    "plain": {},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "static_graph": {"static_graph": True},
    "buffers_not_broadcast": {"broadcast_buffers": False},
    "small_buckets": {"bucket_cap_mb": 1e-4},  # several reductions of gradients between the norm's own
}


def with_options(world: World, options: dict[str, object]) -> State:
    return train(world, world.parallel(net(world.norm(4)), **options))


class Forked(nn.Module):
    """A branch, with a norm of its own, that every second call leaves out."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.trunk, self.branch, self.calls = net(world.norm(4)), net(world.norm(4)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.trunk(x)
        return y if self.calls % 2 else y + self.branch(x)


def unused_parameters(world: World) -> State:
    return train(world, world.parallel(Forked(world), find_unused_parameters=True))


def two_forwards(world: World) -> State:
    """Two calls, whose buffers move in between, before the one backward: siamese networks, GANs."""
    model = world.parallel(net(world.norm(4)))
    stepping = optimizer(model)
    for batch in batches():
        stepping.zero_grad()
        first, second = (model(world.share(half)) for half in (batch, batch.flip(1) + 1))
        (world.loss(first) + world.loss(first * second)).backward()
        stepping.step()
    return state(model)


def accumulated(world: World) -> State:
    """Two micro-batches a step: gradients are reduced once, statistics move once."""
    model = world.parallel(net(world.norm(4) if world.is_parallel else nk.BatchNorm1d(4, EPS, MOMENTUM)))
    stepping = optimizer(model)
    for batch in batches():
        stepping.zero_grad()
        first, last = batch.chunk(2)
        with nk.deferred_statistics(model):
            with world.no_sync(model):
                world.loss(model(world.share(first))).backward()
            world.loss(model(world.share(last))).backward()
        stepping.step()
    return state(model)


class Checkpointed(nn.Sequential):
    """The net, whose first three layers are computed again in the backward, on ranks."""

    def __init__(self, world: World, reentrant: bool) -> None:
        super().__init__(*net(world.norm(4)))
        self.run = partial(checkpoint, use_reentrant=reentrant) if world.is_parallel else lambda f, x: f(x)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not x.requires_grad:
            x = x.detach().requires_grad_()  # else a reentrant checkpoint gives the first layers no gradient
        x = self.run(lambda x: self[2](self[1](self[0](x))), x)
        return self[4](self[3](x))


def checkpointed(world: World, reentrant: bool) -> State:
    return train(world, world.parallel(Checkpointed(world, reentrant), static_graph=reentrant))


def compiled_outside(world: World) -> State:
    """torch.compile of the wrapper, which splits the graph where a bucket of gradients is full."""
    if torch.__version__ < (2, 6):  # type: ignore[operator]  # its splitter takes no autograd function of anybody's
        torch._dynamo.config.optimize_ddp = False
    model = world.parallel(net(world.norm(4)))
    return train(world, torch.compile(model, backend="aot_eager") if world.is_parallel else model)


def compiled_inside(world: World) -> State:
    """The wrapper around a compiled model."""
    model = net(world.norm(4))
    return train(world, world.parallel(torch.compile(model, backend="aot_eager") if world.is_parallel else model))


def autocast(world: World) -> State:
    """Convolutions and linear layers in bfloat16, parameters and statistics in float32."""
    model = world.parallel(net(world.norm(4)).float())
    stepping = optimizer(model)
    for batch in batches():
        stepping.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = model(world.share(batch).float())
        assert y.dtype == torch.bfloat16
        world.loss(y.float()).backward()
        stepping.step()
    return state(model)


def uneven(world: World) -> State:
    """The last batch has 3 samples for one rank and none for the other, which takes part with an empty one."""
    model = world.parallel(net(world.norm(4)))
    stepping = optimizer(model)
    for index, batch in enumerate(batches()):
        mine, total = world.share(batch), len(batch)
        if index == STEPS - 1:
            mine, total = batch[: 0 if world.rank == 1 else 3], 3
        stepping.zero_grad()
        world.loss(model(mine), total).backward()
        stepping.step()
    return state(model)


def converted(world: World) -> State:
    """A torch model, converted, trained in parallel, converted back inside its wrapper, trained by one rank more."""
    model = net(nn.BatchNorm1d(4, EPS, MOMENTUM))
    if world.is_parallel:
        model = nk.convert(model, "sync")
        assert isinstance(model[1], nk.SyncBatchNorm)
    wrapped = world.parallel(model)
    found = train(world, wrapped)
    back = nk.convert(wrapped, "torch") if world.is_parallel else wrapped
    inner = back.module if world.is_parallel else back
    assert type(inner[1]) is nn.BatchNorm1d
    assert state(back).keys() == found.keys()
    return state(back)


def group_norm(world: World) -> State:
    """It knows no other sample, so it needs no synchronisation."""
    return train(world, world.parallel(net(nk.GroupNorm(2, 4, EPS))))


def ghost(world: World) -> State:
    """A rank's slices are those that the whole batch has: SAMPLES / RANKS is a multiple of two."""
    norm = nk.GhostBatchNorm1d(4, EPS, MOMENTUM, virtual_batch_size=2)
    return _merged(world, world.parallel(net(norm), broadcast_buffers=False))


def local(world: World) -> State:
    """Batch norm that is not synchronised is ghost batch norm with a rank's share as its slice."""
    share = SAMPLES // RANKS
    norm = nk.BatchNorm1d if world.is_parallel else partial(nk.GhostBatchNorm1d, virtual_batch_size=share)
    return _merged(world, world.parallel(net(norm(4, EPS, MOMENTUM)), broadcast_buffers=False))


def _merged(world: World, model: nn.Module) -> State:
    train(world, model)
    if world.is_parallel:
        nk.sync_buffers(model)
    return state(model)


EXACT: dict[str, Callable[[World], State]] = {
    **{name: partial(with_options, options=options) for name, options in OPTIONS.items()},
    "unused_parameters": unused_parameters,
    "two_forwards": two_forwards,
    "accumulated": accumulated,
    "checkpointed": partial(checkpointed, reentrant=False),
    "checkpointed_reentrant": partial(checkpointed, reentrant=True),
    "compiled_outside": compiled_outside,
    "compiled_inside": compiled_inside,
    "uneven": uneven,
    "converted": converted,
    "group_norm": group_norm,
}
LOCAL: dict[str, Callable[[World], State]] = {"ghost": ghost, "local": local}  # statistics merged at the end
