"""A sharded model with synchronised norms, saved by four ranks, goes on as it was on two, and on one process."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as saved
from torch import Tensor, nn
from torch.distributed import fsdp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh

import normkit as nk
from tests import processes
from tests.cases import EPS, MOMENTUM
from tests.parallel.world import SAMPLES, State, batches, net
from tests.tolerances import assert_equal64

LIMIT = 300.0  # seconds that a rank waits for the others; six starts take half a minute of a core

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="gloo's file store is for POSIX here"),
    processes.needs_fsdp2,
]


def sharded(ranks: int, dtype: torch.dtype = torch.float64, **options: object) -> nn.Module:
    """Each layer with parameters is a unit, then the rest."""
    model, mesh = net(nk.SyncBatchNorm(4, EPS, MOMENTUM)).to(dtype), init_device_mesh("cpu", (ranks,))
    for layer in model:
        if list(layer.parameters()):
            fsdp.fully_shard(layer, mesh=mesh, **options)
    return fsdp.fully_shard(model, mesh=mesh, **options)


def trained(model: nn.Module, rank: int, ranks: int, steps: slice, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Steps of the loss on this rank's share of each batch; FSDP averages the gradients."""
    stepping = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in list(batches(4))[steps]:
        stepping.zero_grad()
        y = model(batch.chunk(ranks)[rank].to(dtype))
        (y.double().square().sum() * ranks / SAMPLES).backward()
        stepping.step()
    return model


def whole(model: nn.Module) -> State:
    """The state with every parameter gathered."""
    return {
        name: value.clone()
        for name, value in get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)).items()
    }


def save(folder: Path, rank: int, ranks: int) -> dict[str, State]:
    """Two steps on four ranks, saved; and the same in bfloat16, by mixed precision of float32 parameters."""
    model = trained(sharded(ranks), rank, ranks, slice(0, 2))
    saved.save({"model": get_model_state_dict(model)}, checkpoint_id=folder / "saved")
    half = fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mixed = trained(sharded(ranks, torch.float32, mp_policy=half), rank, ranks, slice(0, 2), torch.float32)
    return {"saved": whole(model), "mixed": whole(mixed), "buffers": {k: v.clone() for k, v in mixed.named_buffers()}}


def load(folder: Path, rank: int, ranks: int) -> dict[str, State]:
    """On two ranks: what was saved, and what two more steps make of it."""
    model = sharded(ranks)
    values = {"model": get_model_state_dict(model)}
    saved.load(values, checkpoint_id=folder / "saved")
    set_model_state_dict(model, values["model"])
    loaded = whole(model)
    return {"loaded": loaded, "later": whole(trained(model, rank, ranks, slice(2, 4)))}


def work(folder: Path, rank: int, ranks: int) -> None:
    warnings.simplefilter("ignore")  # torch's about gloo and the CPU
    torch.set_num_threads(1)
    processes.join(folder / str(ranks), rank, ranks, LIMIT)
    found = (save if ranks == 4 else load)(folder, rank, ranks)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def alone(steps: slice) -> State:
    return {k: v.clone() for k, v in trained(net(nn.BatchNorm1d(4, EPS, MOMENTUM)), 0, 1, steps).state_dict().items()}


Results = tuple[list[dict[str, State]], list[dict[str, State]], dict[str, Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What four ranks saved, what two made of it, and what one process reads."""
    folder, found = tmp_path_factory.mktemp("ranks"), []
    for ranks in (4, 2):
        (folder / str(ranks)).mkdir()
        found.append(processes.results("tests.parallel.test_checkpoint", folder, ranks, LIMIT))
    values = {"model": net(nk.SyncBatchNorm(4)).state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it does what was asked for
        saved.load(values, checkpoint_id=folder / "saved", no_dist=True)
    return found[0], found[1], values["model"]


def equal(state: State, expected: State) -> None:
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert_equal64(state[key].double(), value.double(), key, factor=1e6)


def test_four_ranks_save_what_two_and_one_load(results: Results) -> None:
    four, two, one = results
    equal(four[0]["saved"], alone(slice(0, 2)))
    for found in (*(part["saved"] for part in four), *(part["loaded"] for part in two), one):
        assert found.keys() == four[0]["saved"].keys()
        assert all(torch.equal(found[key], value) for key, value in four[0]["saved"].items())


def test_two_ranks_go_on_as_one_process_would(results: Results) -> None:
    for found in results[1]:
        equal(found["later"], alone(slice(0, 4)))


def test_mixed_precision_leaves_parameters_and_statistics_in_float32(results: Results) -> None:
    four, expected = results[0], alone(slice(0, 2))
    for found in four:
        for key, value in found["mixed"].items():
            assert value.dtype == (torch.long if key.endswith("tracked") else torch.float32)
            torch.testing.assert_close(value.double(), expected[key].double(), rtol=0.1, atol=0.05)  # eight bits
        for key, value in found["buffers"].items():
            assert torch.equal(value, four[0]["buffers"][key]), "the same on every rank"


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
