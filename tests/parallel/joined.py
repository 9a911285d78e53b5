"""Ranks with unequal numbers of batches under torch's Join, and batch renorm; each returns tensors to be compared."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join

import normkit as nk
from tests.cases import EPS, MOMENTUM
from tests.parallel.world import RANKS, State, World, batches, net, optimizer, state


def join(world: World, norm: type[nn.Module]) -> State:
    """Rank 0 has three batches, rank 1 one: the others' reductions are shadowed by the rank that is done."""
    model = world.parallel(net(norm(4, EPS, MOMENTUM)))
    stepping = optimizer(model)
    with Join([model]):
        for batch in batches(3 if world.rank == 0 else 1):
            stepping.zero_grad()
            model(world.share(batch)).square().mean().backward()
            stepping.step()
    return state(model)


def join_ended_early(world: World) -> Tensor:
    """What a synchronised norm needs under Join, whose shadows know nothing of the norm's own collectives."""
    model = world.parallel(net(world.norm(4)))
    done = 0
    try:
        with Join([model], throw_on_early_termination=True):
            for batch in batches(3 if world.rank == 0 else 1):
                model(world.share(batch)).square().mean().backward()
                done += 1
    except RuntimeError as error:
        return torch.tensor([done, int("exhausted" in str(error))])
    return torch.tensor([done, 0])


def renorm(world: World) -> State:
    """Batch renorm's corrections come from this rank's running statistics; gradients are averaged."""
    model = world.parallel(net(nk.BatchRenorm1d(4, EPS, MOMENTUM, warm_up=(0, 0, 0))), broadcast_buffers=False)
    stepping = optimizer(model)
    for batch in batches():
        stepping.zero_grad()
        model(world.share(batch)).square().mean().backward()
        stepping.step()
    return state(model)


def renorm_alone() -> list[State]:
    """The same by hand: a replica for each rank, whose gradients are averaged."""
    replicas = [net(nk.BatchRenorm1d(4, EPS, MOMENTUM, warm_up=(0, 0, 0))) for _ in range(RANKS)]
    steppings = [optimizer(replica) for replica in replicas]
    for batch in batches():
        for rank, replica in enumerate(replicas):
            replica.zero_grad()
            replica(World(rank).share(batch)).square().mean().backward()
        for together in zip(*(replica.parameters() for replica in replicas), strict=True):
            mean = torch.stack(list(_gradients(together))).mean(0)
            for parameter in together:
                parameter.grad = mean.clone()
        for stepping in steppings:
            stepping.step()
    return [copy.deepcopy(state(replica)) for replica in replicas]


def _gradients(parameters: tuple[nn.Parameter, ...]) -> Iterator[Tensor]:
    for parameter in parameters:
        assert parameter.grad is not None
        yield parameter.grad
