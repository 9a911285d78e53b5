"""Checkpoints: read without running them, judged, compared, mended; the command line around it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import normkit as nk
from normkit import _checkpoint as checkpoint
from normkit.cli import main
from normkit.doctor.examples import images, small_net
from normkit.errors import UsageError

MODULE = """
import torch
from torch import nn
from normkit.doctor.examples import images, small_net

model = small_net()
NUMBER = 3

def sick():
    made = small_net()
    made[4].running_var.mul_(14)
    return made

def linear():
    return nn.Sequential(nn.Linear(2, 2))

def raises():
    raise ArithmeticError("no luck")

def nothing():
    return None

def loader():
    return images()

def wrong():
    return [torch.zeros(2, 5, 8, 8)]

def empty():
    return []

def breaks():
    yield torch.zeros(2, 3, 8, 8)
    raise OSError("disk gone")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "somebodys.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "somebodys", raising=False)
    return tmp_path


def damaged(change: Callable[[Any], object]) -> dict[str, Any]:
    model = small_net()
    change(model)
    return dict(model.state_dict())


def test_a_state_dict_is_judged_by_what_it_shows() -> None:
    negative = damaged(lambda model: model[4].running_var.neg_())
    assert [f.key for f in nk.diagnose(negative).at_least("error")] == ["NK107 4"]
    lost = damaged(lambda model: model[4].reset_running_stats())
    assert [f.key for f in nk.diagnose(lost).at_least("warning")] == ["NK101 4"]
    assert nk.diagnose(small_net().state_dict()).healthy
    new = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    assert nk.diagnose(new.state_dict()).healthy


def test_nan_in_the_averaged_copy_only_is_found_there() -> None:
    content = {
        "epoch": 3,
        "state_dict": small_net().state_dict(),
        "ema": {"module": damaged(lambda model: model[1].running_mean.fill_(float("nan")))},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}},
    }
    assert [f.key for f in nk.diagnose(content).at_least("error")] == ["NK108 ema.module: 1"]


def test_nan_in_a_layer_norm_of_a_file_is_found() -> None:
    state = nn.TransformerEncoderLayer(8, 2, 16).state_dict()
    state["norm2.weight"][0] = float("nan")
    assert [f.key for f in nk.diagnose(state).at_least("error")] == ["NK108 norm2"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_is_read_whole(tmp_path: Path, suffix: str) -> None:
    state = {**small_net().state_dict(), "empty": torch.zeros(0, 3), "half": torch.ones(2, 2, dtype=torch.bfloat16)}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
    found = checkpoint.read(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) and found[key].dtype == state[key].dtype for key in state)


def test_a_file_that_needs_code_is_not_run(tmp_path: Path, here: Path) -> None:
    torch.save(small_net(), tmp_path / "whole.pt")
    with pytest.raises(UsageError, match=r"nothing that is pickled is run here; save the state dict alone"):
        checkpoint.read(tmp_path / "whole.pt")


