"""FSDP2 and DDP over gloo, two processes: our layers end where torch's end."""

from __future__ import annotations

import pytest
import torch

from tests import processes
from tests.ecosystem.ranks import RANKS, State
from tests.processes import needs_fsdp2

LIMIT = 240  # seconds for both processes together; alone they take fifteen


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, State]]:
    """What each rank found."""
    return processes.results("tests.ecosystem.ranks", tmp_path_factory.mktemp("ranks"), RANKS, LIMIT)


@pytest.mark.parametrize("name", ["drop-in", "accelerated"])
@pytest.mark.parametrize("way", [pytest.param("fsdp", marks=needs_fsdp2), "ddp"])
def test_parameters_and_statistics_are_those_of_torchs_layers(
    results: list[dict[str, State]], way: str, name: str
) -> None:
    for found in results:
        mine, theirs = found[f"{way} {name}"], found[f"{way} torch"]
        assert list(mine) == list(theirs)
        for key, value in theirs.items():
            assert mine[key].dtype == value.dtype
            torch.testing.assert_close(mine[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


@needs_fsdp2
@pytest.mark.parametrize("name", ["drop-in", "accelerated"])
def test_mixed_precision_keeps_wide_statistics(results: list[dict[str, State]], name: str) -> None:
    """FSDP2 hands the layers bfloat16 weights, which torch's batch norm on the CPU refuses."""
    for found in results:
        half, whole = found[f"bfloat16 {name}"], found[f"fsdp {name}"]
        for key, value in whole.items():
            assert half[key].dtype == value.dtype
            torch.testing.assert_close(half[key], value, rtol=0.1, atol=0.05)  # eight bits, three steps


@needs_fsdp2
@pytest.mark.parametrize("name", ["drop-in", "accelerated"])
def test_sharding_changes_no_training(results: list[dict[str, State]], name: str) -> None:
    for found in results:
        torch.testing.assert_close(found[f"fsdp {name}"], found[f"ddp {name}"], rtol=1e-4, atol=1e-5)


def test_synchronised_statistics_are_equal_on_both_ranks(results: list[dict[str, State]]) -> None:
    one, other = results
    for key, value in one["ddp sync"].items():
        assert torch.equal(value, other["ddp sync"][key]), key
    assert not torch.allclose(one["ddp torch"]["bn1.running_mean"], one["ddp sync"]["bn1.running_mean"])


@needs_fsdp2
def test_synchronised_statistics_are_those_of_ddp(results: list[dict[str, State]]) -> None:
    one, _ = results
    for key, value in one["ddp sync"].items():
        torch.testing.assert_close(one["fsdp sync"][key], value, rtol=1e-4, atol=1e-5)


@needs_fsdp2
def test_recalibrate_of_a_sharded_model_is_that_of_the_whole_one(results: list[dict[str, State]]) -> None:
    for found in results:
        assert not torch.allclose(found["before"]["bn2.running_mean"], found["alone"]["bn2.running_mean"])
        torch.testing.assert_close(found["recalibrated"], found["alone"], rtol=1e-5, atol=1e-6)
