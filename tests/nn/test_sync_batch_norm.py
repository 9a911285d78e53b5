"""Synchronised batch norm: on one process it is batch norm; on two, the batch norm of both batches together."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import normkit as nk
from tests.cases import EPS, MOMENTUM
from tests.nn import ranks
from tests.tolerances import assert_equal64, assert_same


def test_one_process_without_a_group_is_batch_norm_on_the_cpu() -> None:
    sync, batch = nk.SyncBatchNorm(3, EPS, MOMENTUM), nk.BatchNorm2d(3, EPS, MOMENTUM)
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5)
        assert_same(sync(x).detach(), batch(x).detach())
    for name, value in sync.state_dict().items():
        assert_same(value.double(), batch.state_dict()[name].double(), name)
    assert_same(sync.eval()(x).detach(), batch.eval()(x).detach())


def test_one_process_with_a_group_is_batch_norm_where_torchs_raises(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        x = torch.randn(4, 3, 5)
        assert_same(nk.SyncBatchNorm(3, EPS)(x).detach(), nk.BatchNorm1d(3, EPS)(x).detach())
        with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on GPU"):
            nn.SyncBatchNorm(3)(x)  # why ours exists
    finally:
        dist.destroy_process_group()


def test_arguments_state_and_errors_are_torchs() -> None:
    ours, theirs = nk.SyncBatchNorm(3, 1e-3, 0.2, True, True, None), nn.SyncBatchNorm(3, 1e-3, 0.2, True, True, None)
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert isinstance(ours, nn.modules.batchnorm._BatchNorm)
    assert not isinstance(ours, nn.SyncBatchNorm)  # DistributedDataParallel refuses that class on the CPU
    assert pickle.loads(pickle.dumps(ours)).process_group is None
    for x in (torch.ones(3), torch.ones(2, 0)):
        with pytest.raises(ValueError) as raised:
            theirs(x)
        with pytest.raises(ValueError, match=str(raised.value).replace("(", r"\(").replace(")", r"\)")):
            ours(x)


def test_all_ranks_of_inputs_pass() -> None:
    layer = nk.SyncBatchNorm(3)
    for shape in ((4, 3), (4, 3, 5), (4, 3, 2, 2), (4, 3, 2, 2, 2)):
        assert layer(torch.randn(shape)).shape == shape


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """What two processes computed over gloo, all cases in one start; see ranks.py."""
    if sys.platform == "win32":
        pytest.skip("gloo's file store is for POSIX here")
    return ranks.run(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", ranks.CASES)
def test_two_ranks_equal_one_process_with_both_batches(case: str, two_ranks: list[dict[str, torch.Tensor]]) -> None:
    """Outputs, input gradients and state; parameter gradients add up to the one process's."""
    alone = ranks.one_process(case)
    for name in ("y", "dx"):
        together = torch.cat([rank[f"{case}.{name}"] for rank in two_ranks])
        assert_equal64(together, alone[name], name)
    for name in ("dweight", "dbias"):
        assert_equal64(two_ranks[0][f"{case}.{name}"] + two_ranks[1][f"{case}.{name}"], alone[name], name)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        for rank in two_ranks:
            assert_equal64(rank[f"{case}.{name}"].double(), alone[name].double(), name)
        assert_same(two_ranks[0][f"{case}.{name}"].double(), two_ranks[1][f"{case}.{name}"].double(), name)


@pytest.mark.parametrize("case", ranks.FUSED)
def test_two_ranks_equal_one_process_with_residual_and_activation(
    case: str, two_ranks: list[dict[str, torch.Tensor]]
) -> None:
    """Against batch norm on the same values in float64; the bounds are those of the dtype."""
    options = ranks.FUSED[case]
    alone = ranks.fused_step(nk.BatchNorm2d, options, None)
    unit = torch.finfo(options.dtype).eps
    for name, value in alone.items():
        parts = [rank[f"{case}.{name}"].double() for rank in two_ranks]
        together = parts[0] + parts[1] if name in ("dweight", "dbias") else torch.cat(parts)
        # two results, each within a few roundings of what its sums are made of; softsign squeezes values of 8 below 1
        bound = 16 * unit * value.double().abs().max().clamp(min=8.0)
        assert (together - value.double()).abs().max() <= bound, name


@pytest.mark.parametrize("case", ranks.COMPILED)
def test_a_compiled_layer_is_one_graph_with_a_collective_each_way(
    case: str, two_ranks: list[dict[str, torch.Tensor]]
) -> None:
    """torch's own layer breaks the graph at its collectives. The partitioner of torch 2.8 and older runs the forward's
    again in the backward."""
    backward = 1 if torch.__version__ >= (2, 10) else 2  # type: ignore[operator]
    for rank in two_ranks:
        assert rank[f"compiled.{case}.counts"].tolist() == [1, 1, backward], "graphs, collectives forward and backward"
        for name in ("y", "dx", "dweight", "dbias", "running_mean", "running_var", "num_batches_tracked"):
            assert_equal64(rank[f"compiled.{case}.{name}"].double(), rank[f"{case}.{name}"].double(), name)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("channels", "with 3 channels of float32, rank 1 at call {}, with 4 channels of float32"),
        ("dtype", "with 3 channels of float32, rank 1 at call {}, with 3 channels of float64"),
        ("later", "with 3 channels of float32, rank 1 at call {}, with 5 channels of float32"),
    ],
)
def test_ranks_that_disagree_are_named_on_every_rank_before_the_payload_travels(
    case: str, said: str, two_ranks: list[dict[str, torch.Tensor]]
) -> None:
    for rank in two_ranks:
        text = bytes(rank[f"disagree.{case}"].tolist()).decode()
        call = re.search(r"rank 0 is at call (\d+)", text)
        assert call is not None, text
        assert said.format(call[1]) in text
        assert rank["agree.after"].isfinite().all(), "the group goes on"


def test_recomputed_outputs_take_no_second_collective(two_ranks: list[dict[str, torch.Tensor]]) -> None:
    for rank in two_ranks:
        for name in ("y", "dx", "dr", "dweight", "dbias"):
            assert torch.equal(rank[f"recomputed.{name}"], rank[f"channels_last.{name}"]), name


@pytest.mark.parametrize("case", ["uneven", "one_empty"])
def test_a_second_derivative_crosses_the_ranks(case: str, two_ranks: list[dict[str, torch.Tensor]]) -> None:
    together = torch.cat([rank[f"{case}.second"] for rank in two_ranks])
    assert_equal64(together, ranks.second_derivative(nk.BatchNorm1d(3, EPS).double(), ranks.batch(case)[0]), factor=1e6)


def test_data_parallel_training_on_the_cpu_equals_one_process(two_ranks: list[dict[str, torch.Tensor]]) -> None:
    expected = ranks.data_parallel_alone()
    for rank in two_ranks:
        for name, value in expected.items():
            assert_equal64(rank[f"ddp.{name}"].double(), value.double(), name, factor=1e6)


def test_one_value_in_all_ranks_together_is_refused_and_one_in_each_is_not(
    two_ranks: list[dict[str, torch.Tensor]],
) -> None:
    for rank in two_ranks:
        assert rank["one_each"].isfinite().all()
        assert rank["one_in_all_raised"].item() == 1
