"""Two ranks of DistributedDataParallel end where one process with all samples ends, however they train."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import normkit as nk
from tests import processes
from tests.parallel.cases import EXACT, LOCAL, autocast
from tests.parallel.joined import join, join_ended_early, renorm, renorm_alone
from tests.parallel.world import RANKS, STEPS, State, World
from tests.tolerances import assert_equal64

LIMIT = 300.0  # seconds that a rank waits for the other; together they take half a minute of a core

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo's file store is for POSIX here")


def work(folder: Path, rank: int) -> None:
    warnings.simplefilter("ignore")  # torch's own, about how a test sets up DistributedDataParallel
    torch.set_num_threads(1)
    processes.join(folder, rank, RANKS, LIMIT)
    world = World(rank)
    found: dict[str, Any] = {name: case(world) for name, case in {**EXACT, **LOCAL}.items()}
    found |= {"autocast": autocast(world), "renorm": renorm(world)}
    found |= {"join": join(world, nk.BatchNorm1d), "join_torch": join(world, nn.BatchNorm1d)}
    found["outside"] = outside(rank)
    found["ended"] = join_ended_early(world)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def outside(rank: int) -> list[str]:
    """The errors of calls in a group that holds rank 0 alone."""
    group = dist.new_group([0])
    layer, x = nk.SyncBatchNorm(3, process_group=group), torch.randn(4, 3)
    model = nn.Sequential(nn.BatchNorm1d(3))
    calls = (
        lambda: layer(x),
        lambda: nk.sync_buffers(model, group),
        lambda: nk.recalibrate(model, [x], distributed=group),
        lambda: layer.eval()(x),
    )
    found = []
    for call in calls:
        try:
            call()
        except RuntimeError as error:
            found.append(str(error))
        else:
            found.append("")
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found."""
    return processes.results("tests.parallel.test_data_parallel", tmp_path_factory.mktemp("ranks"), RANKS, LIMIT)


def agree(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), f"{name} differs between the ranks"


@pytest.mark.parametrize("name", EXACT)
def test_ranks_train_the_model_of_one_process(results: list[dict[str, Any]], name: str) -> None:
    expected = EXACT[name](World(None))
    agree(*(found[name] for found in results))
    assert results[0][name].keys() == expected.keys()
    for key, value in expected.items():
        assert results[0][name][key].dtype == value.dtype
        # sums in another order, which three steps magnify
        assert_equal64(results[0][name][key].double(), value.double(), f"{name}: {key}", factor=1e6)


def test_statistics_of_accumulated_batches_move_once_a_step(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found["accumulated"]["1.num_batches_tracked"] == STEPS
        assert found["two_forwards"]["1.num_batches_tracked"] == 2 * STEPS
        assert found["checkpointed"]["1.num_batches_tracked"] == STEPS


@pytest.mark.parametrize("name", LOCAL)
def test_norms_that_are_not_synchronised_are_ghost_batch_norm(results: list[dict[str, Any]], name: str) -> None:
    """Their running means merge to those of all samples; variances too but for what lay between ranks in each step."""
    expected = LOCAL[name](World(None))
    agree(*(found[name] for found in results))
    for key, value in expected.items():
        found = results[0][name][key]
        if key.endswith("running_var"):
            torch.testing.assert_close(found, value, rtol=0.2, atol=0.0)
        else:
            assert_equal64(found.double(), value.double(), f"{name}: {key}", factor=1e6)


def test_autocast_leaves_parameters_and_statistics_wide(results: list[dict[str, Any]]) -> None:
    expected = autocast(World(None))
    agree(*(found["autocast"] for found in results))
    for key, value in expected.items():
        found = results[0]["autocast"][key]
        assert found.dtype == value.dtype
        torch.testing.assert_close(found, value, rtol=0.03, atol=0.03)  # eight bits, three steps


def test_batch_renorm_corrects_by_each_ranks_own_statistics(results: list[dict[str, Any]]) -> None:
    for found, expected in zip(results, renorm_alone(), strict=True):
        for key, value in expected.items():
            assert_equal64(found["renorm"][key].double(), value.double(), key, factor=1e6)
    weights = [found["renorm"]["0.weight"] for found in results]
    assert torch.equal(*weights)
    assert not torch.equal(*(found["renorm"]["1.running_mean"] for found in results))


def test_join_trains_ranks_with_unequal_numbers_of_batches(results: list[dict[str, Any]]) -> None:
    for found in results:
        for key, value in found["join_torch"].items():
            assert_equal64(found["join"][key].double(), value.double(), key, factor=1e6)
    assert results[0]["join"]["1.num_batches_tracked"] == 3


def test_a_synchronised_norm_under_join_ends_with_an_error_on_every_rank(results: list[dict[str, Any]]) -> None:
    assert [found["ended"].tolist() for found in results] == [[1, 1], [1, 1]]


def test_a_rank_outside_of_the_group_is_told_so_and_evaluates(results: list[dict[str, Any]]) -> None:
    inside, out = (found["outside"] for found in results)
    assert inside == [""] * 4
    assert out[3] == ""
    for text in out[:3]:
        assert text == "this rank is not in the process group: expected a call on the group's ranks alone"


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
