"""FSDP2 and DDP over gloo, two processes: our layers end where torch's end."""

from __future__ import annotations

import pytest
import torch

from tests import processes
from tests.ecosystem.ranks import RANKS, State

LIMIT = 240  # seconds for both processes together; alone they take fifteen


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, State]]:
    """What each rank found."""
    return processes.results("tests.ecosystem.ranks", tmp_path_factory.mktemp("ranks"), RANKS, LIMIT)


@pytest.mark.parametrize("name", ["drop-in", "accelerated"])
@pytest.mark.parametrize("way", ["fsdp", "ddp"])
def test_parameters_and_statistics_are_those_of_torchs_layers(
    results: list[dict[str, State]], way: str, name: str
) -> None:
    for found in results:
        mine, theirs = found[f"{way} {name}"], found[f"{way} torch"]
        assert list(mine) == list(theirs)
        for key, value in theirs.items():
            assert mine[key].dtype == value.dtype
            torch.testing.assert_close(mine[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", ["drop-in", "accelerated"])
def test_mixed_precision_keeps_wide_statistics(results: list[dict[str, State]], name: str) -> None:
    """FSDP2 hands the layers bfloat16 weights, which torch's batch norm on the CPU refuses."""
    for found in results:
        half, whole = found[f"bfloat16 {name}"], found[f"fsdp {name}"]
        for key, value in whole.items():
            assert half[key].dtype == value.dtype
            torch.testing.assert_close(half[key], value, rtol=0.1, atol=0.05)  # eight bits, three steps


@pytest.mark.parametrize("name", ["drop-in", "accelerated"])
def test_sharding_changes_no_training(results: list[dict[str, State]], name: str) -> None:
    for found in results:
        torch.testing.assert_close(found[f"fsdp {name}"], found[f"ddp {name}"], rtol=1e-4, atol=1e-5)


def test_synchronised_statistics_are_equal_on_both_ranks_and_both_ways(results: list[dict[str, State]]) -> None:
    one, other = results
    for key, value in one["sync ddp"].items():
        assert torch.equal(value, other["sync ddp"][key]), key
        torch.testing.assert_close(one["sync sharded"][key], value, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one["fsdp torch"]["bn1.running_mean"], one["sync ddp"]["bn1.running_mean"])


def test_recalibrate_of_a_sharded_model_is_that_of_the_whole_one(results: list[dict[str, State]]) -> None:
    for found in results:
        assert not torch.allclose(found["before"]["bn2.running_mean"], found["alone"]["bn2.running_mean"])
        torch.testing.assert_close(found["recalibrated"], found["alone"], rtol=1e-5, atol=1e-6)
