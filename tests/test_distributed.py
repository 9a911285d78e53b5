"""Statistics across ranks: two processes over gloo give what one process over all data gives, on every rank.

The processes are started once for the module (a start costs seconds); each scenario stores what the tests look at.
"""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import normkit as nk
from normkit.distributed import gather, is_distributed
from tests.statistics.nets import data, net

RANKS = 2
LIMIT = 120.0  # seconds for all processes together; a start under load takes ten
SIZES = (4, 7, 2, 5, 1)
MINE = {0: (0, 1, 4), 1: (2, 3)}  # uneven: rank 0 has one batch more, and the batch of one


def shards(rank: int) -> list[Tensor]:
    batches = data(SIZES)
    return [batches[i] for i in MINE[rank]]


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


class CountsCollectives:
    """How many collectives ran inside the block."""

    def __enter__(self) -> CountsCollectives:
        self.count, self.own = 0, {name: getattr(dist, name) for name in ("all_gather", "all_reduce", "broadcast")}
        for name, function in self.own.items():
            setattr(dist, name, self._counted(function))
        return self

    def _counted(self, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return function(*args, **kwargs)

        return call

    def __exit__(self, *_: object) -> None:
        for name, function in self.own.items():
            setattr(dist, name, function)


def scenarios(rank: int) -> dict[str, Any]:
    """Everything that needs two ranks; runs in each of them."""
    found: dict[str, Any] = {"gathered": gather([torch.full((2,), float(rank)), torch.tensor(rank)])}
    for name, norm in (("torch", nn.BatchNorm2d), ("sync", nk.SyncBatchNorm), ("torch_sync", nn.SyncBatchNorm)):
        model = net(norm)
        with CountsCollectives() as collectives:
            report = nk.recalibrate(model, shards(rank))
        found[name] = statistics(model)
        found[f"{name}_collectives"] = collectives.count
        found[f"{name}_report"] = report
    for name, options in {"average": {"estimator": "batch_average"}, "sequential": {"sequential": True}}.items():
        model = net()
        nk.recalibrate(model, shards(rank), **options)
        found[name] = statistics(model)
    found["ddp"] = statistics(ddp_model(rank))
    empty, alone = net(), net()
    nk.recalibrate(empty, shards(rank) if rank == 0 else [])
    nk.recalibrate(alone, shards(rank), distributed=False)
    found["empty"], found["alone"] = statistics(empty), statistics(alone)
    found["error"] = failure_of_one(rank)
    found["buffers"] = buffers_of(rank)
    found["buffer_errors"] = {name: refused(spoil(rank), **options(rank)) for name, (spoil, options) in SPOILED.items()}
    return found


def parted(rank: int) -> nn.Module:
    """A model whose statistics have moved by this rank's batches alone."""
    torch.manual_seed(0)
    model = net().train()
    with torch.no_grad():
        for batch in shards(rank):
            model(batch + 9 * rank)
    return model


def buffers_of(rank: int) -> dict[str, Any]:
    """Before and after `sync_buffers`, and how many collectives it took."""
    model = parted(rank)
    identities = [id(buffer) for buffer in model.buffers()]
    before = statistics(model)
    with CountsCollectives() as collectives:
        names = nk.sync_buffers(nn.parallel.DistributedDataParallel(model, broadcast_buffers=False), weight=1.0 + rank)
    same = identities == [id(buffer) for buffer in model.buffers()]
    return {"before": before, "after": statistics(model), "names": names, "count": collectives.count, "same": same}


def with_nan(rank: int) -> nn.Module:
    model = parted(rank)
    if rank == 1:
        next(model.buffers()).fill_(float("nan"))
    return model


SPOILED: dict[str, Any] = {
    "shapes": (lambda rank: nn.BatchNorm1d(3 + rank), lambda rank: {}),
    "layers": (lambda rank: nn.Linear(1, 1) if rank else parted(rank), lambda rank: {}),
    "nan": (with_nan, lambda rank: {}),
    "weight": (parted, lambda rank: {"weight": -1.0 if rank else 1.0}),
    "no_weight": (parted, lambda rank: {"weight": 0.0}),
    "nan_without_weight": (with_nan, lambda rank: {"weight": 1.0 - rank}),
}


def refused(model: nn.Module, **options: Any) -> tuple[str, bool]:
    """(the error, whether the model stayed as it was)."""
    before, text = statistics(model), ""
    try:
        nk.sync_buffers(model, **options)
    except ValueError as error:
        text = str(error)
    after = statistics(model)
    return text, all(torch.equal(before[k].nan_to_num(), after[k].nan_to_num()) for k in before)


def ddp_model(rank: int) -> nn.Module:
    model = net()
    nk.recalibrate(nn.parallel.DistributedDataParallel(model), shards(rank), distributed=dist.group.WORLD)
    return model


def failure_of_one(rank: int) -> tuple[str, bool]:
    """(the error's class and text, whether the model stayed as it was) when rank 1 has a bad batch."""
    model = net()
    before = statistics(model)
    try:
        nk.recalibrate(model, [*shards(rank), 3] if rank == 1 else shards(rank))
    except (TypeError, RuntimeError) as error:
        after = statistics(model)
        return f"{type(error).__name__}: {error}", all(torch.equal(before[k], after[k]) for k in before)
    return "no error", False


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    try:
        torch.save(scenarios(rank), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found."""
    folder = str(tmp_path_factory.mktemp("ranks"))
    context = mp.start_processes(worker, args=(folder,), nprocs=RANKS, join=False, start_method="spawn")
    end = time.monotonic() + LIMIT
    while not context.join(timeout=1.0):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            pytest.fail(f"{RANKS} ranks did not finish in {LIMIT} s")
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def one_process(**options: Any) -> dict[str, Tensor]:
    """One process over all data, in the order of the ranks."""
    model = net()
    nk.recalibrate(model, [*shards(0), *shards(1)], **options)
    return statistics(model)


CASES = {
    "torch": {}, "sync": {}, "torch_sync": {}, "ddp": {}, "average": {"estimator": "batch_average"},
    "sequential": {"sequential": True},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_rank_has_what_one_process_over_all_data_has(results: list[dict[str, Any]], case: str) -> None:
    expected = one_process(**CASES[case])
    for name, value in expected.items():
        assert torch.equal(results[0][case][name], results[1][case][name]), f"{name} differs between ranks"
        # another order of merges in float64, then the rounding to float32: one ulp at most
        torch.testing.assert_close(results[0][case][name], value, rtol=2.4e-7, atol=1e-7)


@pytest.mark.parametrize("case", ["torch", "sync", "torch_sync"])
def test_one_collective_for_all_layers_and_batches(results: list[dict[str, Any]], case: str) -> None:
    assert [found[f"{case}_collectives"] for found in results] == [1, 1]


def test_the_reports_count_all_ranks(results: list[dict[str, Any]]) -> None:
    reports = [found["torch_report"] for found in results]
    assert reports[0] == reports[1]
    assert (reports[0].batches, reports[0]["0"].values, reports[0]["0"].calls) == (5, 19 * 36, 5)


def test_a_rank_without_data_gets_the_others_statistics(results: list[dict[str, Any]]) -> None:
    model = net()
    nk.recalibrate(model, shards(0))
    for found in results:
        torch.testing.assert_close(found["empty"]["0.running_var"], model[0].running_var, rtol=2.4e-7, atol=0)


def test_distributed_false_keeps_to_itself(results: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(results):
        x = torch.cat(shards(rank)).double()
        torch.testing.assert_close(found["alone"]["0.running_var"].double(), x.var((0, 2, 3)), rtol=2.4e-7, atol=0)


def test_a_failing_rank_ends_the_others_and_no_model_changes(results: list[dict[str, Any]]) -> None:
    (other, other_kept), (failed, failed_kept) = results[0]["error"], results[1]["error"]
    assert failed.startswith("TypeError: a batch must be")
    assert other == "RuntimeError: recalibrate failed on rank 1: see the error there; this model was not changed"
    assert other_kept
    assert failed_kept


def test_buffers_of_all_ranks_are_merged_as_moments(results: list[dict[str, Any]]) -> None:
    found = [result["buffers"] for result in results]
    states = [part["before"] for part in found]
    expected = nk.merge_statistics(states, weights=[1.0, 2.0])
    for part in found:
        assert part["names"]
        assert part["same"], "written in place"
        assert part["count"] == 2, "the header, and all layers in one"
        for key, value in expected.items():
            assert torch.equal(part["after"][key], value), key
    key = next(key for key in expected if key.endswith("running_var"))
    averaged = (states[0][key] + 2 * states[1][key]) / 3
    assert (expected[key] > averaged + 0.01).all(), "the spread between the ranks belongs to it"


@pytest.mark.parametrize(
    ("case", "by_rank"),
    [
        ("shapes", ["rank 1 has other layers with running statistics, or other shapes, than rank 0"] * 2),
        ("layers", ["rank 1 has other layers"] * 2),
        ("nan", ["the statistics of rank 1 cannot be merged", "holds NaN or Inf"]),
        ("weight", ["the statistics of rank 1 cannot be merged", "weight must be a finite number of at least 0"]),
        ("no_weight", ["weight is 0 on every rank"] * 2),
    ],
)
def test_buffers_that_cannot_be_merged_raise_on_every_rank(
    results: list[dict[str, Any]], case: str, by_rank: list[str]
) -> None:
    for result, expected in zip(results, by_rank, strict=True):
        text, unchanged = result["buffer_errors"][case]
        assert expected in text
        assert unchanged


def test_a_rank_of_no_weight_takes_what_the_others_have(results: list[dict[str, Any]]) -> None:
    assert results[0]["buffer_errors"]["nan_without_weight"] == ("", True)
    assert results[1]["buffer_errors"]["nan_without_weight"][0] == ""
    assert not results[1]["buffer_errors"]["nan_without_weight"][1], "its NaN is gone"


def test_gathered_tensors_keep_shape_and_dtype(results: list[dict[str, Any]]) -> None:
    for found in results:
        for rank, (vector, number) in enumerate(found["gathered"]):
            assert torch.equal(vector, torch.full((2,), float(rank)))
            assert torch.equal(number, torch.tensor(rank))


def test_buffers_of_the_only_rank_stay() -> None:
    model = net()
    before = statistics(model)
    assert nk.sync_buffers(model)
    assert all(torch.equal(before[key], value) for key, value in statistics(model).items())
    with pytest.raises(ValueError, match="weight must be a finite number"):
        nk.sync_buffers(model, weight=float("nan"))


def test_without_torch_distributed_it_is_the_only_rank() -> None:
    mine = torch.arange(6.0).view(3, 2)
    assert not is_distributed()
    ((alone,),) = gather([mine])
    assert torch.equal(alone, mine)
    with pytest.raises(RuntimeError, match=r"torch\.distributed is not initialized"):
        nk.recalibrate(net(), data(), distributed=True)