def broken_files(folder: Path) -> dict[str, Path]:
    torch.save(small_net().state_dict(), folder / "whole.pt")
    whole = (folder / "whole.pt").read_bytes()
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    contents = {
        "half.pt": whole[: len(whole) // 2],
        "empty.pt": b"",
        "text.pt": b"hello, this is no checkpoint",
        "long.safetensors": (1 << 40).to_bytes(8, "little") + b"{}",
        "short.safetensors": len(header).to_bytes(8, "little") + header + b"\0" * 8,
        "list.safetensors": (2).to_bytes(8, "little") + b"[]",
        "odd.safetensors": (14).to_bytes(8, "little") + b'{"a": "tensor"' + b"}",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    torch.save([1, 2], folder / "numbers.pt")
    (folder / "folder.pt").mkdir()
    return {name: folder / name for name in (*contents, "numbers.pt", "folder.pt", "missing.pt")}


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, path in broken_files(tmp_path).items():
        assert main(["doctor", str(path)]) == 2, name
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert name in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no_such_module:factory"], "cannot import no_such_module: ModuleNotFoundError"),
        (["somebodys"], "expected package.module:factory, or a checkpoint"),
        (["somebodys:nobody"], "somebodys has no nobody"),
        (["somebodys:raises"], "somebodys:raises raised ArithmeticError: no luck"),
        (["somebodys:nothing"], "returned a NoneType, expected a model"),
        (["somebodys:NUMBER"], "is a int, expected a function that returns a model"),
        (["somebodys:sick", "--data", "somebodys:empty"], "expected at least one batch, got none"),
        (["somebodys:sick", "--data", "somebodys:NUMBER"], "gave a int, expected batches"),
        (["somebodys:sick", "--data", "somebodys:breaks"], "somebodys:breaks raised OSError: disk gone"),
        (["somebodys:sick", "--select", "NK9"], "no rule is called 'NK9'"),
        (["somebodys:sick", "--ignore", "NK103"], "--ignore needs a reason"),
        (["somebodys:sick", "--json", "no/such/folder.json/"], ""),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not said:
        (here / "no").touch()  # a file where a folder is needed
    assert main(["doctor", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_exit_codes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "somebodys:loader"]
    assert main(["doctor", "somebodys:model", *data]) == 0
    assert "healthy" in capsys.readouterr().out
    assert main(["doctor", "somebodys:model", *data, "--fail-on", "note"]) == 1
    assert main(["doctor", "somebodys:sick", *data]) == 1
    assert "NK103  4" in capsys.readouterr().out
    assert main(["doctor", "somebodys:sick", *data, "--ignore", "NK103=known"]) == 0
    assert main(["doctor", "somebodys:sick", *data, "--select", "NK2,NK3"]) == 0
    assert main(["doctor", "somebodys:sick", "--data", "somebodys:wrong"]) == 1
    assert "NK001" in capsys.readouterr().out
    assert main(["doctor", "somebodys:linear"]) == 0
    assert capsys.readouterr().out.startswith("Sequential has no normalization layers")


def test_the_files_that_are_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json", "r.json", "--sarif", "r.sarif", "--fix", "healed.pt"]
    assert main(["doctor", "somebodys:sick", "--data", "somebodys:loader", *options]) == 1
    assert "1 mended, 0 left above a note" in capsys.readouterr().out
    assert json.loads((here / "r.json").read_text())["findings"][0]["code"] == "NK103"
    run = json.loads((here / "r.sarif").read_text())["runs"][0]
    result = run["results"][0]
    assert result["level"] == "error"
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == "NK103"
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "somebodys.py"
    assert result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "4"
    model = small_net()
    model.load_state_dict(torch.load(here / "healed.pt", weights_only=True))
    assert nk.diagnose(model, images()).healthy


def test_a_file_is_mended_as_far_as_a_state_allows_and_never_in_place(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = damaged(lambda model: model[1].running_var.neg_())
    state["4.num_batches_tracked"] = torch.tensor(36.7)
    torch.save({"model": state, "epoch": 3}, here / "in.pt")
    before = (here / "in.pt").read_bytes()
    assert main(["doctor", "in.pt", "--fix", "out.pt"]) == 1
    shown = capsys.readouterr().out
    assert "the counter made an integer" in shown
    assert "needs the model and batches: nk.recalibrate" in shown
    healed = torch.load(here / "out.pt", weights_only=True)
    assert healed["epoch"] == 3
    assert healed["model"]["4.num_batches_tracked"].dtype == torch.int64
    assert main(["doctor", "in.pt", "--fix", "in.pt"]) == 2
    assert "never the input" in capsys.readouterr().err
    assert (here / "in.pt").read_bytes() == before


def test_without_a_target_there_is_a_patient(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "error NK104  layer2.bn" in shown
    assert "error NK101  layer3.bn" in shown
    assert "2 errors, " in shown


def test_rules_and_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules"]) == 0
    assert "NK103  The running statistics are far from the data's." in capsys.readouterr().out
    assert main(["explain", "nk103"]) == 0
    assert "Why: " in capsys.readouterr().out
    assert main(["explain", "NK999"]) == 2
    assert "no rule is called 'NK999'" in capsys.readouterr().err


def test_compare_says_what_moved(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = small_net(), small_net()
    after[4].eps = 1e-3
    with torch.no_grad():
        after[4].running_mean.add_((after[4].running_var + 1e-5).sqrt())  # by one unit in each channel
        after[4].weight.add_(0.5)
    found = nk.compare(before, after)
    assert [norm.what for norm in found] == ["same", "changed"]
    assert found["4"].statistics == pytest.approx(1, rel=1e-3)
    assert found["4"].gamma == pytest.approx(0.5, rel=1e-3)
    assert found["4"].beta == 0
    assert found["4"].settings == ("eps 1e-05 -> 0.001",)
    assert nk.compare(before, small_net()).same
    assert json.loads(found.to_json())["norms"][1]["what"] == "changed"
    torch.save(before.state_dict(), here / "a.pt")
    torch.save({key: value for key, value in after.state_dict().items() if not key.startswith("1.")}, here / "b.pt")
    assert main(["compare", "a.pt", "b.pt"]) == 0
    shown = capsys.readouterr().out
    assert "1 removed, 1 changed" in shown
    with pytest.raises(TypeError, match="expected a model"):
        nk.compare(before, 3)  # type: ignore[arg-type]  # on purpose


def test_a_new_net_whose_branches_begin_at_zero_is_healthy(tmp_path: Path) -> None:
    """As torchvision's and timm's zero_init_residual and zero_init_last make them: gamma 0, beta 0."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    nn.init.zeros_(model[4].weight)
    torch.save(model.state_dict(), tmp_path / "new.pt")
    assert main(["doctor", str(tmp_path / "new.pt"), "--fail-on", "warning"]) == 0
    assert nk.diagnose(model).at_least("warning") == ()


def test_the_hook_for_committed_checkpoints_works_as_written(tmp_path: Path) -> None:
    """The YAML of docs/doctor.md, its command run as pre-commit runs it: with the files' names behind it."""
    yaml = pytest.importorskip("yaml")
    blocks = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8").split("```yaml\n")[1:]
    (hook,) = yaml.safe_load(blocks[1].split("```")[0])[0]["hooks"]
    sick = small_net()
    sick[4].running_var[0] = float("nan")
    for name, model in (("good net.pt", small_net()), ("bad.pt", sick)):
        torch.save(model.state_dict(), tmp_path / name)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))

    def ran(*names: str) -> subprocess.CompletedProcess[str]:
        command = [*shlex.split(hook["entry"]), *names]
        return subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True)

    assert ran("good net.pt").returncode == 0
    both = ran("bad.pt", "good net.pt")
    assert both.returncode == 1
    assert "NK108" in both.stdout
    assert both.stdout.count("2 norms") == 2


@pytest.mark.parametrize("command", ["doctor", "compare"])
def test_a_file_without_values_is_not_called_healthy(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hollow, whole = tmp_path / "hollow.pt", tmp_path / "whole.pt"
    torch.save(nn.BatchNorm2d(3, device="meta").state_dict(), hollow)
    torch.save(nn.BatchNorm2d(3).state_dict(), whole)
    assert main(["doctor", str(hollow)] if command == "doctor" else ["compare", str(whole), str(hollow)]) == 2
    assert capsys.readouterr().err.startswith(
        "normkit: the state dict is on the meta device and has no values: save it"
    )
